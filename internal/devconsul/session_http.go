package devconsul

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

func sessionTimer(id string) string { return "session " + id }

// sessionRequest is a session as it comes: lock-delay as a duration or a number.
type sessionRequest struct {
	Name          string
	Node          string
	LockDelay     any
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []state.ServiceCheck
	Checks        []string
}

const defaultLockDelay = 15 * time.Second

// lockDelay reads what clients send: "15s", nanoseconds, or, if below 1000, seconds.
func lockDelay(v any) (time.Duration, error) {
	d := defaultLockDelay
	switch v := v.(type) {
	case string:
		var err error
		if d, err = time.ParseDuration(v); err != nil {
			return 0, err
		}
	case float64:
		d = time.Duration(v)
	}
	if d < 1000 {
		return time.Second * time.Duration(d.Nanoseconds()), nil
	}
	return d, nil
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: the runtime aborts instead
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (s *Server) sessionCreate(_ http.ResponseWriter, r *http.Request) (any, error) {
	req := sessionRequest{
		Node:       s.cfg.NodeName,
		NodeChecks: []string{state.SerfHealth},
		Checks:     []string{state.SerfHealth},
	}
	if r.ContentLength > 0 {
		// Unknown fields pass here, unlike elsewhere: so they do in Consul.
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			return nil, badRequest("Request decode failed: %v", err)
		}
	}
	delay, err := lockDelay(req.LockDelay)
	if err != nil {
		return nil, badRequest("Request decode failed: %v", err)
	}
	// Checks is the older field: empty, it takes the default away; given, it
	// counts only if NodeChecks was given too, or left at its default.
	switch {
	case len(req.Checks) == 0:
		req.NodeChecks = []string{}
	case len(req.Checks) == 1 && req.Checks[0] == state.SerfHealth, len(req.NodeChecks) == 0:
		req.Checks = nil
	}
	if req.Node == "" {
		return nil, fmt.Errorf("Must provide Node")
	}
	switch req.Behavior {
	case "":
		req.Behavior = state.BehaviorRelease
	case state.BehaviorRelease, state.BehaviorDelete:
	default:
		return nil, fmt.Errorf("Invalid Behavior setting '%s'", req.Behavior)
	}
	ttl, err := s.sessionTTL(req.TTL)
	if err != nil {
		return nil, err
	}
	sess := &state.Session{
		ID: s.cfg.UUID(), Name: req.Name, Node: req.Node, LockDelay: delay, Behavior: req.Behavior, TTL: req.TTL,
		NodeChecks: req.NodeChecks, ServiceChecks: req.ServiceChecks, Checks: req.Checks,
	}
	if err := s.store.SessionCreate(sess); err != nil {
		return nil, fmt.Errorf("apply failed: %w", err)
	}
	s.armSession(sess.ID, ttl)
	return struct{ ID string }{sess.ID}, nil
}

func (s *Server) sessionTTL(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	ttl, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("Session TTL '%s' invalid: %w", text, err)
	}
	if ttl != 0 && (ttl < s.cfg.SessionTTLMin || ttl > sessionTTLMax) {
		return 0, fmt.Errorf("Invalid Session TTL '%d', must be between [%v=%v]", ttl, s.cfg.SessionTTLMin, sessionTTLMax)
	}
	return ttl, nil
}

// armSession starts the time of a session anew.
func (s *Server) armSession(id string, ttl time.Duration) {
	if ttl == 0 {
		return
	}
	s.timers.Set(sessionTimer(id), time.Duration(float64(ttl)*s.cfg.SessionTTLFactor), func() {
		s.cfg.Log.Debug("session TTL expired", "session", id)
		if err := s.store.SessionDestroy(id); err != nil {
			s.cfg.Log.Error("session not ended", "session", id, "error", err)
		}
	})
}

func (s *Server) sessionDestroy(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := tail(r, "/v1/session/destroy/", "Missing session")
	if err != nil {
		return nil, err
	}
	if err := s.store.SessionDestroy(id); err != nil {
		return nil, fmt.Errorf("apply failed: %w", err)
	}
	return true, nil
}

func (s *Server) sessionRenew(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := tail(r, "/v1/session/renew/", "Missing session")
	if err != nil {
		return nil, err
	}
	_, sess, err := s.store.SessionGet(nil, id)
	if err != nil {
		return nil, err
	}
	if sess == nil {
		return nil, httpError{http.StatusNotFound, fmt.Sprintf("Session id '%s' not found", id)}
	}
	ttl, err := s.sessionTTL(sess.TTL)
	if err != nil {
		return nil, err
	}
	s.armSession(sess.ID, ttl)
	return []*state.Session{sess}, nil
}

func (s *Server) sessionInfo(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := tail(r, "/v1/session/info/", "Missing session")
	if err != nil {
		return nil, err
	}
	var out []*state.Session
	err = s.serve(w, r, func(ws memdb.WatchSet) (uint64, error) {
		idx, sess, err := s.store.SessionGet(ws, id)
		out = nil
		if err == nil && sess == nil {
			return idx, errNotFound
		}
		out = append(out, sess)
		return idx, err
	})
	return orEmpty(out), err
}

func (s *Server) sessionList(w http.ResponseWriter, r *http.Request) (any, error) {
	var out []*state.Session
	err := s.serve(w, r, func(ws memdb.WatchSet) (idx uint64, err error) {
		idx, out, err = s.store.SessionList(ws)
		return idx, err
	})
	return orEmpty(out), err
}

func (s *Server) sessionsOfNode(w http.ResponseWriter, r *http.Request) (any, error) {
	node, err := tail(r, "/v1/session/node/", "Missing node name")
	if err != nil {
		return nil, err
	}
	var out []*state.Session
	err = s.serve(w, r, func(ws memdb.WatchSet) (idx uint64, err error) {
		idx, out, err = s.store.SessionsOfNode(ws, node)
		return idx, err
	})
	return orEmpty(out), err
}
