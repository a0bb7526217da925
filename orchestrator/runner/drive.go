package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

const (
	// heartbeatEvery is how often the progress record is rewritten while
	// nothing moves: policies judge a holder by its age.
	heartbeatEvery = 2 * time.Second
	// progressEvery is the least interval between two progress records, and
	// two headers with nothing but new counts, while much moves.
	progressEvery = time.Second
	// healthWait bounds the wait for the agents' health before the first
	// order: without it nodes that are down would be given one, and a place in
	// the stage's window.
	healthWait = 2 * time.Second
)

// until says when a drive returns although the rollout has not finished.
type until int

const (
	// untilEnd: only when it is paused by a failure or a gate, or waits long
	// for its window.
	untilEnd until = iota
	// untilIdle: as soon as nothing can be done now.
	untilIdle
	// untilObeyed: as soon as a command is taken, unless the rollout is on its
	// way to an end.
	untilObeyed
)

// drive is one hold of one rollout.
type drive struct {
	r    *Runner
	h    Hold
	plan *orchestrator.Plan
	wait until
	// dir is the folder of the spec's file; empty where it is not known.
	dir string
	// seq is the last Seq that was used under this hold before this drive.
	seq    uint64
	obeyed uint64 // number of the command to take, for untilObeyed

	state *orchestrator.State
	prev  previous
	seen  seen
	after after
	// entries is how many answers stand under the configs, those of nodes that
	// are not in the plan too.
	entries int
	header  orchestrator.Header
	chunks  int // of the plan
	f       *follower
	win     window
	reader  reader
	// base is when the drive began: time goes on from there by the monotonic
	// clock, so that a clock that is set ends no bake and no deadline.
	base time.Time

	finished bool
	// reopens is when the window opens that the drive did not wait for.
	reopens  time.Time
	change   time.Time // of the window
	lastBeat time.Time
	lastDone int
	noted    time.Time // the header was written

	diary diary
	took  orchestrator.Answers
	phase phase
}

// recover makes the state, new or out of what stands in Consul.
func (d *drive) recover(ctx context.Context, fresh bool) error {
	hold := orchestrator.Order{Epoch: d.h.Epoch(), Token: d.h.Token()}
	st, err := d.r.standing(ctx, d.plan, fresh, hold.Epoch)
	if err != nil {
		return err
	}
	if err := st.restored(hold, d.plan.Spec.Failure.MaxFailed); err != nil {
		return err
	}
	d.prev, d.chunks = st.prev, d.header.PlanChunks
	d.seen, d.entries, d.after = st.seen, st.entries, st.after
	if fresh {
		epoch := d.h.Epoch()
		same, err := d.r.unchanged(ctx, d.plan, &epoch, st.answers)
		if err != nil {
			return err
		}
		d.plan.SetUnchanged(same)
		d.state = orchestrator.NewState(d.plan)
		return nil
	}
	if d.header.Answers != nil {
		d.took.Merge(*d.header.Answers)
	}
	if err := d.resumeDiary(ctx); err != nil {
		return err
	}
	d.header.Baked = bakedBy(&d.header, d.r.clock)
	d.header.Elapsed = elapsedBy(&d.header, d.r.clock)
	h := d.header
	if h.Epoch < hold.Epoch {
		// It is from before a recovery, by which somebody said that Consul went back:
		// whom it forgot is given an order again, newer than any that is lost.
		h.Confirmed = 0
	}
	d.state, err = orchestrator.Recover(d.plan, h, st.given, st.reports)
	return err
}

func (d *drive) now() time.Time {
	if d.base.IsZero() {
		d.base = time.Now()
	}
	// Round drops the monotonic reading; Add keeps wall and monotonic apart.
	return d.base.Round(0).Add(time.Since(d.base)).UTC()
}

// run drives the rollout until it ends or wait says so. It returns the cause
// where the hold ended first.
func (d *drive) run(ctx context.Context) (err error) {
	if d.win, err = newWindow(d.plan.Spec.Window); err != nil {
		return err
	}
	if d.f == nil {
		var stop func()
		ctx, stop = d.follow(ctx)
		defer stop()
	}
	d.phase.on(ctx)
	defer d.phase.end()
	if err := d.begin(ctx); err != nil {
		return err
	}
	for !d.finished && !d.stop() {
		if err := d.beat(ctx); err != nil {
			return err
		}
		ev, err := d.next(ctx)
		if err != nil {
			return err
		}
		if w, ok := ev.(orchestrator.WindowChanged); ok {
			w.Open, d.change = d.win.at(time.Now())
			ev = w
		}
		if err := d.step(ctx, ev); err != nil {
			return err
		}
	}
	return d.lastWord(ctx)
}

// follow begins to follow what changes in Consul: until stop, or the end of ctx.
// The context returned ends with it.
func (d *drive) follow(ctx context.Context) (fctx context.Context, stop func()) {
	fctx, cancel := context.WithCancel(ctx)
	d.f = d.r.newFollower(d.plan)
	d.f.start(fctx)
	return fctx, func() {
		cancel()
		d.f.wg.Wait()
	}
}

// begin feeds what must be known before the first order: whose agents are
// down, whether the window is open, and what an operator has said while nobody
// listened. Then the hold counts.
func (d *drive) begin(ctx context.Context) error {
	t := time.NewTimer(healthWait)
	defer t.Stop()
	select {
	case ev := <-d.f.health:
		if err := d.step(ctx, ev); err != nil {
			return err
		}
	case <-t.C:
	case <-d.h.Context().Done():
		return context.Cause(d.h.Context())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var open bool
	open, d.change = d.win.at(time.Now())
	if err := d.step(ctx, orchestrator.WindowChanged{Open: open}); err != nil {
		return err
	}
	c, err := d.r.command(ctx, d.plan.ID)
	if err != nil {
		return err
	}
	if c != nil {
		if err := d.step(ctx, c.event()); err != nil {
			return err
		}
	}
	if err := d.step(ctx, orchestrator.Acquired{Order: orchestrator.Order{Epoch: d.h.Epoch(), Token: d.h.Token(), Seq: d.seq}}); err != nil {
		return err
	}
	if p := d.header.Paused; p != nil && d.state.Status() == orchestrator.Paused {
		words := fmt.Sprintf("it is paused (%s)", p.Why)
		if awaited(p.Cause) {
			// Of any other pause the caller tells what each way out of it does.
			words += fmt.Sprintf("; `%s` lets it go on", d.r.typed(d.header.WayOn(), d.plan.ID))
		}
		d.r.tell(Progress{Kind: orchestrator.TellStatus, Header: d.present(), Text: words})
	}
	return nil
}

// stop reports whether the drive returns now.
func (d *drive) stop() bool {
	s := d.state
	switch d.wait {
	case untilIdle:
		return s.Idle() && (s.NextWake().IsZero() || s.NextWake().After(d.now())) && !s.Status().Terminal()
	case untilObeyed:
		ending := s.Status().Terminal() || s.Status() == orchestrator.RollingBack
		return !ending && d.header.Command != nil && d.header.Command.N >= d.obeyed
	}
	if s.Status() == orchestrator.Waiting && s.Idle() && time.Until(d.change) > windowSlack {
		// Nobody needs a lock to wait for the night.
		d.reopens = d.change
		return true
	}
	// A failure, a gate or the deadline has stopped it: whoever started it is
	// told. An operator who pauses it means to resume, and one who is to
	// promote a stage means to do so: the lock is kept for that.
	return s.Status() == orchestrator.Paused && d.header.Paused != nil && !awaited(d.header.Paused.Cause) && s.Idle()
}

// awaited are the causes of a pause that an operator is expected to end.
func awaited(c orchestrator.Cause) bool {
	return c == orchestrator.CauseOperator || c == orchestrator.CausePromotion
}

// next waits for the next event.
func (d *drive) next(ctx context.Context) (orchestrator.Event, error) {
	now := time.Now()
	wake := now.Add(heartbeatEvery)
	earlier := func(t time.Time) bool {
		if t.IsZero() || !t.Before(wake) {
			return false
		}
		wake = t
		return true
	}
	if t := d.state.NextWake(); !t.IsZero() {
		earlier(now.Add(t.Sub(d.now())))
	}
	window := earlier(d.change)
	read := earlier(d.reader.due())
	t := time.NewTimer(time.Until(wake))
	defer t.Stop()
	for {
		select {
		case <-d.h.Context().Done():
			return nil, context.Cause(d.h.Context())
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case ev := <-d.f.health:
			return ev, nil
		case ev := <-d.f.gates:
			return ev, nil
		case ev := <-d.f.cmds:
			return ev, nil
		case <-d.f.wake:
			if due := d.reader.changed(); due.After(time.Now()) {
				if earlier(due) {
					window, read = false, true
					t.Reset(time.Until(wake))
				}
				continue
			}
			return d.answers(ctx)
		case <-t.C:
			switch {
			case read:
				return d.answers(ctx)
			case window:
				return orchestrator.WindowChanged{}, nil
			}
			return orchestrator.Tick{}, nil
		}
	}
}

// answers reads what the nodes in flight have said, and now and then those
// that were given up.
func (d *drive) answers(ctx context.Context) (orchestrator.Event, error) {
	d.f.arm()
	nodes := d.reader.choose(d.state)
	found, err := d.fetch(ctx, nodes)
	if err != nil {
		return nil, err
	}
	var out orchestrator.Reports
	var lost []witness
	fresh := 0
	for _, a := range found {
		if d.seen[a.config][a.node] == a.pair.ModifyIndex {
			continue
		}
		d.seen[a.config][a.node] = a.pair.ModifyIndex
		if rep, t, ok := d.r.answer(a.pair, d.plan.ID, a.node, a.config, d.prev); ok {
			if w, is := d.witness(rep, t); is {
				lost = append(lost, w)
			}
			out = append(out, rep)
			if o, restore := d.state.Order(a.node); o == rep.Order && a.config == 0 {
				fresh++
				if since := d.state.Since(a.node); !since.IsZero() && !restore {
					d.took.Add(d.now().Sub(since))
				}
			}
		}
	}
	d.reader.read(len(nodes), fresh, d.state.Backlog())
	if len(lost) > 0 {
		// What these nodes have accepted they had not said yet when this drive began.
		return nil, errRestored(lost)
	}
	return out, nil
}

// witness tells whether a node refused what this drive gave it, or has answered it
// as another's, because Consul has lost what it accepted before.
func (d *drive) witness(rep orchestrator.Report, t told) (witness, bool) {
	given := d.after[rep.Config][rep.Node]
	c := &d.plan.Spec.Configs[rep.Config]
	if rep.Order != given.Order || c.Target != nil {
		return witness{}, false
	}
	w := witness{node: d.plan.Nodes[rep.Node], config: c.Name, mark: t.mark, stood: given.before,
		twin: t.twin(rep, given.Order, d.plan.ID, false)}
	return w, w.twin || rep.Result == orchestrator.ResultRefused && given.before.Less(t.mark)
}

// step feeds one event and does the effects in their order.
func (d *drive) step(ctx context.Context, ev orchestrator.Event) error {
	var effects []orchestrator.Effect
	now := d.now()
	d.state, effects = orchestrator.Step(d.state, ev, now)
	for _, e := range effects {
		if t, ok := e.(orchestrator.Tell); ok {
			d.told(t, now)
		}
	}
	d.tracePhase(ev)
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
		d.header = d.dress(e.Header)
		return d.write(ctx, &d.header)
	case orchestrator.Assign:
		return d.give(ctx, e.Order, e.Nodes, records.ActionApply, e.Attempt)
	case orchestrator.Restore:
		return d.give(ctx, e.Order, e.Nodes, records.ActionRestore, 0)
	case orchestrator.AskGate:
		if d.wait == untilObeyed {
			// Whoever gives an order may stand anywhere, and has neither the gate's
			// programs nor its environment. The question stays open, and the next
			// orchestrator puts it.
			break
		}
		d.f.ask(ctx, e.Ask, d.question(e))
	case orchestrator.Tell:
		d.r.tell(Progress{Text: e.Text, Kind: e.Kind, Node: e.Node, Header: d.present()})
	case orchestrator.Finish:
		d.finished = true
	}
	return nil
}

// give writes the orders for some nodes, each node's in one transaction, and
// confirms them to the core.
func (d *drive) give(ctx context.Context, o orchestrator.Order, nodes []int, action string, attempt int) error {
	b, parent := newBatcher(ctx, d.h), d.phase.parent()
	configs := d.plan.Spec.Configs
	for _, i := range nodes {
		ops := make([]consulkv.Op, len(configs))
		for ci, c := range configs {
			var want *records.Desired
			if action == records.ActionRestore {
				want = d.restored(ctx, i, ci, o)
			} else {
				want = d.r.desired(ctx, d.plan, i, ci, o)
				want.Attempt = attempt
			}
			want.After, want.Traceparent = d.after.give(ci, i, o), parent
			ops[ci] = consulkv.Set(d.r.keys.Desired(c.Name, d.plan.Nodes[i]), records.Encode(want))
		}
		b.add(ops...)
	}
	if err := b.flush(); err != nil {
		return err
	}
	d.reader.gave(len(nodes))
	// Answers that came in before the orders' own wake-up are not missed.
	d.f.poke()
	return d.step(ctx, orchestrator.Assigned{Order: o, Nodes: nodes})
}

// desired is the order that gives a node what the plan has for it of a config.
func (r *Runner) desired(ctx context.Context, plan *orchestrator.Plan, node, ci int, o orchestrator.Order) *records.Desired {
	c := &plan.Spec.Configs[ci]
	out := r.ordered(ctx, plan, node, c, o, records.ActionApply)
	if len(out.Requires) > 0 {
		out.Action = records.ActionApplyWith
	}
	rev := plan.Content(node, ci)
	out.Revision, out.SHA256, out.Size, out.Chunks = rev.Revision(), rev.SHA256, rev.Size, chunks(rev.Size)
	for _, s := range c.Secrets {
		out.Secrets = append(out.Secrets, records.Secret{Name: s.Name, Version: s.Version, ConsulKey: s.ConsulKey, Env: s.Env})
	}
	return out
}

// restored is the order that takes a node back to what it had of a config, which
// the node itself keeps.
func (d *drive) restored(ctx context.Context, node, ci int, o orchestrator.Order) *records.Desired {
	c := &d.plan.Spec.Configs[ci]
	out := d.r.ordered(ctx, d.plan, node, c, o, records.ActionRestore)
	out.Revision = d.prev[[2]int{node, ci}]
	return out
}

// ordered is what all orders of a config have.
func (r *Runner) ordered(ctx context.Context, plan *orchestrator.Plan, node int, c *orchestrator.Config, o orchestrator.Order, action string) *records.Desired {
	out := &records.Desired{
		Version: records.Version, Order: o, Rollout: plan.ID, Destination: c.Destination,
		Action: action, Mode: c.Mode, Owner: c.Owner, Group: c.Group, Drift: c.Drift,
		Validate: command(c.Validate), Reload: command(c.Reload), Healthy: command(c.Healthy),
	}
	if configs := plan.Spec.Configs; len(configs) > 1 {
		out.Requires = append(out.Requires, records.FeatureGroups)
		for _, c := range configs {
			out.Configs = append(out.Configs, c.Name)
		}
	}
	if len(c.Secrets) > 0 {
		out.Requires = append(out.Requires, records.FeatureSecrets)
	}
	if c.Target != nil {
		out.Requires = append(out.Requires, records.FeatureTargets)
		out.Target = &records.Target{Name: c.Target.Name, Config: c.Target.Config, Meta: plan.Meta(node)}
		if out.Target.Fenced = r.fencedTarget(ctx, c.Target.Name); out.Target.Fenced {
			out.Requires = append(out.Requires, records.FeatureFencedTargets)
		}
	}
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
func (d *drive) present() orchestrator.Header { return d.dress(d.state.Header()) }

// dress fills in what a header has that is not the core's.
func (d *drive) dress(h orchestrator.Header) orchestrator.Header {
	h.PlanChunks, h.Events, h.Traceparent = d.chunks, d.diary.last, d.header.Traceparent
	h.BegunBy, h.BegunWith = d.header.BegunBy, d.header.BegunWith
	mark(&h, &d.header, d.plan.Spec.Deadline > 0, d.r.clock)
	h.Flying = d.state.Oldest(orchestrator.FlyingShown)
	if d.took.N > 0 {
		a := d.took
		a.Buckets = slices.Clone(a.Buckets)
		h.Answers = &a
	}
	return h
}

// beat writes the progress record, and the header with its new counts: soon
// after something moved, and the record in any case every heartbeat, because
// silence is what a stalled holder looks like. No effect is outstanding when it
// is called, so the header says nothing that is not true yet.
func (d *drive) beat(ctx context.Context) error {
	c := d.state.Counts()
	done := c.Total() - c[orchestrator.ClassPending]
	moved, since := done != d.lastDone, time.Since(d.lastBeat)
	if since < progressEvery || !moved && since < heartbeatEvery {
		return nil
	}
	return d.account(ctx, done, moved)
}

// lastWord is the last beat of a drive. A rollout that has finished says so in
// its header, and has no need of it.
func (d *drive) lastWord(ctx context.Context) error {
	c := d.state.Counts()
	return d.account(ctx, c.Total()-c[orchestrator.ClassPending], !d.finished)
}

func (d *drive) account(ctx context.Context, done int, header bool) error {
	moved := done != d.lastDone
	d.lastBeat, d.lastDone = time.Now(), done
	h := d.present()
	if moved {
		d.r.tell(Progress{Header: h})
	}
	clock := h.BakingSince != nil || h.Ticking() && d.plan.Spec.Deadline > 0
	if header || clock && time.Since(d.noted) >= bakeNoted {
		d.header = h
		if err := d.write(ctx, &d.header); err != nil {
			return err
		}
	}
	return d.h.Progress(ctx, int64(done), int64(h.Total), "nodes", progressNote(&h))
}

// progressNote says what the nodes are that count as done: not all of them need have
// applied anything.
func progressNote(h *orchestrator.Header) string {
	note := fmt.Sprintf("%s, stage %s", h.State, h.Stage)
	if ended := h.Counts.Words(orchestrator.ClassPending); ended != "" {
		note = ended + "; " + note
	}
	return note
}

// Lost reports whether an error of Start or Tick means that the lock was lost,
// or asked for, while working.
func Lost(err error) bool {
	return errors.Is(err, locksmith.ErrLost) || errors.Is(err, locksmith.ErrRequested)
}
