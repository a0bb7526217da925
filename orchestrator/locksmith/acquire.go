package locksmith

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// NewNonce returns what tells one acquisition from every other.
func NewNonce() string { return rand.Text() }

// attempt is one acquisition of the locks of a request under one session.
type attempt struct {
	c    *Client
	req  *Request
	sess *session
	recs map[string]records.Holder
}

// begin makes a fresh session and the holder records that go with it.
func (c *Client) begin(ctx context.Context, req *Request) (*attempt, error) {
	nonce := req.Nonce
	if nonce == "" {
		nonce = NewNonce()
	}
	lockDelay := req.Quiesce
	name := "aimlock " + req.Operation + " " + strings.Join(req.Names, " ")
	sess, err := c.openSession(ctx, NewNonce(), req.TTL, lockDelay, name)
	if err != nil {
		return nil, err
	}
	a := &attempt{c: c, req: req, sess: sess, recs: map[string]records.Holder{}}
	sess.node = c.localNode(ctx)
	now, boot := time.Now().UTC(), hostproc.BootSeconds()
	for _, n := range req.Names {
		a.recs[n] = records.Holder{
			Version: records.Version, Lock: n, Locks: req.Names, Nonce: nonce, Session: sess.id, Tool: "aimlock",
			Operation: req.Operation, RolloutID: req.RolloutID, AllocID: req.AllocID,
			Host: c.self.Host, Node: sess.node, PID: c.self.PID, StartTicks: c.self.StartTicks, StartedAt: c.self.StartedAt.UTC(),
			BootID: c.self.BootID, PIDNS: c.self.PIDNS, CGroup: c.self.CGroup, User: c.self.User,
			Processes: req.Processes, AcquiredAt: now, AcquiredBoot: boot,
			Quiesce: req.Quiesce.Seconds(), TTL: req.TTL.Seconds(), Check: sess.service,
		}
	}
	return a, nil
}

// owed is the fence record that the end of the last hold of a free lock makes
// necessary, and how the proof went that nothing is owed. nil: nothing is.
func (c *Client) owed(s *evidence.Snapshot) (*records.Fence, string) {
	f := s.Fence
	h := s.Holder
	if s.Held() || h == nil || h.Released || h.Quiesce <= 0 {
		if f != nil && f.Owed > 0 {
			return f, ""
		}
		return nil, ""
	}
	dead, why := c.reader.ProvedDead(h, nil)
	owed := h.Quiesce
	if dead {
		owed = 0
	}
	if f != nil && f.Owed > owed {
		owed = f.Owed
	}
	if owed <= 0 {
		return nil, why
	}
	return &records.Fence{
		Version: records.Version, UnsafeSince: time.Now().UTC(), Owed: owed,
		Why:     "the last holder did not release the lock",
		Session: h.Session, Token: s.Index(),
	}, why
}

// usable refuses a lock key that somebody uses for something else: taking it
// would overwrite what stands there.
func usable(s *evidence.Snapshot) error {
	if s.FenceErr != nil {
		return fmt.Errorf("lock %s: %w", s.Name, s.FenceErr)
	}
	if s.Pair == nil || len(s.Pair.Value) == 0 || s.Holder != nil || s.Held() {
		return nil
	}
	return fmt.Errorf("lock %s: %w: the key %s holds %d bytes of something else; choose another name or delete the key", s.Name, ErrPlainKey, s.Key, len(s.Pair.Value))
}

// take acquires all locks of the request in one transaction. snaps are what
// was just read of them, and the transaction fails if anything of it changed.
// ended are locks among them whose hold this transaction ends (a break).
func (a *attempt) take(ctx context.Context, snaps map[string]*evidence.Snapshot, ended map[string]*ending) (*Hold, time.Duration, error) {
	c := a.c
	if err := a.sess.dead(); err != nil {
		return nil, 0, err
	}
	var ops []consulkv.Op
	for _, n := range a.req.Names {
		s := snaps[n]
		if e := ended[n]; e != nil {
			ops = append(ops, e.guards...)
			continue
		}
		if s.SessionID() == a.sess.id {
			return nil, 0, fmt.Errorf("lock %s: %w", n, ErrAlreadyHeld)
		}
		if err := usable(s); err != nil {
			return nil, 0, err
		}
		ops = append(ops, consulkv.CheckIndex(s.Key, s.Index()), consulkv.CheckIndex(c.keys.Fence(n), s.Deps[c.keys.Fence(n)]))
	}
	ops = append(ops, consulkv.GetOrEmpty(c.keys.Epoch()))
	var owe time.Duration
	for _, n := range a.req.Names {
		s := snaps[n]
		rec := a.recs[n]
		fence := (*records.Fence)(nil)
		if e := ended[n]; e != nil {
			ops = append(ops, e.end...)
			fence = e.fence
		} else {
			fence, _ = c.owed(s)
		}
		ops = append(ops, consulkv.Lock(s.Key, records.Encode(&rec), a.sess.id))
		if fence != nil {
			ops = append(ops, consulkv.Set(c.keys.Fence(n), records.Encode(fence)))
			owe = max(owe, seconds(fence.Owed))
		}
		ops = append(ops, consulkv.Delete(c.keys.Request(n)), consulkv.Delete(c.keys.Approval(n)))
		if e := ended[n]; e != nil {
			ops = append(ops, e.outcome...)
		}
	}
	res, err := c.consul.Txn(ctx, ops...)
	if err != nil {
		if !consulkv.Ambiguous(err) {
			return nil, 0, err
		}
		return a.resolve(ctx, owe, err)
	}
	p := res.Find(snaps[a.req.Names[0]].Key)
	epoch, err := parseEpoch(res.Find(c.keys.Epoch()).Value, c.keys.Epoch())
	if err != nil {
		h := c.newHold(ctx, a.sess, a.recs, a.req.Names, p.ModifyIndex, 0)
		return nil, 0, errors.Join(err, h.Release(ctx))
	}
	return c.newHold(ctx, a.sess, a.recs, a.req.Names, p.ModifyIndex, epoch), owe, nil
}

// errNotOurs: an ambiguous acquisition turned out not to stand.
var errNotOurs = errors.New("the acquisition did not stand")

// resolve finds out whether an acquisition whose answer was lost stands: the
// session and the nonce of the record are ours, or they are not. It reads for
// as long as the lease lasts; the lock is never taken blindly again.
func (a *attempt) resolve(ctx context.Context, owe time.Duration, cause error) (*Hold, time.Duration, error) {
	c, key := a.c, a.c.keys.Lock(a.req.Names[0])
	c.log.Warn("the answer to an acquisition was lost; reading whether it stands", "lock", a.req.Names[0], "error", cause)
	for {
		if err := a.sess.dead(); err != nil {
			return nil, 0, fmt.Errorf("%w; and then: %w", cause, err)
		}
		p, err := c.consul.Get(ctx, key)
		if err != nil {
			if serr := sleep(ctx, 200*time.Millisecond); serr != nil {
				return nil, 0, serr
			}
			continue
		}
		if p == nil || p.Session != a.sess.id {
			return nil, 0, errNotOurs
		}
		var rec records.Holder
		if err := records.Decode(key, p.Value, &rec); err != nil || rec.Nonce != a.recs[a.req.Names[0]].Nonce {
			return nil, 0, fmt.Errorf("lock %s: somebody else wrote its key under this session", a.req.Names[0])
		}
		// The epoch is raised only while every holder is voided, so reading
		// it now gives the one of the acquisition or ends in a loss.
		ep, err := c.consul.Get(ctx, c.keys.Epoch())
		if err != nil {
			continue
		}
		var raw []byte
		if ep != nil {
			raw = ep.Value
		}
		epoch, err := parseEpoch(raw, c.keys.Epoch())
		if err != nil {
			return nil, 0, err
		}
		return c.newHold(ctx, a.sess, a.recs, a.req.Names, p.ModifyIndex, epoch), owe, nil
	}
}

func parseEpoch(b []byte, key string) (uint64, error) {
	text := strings.TrimSpace(string(b))
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is not a number: orders cannot be given; run aimlock recover", key)
	}
	return n, nil
}

// serve waits for the whole of a quiesce that is owed, holding the lock, and
// clears it by a fenced write.
func (h *Hold) serve(ctx context.Context, owe time.Duration) error {
	if owe > 0 {
		t := time.NewTimer(owe)
		defer t.Stop()
		select {
		case <-t.C:
		case <-h.ctx.Done():
			return context.Cause(h.ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	ops := make([]consulkv.Op, len(h.names))
	for i, n := range h.names {
		ops[i] = consulkv.Delete(h.c.keys.Fence(n))
	}
	_, err := h.Txn(ctx, ops...)
	return err
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
