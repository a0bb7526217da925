package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// heartbeatEvery is how often the progress record is rewritten while nothing
// moves: policies judge a holder by its age.
const heartbeatEvery = 5 * time.Second

// progressEvery is the least interval between two progress records while much
// moves.
const progressEvery = time.Second

// until says when a drive returns although the rollout has not finished.
type until int

const (
	// untilEnd: only when it is paused by a failure or a gate.
	untilEnd until = iota
	// untilIdle: as soon as nothing can be done now.
	untilIdle
	// untilObeyed: as soon as a command is taken, unless the rollout is on its
	// way to an end.
	untilObeyed
)

// drive is one hold of one rollout.
type drive struct {
	r      *Runner
	h      Hold
	state  *orchestrator.State
	plan   *orchestrator.Plan
	prev   previous
	chunks int // of the plan
	f      *follower
	win    window

	// first are fed before the hold counts, so that nothing is begun before
	// them.
	first    []orchestrator.Event
	wait     until
	obeyed   uint64 // number of the command to take, for untilObeyed
	header   orchestrator.Header
	finished bool
	lastBeat time.Time
	lastDone int
	flying   []int
	lastRead time.Time
}

// run drives the rollout until it ends or wait says so. It returns the cause
// where the hold ended first.
func (d *drive) run(ctx context.Context) (err error) {
	fctx, cancel := context.WithCancel(ctx)
	d.f = d.r.newFollower(d.plan)
	d.f.start(fctx)
	defer func() {
		cancel()
		d.f.wg.Wait()
	}()
	if d.win, err = newWindow(d.plan.Spec.Window); err != nil {
		return err
	}
	for _, ev := range d.first {
		if err := d.step(fctx, ev); err != nil {
			return err
		}
	}
	open, change := d.win.at(time.Now())
	if err := d.step(fctx, orchestrator.WindowChanged{Open: open}); err != nil {
		return err
	}
	if err := d.step(fctx, orchestrator.Acquired{Order: orchestrator.Order{Epoch: d.h.Epoch(), Token: d.h.Token()}}); err != nil {
		return err
	}
	for !d.finished {
		if d.stop() {
			return d.beat(ctx)
		}
		if err := d.beat(fctx); err != nil {
			return err
		}
		ev, err := d.next(fctx, change)
		if err != nil {
			return err
		}
		if w, ok := ev.(orchestrator.WindowChanged); ok {
			w.Open, change = d.win.at(time.Now())
			ev = w
		}
		if err := d.step(fctx, ev); err != nil {
			return err
		}
	}
	return d.beat(ctx)
}

// stop reports whether the drive returns now.
func (d *drive) stop() bool {
	s := d.state
	switch d.wait {
	case untilIdle:
		return s.Idle() && (s.NextWake().IsZero() || s.NextWake().After(time.Now())) && !s.Status().Terminal()
	case untilObeyed:
		ending := s.Status().Terminal() || s.Status() == orchestrator.RollingBack
		return !ending && d.header.Command != nil && d.header.Command.N >= d.obeyed
	}
	// A failure or a gate has stopped it: whoever started it is told. An
	// operator who pauses it means to resume, and the lock is kept for that.
	return s.Status() == orchestrator.Paused && d.header.Paused != nil && d.header.Paused.Cause != orchestrator.CauseOperator && s.Idle()
}

// next waits for the next event.
func (d *drive) next(ctx context.Context, windowChange time.Time) (orchestrator.Event, error) {
	wake := time.Now().Add(heartbeatEvery)
	if t := d.state.NextWake(); !t.IsZero() && t.Before(wake) {
		wake = t
	}
	window := !windowChange.IsZero() && windowChange.Before(wake)
	if window {
		wake = windowChange
	}
	t := time.NewTimer(time.Until(wake))
	defer t.Stop()
	select {
	case <-d.h.Context().Done():
		return nil, context.Cause(d.h.Context())
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case ev := <-d.f.events:
		return ev, nil
	case ev := <-d.f.gates:
		return ev, nil
	case ev := <-d.f.cmds:
		return ev, nil
	case <-d.f.wake:
		return d.answers(ctx)
	case <-t.C:
		if window {
			return orchestrator.WindowChanged{}, nil
		}
		return orchestrator.Tick{}, nil
	}
}

// answers reads what the nodes in flight have said. It reads only them: over a
// rollout that is O(N) bytes, whatever the number of wake-ups.
func (d *drive) answers(ctx context.Context) (orchestrator.Event, error) {
	d.flying = d.state.AppendFlying(d.flying[:0])
	if len(d.flying) > manyFlying {
		pause(ctx, answersEveryMany-time.Since(d.lastRead))
	}
	d.lastRead = time.Now()
	configs := d.plan.Spec.Configs
	ks := make([]string, 0, len(d.flying)*len(configs))
	for _, i := range d.flying {
		for _, c := range configs {
			ks = append(ks, d.r.keys.Actual(c.Name, d.plan.Nodes[i]))
		}
	}
	pairs, err := d.r.getMany(ctx, "read the nodes' answers", ks)
	if err != nil {
		return nil, err
	}
	var out orchestrator.Reports
	for n, p := range pairs {
		if p.ModifyIndex == 0 {
			continue
		}
		node, config := d.flying[n/len(configs)], n%len(configs)
		if rep, ok := d.r.answer(p, d.plan.ID, node, config, d.prev); ok {
			out = append(out, rep)
		}
	}
	return out, nil
}

// step feeds one event and does the effects in their order.
func (d *drive) step(ctx context.Context, ev orchestrator.Event) error {
	var effects []orchestrator.Effect
	d.state, effects = orchestrator.Step(d.state, ev, time.Now().UTC())
	for _, e := range effects {
		if err := d.do(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

func (d *drive) do(ctx context.Context, e orchestrator.Effect) error {
	switch e := e.(type) {
	case orchestrator.Persist:
		d.header = e.Header
		d.header.PlanChunks = d.chunks
		return d.r.writeHeader(ctx, d.h, &d.header)
	case orchestrator.Assign:
		return d.give(ctx, e.Order, e.Nodes, records.ActionApply)
	case orchestrator.Restore:
		return d.give(ctx, e.Order, e.Nodes, records.ActionRestore)
	case orchestrator.AskGate:
		d.f.ask(ctx, e)
	case orchestrator.Tell:
		d.r.tell(Progress{Text: e.Text, Kind: e.Kind, Node: e.Node, Header: d.present()})
	case orchestrator.Finish:
		d.finished = true
	}
	return nil
}

// give writes the orders for some nodes and confirms them to the core.
func (d *drive) give(ctx context.Context, o orchestrator.Order, nodes []int, action string) error {
	b := batcher{h: d.h}
	configs := d.plan.Spec.Configs
	for _, i := range nodes {
		ops := make([]consulkv.Op, len(configs))
		for ci, c := range configs {
			ops[ci] = consulkv.Set(d.r.keys.Desired(c.Name, d.plan.Nodes[i]), records.Encode(d.desired(i, ci, c, o, action)))
		}
		if err := b.add(ctx, ops...); err != nil {
			return err
		}
	}
	if err := b.flush(ctx); err != nil {
		return err
	}
	// Answers that came in before the orders' own wake-up are not missed.
	d.f.poke()
	return d.step(ctx, orchestrator.Assigned{Order: o, Nodes: nodes})
}

func (d *drive) desired(node, ci int, c orchestrator.Config, o orchestrator.Order, action string) *records.Desired {
	out := &records.Desired{
		Version: records.Version, Order: o, Rollout: d.plan.ID, Destination: c.Destination,
		Action: action, Mode: c.Mode, Owner: c.Owner, Group: c.Group,
		Validate: command(c.Validate), Reload: command(c.Reload), Healthy: command(c.Healthy),
	}
	if action == records.ActionRestore {
		// The node itself keeps what it goes back to.
		out.Revision = d.prev[[2]int{node, ci}]
		return out
	}
	out.Revision, out.SHA256, out.Size, out.Chunks = c.Revision, c.SHA256, c.Size, chunks(c.Size)
	return out
}

func command(c *orchestrator.Command) *records.Command {
	if c == nil {
		return nil
	}
	return &records.Command{Argv: c.Argv, Timeout: c.Timeout.Seconds()}
}

// present is the header as of now; the persisted one may be a little behind in
// its counts.
func (d *drive) present() orchestrator.Header {
	h := d.state.Header()
	h.PlanChunks = d.chunks
	return h
}

// beat writes the progress record: soon after something moved, and in any case
// every heartbeat, because silence is what a stalled holder looks like.
func (d *drive) beat(ctx context.Context) error {
	c := d.state.Counts()
	done := c.Total() - c[orchestrator.ClassPending]
	since := time.Since(d.lastBeat)
	if !d.finished && since < heartbeatEvery && (done == d.lastDone || since < progressEvery) {
		return nil
	}
	moved := done != d.lastDone
	d.lastBeat, d.lastDone = time.Now(), done
	h := d.present()
	if moved {
		d.r.tell(Progress{Header: h})
	}
	note := fmt.Sprintf("%s, stage %s", h.State, h.Stage)
	return d.h.Progress(ctx, int64(done), int64(h.Total), "nodes", note)
}

// Lost reports whether an error of Start or Tick means that the lock was lost,
// or asked for, while working.
func Lost(err error) bool {
	return errors.Is(err, locksmith.ErrLost) || errors.Is(err, locksmith.ErrRequested)
}
