package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Start runs a rollout to its end: it resumes the unfinished one of the same
// name and content, or begins a new one, or serves those nodes that a finished
// one of the same content has not reached. It waits for the locks as the spec
// says, and for the window without the locks.
//
// The error wraps locksmith's: a *RefusedError where a lock was not given,
// ErrLost or ErrRequested where it was lost or asked for while working. What
// was done until then stands, and the next Start goes on.
func (r *Runner) Start(ctx context.Context, in Input) (*Outcome, error) {
	return r.run(ctx, in, untilEnd)
}

// Tick does what can be done now and returns. Where another process holds the
// lock it does nothing, and says so in Outcome.Busy. It does not begin a
// content again that was rolled back, aborted or failed: a periodic job would
// do so for ever.
func (r *Runner) Tick(ctx context.Context, in Input) (*Outcome, error) {
	return r.run(ctx, in, untilIdle)
}

// maxTries bounds how often the locks are taken anew because the rollout that
// they are for is another one by then.
const maxTries = 5

func (r *Runner) run(ctx context.Context, in Input, wait until) (*Outcome, error) {
	// Looked at before the lock as well: for the id that the holder record
	// names, and because a rollout with nothing to do takes no lock. The
	// decision that counts is made under the lock.
	j, done, err := r.decide(ctx, &in, wait, nil)
	if err != nil || done != nil {
		return done, err
	}
	var q *place
	defer func() { q.leave() }()
	for tries := 0; tries < maxTries; tries++ {
		if q, err = r.keepPlace(ctx, &in.Spec, wait, q, j); err != nil {
			return nil, err
		}
		out, next, err := r.attempt(ctx, &in, wait, q, j)
		switch {
		case errors.Is(err, errNotQueued):
			// Ended by an operator or by a rollout that took its place; or this
			// process was stopped for so long that its session ended.
			h, herr := r.header(ctx, q.rec.ID)
			if herr == nil {
				return &Outcome{ID: h.ID, Header: *h, Converged: true, Note: "it was ended while it waited for its turn"}, nil
			}
			if !errors.Is(herr, ErrNotFound) {
				return nil, herr
			}
		case err != nil || out != nil && next.change.IsZero():
			if err == nil && out.Header.FinishedAt != nil && out.Busy == nil {
				r.tidy(ctx)
				r.tidyContents(ctx, &in.Spec)
			}
			return out, err
		case !next.change.IsZero():
			head, err := r.awaitWindow(ctx, out.ID, next.change)
			if err != nil {
				return out, err
			}
			if head.FinishedAt != nil {
				return &Outcome{ID: out.ID, Header: *head, Converged: true, Note: "it was ended while it waited for its window"}, nil
			}
			// The next opening of a window is no trouble.
			tries = -1
		case next.behind:
			tries = -1
		}
		if j, done, err = r.decide(ctx, &in, wait, j.seen); err != nil || done != nil {
			return done, err
		}
	}
	return nil, fmt.Errorf("rollout %s: another orchestrator changes it again and again: is it started twice?", in.Spec.Name)
}

// announce tells the id of the rollout that a call drives, once and before anything else
// of it: by that others follow it. What is told of a lock that refuses comes before.
func (r *Runner) announce(in *Input, h *orchestrator.Header) {
	if in.announced != h.ID {
		in.announced = h.ID
		r.tell(Progress{Kind: orchestrator.TellStatus, Text: "rollout " + h.ID, Header: *h})
	}
}

// keepPlace gives a new rollout that may have to wait a place in the queue, or
// leaves it where there is nothing to wait for any more.
func (r *Runner) keepPlace(ctx context.Context, spec *orchestrator.Spec, wait until, q *place, j *job) (*place, error) {
	if q != nil && (j.resume != nil || q.gone()) {
		q.leave()
		q = nil
	}
	if j.resume != nil || wait != untilEnd || spec.Lock.Wait == 0 || q != nil {
		return q, nil
	}
	q, err := r.enqueue(ctx, spec, j.plan.ID)
	if consulkv.KindOf(err) == consulkv.Denied && spec.Conflict != orchestrator.ConflictQueue {
		r.log.Warn("while it waits, this rollout is not to be seen by others", "rollout", j.plan.ID, "error", err)
		return nil, nil
	}
	return q, err
}

// attempt waits for the turn and the locks of a rollout and drives it. A nil
// Outcome without an error: it is to be decided anew.
func (r *Runner) attempt(ctx context.Context, in *Input, wait until, q *place, j *job) (*Outcome, next, error) {
	if q != nil {
		j.plan.ID = q.rec.ID
	}
	if in.Spec.Conflict == orchestrator.ConflictQueue && j.resume == nil {
		if q == nil {
			b, err := r.before(ctx, in, nil, j)
			if err != nil || b != nil {
				return maybeWaiting(in, j.plan.ID, b), next{}, err
			}
		} else {
			var done *Outcome
			var err error
			if j, done, err = r.turn(ctx, in, q, j); err != nil || done != nil || j.resume != nil {
				return done, next{}, err
			}
			j.plan.ID = q.rec.ID
		}
	}
	return r.hold(ctx, in, wait, q, j)
}

// next says why the locks were let go although the rollout is not finished: it
// waits for its window until change, or for its turn behind another one.
type next struct {
	change time.Time
	behind bool
}

// hold takes the locks, decides again under them, and drives. A nil Outcome
// without an error: the rollout is another one than the locks were taken for.
func (r *Runner) hold(ctx context.Context, in *Input, wait until, q *place, j *job) (*Outcome, next, error) {
	id := j.plan.ID
	ctx, span := rolloutSpan(ctx, in.Spec.Name, id, j.resume)
	defer span.End()
	actx := ctx
	if q != nil {
		actx = span.In(q.ctx)
	}
	if wait == untilEnd && j.resume == nil && in.Spec.Lock.Wait > 0 && in.Spec.Conflict != orchestrator.ConflictQueue {
		r.askForRoom(actx, j.older, id)
	}
	h, out, err := r.acquire(actx, &in.Spec, id, wait)
	if h == nil {
		span.Outcome("no lock", false)
		if q != nil && q.gone() {
			err = errNotQueued
		}
		return out, next{}, err
	}
	defer func() {
		if err := release(ctx, h); err != nil && !Lost(err) {
			r.log.Warn("releasing the locks", "rollout", id, "token", h.Token(), "error", err)
		}
	}()
	j, done, err := r.decide(ctx, in, wait, j.seen)
	switch {
	case err != nil || done != nil:
		return done, next{}, err
	case j.resume == nil && len(j.older) > 0 && in.Spec.Conflict == orchestrator.ConflictQueue:
		if wait == untilIdle {
			return maybeWaiting(in, id, blockedBy(nil, j.older, nil)), next{}, nil
		}
		return nil, next{behind: true}, nil
	case j.resume == nil:
		// The holder record names the id made before the lock was taken.
		j.plan.ID = id
	case j.plan.ID != id:
		return nil, next{}, nil
	}
	out, nxt, err := r.drive(ctx, h, in, j, wait, q)
	droveTo(span, out, err)
	return out, nxt, err
}

// askForRoom tells those who are at work on older rollouts that by takes their
// place: they end at their next step, and the locks are free. Who does not hear
// it, because it hangs or is of a version that does not know the word, is waited
// for and judged like any holder; one that is rolling back is left to finish.
func (r *Runner) askForRoom(ctx context.Context, older []*orchestrator.Header, by string) {
	for _, old := range older {
		if old.State == orchestrator.RollingBack {
			continue
		}
		told, err := r.makeRoom(ctx, old, by)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.log.Warn("asking the orchestrator of an unfinished rollout to make room", "rollout", old.ID, "error", err)
		case told:
			words := fmt.Sprintf("rollout %s, which is at work, is told to make room", old.ID)
			if old.State == orchestrator.Paused {
				words = fmt.Sprintf("rollout %s is told to make room, which is %s", old.ID, Unfinished(old))
			}
			r.tell(Progress{Kind: orchestrator.TellStatus, Text: words, Header: *old})
		}
	}
}

// makeRoom tells whoever drives a rollout, if anybody does, that by takes its place.
func (r *Runner) makeRoom(ctx context.Context, old *orchestrator.Header, by string) (told bool, err error) {
	driven, err := r.driven(ctx, old)
	if err != nil || !driven {
		return false, err
	}
	_, _, err = r.writeCommand(ctx, Order{ID: old.ID, Verb: orchestrator.MakeRoom, rollout: by, Reason: "rollout " + by + " takes its place"})
	if errors.Is(err, ErrEnded) {
		return false, nil
	}
	return err == nil, err
}

// acquire takes the locks of all configs in one transaction. A nil Hold with a
// nil error: somebody else is at work, and a tick leaves it to them.
func (r *Runner) acquire(ctx context.Context, spec *orchestrator.Spec, id string, wait until) (Hold, *Outcome, error) {
	req := locksmith.Request{
		Operation: "rollout " + spec.Name, RolloutID: id,
		// A wait of 0 in a spec is none; to the locksmith it is one without end.
		TTL: spec.Lock.TTL, Wait: spec.Lock.Wait, Try: wait != untilEnd || spec.Lock.Wait == 0, Notify: r.waits(ctx, id, spec.Lock.Wait),
		// Every participant checks the order: the agents' fence.
		Quiesce: 0,
		// To a tick, an election among Consul's servers is no reason to fail.
		Reach: consulkv.DefaultRetryFor,
	}
	for _, c := range spec.Configs {
		req.Names = append(req.Names, c.Name)
		if c.Target != nil && !r.fencedTarget(ctx, c.Target.Name) {
			// What stands behind an agent does not check it, and may be at work for an
			// agent that is gone.
			req.Quiesce = locksmith.DefaultQuiesce
		}
	}
	h, err := r.locks.Acquire(ctx, req)
	if err == nil {
		return h, nil, nil
	}
	if ref, ok := errors.AsType[*locksmith.RefusedError](err); ok && wait == untilIdle {
		note := fmt.Sprintf("lock %s is %s: left to its holder", ref.Status.Name, ref.Status.State)
		if who := r.drives(ctx, ref.Status.Name, id); who != "" {
			note += ", which " + who
		}
		return nil, &Outcome{ID: id, Busy: ref.Status, Note: note}, nil
	}
	return nil, nil, err
}

// drive makes the rollout's state, new or recovered, and runs it.
func (r *Runner) drive(ctx context.Context, h Hold, in *Input, j *job, wait until, q *place) (*Outcome, next, error) {
	d := &drive{r: r, h: h, plan: j.plan, wait: wait, dir: in.Dir}
	d.header = orchestrator.NewHeader(j.plan.ID, j.plan.Spec, j.plan.CreatedAt)
	if j.resume != nil {
		d.header = *j.resume
	}
	r.announce(in, &d.header)
	var err error
	if d.seq, err = r.supersede(ctx, h, j); err != nil {
		return nil, next{}, err
	}
	d.header.Traceparent = cmp.Or(d.header.Traceparent, tracing.Parent(ctx))
	// It takes a while until a large fleet's health is read: in the meantime the
	// rest is.
	ctx, stop := d.follow(ctx)
	defer stop()
	if err := d.recover(ctx, j.resume == nil); err != nil {
		return nil, next{}, err
	}
	// Of a resumed rollout, too: the last one may have died in between.
	if err := r.writeContents(ctx, h, in, j); err != nil {
		return nil, next{}, err
	}
	if j.resume == nil {
		trace := d.header.Traceparent
		d.header = d.state.Header()
		d.header.Epoch, d.header.Token, d.header.Traceparent = h.Epoch(), h.Token(), trace
		d.header.BegunBy, d.header.BegunWith = r.by, in.File
		if err := r.clearQueue(ctx, h, &in.Spec, j.plan.ID, q); err != nil {
			return nil, next{}, err
		}
		if err := r.begin(ctx, h, j.plan, &d.header, q); err != nil {
			return nil, next{}, err
		}
		d.chunks = d.header.PlanChunks
	}
	err = d.run(ctx)
	out := &Outcome{ID: j.plan.ID, Header: d.present(), Converged: d.finished, Finished: d.finished, Note: j.note}
	if j.past != "" && out.Header.State == orchestrator.Succeeded {
		out.Note = j.past
	}
	return out, next{change: d.reopens}, err
}

// supersede ends unfinished rollouts of the same configs. This hold has their
// locks, so nobody drives them. One that is rolling back is brought to its end
// first: nodes that wait to go back from a bad revision must not wait for the
// stages of the next one. It returns the last Seq that was used.
func (r *Runner) supersede(ctx context.Context, h Hold, j *job) (seq uint64, err error) {
	for _, old := range j.older {
		var head orchestrator.Header
		switch {
		case old.State != orchestrator.RollingBack:
			if old.State == orchestrator.Paused {
				r.tell(Progress{Kind: orchestrator.TellStatus, Text: fmt.Sprintf("takes the place of rollout %s, which is %s", old.ID, Unfinished(old)), Header: *old})
			}
			if head, err = r.superseded(ctx, h, old, j); err != nil {
				return seq, err
			}
		case !covers(&j.plan.Spec, old):
			return seq, fmt.Errorf("rollout %s is rolling back configs that this one does not lock: `%s` brings it to its end", old.ID, r.typed("rollback", old.ID))
		default:
			plan, err := r.plan(ctx, old)
			if err != nil {
				return seq, fmt.Errorf("rollout %s is rolling back, and cannot go on: %w", old.ID, err)
			}
			d := &drive{r: r, h: h, plan: plan, wait: untilEnd, seq: seq, header: *old}
			if err := d.recover(ctx, false); err != nil {
				return seq, err
			}
			if err := d.run(ctx); err != nil {
				return seq, err
			}
			head, seq = d.present(), d.state.Hold().Seq
		}
		r.tell(Progress{Kind: orchestrator.TellStatus, Text: fmt.Sprintf("rollout %s, which was unfinished%s, is %s", old.ID, ofOldSpec(&j.plan.Spec, old), head.State), Header: head})
	}
	return seq, nil
}

// ofOldSpec says so where a rollout was begun with another version of a spec.
func ofOldSpec(spec *orchestrator.Spec, old *orchestrator.Header) string {
	if old.Name != spec.Name {
		return ""
	}
	return " (it was begun with another version of this spec)"
}

// superseded writes that a rollout is superseded. What is damaged or lost of it
// is no reason to leave it unfinished.
func (r *Runner) superseded(ctx context.Context, h Hold, old *orchestrator.Header, j *job) (orchestrator.Header, error) {
	by, begun := j.plan.ID, r.by
	if j.resume != nil {
		begun = j.resume.BegunBy
	}
	head, now := *old, time.Now().UTC()
	d := &drive{r: r, h: h, header: *old}
	var err error
	if d.plan, err = r.plan(ctx, old); err == nil {
		err = d.recover(ctx, false)
	}
	switch {
	case err == nil:
		var effects []orchestrator.Effect
		d.state, effects = orchestrator.Step(d.state, orchestrator.Supersede{By: by, Begun: begun}, now)
		for _, e := range effects {
			if t, ok := e.(orchestrator.Tell); ok {
				d.told(t, now)
			}
		}
		head = d.present()
		return head, d.write(ctx, &head)
	case unreadable(err):
		r.log.Warn("an unfinished rollout cannot be read whole", "rollout", old.ID, "error", err)
		head.SupersededBy = by
		head.End(orchestrator.Superseded, orchestrator.TookPlace(by, begun), now)
	default:
		return head, err
	}
	return head, r.writeHeader(ctx, h, &head)
}

// unreadable reports whether an error says that a rollout cannot go on from
// what Consul has of it. It can still be ended.
func unreadable(err error) bool {
	return errors.Is(err, orchestrator.ErrDataLost) || errors.Is(err, orchestrator.ErrPlanDamaged) || errors.Is(err, ErrRestored)
}

// covers reports whether the spec's locks are all that a rollout needs.
func covers(spec *orchestrator.Spec, h *orchestrator.Header) bool {
	return !slices.ContainsFunc(h.Configs, func(c orchestrator.HeaderConfig) bool {
		return !slices.ContainsFunc(spec.Configs, func(o orchestrator.Config) bool { return o.Name == c.Name })
	})
}

// windowSlack is how soon a window must open to be waited for with the locks
// held.
const windowSlack = 30 * time.Second

// awaitWindow waits until the window opens or somebody ends the rollout, and
// returns its header. A Consul that is away meanwhile is no matter.
func (r *Runner) awaitWindow(ctx context.Context, id string, change time.Time) (*orchestrator.Header, error) {
	ended := func(h *orchestrator.Header) bool { return h.FinishedAt != nil }
	for time.Now().Before(change) {
		h, err := r.awaitHeader(ctx, id, time.Until(change), ended)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, ErrNotFound):
			return nil, err
		case err != nil:
			r.log.Warn("waiting for the window", "rollout", id, "error", err)
			pause(ctx, min(10*time.Second, time.Until(change)))
		case ended(h):
			return h, nil
		}
	}
	return r.header(ctx, id)
}

func freshID(ctx context.Context, name string, now time.Time) string {
	return newID(name, now, fate.Text(ctx, "rollout"))
}
