package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// commandRecord is an operator's command, at rollouts/<id>/command. Operators
// write it by CAS, each with the next number; whoever drives the rollout takes
// it and notes its number and what became of it in the header.
type commandRecord struct {
	Version int               `json:"version"`
	N       uint64            `json:"n"`
	Verb    orchestrator.Verb `json:"verb"`
	Nodes   []string          `json:"nodes,omitempty"`
	Stage   string            `json:"stage,omitempty"`
	// Pause is the newest pause that the operator knew of.
	Pause *uint64 `json:"pause,omitempty"`
	// Rollout is the one that a rollout makes room for.
	Rollout string `json:"rollout,omitempty"`
	By      string `json:"by"`
	records.Who
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
	// Nonce tells a writer whose answer was lost that it was its own.
	Nonce string `json:"nonce"`
}

func (c *commandRecord) event() orchestrator.OperatorCommand {
	return orchestrator.OperatorCommand{N: c.N, Verb: c.Verb, Nodes: c.Nodes, Stage: c.Stage, Pause: c.Pause, Rollout: c.Rollout, By: c.By, Reason: c.Reason, Accessor: c.Accessor}
}

func (r *Runner) commandKey(id string) string { return r.keys.RolloutCommand(id) }

// Order is an operator's command for one rollout.
type Order struct {
	ID    string
	Verb  orchestrator.Verb
	Nodes []string
	// Stage is for Skip and Promote. A Promote without one is for the stage at
	// which the rollout stands when the order is given.
	Stage string
	// Pause is for Resume and Promote: the number of the newest pause that whoever
	// gives the order has seen (Header.Pauses). 0: the one at which the rollout
	// stands when the order is given. A later one is not ended.
	Pause  uint64
	Reason string

	// rollout is the one to make room for.
	rollout string
}

// obeyWithin is how long a running orchestrator has to take a command before
// this process looks whether it can take it itself.
const obeyWithin = 5 * time.Second

// ErrNotTaken: a command was given, and nobody has taken it yet.
var ErrNotTaken = errors.New("nobody has taken the command yet")

// ErrEnded: a command came too late.
var ErrEnded = errors.New("it has ended")

// Command gives an operator's command. A running orchestrator takes it; where
// none runs, this process takes the locks for a moment and does it itself. It
// returns the header once the command was taken; its Command is then what became
// of this very command. Two operators at once are safe: each command has a
// number of its own, one that is not taken yet is not overwritten, and each is
// obeyed once or refused with a reason. A command that the rollout's end
// overtook is an error that wraps ErrEnded.
func (r *Runner) Command(ctx context.Context, o Order) (*orchestrator.Header, error) {
	head, err := r.header(ctx, o.ID)
	if errors.Is(err, ErrNotFound) {
		if head, qerr := r.abortQueued(ctx, o); qerr != nil || head != nil {
			return head, qerr
		}
		// It may have begun just now.
		head, err = r.header(ctx, o.ID)
	}
	if err != nil {
		return nil, err
	}
	if head.FinishedAt != nil {
		return head, ended(head)
	}
	if o.Verb == orchestrator.Promote && o.Stage == "" {
		o.Stage = head.Stage
	}
	if o.Pause == 0 {
		o.Pause = head.Pauses
	}
	head, n, err := r.writeCommand(ctx, o)
	if err != nil {
		return head, err
	}
	head, err = r.awaitTaken(ctx, o, head, n)
	if err != nil {
		return head, err
	}
	seen := head.Taken(n)
	switch {
	case seen != nil:
	case head.FinishedAt != nil && seenBy(head) < n:
		return head, ended(head)
	default:
		seen = &orchestrator.CommandSeen{N: n, Verb: o.Verb, By: r.by, OK: true, Result: "taken; so many came after it that what became of it is not kept"}
	}
	head.Command = seen
	return head, nil
}

func ended(h *orchestrator.Header) error {
	return fmt.Errorf("rollout %s is %s: %w", h.ID, h.State, ErrEnded)
}

// awaitTaken returns the header once command n was taken or the rollout has
// ended.
func (r *Runner) awaitTaken(ctx context.Context, o Order, head *orchestrator.Header, n uint64) (*orchestrator.Header, error) {
	taken := func(h *orchestrator.Header) bool {
		return seenBy(h) >= n || h.FinishedAt != nil
	}
	for deadline := time.Now().Add(3 * obeyWithin); time.Now().Before(deadline); {
		driven, err := r.driven(ctx, head)
		if err != nil {
			return nil, err
		}
		if driven {
			head, err = r.awaitHeader(ctx, o.ID, obeyWithin, taken)
			if err != nil || taken(head) {
				return head, err
			}
		}
		head, err = r.obey(ctx, o.ID, n)
		ref, busy := errors.AsType[*locksmith.RefusedError](err)
		if !busy {
			return head, err
		}
		if head, err = r.header(ctx, o.ID); err != nil || taken(head) {
			return head, err
		}
		if err := r.heldElsewhere(ctx, o.ID, ref); err != nil {
			return nil, err
		}
		pause(ctx, 100*time.Millisecond)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, fmt.Errorf("rollout %s: %w: its orchestrator holds the lock and does not take it; it stands, and whoever drives the rollout next takes it", o.ID, ErrNotTaken)
}

// heldElsewhere is the error of a command that found the lock refused, unless the lock
// was held for this very rollout: whoever drove it takes the command, or has let the
// lock go in the meantime.
func (r *Runner) heldElsewhere(ctx context.Context, id string, ref *locksmith.RefusedError) error {
	if ref.Status.State == locksmith.Cooling {
		return notTaken(id, ref)
	}
	p, err := r.consul.Get(ctx, ref.Status.Key)
	if err != nil || p == nil || p.Session == "" || heldFor(p, id) {
		return err
	}
	return notTaken(id, ref)
}

// notTaken is for a lock that is held for something else than the rollout.
func notTaken(id string, ref *locksmith.RefusedError) error {
	return fmt.Errorf("rollout %s: %w: lock %s is %s; it stands, and whoever drives the rollout next takes it", id, ErrNotTaken, ref.Status.Name, ref.Status.State)
}

// driven reports whether the lock of the rollout's first config is held for
// this very rollout.
func (r *Runner) driven(ctx context.Context, h *orchestrator.Header) (bool, error) {
	if len(h.Configs) == 0 {
		return false, nil
	}
	p, err := r.consul.Get(ctx, r.keys.Lock(h.Configs[0].Name))
	if err != nil || p == nil || p.Session == "" {
		return false, err
	}
	return heldFor(p, h.ID), nil
}

// heldFor reports whether the record of a held lock names this rollout.
func heldFor(lock *api.KVPair, id string) bool {
	var rec records.Holder
	return records.Decode(lock.Key, lock.Value, &rec) == nil && rec.RolloutID == id
}

// Undriven says that nobody drives a rollout that is at work, and what goes on with it:
// start, the command that starts it again, or the next tick.
func Undriven(start string) string {
	return fmt.Sprintf("nobody drives it now: `%s`, or the next tick, goes on with it", start)
}

// UndrivenPaused says that of a rollout that is paused.
func UndrivenPaused(start string) string {
	return fmt.Sprintf("nobody drives it now, since it is paused; once that is ended, `%s`, or the next tick, goes on with it", start)
}

// DriverGone says that a lock is HOT that a rollout's own orchestrator holds.
const DriverGone = "its orchestrator does not answer, and is judged gone"

// Gone says that of a rollout, and what goes on with it.
func Gone(h *orchestrator.Header, start string) string {
	if h.State == orchestrator.Paused {
		return fmt.Sprintf("%s; it stays paused, and the command that ends that breaks this lock where the policy lets it; `%s` then goes on", DriverGone, start)
	}
	return fmt.Sprintf("%s; `%s` goes on with it, and breaks this lock where the policy lets it", DriverGone, start)
}

// Became says what became of an order that was taken, and who acts on it. start is the
// command that starts the rollout again.
func (r *Runner) Became(ctx context.Context, h *orchestrator.Header, verb orchestrator.Verb, start string) string {
	words := fmt.Sprintf("%s: %s; the rollout is %s", verb, text.Printable(result(h)), h.State)
	if !h.AtWork() {
		return words
	}
	if driven, err := r.driven(ctx, h); err == nil && !driven {
		words += ", and " + Undriven(start)
	}
	return words
}

// result is what became of the last order that a rollout took. A rollback is done when
// every node is back.
func result(h *orchestrator.Header) string {
	words := "done"
	if h.Command != nil && h.Command.Result != "" {
		words = h.Command.Result
	}
	if h.State == orchestrator.RollingBack && words == "done" {
		return "taken"
	}
	return words
}

// writeCommand writes the next command once the one before it was taken: no
// command is ever overwritten, so of two operators neither loses a word. It returns
// the rollout that it was written to, and its number; of a rollout that ends while the
// command waits for its turn the error wraps ErrEnded, and the header is returned too.
func (r *Runner) writeCommand(ctx context.Context, o Order) (*orchestrator.Header, uint64, error) {
	key := r.commandKey(o.ID)
	deadline := time.Now().Add(2 * obeyWithin)
	rec := commandRecord{Version: records.Version, Verb: o.Verb, Nodes: o.Nodes, Stage: o.Stage, Rollout: o.rollout, By: r.by, Who: r.who(ctx), Reason: o.Reason, At: time.Now().UTC(), Nonce: fate.Text(ctx, "command")}
	if o.Verb == orchestrator.Resume || o.Verb == orchestrator.Promote {
		rec.Pause = &o.Pause
	}
	for {
		p, err := r.consul.Get(ctx, key)
		if err != nil {
			return nil, 0, err
		}
		head, err := r.header(ctx, o.ID)
		if err != nil {
			return nil, 0, err
		}
		var last commandRecord
		index := uint64(0)
		if p != nil {
			index = p.ModifyIndex
			if err := records.Decode(key, p.Value, &last); err != nil {
				return nil, 0, err
			}
		}
		switch {
		case last.Nonce == rec.Nonce:
			return head, last.N, nil // written by a try whose answer was lost
		case head.FinishedAt != nil:
			return head, 0, ended(head)
		case last.N <= seenBy(head):
			rec.N = seenBy(head) + 1
			ok, err := r.consul.CAS(ctx, key, records.Encode(&rec), index)
			if err != nil && !consulkv.Ambiguous(err) {
				return nil, 0, err
			}
			if ok {
				return head, rec.N, nil
			}
		default:
			err := r.takeFirst(ctx, head, &last)
			switch {
			case unreadable(err) && o.Verb == orchestrator.Abort:
				// Nothing else can be done with it any more.
				rec.N = last.N + 1
				if ok, err := r.consul.CAS(ctx, key, records.Encode(&rec), index); err == nil && ok {
					return head, rec.N, nil
				}
			case err != nil:
				return nil, 0, err
			}
		}
		if !time.Now().Before(deadline) {
			return nil, 0, fmt.Errorf("rollout %s: %w: the one before it (%s by %s) is not taken either", o.ID, ErrNotTaken, last.Verb, last.By)
		}
		pause(ctx, 100*time.Millisecond)
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
	}
}

// takeFirst takes a command that stands before another one, where nobody drives the
// rollout and would take it.
func (r *Runner) takeFirst(ctx context.Context, head *orchestrator.Header, c *commandRecord) error {
	driven, err := r.driven(ctx, head)
	if err != nil || driven {
		return err
	}
	_, err = r.obey(ctx, head.ID, c.N)
	ref, busy := errors.AsType[*locksmith.RefusedError](err)
	if !busy {
		return err
	}
	err = r.heldElsewhere(ctx, head.ID, ref)
	if errors.Is(err, ErrNotTaken) {
		return fmt.Errorf("%w (it is %s by %s)", err, c.Verb, c.By)
	}
	return err
}

// awaitHeader follows a rollout's header until cond holds, at most d; then it
// returns the last one read.
func (r *Runner) awaitHeader(ctx context.Context, id string, d time.Duration, cond func(*orchestrator.Header) bool) (*orchestrator.Header, error) {
	wctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	w := r.headerWatcher(id)
	for {
		h, err := w.Next(wctx)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case wctx.Err() != nil:
			return r.header(ctx, id)
		case err != nil:
			return nil, err
		case h != nil && cond(h):
			return h, nil
		}
	}
}

func (r *Runner) headerWatcher(id string) *consulkv.Watcher[*orchestrator.Header] {
	key := r.keys.Rollout(id)
	return consulkv.NewWatcher(r.consul, consulkv.WatchOptions{Name: key, MinInterval: 100 * time.Millisecond},
		func(q *api.QueryOptions) (*orchestrator.Header, *api.QueryMeta, error) {
			p, meta, err := r.consul.API().KV().Get(key, q)
			if err != nil || p == nil {
				return nil, meta, err
			}
			var h orchestrator.Header
			if err := records.Decode(key, p.Value, &h); err != nil {
				return nil, meta, err
			}
			return &h, meta, nil
		})
}

// obey takes a command in this process: it drives the rollout under its locks
// until the command is taken and, where it leads to an end, to that end.
func (r *Runner) obey(ctx context.Context, id string, n uint64) (*orchestrator.Header, error) {
	head, err := r.header(ctx, id)
	if err != nil {
		return nil, err
	}
	plan, damage := r.plan(ctx, head)
	if damage != nil && !unreadable(damage) {
		return nil, damage
	}
	ctx, span := rolloutSpan(ctx, head.Name, id, head)
	defer span.End()
	h, _, err := r.acquire(ctx, lockedBy(plan, head), id, untilObeyed)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := release(ctx, h); err != nil && !Lost(err) {
			r.log.Warn("releasing the locks", "rollout", id, "token", h.Token(), "error", err)
		}
	}()
	// Somebody may have driven it between the first look and the lock.
	if head, err = r.header(ctx, id); err != nil || head.FinishedAt != nil || seenBy(head) >= n {
		return head, err
	}
	d := &drive{r: r, h: h, plan: plan, wait: untilObeyed, obeyed: n, header: *head}
	if damage == nil {
		damage = d.recover(ctx, false)
	}
	if damage != nil {
		return r.abortUnread(ctx, h, head, damage)
	}
	if err := d.run(ctx); err != nil {
		return nil, err
	}
	out := d.present()
	return &out, nil
}

// lockedBy is what acquire needs of a spec, also where the plan is gone.
func lockedBy(plan *orchestrator.Plan, head *orchestrator.Header) *orchestrator.Spec {
	if plan != nil {
		return &plan.Spec
	}
	s := &orchestrator.Spec{Name: head.Name}
	for _, c := range head.Configs {
		s.Configs = append(s.Configs, orchestrator.Config{Name: c.Name})
	}
	return s
}

// abortUnread takes the one command that a rollout can be given whose plan or
// orders are lost. Any other command returns the damage.
func (r *Runner) abortUnread(ctx context.Context, h Hold, head *orchestrator.Header, damage error) (*orchestrator.Header, error) {
	c, err := r.command(ctx, head.ID)
	switch {
	case err != nil:
		return nil, err
	case c == nil || c.Verb != orchestrator.Abort || !unreadable(damage):
		return nil, fmt.Errorf("%w (`%s` ends it where it stands)", damage, r.typed("abort", head.ID))
	}
	now := time.Now().UTC()
	head.Took(orchestrator.CommandSeen{N: c.N, Verb: c.Verb, By: c.By, Accessor: c.Accessor, At: now, OK: true, Result: "done"})
	head.End(orchestrator.Aborted, "by "+c.By+"; it could not go on: "+damage.Error(), now)
	return head, r.writeHeader(ctx, h, head)
}

// command reads the last command that was given to a rollout, or nil.
func (r *Runner) command(ctx context.Context, id string) (*commandRecord, error) {
	p, err := r.consul.Get(ctx, r.commandKey(id))
	if err != nil || p == nil {
		return nil, err
	}
	var c commandRecord
	if err := records.Decode(p.Key, p.Value, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// seenBy is the number of the last command that a header has taken.
func seenBy(h *orchestrator.Header) uint64 {
	if h.Command == nil {
		return 0
	}
	return h.Command.N
}
