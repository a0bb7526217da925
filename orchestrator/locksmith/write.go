package locksmith

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// The pen. A write whose answer was lost may not have arrived yet: it can wait
// in an agent for a leader while its client, which gave up, repeats it and goes
// on to the next. Session and token stand, so the guards of the lock let it land
// late, over a newer write of the same hold.
//
// So each fenced transaction also checks the index of one more key, the pen.
// When the outcome of a write is not known the hold first writes the pen: from
// then on nothing that was sent before can land. Only then is a write repeated,
// or its caller told to read what stands.

// MaxOps is how many operations fit into one fenced transaction.
func (h *Hold) MaxOps() int { return consulkv.MaxTxnOps - len(h.guards) - 1 }

// Txn runs operations in one transaction that begins with check-session and
// check-index of every lock of the hold. If the guards refuse, the hold is
// lost, and the error is a *LostError. A *consulkv.Refused is about one of ops;
// its indexes count ops alone.
//
// Writes that are safe to repeat (everything without a condition: a cas, a check)
// are tried again within the lease and the client's RetryFor when the answer is
// lost. With a condition, the second try would be refused by what the first did. They land in the
// order in which their calls returned. A *consulkv.Error that is left may stand
// for a commit, but that is settled: what a consistent read then shows stays.
// Where ctx ended it is settled by the next call.
func (h *Hold) Txn(ctx context.Context, ops ...consulkv.Op) (consulkv.Results, error) {
	if len(ops) > h.MaxOps() {
		return nil, fmt.Errorf("fenced transaction of %d operations: at most %d fit beside the guards", len(ops), h.MaxOps())
	}
	delay, deadline := 50*time.Millisecond, time.Now().Add(h.c.consul.RetryFor())
	for {
		res, err := h.try(ctx, ops)
		if err == nil {
			return res, nil
		}
		kind, ok := errors.AsType[*consulkv.Error](err)
		switch {
		case errors.Is(err, errPen):
			// Nothing of it stands. The pen was written since, by this hold.
			if err := h.readPen(ctx); err != nil {
				return nil, err
			}
			if time.Now().After(deadline) {
				return nil, fmt.Errorf("write under %s: nothing of it stands, since other writes of this hold are in doubt: %w",
					strings.Join(h.names, ", "), errPen)
			}
		case !ok:
			return nil, err
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !kind.Temporary(), consulkv.Ambiguous(err) && !repeatable(ops), time.Now().After(deadline):
			return nil, h.settle(ctx, err)
		}
		if err := sleep(ctx, delay); err != nil {
			return nil, err
		}
		delay = min(2*delay, time.Second)
	}
}

// try sends a fenced transaction once.
func (h *Hold) try(ctx context.Context, ops []consulkv.Op) (consulkv.Results, error) {
	if err := h.alive(); err != nil {
		return nil, err
	}
	pen, doubt := h.penNow()
	if doubt {
		if err := h.turnPen(ctx); err != nil {
			return nil, err
		}
		pen, _ = h.penNow()
	}
	all := append(h.guards[:len(h.guards):len(h.guards)], consulkv.CheckIndex(h.penKey(), pen))
	guards := len(all)
	res, err := h.send(ctx, append(all, ops...)...)
	if ref, ok := isRefused(err); ok {
		return nil, h.refused(ref, guards)
	}
	if err != nil {
		if consulkv.Ambiguous(err) {
			h.setDoubt()
		}
		return nil, err
	}
	if pen == 0 {
		guards-- // check-not-exists has no result
	}
	return res[guards:], nil
}

// settle makes the outcome of a write that failed with err certain, for whoever
// reads it next. If it cannot, the next write will.
func (h *Hold) settle(ctx context.Context, err error) error {
	if _, doubt := h.penNow(); !doubt {
		return err
	}
	if terr := h.turnPen(ctx); terr != nil {
		if errors.Is(terr, ErrLost) {
			return terr
		}
		return errors.Join(err, terr)
	}
	return err
}

// alive returns why the hold no longer counts, or nil. It is asked before
// every write: a process that was stopped past its lease must not send even
// one request more. A request to let go is no loss: the last writes of an
// orderly end still pass.
func (h *Hold) alive() error {
	if err := h.sess.dead(); err != nil {
		h.lose(err.Error())
	}
	return h.over()
}

// above are the conditions of a transaction that is sent while h is held, though
// it is no write of h's: a break under a hold. It refuses once h does not count.
// For a nil h there are none.
func (h *Hold) above() ([]consulkv.Op, error) {
	if h == nil {
		return nil, nil
	}
	if err := h.alive(); err != nil {
		return nil, err
	}
	return append([]consulkv.Op(nil), h.guards...), nil
}

// lostBy returns why h is lost, if err is the refusal of a transaction because
// of h's guards; nil if not, and for a nil h.
func (h *Hold) lostBy(err error) error {
	ref, ok := isRefused(err)
	if h == nil || !ok {
		return nil
	}
	for _, o := range ref.Ops {
		for _, n := range h.names {
			if o.Key == h.c.keys.Lock(n) {
				h.lose("Consul refused a write under its token: " + o.What)
				return h.over()
			}
		}
	}
	return nil
}

// send sends a transaction unless and until the lease is over: what still
// waits for a connection by then is not sent.
func (h *Hold) send(ctx context.Context, ops ...consulkv.Op) (consulkv.Results, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.sess.life, cancel)()
	return h.c.consul.Txn(ctx, ops...)
}

// errPen: a write was refused by the pen.
var errPen = errors.New("the pen was written meanwhile")

// refused turns a refusal of a lock's guard into a loss, and shifts the others.
// guards is how many operations stand before the caller's.
func (h *Hold) refused(ref *consulkv.Refused, guards int) error {
	out, pen := &consulkv.Refused{}, false
	for _, o := range ref.Ops {
		switch {
		case o.Index < len(h.guards):
			h.lose("Consul refused a write under its token: " + o.What)
			return h.over()
		case o.Index < guards:
			pen = true
		}
		o.Index -= guards
		out.Ops = append(out.Ops, o)
	}
	if pen {
		return errPen
	}
	return out
}

func repeatable(ops []consulkv.Op) bool {
	for _, op := range ops {
		switch op.Verb {
		case api.KVCAS, api.KVDeleteCAS, api.KVLock, api.KVUnlock, api.KVCheckIndex, api.KVCheckSession, api.KVCheckNotExists:
			return false
		}
	}
	return true
}

func (h *Hold) penKey() string { return h.c.keys.Writes(h.names[0]) }

// penNow is the index of the pen, and whether a write is in doubt that was sent
// under it.
func (h *Hold) penNow() (index uint64, doubt bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pen, h.doubt
}

func (h *Hold) setDoubt() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.doubt = true
}

// setPen takes over a pen that was written: what was in doubt until then is
// settled.
func (h *Hold) setPen(index uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if index > h.pen {
		h.pen, h.doubt = index, false
	}
}

// wentBack loses the hold: its locks stand as they were taken, and the pen does not
// as this hold has written it since.
func (h *Hold) wentBack() error {
	h.lose("the key " + h.penKey() + " is older than what this hold wrote: Consul was restored from a snapshot; run aimlock recover")
	return h.over()
}

// readPen takes over a pen that another call of this hold has written.
func (h *Hold) readPen(ctx context.Context) error {
	before, _ := h.penNow()
	p, err := h.c.consul.Get(ctx, h.penKey())
	if err != nil {
		return err
	}
	if p == nil {
		// Nobody deletes it: the KV is not the one that this hold was made in.
		h.lose("the key " + h.penKey() + " was deleted")
		return h.over()
	}
	if p.ModifyIndex < before {
		return h.wentBack()
	}
	h.setPen(p.ModifyIndex)
	return nil
}

// turnPen writes the pen. When it returns nil, no write that was sent before
// can land any more.
func (h *Hold) turnPen(ctx context.Context) error {
	mark, delay, deadline := []byte(NewNonce(ctx)), 50*time.Millisecond, time.Now().Add(h.c.consul.RetryFor())
	before, _ := h.penNow()
	for {
		if err := h.alive(); err != nil {
			return err
		}
		all := append(h.guards[:len(h.guards):len(h.guards)], consulkv.Set(h.penKey(), mark))
		res, err := h.send(ctx, all...)
		if err == nil {
			index := res.Find(h.penKey()).ModifyIndex
			if index <= before {
				return h.wentBack()
			}
			h.setPen(index)
			return nil
		}
		if ref, ok := isRefused(err); ok {
			return h.refused(ref, len(h.guards))
		}
		// A repetition writes the same mark: if the first try landed the key
		// stands still, and its index with it.
		kind, ok := errors.AsType[*consulkv.Error](err)
		if !ok || !kind.Temporary() || time.Now().After(deadline) {
			return fmt.Errorf("settle the outcome of a write: %w", err)
		}
		if err := sleep(ctx, delay); err != nil {
			return err
		}
		delay = min(2*delay, time.Second)
	}
}
