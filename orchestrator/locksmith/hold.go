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
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
)

// Hold is one or more locks held by this process under one session and one
// fencing token. It is safe for concurrent use.
//
// Its life: Acquire returns it with whatever quiesce was owed already served;
// Context ends when it is lost, asked for, or released; Release ends it. One that
// was asked for is kept alive and watched on, until it is lost or released: Life.
type Hold struct {
	c     *Client
	sess  *session
	names []string
	// record is the holder record of each lock, as written, and flags are
	// those of its key.
	record map[string]records.Holder
	flags  map[string]uint64
	token  uint64
	epoch  uint64
	// guards begin every fenced transaction.
	guards []consulkv.Op

	// life ends when the hold is lost or released, and ctx with it, or when it is
	// asked for.
	life   context.Context //nolint:containedctx // the life of the hold is a context, by design
	end    context.CancelCauseFunc
	ctx    context.Context //nolint:containedctx // so is the time in which it is worked
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	requested *records.Request
	released  bool
	// owing are the locks of which this hold found something owed that it has not
	// served yet.
	owing     map[string]bool
	processes []records.Process
	// pen is the index of the key that every write rests on, and doubt is
	// whether a write under it has no known outcome; see write.go.
	pen   uint64
	doubt bool

	// span is that of the hold; nil: it is not traced.
	span *tracing.Span
}

// start begins the life of a hold that was taken.
func (h *Hold) start(ctx context.Context) {
	h.life, h.end = context.WithCancelCause(outliving(ctx))
	h.ctx, h.cancel = context.WithCancelCause(h.life)
	for _, n := range h.names {
		k := h.c.keys.Lock(n)
		h.guards = append(h.guards, consulkv.CheckSession(k, h.sess.id), consulkv.CheckIndex(k, h.token))
	}
	h.wg.Go(h.watchSession)
	for _, n := range h.names {
		for what, watch := range map[string]func(string){"key of ": h.watchKey, "requests for ": h.watchRequest} {
			h.wg.Go(func() {
				if sleepAs(h.life, "watch the "+what+n, watchAfter) == nil {
					watch(n)
				}
			})
		}
	}
}

// watchAfter is how long a hold lasts before it looks whether its key was touched,
// and for requests to let go: one that is shorter lets go anyway, and each of its
// writes checks the key. Nothing is missed, since the watches begin at the token.
const watchAfter = 50 * time.Millisecond

// Context ends, with a cause, when work under the lock must stop: ErrLost,
// ErrRequested or ErrReleased.
func (h *Hold) Context() context.Context { return h.ctx }

// Life ends, with a cause, when the hold counts no more: ErrLost or ErrReleased.
// What is asked to let go lives on, so that its work can end in order.
func (h *Hold) Life() context.Context { return h.life }

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
func (h *Hold) LeaseLeft() time.Duration { return h.sess.leaseLeft() }

// Requested returns who asked the holder to let go, or nil.
func (h *Hold) Requested() *records.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requested
}

func (h *Hold) lose(why string) {
	h.end(&LostError{Lock: strings.Join(h.names, ", "), Token: h.token, Why: why})
	h.span.Event(tracing.EventLost, tracing.Outcome, "lost")
}

// over is why the hold no longer counts; nil: it does. One that was asked to let go
// counts until it is released or lost.
func (h *Hold) over() error { return context.Cause(h.life) }

func (h *Hold) watchSession() {
	select {
	case <-h.sess.died:
		h.lose(h.sess.dead().Error())
	case <-h.life.Done():
	}
}

func (h *Hold) watchKey(name string) {
	key := h.c.keys.Lock(name)
	w := h.c.keyWatcherFrom(key, 0, h.token)
	for {
		p, err := w.Next(h.life)
		if err == nil && p != nil && p.ModifyIndex < h.token {
			// From before the acquisition: a follower that lags or, and then a
			// consistent read says so too, servers that were restored.
			p, err = h.c.consul.Get(h.life, key)
		}
		switch {
		case h.life.Err() != nil:
			return
		case err != nil:
			// The lease says when not hearing from Consul becomes a loss.
			if sleepAs(h.life, "watch the key of "+name, time.Second) != nil {
				return
			}
		default:
			if h.ending() {
				return // it is this process that lets go
			}
			if why := h.foreign(p); why != "" {
				h.lose(why)
				return
			}
		}
	}
}

// ending reports whether Release or Abandon was called.
func (h *Hold) ending() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.released
}

// foreign says why a lock's key, as read consistently, is not held by this
// hold; "" if it is.
func (h *Hold) foreign(p *api.KVPair) string {
	switch {
	case p == nil:
		return "its key was deleted"
	case p.ModifyIndex < h.token:
		return "its key is older than the lock: Consul was restored from a snapshot"
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
	// The acquiring transaction took away what stood there before.
	w := h.c.keyWatcherFrom(key, 250*time.Millisecond, h.token)
	for {
		p, err := w.Next(h.life)
		switch {
		case h.life.Err() != nil:
			return
		case err != nil:
			if sleepAs(h.life, "watch requests for "+name, time.Second) != nil {
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
			h.span.Event(tracing.EventLost, tracing.Outcome, "requested")
			h.cancel(&RequestedError{Lock: name, By: q.By, Reason: q.Reason})
			return
		}
	}
}

// meant reports whether a request names this very hold.
func (h *Hold) meant(q *records.Request) bool {
	return q.Session == h.sess.id && q.Token == h.token && time.Now().Before(q.Expires)
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
	now, boot := time.Now(), h.c.boot()
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

// serve waits for the whole of a quiesce that is owed, holding the lock, and
// clears it by a fenced write. Where the answer to that is lost, what stands is read.
func (h *Hold) serve(ctx context.Context, owe time.Duration) error {
	t := time.NewTimer(min(owe, MaxQuiesce))
	defer t.Stop()
	select {
	case <-t.C:
	case <-h.ctx.Done():
		return context.Cause(h.ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	delay, deadline := 50*time.Millisecond, time.Now().Add(h.c.consul.RetryFor())
	for {
		ops, err := h.clearing(ctx)
		if err == nil && len(ops) > 0 {
			_, err = h.Txn(ctx, ops...)
		}
		_, changed := isRefused(err)
		kind, ours := errors.AsType[*consulkv.Error](err)
		switch {
		case err == nil:
			h.setServed()
			return nil
		case !changed && (!ours || !kind.Temporary()), time.Now().After(deadline):
			return err
		}
		if err := sleep(ctx, delay); err != nil {
			return err
		}
		delay = min(2*delay, time.Second)
	}
}

// clearing are the writes that put what this hold itself leaves in the place of what
// it has served. What a breaker has raised since the lock was taken stays, for the case
// that its steps, and not this hold, end the hold; a clean release takes it away.
func (h *Hold) clearing(ctx context.Context) (ops []consulkv.Op, err error) {
	for _, n := range h.names {
		key, rec := h.c.keys.Fence(n), h.record[n]
		p, err := h.c.consul.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		index := uint64(0)
		if p != nil {
			index = p.ModifyIndex
		}
		if index > h.token {
			continue
		}
		if f := leaving(&rec, time.Now()); f != nil {
			ops = append(ops, consulkv.CAS(key, records.Encode(f), index))
		} else if index != 0 {
			ops = append(ops, consulkv.DeleteCAS(key, index))
		}
	}
	return ops, nil
}

func (h *Hold) setServed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.owing = nil
}

// releasePatience bounds a release beside the lease.
const releasePatience = 10 * time.Second

// Release ends the hold cleanly: one transaction marks the records released
// and unlocks, so that the next holder owes nothing. It is safe to call more
// than once, and after a loss, when it only cleans up. A ctx that has ended
// does not keep it from trying once: what is left undone makes others wait.
func (h *Hold) Release(ctx context.Context) error {
	h.mu.Lock()
	if h.released {
		h.mu.Unlock()
		return nil
	}
	h.released = true
	h.mu.Unlock()

	ctx, span := h.releasing(ctx)
	err := h.unlock(ctx)
	h.end(ErrReleased)
	h.wg.Wait()
	if err == nil {
		h.sess.closeClean(ctx)
	} else {
		h.sess.close(ctx)
	}
	h.ended(span, err)
	return err
}

// giveUp ends a hold under which nothing was done.
func (h *Hold) giveUp(ctx context.Context) error {
	rctx, cancel := detached(ctx, 5*time.Second)
	defer cancel()
	return h.Release(rctx)
}

func (h *Hold) unlock(ctx context.Context) error {
	if err := h.alive(); err != nil {
		return err
	}
	now := time.Now().UTC()
	ops := append([]consulkv.Op{}, h.guards...)
	h.mu.Lock()
	owing := h.owing
	h.mu.Unlock()
	for _, n := range h.names {
		r := h.record[n]
		r.Released, r.ReleasedAt, r.Token = true, &now, h.Token()
		unlock := consulkv.Unlock(h.c.keys.Lock(n), records.Encode(&r), h.sess.id)
		unlock.Flags = h.flags[n]
		ops = append(ops, unlock, consulkv.Delete(h.c.keys.Request(n)), consulkv.Delete(h.c.keys.Approval(n)))
		if !owing[n] {
			// This hold leaves nothing. A breaker may have put more there, for
			// the case that its steps, and not this, end the hold.
			ops = append(ops, consulkv.Delete(h.c.keys.Fence(n)))
		}
	}
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = detached(ctx, 2*time.Second)
		defer cancel()
	}
	// The keepers go on while this is tried, so the lease bounds it too: a process
	// that was stopped between two tries looks again.
	delay, deadline, doubt := 50*time.Millisecond, time.Now().Add(releasePatience), false
	for {
		_, err := h.send(ctx, ops...)
		if err == nil {
			return nil
		}
		if ref, ok := isRefused(err); ok {
			// Either lost, or an earlier try of ours stands.
			if doubt {
				if done, rerr := h.releasedByUs(ctx); rerr == nil && done {
					return nil
				}
			}
			return h.refused(ref, len(h.guards))
		}
		doubt = doubt || consulkv.Ambiguous(err)
		kind, ok := errors.AsType[*consulkv.Error](err)
		if !ok || !kind.Temporary() || h.LeaseLeft() <= 0 || time.Now().After(deadline) || sleep(ctx, delay) != nil || h.alive() != nil {
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
	return r.Nonce == h.Nonce() && r.Released && r.Broken == "", nil
}
