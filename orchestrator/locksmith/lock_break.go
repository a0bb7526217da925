package locksmith

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// BreakRequest asks for one lock to be broken without a successor.
type BreakRequest struct {
	Name string
	// DryRun judges and asks for the permit, and changes nothing.
	DryRun bool
	// Force destroys the old session also where it holds other keys or has
	// behavior = delete. It never overrides the verdict or the policy.
	Force  bool
	Notify func(Notice)
	// Observer has watched the lock and goes on doing so; nil: a new one, which
	// remembers nothing. Nobody else uses it until Break returns.
	Observer *Observer
	// Now asks for an answer without a wait for what an observer would know by
	// then: a rule's `for`, and a freeze that nobody has watched.
	Now bool
	// Under is a lock of the breaker's own: every write of the break fails if
	// that is lost, and nothing is sent once its lease is over.
	Under *Hold
}

// Broken is how a break came out.
type Broken struct {
	Verdict *Verdict
	// Record is nil for a dry run, and where nobody held the lock.
	Record *records.Break
	// Plan are the steps that would run, for a dry run.
	Plan []string
	// Dismissed says what became of the old session.
	Dismissed string
}

// breakTries bounds how often a break begins anew because something changed.
const breakTries = 5

// Break breaks the lock by the policy in force. It returns a *RefusedError
// where the lock is not HOT, a *NotPermittedError where the policy does not
// let it be broken now, and ErrNotHeld where nobody holds it. A rule that
// holds but has not yet held for its `for` is watched for that long.
func (c *Client) Break(ctx context.Context, req BreakRequest) (*Broken, error) {
	if req.Notify == nil {
		req.Notify = func(Notice) {}
	}
	req.Name = c.lockName(req.Name)
	obs := req.Observer
	if obs == nil {
		obs = c.NewObserver(req.Name, nil)
	}
	look := func() (*Verdict, error) { return obs.Watch(ctx, req.Notify) }
	if req.Now {
		look = func() (*Verdict, error) { return obs.Observe(ctx) }
	}
	bctx, cancel := context.WithCancel(ctx)
	watched := closedChan()
	defer func() { cancel(); <-watched }()
	var last error
	for range breakTries {
		if _, err := req.Under.above(); err != nil {
			return nil, err
		}
		v, err := look()
		if err != nil {
			return nil, err
		}
		out := &Broken{Verdict: v}
		switch {
		case !v.Occupied():
			return out, fmt.Errorf("lock %s: %w", req.Name, ErrNotHeld)
		case v.State != Hot:
			st := c.Status(v)
			st.Next = c.Next(v, nil)
			return out, &RefusedError{Status: st, Why: "only a HOT lock is broken"}
		case req.DryRun:
			return out, c.dryRun(ctx, v, out)
		}
		t := &target{name: req.Name, obs: obs, v: v}
		if err = c.permitted(ctx, []*target{t}); frozenUnknown(err) && !req.Now {
			// This command has no history of the cluster: it makes one.
			if obs.cluster == nil {
				obs.cluster, watched = evidence.WatchCluster(bctx, c.consul)
			}
			req.Notify(Notice{Kind: NoticeWaiting, Lock: req.Name, Status: c.Status(v), Text: "watching the cluster for " + thawPatience.String() + " at most: " + whyNot(err)})
			err = c.thaw(ctx, t)
		}
		if err == nil {
			err = c.breakOnly(ctx, t, req, out)
		}
		if lost := req.Under.lostBy(err); lost != nil {
			return out, lost
		}
		if errors.Is(err, errStep) && !errors.Is(err, errChanged) {
			return out, fmt.Errorf("lock %s is not broken: %w", req.Name, err)
		}
		if !errors.Is(err, errChanged) && !errors.Is(err, errLetGo) {
			return out, err
		}
		last = err
	}
	return nil, fmt.Errorf("lock %s: gave up after %d tries: %w", req.Name, breakTries, last)
}

func closedChan() <-chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}

func frozenUnknown(err error) bool {
	no, ok := errors.AsType[*NotPermittedError](err)
	return ok && no.brake == brakeUnknown
}

// whyNot is why a brake refuses, without the lock's name.
func whyNot(err error) string {
	if no, ok := errors.AsType[*NotPermittedError](err); ok {
		return no.Why
	}
	return err.Error()
}

// thawPatience is how long it takes to know of a cluster what a policy's freeze
// asks, in nearly all of them.
const thawPatience = 70 * time.Second

// thaw watches until it is known whether breaking is frozen, or for as long as
// it is worth it. A *NotPermittedError says that the target may not be broken.
func (c *Client) thaw(ctx context.Context, t *target) error {
	for deadline := time.Now().Add(thawPatience); ; {
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
		v, err := t.obs.observe(ctx)
		switch {
		case err != nil:
			return err
		case v.Snapshot.Hold() != t.v.Snapshot.Hold():
			return errLetGo
		case v.State != Hot:
			return errChanged
		}
		t.v = v
		if err := c.permitted(ctx, []*target{t}); !frozenUnknown(err) || time.Now().After(deadline) {
			return err
		}
	}
}

func (c *Client) dryRun(ctx context.Context, v *Verdict, out *Broken) error {
	p, err := c.Permit(ctx, v)
	if err != nil {
		return err
	}
	if !p.OK {
		return &NotPermittedError{Lock: v.Snapshot.Name, Permit: p}
	}
	for _, st := range v.Policy.Break.Steps {
		line := stepText(st)
		if run, why := applies(st, v); !run {
			line += " (skipped: " + why + ")"
		}
		out.Plan = append(out.Plan, line)
	}
	return nil
}

func (c *Client) breakOnly(ctx context.Context, t *target, req BreakRequest, out *Broken) error {
	b, err := c.startBreak(ctx, []*target{t}, req.Notify, req.Force, req.Under)
	if err != nil {
		return err
	}
	take, err := b.steps(ctx)
	if err == nil && !take {
		err = errors.New("the policy's steps do not end the hold")
	}
	if err == nil {
		out.Record, err = b.unlock(ctx)
	}
	out.Verdict = t.v
	switch {
	case errors.Is(err, errLetGo):
		b.finish(ctx, "")
		t.rec.Outcome, out.Dismissed = t.ended()
		out.Record = &t.rec
		return nil
	case err != nil:
		b.finish(ctx, err.Error())
		return err
	}
	dctx, cancel := detached(ctx, 5*time.Second)
	defer cancel()
	out.Dismissed = b.dismiss(dctx)
	b.ended(out.Record.Outcome, out.Dismissed)
	return nil
}

// Watch observes the lock and, while a hot rule holds that has not yet held
// for its `for`, goes on observing until it has or no longer holds: what a
// one-shot command does instead of a memory.
func (o *Observer) Watch(ctx context.Context, notify func(Notice)) (*Verdict, error) {
	v, err := o.Observe(ctx)
	told := false
	for err == nil && v.State != Hot {
		left := pendingHot(v)
		if left <= 0 {
			break
		}
		if !told && notify != nil {
			told = true
			st := o.c.Status(v)
			notify(Notice{Kind: NoticeWaiting, Lock: v.Snapshot.Name, Status: st, Text: fmt.Sprintf("watching for %s: %s", round(left), st.Pending[0])})
		}
		// Once a second at most, and just after the rule's time has come.
		if err := sleep(ctx, min(left+time.Millisecond, time.Second)); err != nil {
			return nil, err
		}
		v, err = o.Observe(ctx)
	}
	return v, err
}

// PendingHot is how long until a hot rule counts that holds already; 0: none.
func (v *Verdict) PendingHot() time.Duration { return pendingHot(v) }

// pendingHot is how long until the first pending hot rule counts; 0: none.
func pendingHot(v *Verdict) time.Duration {
	var least time.Duration
	for _, p := range v.Judgement.Pending {
		if p.Rule.Hot && (least == 0 || p.Left < least) {
			least = p.Left
		}
	}
	return least
}

// Next says in one sentence what happens next with the lock, and the command
// that helps. p is the permit of a HOT lock, if it was asked for: without it nobody is
// told to break the lock.
func (c *Client) Next(v *Verdict, p *Permit) string {
	s := v.Snapshot
	if s.Semaphore != nil {
		return c.nextSemaphore(v)
	}
	switch v.State {
	case Free:
		if err := usable(s); err != nil {
			return fmt.Sprintf("nobody takes it: %v", err)
		}
		if owed, _ := c.owed(s); owed != nil {
			return fmt.Sprintf("anybody may take it; the next holder first waits %s for what the last one may still have running", round(seconds(owed.Owed)))
		}
		return "anybody may take it"
	case Cooling:
		if v.DelayLeft >= 0 {
			return fmt.Sprintf("Consul gives it out again in about %s (lock-delay)", round(v.DelayLeft))
		}
		if most, ok := delayAtMost(v); ok {
			return fmt.Sprintf("Consul gives it out again in at most %s (lock-delay)", round(most))
		}
		return "Consul refuses it until the lock-delay of the last session is over"
	case Unknown:
		return fmt.Sprintf("it is not broken on unknown evidence; `%s` shows what is missing", c.flags.Judging("lock explain", s.Name))
	case Hot:
		switch {
		case v.Policy.Break == nil:
			return fmt.Sprintf("policy %s never breaks it", v.Policy.Name)
		case p != nil && !p.OK && p.Next != "":
			return fmt.Sprintf("it is not broken now: %s; `%s`", p.Why, p.Next)
		case p != nil && !p.OK:
			return "it is not broken now: " + p.Why + p.Anyway
		case p == nil:
			return c.nextUnasked(v)
		case p.Powerless:
			return fmt.Sprintf("it is broken once policies are applied, and before only with a token that may apply them (role admin): `%s`", c.flags.Judging("policy apply"))
		}
		return fmt.Sprintf("the next one who wants it%s breaks it (%s); or now: `%s`", c.flags.same(), stepsText(v.Policy.Break.Steps), c.flags.Judging("lock break", s.Name))
	}
	return c.nextHeld(v)
}

// nextUnasked is Next of a HOT lock for who did not ask whether the policy lets it be
// broken now: what is known without that, and where it is said.
func (c *Client) nextUnasked(v *Verdict) string {
	s, b := v.Snapshot, v.Policy.Break
	if s.Silence.Stands(v.At) {
		return "it is not broken now: " + silencedText(s.Silence, v.At)
	}
	switch b.Approval {
	case policies.ApprovalNever:
		return fmt.Sprintf("it is not broken now: policy %s says approval = %q", v.Policy.Name, b.Approval)
	case policies.ApprovalManual:
		if why := approved(v, "", v.At); why != "" {
			return fmt.Sprintf("it is not broken now: %s; `%s`", why, c.flags.Judging("lock approve", s.Name))
		}
	}
	return fmt.Sprintf("the next one who wants it%s breaks it (%s), where budget and brakes let it be broken now: `%s`", c.flags.same(), stepsText(b.Steps), c.flags.Judging("lock status", s.Name))
}

// Named is what Next says, for who gave the lock's name himself and may have mistyped it.
func (v *Verdict) Named(next string) string {
	if v.State == Free && unheardOf(v.Snapshot) {
		return next + noSuchKey
	}
	return next
}

// noSuchKey is said of a lock that nothing in Consul shows to have been held ever.
const noSuchKey = "; there is no such key"

// unheardOf tells of a lock that nothing in Consul shows to have been held ever, of
// which the name may be a typing error.
func unheardOf(s *evidence.Snapshot) bool {
	return s.Pair == nil && s.Progress == nil && s.Fence == nil && s.FenceErr == nil
}

// ttlText is a session's TTL as its maker gave it, without needless noughts: some
// write 15.000000s.
func ttlText(ttl string) string {
	d, err := time.ParseDuration(ttl)
	if err != nil {
		return printable(ttl)
	}
	return text.Duration(d)
}

// endsAnyway says when Consul itself frees a lock that is not broken for want of
// budget: a budget names hours, and who reads no more than that deletes the key.
func endsAnyway(s *evidence.Snapshot, p *Permit) string {
	if p.brake != brakeBudget || s.Session == nil {
		return ""
	}
	delay := s.Session.LockDelay
	if s.Checked() {
		return fmt.Sprintf("; if its process is gone, Consul frees it by itself within about %s", round(CheckTTL+delay))
	}
	if ttl, err := time.ParseDuration(s.Session.TTL); err == nil && ttl > 0 {
		return fmt.Sprintf("; if its holder is gone, Consul frees it by itself within about %s", round(2*ttl+delay))
	}
	return ""
}

func (c *Client) nextHeld(v *Verdict) string {
	s := v.Snapshot
	if s.Slot != nil && !s.Slot.Holds {
		return fmt.Sprintf("it gets a slot of %s when one is free; `%s`", s.Slot.Of, c.flags.Judging("lock status", s.Slot.Of))
	}
	if left := pendingHot(v); left > 0 {
		return fmt.Sprintf("it becomes HOT in %s if nothing changes", round(left))
	}
	next := "it is free when its holder lets go" + gone(s)
	if s.Holder != nil {
		return next + fmt.Sprintf("; to ask it: `%s`", c.flags.Judging("lock request", s.Name))
	}
	return next
}

// gone says when Consul gives out the lock of a holder that is not heard of any more:
// the lock-delay comes after the end of its hold.
func gone(s *evidence.Snapshot) string {
	if s.Session == nil {
		return ""
	}
	delay := s.Session.LockDelay.Round(time.Second)
	after := fmt.Sprintf("then %s of lock-delay", text.Duration(delay))
	ttl, err := time.ParseDuration(s.Session.TTL)
	switch {
	case s.Checked() && delay > 0:
		return fmt.Sprintf(", or about %s after it was last heard of (%s, %s)", text.Duration(CheckTTL+delay), text.Duration(CheckTTL), after)
	case s.Checked():
		return fmt.Sprintf(", or about %s after it was last heard of", text.Duration(CheckTTL))
	case s.Session.TTL == "" && delay > 0:
		return ", or when its node fails, " + after + ": its session has no TTL"
	case s.Session.TTL == "":
		return ", or when its node fails: its session has no TTL"
	case err == nil && delay > 0:
		return fmt.Sprintf(", or up to %s after it was last heard of (twice its session's TTL of %s, %s)", text.Duration(2*ttl+delay), ttlText(s.Session.TTL), after)
	}
	return fmt.Sprintf(", or up to twice its session's TTL of %s after it was last heard of", ttlText(s.Session.TTL))
}

func stepsText(steps []*policies.Step) string {
	out := ""
	for i, st := range steps {
		if i > 0 {
			out += ", "
		}
		out += st.Kind
	}
	return out
}
