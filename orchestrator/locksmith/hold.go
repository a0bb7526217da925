package locksmith

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
)

// Hold is one or more locks held by this process under one session and one
// fencing token. It is safe for concurrent use.
//
// Its life: Acquire returns it with whatever quiesce was owed already served;
// Context ends when it is lost, asked for, or released; Release ends it.
type Hold struct {
	c     *Client
	sess  *session
	names []string
	// record is the holder record of each lock, as written.
	record map[string]records.Holder
	token  uint64
	epoch  uint64
	// guards begin every fenced transaction.
	guards []consulkv.Op

	ctx    context.Context //nolint:containedctx // the life of the hold is a context, by design
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	requested *records.Request
	released  bool
	processes []records.Process
}

func (c *Client) newHold(ctx context.Context, sess *session, recs map[string]records.Holder, names []string, token, epoch uint64) *Hold {
	h := &Hold{c: c, sess: sess, names: names, record: recs, token: token, epoch: epoch}
	h.ctx, h.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	for _, n := range names {
		k := c.keys.Lock(n)
		h.guards = append(h.guards, consulkv.CheckSession(k, sess.id), consulkv.CheckIndex(k, token))
	}
	h.wg.Go(h.watchSession)
	for _, n := range names {
		h.wg.Go(func() { h.watchKey(n) })
		h.wg.Go(func() { h.watchRequest(n) })
	}
	return h
}

// Context ends, with a cause, when work under the lock must stop: ErrLost,
// ErrRequested or ErrReleased.
func (h *Hold) Context() context.Context { return h.ctx }

// Epoch is the epoch read in the acquiring transaction.
func (h *Hold) Epoch() uint64 { return h.epoch }

// Token is the fencing token: the Raft index of the acquiring transaction.
func (h *Hold) Token() uint64 { return h.token }

// Names are the locks held.
func (h *Hold) Names() []string { return h.names }

// Session is the id of the Consul session that holds the locks.
func (h *Hold) Session() string { return h.sess.id }

// Nonce is this acquisition's.
func (h *Hold) Nonce() string { return h.record[h.names[0]].Nonce }

// Checked reports whether a TTL check is the failure detector; without one the
// session's TTL alone serves.
func (h *Hold) Checked() bool { return h.sess.service != "" }

// LeaseLeft is how long this process may still work if Consul never answers
// again; 0 or less: not at all.
func (h *Hold) LeaseLeft() time.Duration { return time.Until(h.sess.leaseEnd()) }

// Requested returns who asked the holder to let go, or nil.
func (h *Hold) Requested() *records.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requested
}

func (h *Hold) lose(why string) {
	h.cancel(&LostError{Lock: strings.Join(h.names, ", "), Token: h.token, Why: why})
}

func (h *Hold) watchSession() {
	select {
	case <-h.sess.died:
		h.lose(h.sess.dead().Error())
	case <-h.ctx.Done():
	}
}

func (h *Hold) watchKey(name string) {
	key := h.c.keys.Lock(name)
	w := consulkv.NewWatcher(h.c.consul, consulkv.WatchOptions{Name: key},
		func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
			return h.c.consul.API().KV().Get(key, q)
		})
	for {
		p, err := w.Next(h.ctx)
		switch {
		case h.ctx.Err() != nil:
			return
		case err != nil:
			// The lease says when not hearing from Consul becomes a loss.
			if sleep(h.ctx, time.Second) != nil {
				return
			}
		default:
			if why := h.foreign(p); why != "" {
				h.lose(why)
				return
			}
		}
	}
}

// foreign says why a lock's key, as read, is not held by this hold; "" if it
// is.
func (h *Hold) foreign(p *api.KVPair) string {
	switch {
	case p == nil:
		return "its key was deleted"
	case p.ModifyIndex < h.token:
		// An answer from before the acquisition: a follower that lags.
		return ""
	case p.Session == "":
		return "Consul ended the session, or it was broken"
	case p.Session != h.sess.id:
		return "it was taken by session " + p.Session
	case p.ModifyIndex != h.token:
		return "somebody rewrote its key"
	}
	return ""
}

func (h *Hold) watchRequest(name string) {
	key := h.c.keys.Request(name)
	w := consulkv.NewWatcher(h.c.consul, consulkv.WatchOptions{Name: key, MinInterval: 250 * time.Millisecond},
		func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
			return h.c.consul.API().KV().Get(key, q)
		})
	for {
		p, err := w.Next(h.ctx)
		switch {
		case h.ctx.Err() != nil:
			return
		case err != nil:
			if sleep(h.ctx, time.Second) != nil {
				return
			}
		case p != nil:
			var q records.Request
			if err := records.Decode(key, p.Value, &q); err != nil || !h.meant(&q) {
				continue
			}
			h.mu.Lock()
			h.requested = &q
			h.mu.Unlock()
			h.cancel(fmt.Errorf("%w of %s by %s: %s", ErrRequested, name, printable(q.By), printable(q.Reason)))
			return
		}
	}
}

// meant reports whether a request names this very hold.
func (h *Hold) meant(q *records.Request) bool {
	return q.Session == h.sess.id && q.Token == h.token && time.Now().Before(q.Expires)
}

// MaxOps is how many operations fit into one fenced transaction.
func (h *Hold) MaxOps() int { return consulkv.MaxTxnOps - len(h.guards) }

// Txn runs operations in one transaction that begins with check-session and
// check-index of every lock of the hold. If the guards refuse, the hold is
// lost, and the error is a *LostError. A *consulkv.Refused is about one of ops;
// its indexes count ops alone.
//
// Writes that are safe to repeat (everything but cas) are tried again within
// the lease when the answer is lost: the guards keep a repetition from writing
// over a later holder. An error that is left may stand for a commit.
func (h *Hold) Txn(ctx context.Context, ops ...consulkv.Op) (consulkv.Results, error) {
	if len(ops) > h.MaxOps() {
		return nil, fmt.Errorf("fenced transaction of %d operations: at most %d fit beside the guards", len(ops), h.MaxOps())
	}
	all := append(h.guards[:len(h.guards):len(h.guards)], ops...)
	delay := 50 * time.Millisecond
	for {
		if err := h.alive(); err != nil {
			return nil, err
		}
		res, err := h.c.consul.Txn(ctx, all...)
		if err == nil {
			return res[len(h.guards):], nil
		}
		if ref, ok := isRefused(err); ok {
			return nil, h.refused(ref)
		}
		if kind, ok := errors.AsType[*consulkv.Error](err); !ok || !kind.Temporary() || !repeatable(ops) {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if serr := sleep(ctx, delay); serr != nil {
			return nil, serr
		}
		delay = min(2*delay, time.Second)
	}
}

// alive returns why the hold no longer counts, or nil. It is asked before
// every write: a process that was stopped past its lease must not send even
// one request more. A request to let go is no loss: the last writes of an
// orderly end still pass.
func (h *Hold) alive() error {
	if err := h.sess.dead(); err != nil {
		h.lose(err.Error())
	}
	if h.ctx.Err() != nil {
		if cause := context.Cause(h.ctx); !errors.Is(cause, ErrRequested) {
			return cause
		}
	}
	return nil
}

// refused turns a refusal of a guard into a loss, and shifts the others.
func (h *Hold) refused(ref *consulkv.Refused) error {
	out := &consulkv.Refused{}
	for _, o := range ref.Ops {
		if o.Index < len(h.guards) {
			h.lose("Consul refused a write under its token: " + o.What)
			return context.Cause(h.ctx)
		}
		o.Index -= len(h.guards)
		out.Ops = append(out.Ops, o)
	}
	return out
}

func repeatable(ops []consulkv.Op) bool {
	for _, op := range ops {
		switch op.Verb {
		case api.KVCAS, api.KVDeleteCAS, api.KVLock, api.KVUnlock:
			return false
		}
	}
	return true
}

// SetProcesses names further processes that must be gone before this hold is
// proved dead; they are written with the next Progress.
func (h *Hold) SetProcesses(p ...records.Process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.processes = p
}

// Progress writes the progress record of every lock of the hold, fenced, and
// makes it the output of the holder's check. unit names what is counted; note
// is for people. A holder that works writes it every few seconds: policies
// judge by its age.
func (h *Hold) Progress(ctx context.Context, done, total int64, unit, note string) error {
	h.mu.Lock()
	procs := h.processes
	h.mu.Unlock()
	now, boot := time.Now(), hostproc.BootSeconds()
	ops := make([]consulkv.Op, len(h.names))
	for i, n := range h.names {
		ops[i] = consulkv.Set(h.c.keys.Progress(n), records.Encode(&records.Progress{
			Version: records.Version, Lock: n, Session: h.sess.id, Token: h.token,
			Done: done, Total: total, Unit: unit, Note: note,
			At: now.UTC(), Boot: boot, BootID: h.c.self.BootID, Processes: procs,
		}))
	}
	h.sess.setOutput(fmt.Sprintf("%s: %d of %d %s %s", strings.Join(h.names, ", "), done, total, unit, note))
	_, err := h.Txn(ctx, ops...)
	return err
}

// Release ends the hold cleanly: one transaction marks the records released
// and unlocks, so that the next holder owes nothing. It is safe to call more
// than once, and after a loss, when it only cleans up.
func (h *Hold) Release(ctx context.Context) error {
	h.mu.Lock()
	if h.released {
		h.mu.Unlock()
		return nil
	}
	h.released = true
	h.mu.Unlock()

	err := h.unlock(ctx)
	h.cancel(ErrReleased)
	h.wg.Wait()
	h.sess.close(ctx)
	return err
}

func (h *Hold) unlock(ctx context.Context) error {
	if err := h.alive(); err != nil {
		return err
	}
	now := time.Now().UTC()
	ops := append([]consulkv.Op{}, h.guards...)
	for _, n := range h.names {
		r := h.record[n]
		r.Released, r.ReleasedAt = true, &now
		ops = append(ops, consulkv.Unlock(h.c.keys.Lock(n), records.Encode(&r), h.sess.id),
			consulkv.Delete(h.c.keys.Request(n)), consulkv.Delete(h.c.keys.Approval(n)))
	}
	// The keepers go on while this is tried, so the lease bounds it.
	delay := 50 * time.Millisecond
	for {
		_, err := h.c.consul.Txn(ctx, ops...)
		if err == nil {
			return nil
		}
		if ref, ok := isRefused(err); ok {
			// Either lost, or an earlier try of ours stands.
			if done, rerr := h.releasedByUs(ctx); rerr == nil && done {
				return nil
			}
			return h.refused(ref)
		}
		kind, ok := errors.AsType[*consulkv.Error](err)
		if !ok || !kind.Temporary() || h.LeaseLeft() <= 0 || sleep(ctx, delay) != nil {
			return fmt.Errorf("release %s: %w", strings.Join(h.names, ", "), err)
		}
		delay = min(2*delay, time.Second)
	}
}

func (h *Hold) releasedByUs(ctx context.Context) (bool, error) {
	key := h.c.keys.Lock(h.names[0])
	p, err := h.c.consul.Get(ctx, key)
	if err != nil || p == nil {
		return false, err
	}
	var r records.Holder
	if err := records.Decode(key, p.Value, &r); err != nil {
		return false, err
	}
	return r.Nonce == h.Nonce() && r.Released, nil
}
