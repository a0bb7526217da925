package devconsul

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
)

const (
	defaultQueryTime = 300 * time.Second
	maxQueryTime     = 600 * time.Second
	// jitterFraction: up to a sixteenth of the wait is added to it, so that queries
	// which began together do not end together.
	jitterFraction = 16
)

var errShutdown = errors.New("server is shutting down")

// query is what a reader asks for beside its subject.
type query struct {
	minIndex    uint64
	wait        time.Duration
	consistency string
}

func parseQuery(r *http.Request) (query, error) {
	var q query
	var err error
	p := r.URL.Query()
	_, stale := p["stale"]
	_, consistent := p["consistent"]
	if v := p.Get("max_stale"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return q, badRequest("Invalid max_stale value %q", v)
		}
		stale = stale || d > 0
	}
	switch {
	case stale && consistent:
		return q, badRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")
	case stale:
		q.consistency = "stale"
	case consistent:
		q.consistency = "consistent"
	default:
		q.consistency = "leader"
	}
	if v := p.Get("wait"); v != "" {
		if q.wait, err = time.ParseDuration(v); err != nil {
			return q, badRequest("Invalid wait time")
		}
	}
	if v := p.Get("index"); v != "" {
		if q.minIndex, err = strconv.ParseUint(v, 10, 64); err != nil {
			return q, badRequest("Invalid index")
		}
	}
	return q, nil
}

func (q query) timeout(spread func(time.Duration) time.Duration) time.Duration {
	d := q.wait
	switch {
	case d > maxQueryTime:
		d = maxQueryTime
	case d <= 0:
		d = defaultQueryTime
	}
	if j := d / jitterFraction; j > 0 {
		d += spread(j)
	}
	return d
}

// errNotFound is returned by a read that found nothing. It lets the query go on
// blocking through changes that still leave nothing to find.
var errNotFound = errors.New("not found")

// serve runs read, at once or, with an index in the request, until its index is
// above that one, and sets the answer's headers. read adds to the watch set what
// can change its answer. It returns the read's own result through its closure.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, read func(memdb.WatchSet) (uint64, error)) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	idx, err := s.block(r.Context(), q, read)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("X-Consul-Index", strconv.FormatUint(idx, 10))
	h.Set("X-Consul-KnownLeader", "true")
	h.Set("X-Consul-LastContact", "0")
	if strings.HasPrefix(r.URL.Path, "/v1/catalog/") || strings.HasPrefix(r.URL.Path, "/v1/health/") {
		h.Set("X-Consul-Effective-Consistency", q.consistency)
	}
	h.Set("X-Consul-Query-Backend", "blocking-query")
	return nil
}

func (s *Server) block(ctx context.Context, q query, read func(memdb.WatchSet) (uint64, error)) (uint64, error) {
	if q.minIndex == 0 {
		idx, err := read(nil)
		if errors.Is(err, errNotFound) {
			err = nil
		}
		return max(idx, 1), err
	}
	ctx, cancel := context.WithTimeout(ctx, q.timeout(s.cfg.Spread))
	defer cancel()

	foundNothing := false
	for {
		ws := memdb.NewWatchSet()
		ws.Add(s.closing)
		abandoned := s.store.Abandoned()
		ws.Add(abandoned)
		idx, err := read(ws)
		idx = max(idx, 1) // an answer with index 0 would make clients spin
		switch {
		case errors.Is(err, errNotFound):
			if foundNothing {
				q.minIndex = idx
			}
			foundNothing = true
		case err != nil:
			return 0, err
		}
		if idx > q.minIndex {
			return idx, nil
		}
		timeout := ws.WatchCtx(ctx) != nil
		select {
		case <-s.closing:
			return 0, errShutdown
		case <-abandoned:
			// The state was replaced: Consul answers with what stood before it.
			return idx, nil
		default:
		}
		if timeout {
			return idx, nil
		}
	}
}
