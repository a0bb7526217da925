package locksmith

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// errNotHere: a step needs what this program or place does not have.
var errNotHere = errors.New("not possible here")

// stepTimeout bounds an exec step that names no wait.
const stepTimeout = 30 * time.Second

// group are the targets that one session holds under one policy: its steps run
// once for them.
type group struct {
	policy  *policies.Policy
	targets []*target
}

func (b *breaking) groups() []*group {
	var out []*group
	for _, t := range b.targets {
		same := slices.IndexFunc(out, func(g *group) bool {
			return g.policy == t.v.Policy && g.targets[0].v.Snapshot.SessionID() == t.v.Snapshot.SessionID()
		})
		if same < 0 {
			out = append(out, &group{policy: t.v.Policy, targets: []*target{t}})
			continue
		}
		out[same].targets = append(out[same].targets, t)
	}
	return out
}

// steps runs the policies' steps up to take. take is true if all policies come
// to that; errLetGo if a lock was let go before, errChanged if one is not HOT
// any more, errStep if a step failed.
func (b *breaking) steps(ctx context.Context) (take bool, err error) {
	for _, g := range b.groups() {
		take, err := b.stepsOf(ctx, g)
		if err != nil || !take {
			return false, err
		}
	}
	return true, nil
}

func (b *breaking) stepsOf(ctx context.Context, g *group) (take bool, err error) {
	first := g.targets[0]
	for _, st := range g.policy.Break.Steps {
		run, why := applies(st, first.v)
		if !run {
			g.log(st.Kind, "skipped", why)
			continue
		}
		if st.Kind == policies.StepTake {
			if first.v.Snapshot.Slot != nil {
				g.log(st.Kind, "refused", slotCannot+" of a semaphore")
				return false, fmt.Errorf("%s of a semaphore: the step that ends its hold is destroy_session", slotCannot)
			}
			return true, nil
		}
		if err := b.step(ctx, g, st); err != nil {
			return false, err
		}
		// A holder that came back to life while it was waited for is not to be
		// harmed by the next step.
		for _, t := range g.targets {
			if err := t.look(ctx); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// step does one step, and waits as it asks for.
func (b *breaking) step(ctx context.Context, g *group, st *policies.Step) error {
	first := g.targets[0]
	ctx, span := tracing.Start(b.span.In(ctx), tracing.Step)
	defer span.End()
	span.Str(tracing.StepKind, st.Kind)
	detail, err := "", b.spares(ctx, first, st)
	if err == nil {
		if err := b.ready(ctx, g, st); err != nil {
			span.Outcome("stopped", false)
			return err
		}
		b.notify(Notice{Kind: NoticeStep, Lock: first.name, Text: stepText(st)})
		detail, err = b.run(ctx, first, st)
	}
	if err != nil {
		if ctx.Err() != nil {
			span.Outcome("stopped", false)
			return context.Cause(ctx)
		}
		span.Outcome("failed", true)
		g.log(st.Kind, "failed", err.Error())
		if st.OnError != policies.OnErrorContinue {
			return fmt.Errorf("%w: %s: %w", errStep, st.Kind, err)
		}
	} else {
		span.Outcome("done", false)
		g.log(st.Kind, "done", detail)
		if st.Destroys() {
			for _, t := range g.targets {
				t.step = st.Kind
			}
		}
	}
	s := first.v.Snapshot
	return b.c.await(ctx, st.Wait, map[string]*api.KVPair{s.Key: s.Pair})
}

// ready is the last word before a step. One that destroys may come minutes after the
// intent, and no transaction of its own guards it: what the steps before it took, or
// the reading of what else the session holds, is no time in which a brake may be put
// on, or the holder come back to life, unseen.
func (b *breaking) ready(ctx context.Context, g *group, st *policies.Step) error {
	if st.Destroys() {
		for _, t := range g.targets {
			if err := b.markFence(ctx, t); err != nil {
				return err
			}
		}
		if err := lookAnew(ctx, g.targets); err != nil {
			return err
		}
		// The intent has paid for these holds: the budget lets them pass.
		if err := b.c.permitted(ctx, g.targets); err != nil {
			return err
		}
		for _, t := range g.targets {
			if err := t.recent(); err != nil {
				return err
			}
		}
	}
	_, err := b.under.above()
	return err
}

// applies reports whether a step is to be run, and why not.
func applies(st *policies.Step, v *Verdict) (run bool, why string) {
	if run, _, why = st.Applies(v.Facts); !run {
		return false, why
	}
	if a := v.Snapshot.Alloc; st.Kind == policies.StepNomadStop && a != nil && a.Gone {
		// To stop it would fail, and so would every break of its lock.
		return false, "Nomad collected the allocation: there is nothing to stop"
	}
	return true, ""
}

func stepText(st *policies.Step) string {
	text := st.Kind
	if st.Signal != "" {
		text += " " + st.Signal
	}
	if st.Wait > 0 {
		text += ", wait " + st.Wait.String()
	}
	return text
}

func (g *group) log(step, result, detail string) {
	for _, t := range g.targets {
		t.rec.Steps = append(t.rec.Steps, records.BreakStep{Step: step, At: time.Now().UTC(), Result: result, Detail: printable(detail)})
	}
}

// run does one step of a break. detail says what was done, where a plugin did it.
func (b *breaking) run(ctx context.Context, t *target, st *policies.Step) (detail string, err error) {
	if st.Kind == policies.StepPlugin {
		return b.pluginStep(ctx, t, st)
	}
	return "", b.builtIn(ctx, t, st)
}

func (b *breaking) builtIn(ctx context.Context, t *target, st *policies.Step) error {
	s := t.v.Snapshot
	switch st.Kind {
	case policies.StepRequest:
		above, err := b.under.above()
		if err != nil {
			return err
		}
		return b.c.address(ctx, s, b.c.keys.Request(s.Name), b.c.set.Hash, t.rec.Rule, t.rec.Reason, max(st.Wait, 10*time.Second), above...)
	case policies.StepSignal:
		return b.signal(s, st)
	case policies.StepExec:
		return b.exec(ctx, t, st)
	case policies.StepDestroySession:
		return b.c.destroySession(ctx, s.SessionID())
	case policies.StepNomadStop:
		return b.nomadStop(ctx, s)
	}
	return fmt.Errorf("%w: step %q", errNotHere, st.Kind)
}

// spares is an error where a step would end more than the break is about: the end of a
// session is that of its hold of every key, whatever is thought of them.
func (b *breaking) spares(ctx context.Context, t *target, st *policies.Step) error {
	if st.Kind != policies.StepDestroySession || b.force {
		return nil
	}
	switch other, err := b.otherKey(ctx, t.v.Snapshot); {
	case err != nil:
		return fmt.Errorf("the session is left alone: %w", err)
	case other != "":
		return fmt.Errorf("the session is left alone: it holds %s too; `aimlock lock break -force` ends that as well", printable(other))
	}
	return nil
}

func (b *breaking) nomadStop(ctx context.Context, s *evidence.Snapshot) error {
	switch {
	case s.Holder == nil || s.Holder.AllocID == "":
		return fmt.Errorf("%w: the holder did not record an allocation", errNotHere)
	case b.c.reader.Nomad == nil:
		return fmt.Errorf("%w: NOMAD_ADDR is not set; stop the allocation by hand", errNotHere)
	}
	return b.c.reader.Nomad.Stop(ctx, evidence.AllocRef{ID: s.Holder.AllocID, Region: s.Holder.AllocRegion})
}

func (b *breaking) signal(s *evidence.Snapshot, st *policies.Step) error {
	h := s.Holder
	if h == nil || !b.c.reader.Local(h) {
		return fmt.Errorf("%w: the holder is not a process of this host that its record names", errNotHere)
	}
	sig := unix.SignalNum("SIG" + st.Signal)
	if sig == 0 {
		return fmt.Errorf("signal %q is not known on this host", st.Signal)
	}
	return hostproc.SignalProcess(h.PID, h.StartTicks, sig)
}

// exec runs a command of the policy, without a shell. Its output is not kept:
// it may hold anything.
func (b *breaking) exec(ctx context.Context, t *target, st *policies.Step) error {
	argv, err := st.Command(t.v.Facts)
	if err != nil {
		return err
	}
	timeout := st.Wait
	if timeout <= 0 {
		timeout = stepTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"AIMLOCK_LOCK=" + t.rec.Lock, "AIMLOCK_RULE=" + t.rec.Rule,
		"AIMLOCK_SESSION=" + t.rec.Session, "AIMLOCK_TOKEN=" + strconv.FormatUint(t.rec.Token, 10),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%s did not end within %s", argv[0], timeout)
		}
		return fmt.Errorf("%s: %w", argv[0], err)
	}
	return nil
}

// address writes a request or an approval for the holder of s. The record
// cannot outlive the holder that it names: it is written only while that one
// holds, and names its session and token. above are further conditions.
func (c *Client) address(ctx context.Context, s *evidence.Snapshot, key, hash, rule, reason string, valid time.Duration, above ...consulkv.Op) error {
	now := time.Now().UTC()
	rec := records.Request{
		Version: records.Version, Session: s.SessionID(), Token: s.Index(), Rule: rule, PolicyHash: hash,
		By: c.by, Who: c.Who(ctx), At: now, Expires: now.Add(valid), Reason: reason,
	}
	_, err := consulkv.Retry(ctx, c.consul, "write "+key, func(ctx context.Context) (consulkv.Results, error) {
		return c.consul.Txn(ctx, append(slices.Clone(above), consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index()),
			consulkv.Set(key, records.Encode(&rec)))...)
	})
	if _, ok := isRefused(err); ok {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

// Request asks whoever holds the lock called name to let go within valid. It
// returns errors.Is ErrNotHeld if nobody does, and a *SemaphoreError for a semaphore.
func (c *Client) Request(ctx context.Context, name, reason string, valid time.Duration) (*Verdict, error) {
	return c.tell(ctx, name, reason, valid, c.keys.Request)
}

// Approve lets the lock called name be broken while its present holder has it,
// for the rule that holds now or, if none does, for any, within valid. Where
// policies are applied it holds under those, whatever this client's are, and no
// longer than they are in force.
func (c *Client) Approve(ctx context.Context, name, reason string, valid time.Duration) (*Verdict, error) {
	return c.tell(ctx, name, reason, valid, c.keys.Approval)
}

// ErrNotHeld: nobody holds the lock.
var ErrNotHeld = errors.New("nobody holds the lock")

// SemaphoreError: the lock is a semaphore, and what was asked is about one holder.
type SemaphoreError struct {
	Lock string
	// Slot is the key of one that is held.
	Slot string
}

func (e *SemaphoreError) Error() string {
	return fmt.Sprintf("lock %s is a semaphore with several holders: name the slot of one, such as %s", e.Lock, e.Slot)
}

func (c *Client) tell(ctx context.Context, name, reason string, valid time.Duration, key func(string) string) (*Verdict, error) {
	v, err := c.NewObserver(name, nil).Observe(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case v.Snapshot.Held():
	case v.Occupied():
		return v, &SemaphoreError{Lock: name, Slot: v.gravest().Snapshot.Name}
	default:
		return v, fmt.Errorf("lock %s: %w", name, ErrNotHeld)
	}
	p, err := c.consul.Get(ctx, c.keys.PolicyActive())
	if err != nil {
		return nil, err
	}
	hash := c.set.Hash
	if p != nil {
		var active records.PolicyActive
		if err := records.Decode(p.Key, p.Value, &active); err != nil {
			return nil, err
		}
		hash = active.Hash
	}
	rule := ""
	if v.State == Hot && hash == c.set.Hash {
		rule = v.Judgement.Rule.Name
	}
	return v, c.address(ctx, v.Snapshot, key(v.Snapshot.Name), hash, rule, reason, valid)
}

// keyWatcher follows one key.
func (c *Client) keyWatcher(key string, least time.Duration) *consulkv.Watcher[*api.KVPair] {
	return c.keyWatcherFrom(key, least, 0)
}

// keyWatcherFrom follows what happens to one key after an index.
func (c *Client) keyWatcherFrom(key string, least time.Duration, index uint64) *consulkv.Watcher[*api.KVPair] {
	return consulkv.NewWatcher(c.consul, consulkv.WatchOptions{Name: key, MinInterval: least, From: index},
		func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) { return c.consul.API().KV().Get(key, q) })
}
