package locksmith

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// errNotHere: a step needs what this program or place does not have.
var errNotHere = errors.New("not possible here")

// stepTimeout bounds an exec step that names no wait.
const stepTimeout = 30 * time.Second

// run does one step of a break.
func (b *breaking) run(ctx context.Context, st *policies.Step) error {
	s := b.v.Snapshot
	switch st.Kind {
	case policies.StepRequest:
		return b.c.request(ctx, s, b.rec.Rule, b.rec.Reason, max(st.Wait, 10*time.Second))
	case policies.StepSignal:
		return b.signal(st)
	case policies.StepExec:
		return b.exec(ctx, st)
	case policies.StepDestroySession:
		return b.c.destroySession(ctx, s.SessionID())
	case policies.StepNomadStop:
		return fmt.Errorf("%w: no connection to Nomad is set up; stop the allocation by hand", errNotHere)
	case policies.StepPlugin:
		return fmt.Errorf("%w: breaker plugin %q is not loaded", errNotHere, st.Plugin)
	}
	return fmt.Errorf("%w: step %q", errNotHere, st.Kind)
}

func (b *breaking) signal(st *policies.Step) error {
	h := b.v.Snapshot.Holder
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
func (b *breaking) exec(ctx context.Context, st *policies.Step) error {
	argv, err := st.Command(b.v.Facts)
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
		"AIMLOCK_LOCK=" + b.rec.Lock, "AIMLOCK_RULE=" + b.rec.Rule,
		"AIMLOCK_SESSION=" + b.rec.Session, "AIMLOCK_TOKEN=" + strconv.FormatUint(b.rec.Token, 10),
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

// request asks the holder of s to let go. The record cannot outlive the holder
// that it names: it is written only while that one holds, and names its
// session and token.
func (c *Client) request(ctx context.Context, s *evidence.Snapshot, rule, reason string, valid time.Duration) error {
	return c.address(ctx, s, c.keys.Request(s.Name), rule, reason, valid)
}

func (c *Client) address(ctx context.Context, s *evidence.Snapshot, key, rule, reason string, valid time.Duration) error {
	now := time.Now().UTC()
	rec := records.Request{
		Version: records.Version, Session: s.SessionID(), Token: s.Index(), Rule: rule, PolicyHash: c.set.Hash,
		By: c.by, At: now, Expires: now.Add(valid), Reason: reason,
	}
	_, err := consulkv.Retry(ctx, c.consul, "write "+key, func(ctx context.Context) (consulkv.Results, error) {
		return c.consul.Txn(ctx, consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index()),
			consulkv.Set(key, records.Encode(&rec)))
	})
	if _, ok := isRefused(err); ok {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

// Request asks whoever holds the lock called name to let go within valid. It
// returns errors.Is ErrNotHeld if nobody does.
func (c *Client) Request(ctx context.Context, name, reason string, valid time.Duration) (*Verdict, error) {
	return c.tell(ctx, name, reason, valid, c.keys.Request)
}

// Approve lets the lock called name be broken while its present holder has it,
// for the rule that holds now or, if none does, for any, within valid.
func (c *Client) Approve(ctx context.Context, name, reason string, valid time.Duration) (*Verdict, error) {
	return c.tell(ctx, name, reason, valid, c.keys.Approval)
}

// ErrNotHeld: nobody holds the lock.
var ErrNotHeld = errors.New("nobody holds the lock")

func (c *Client) tell(ctx context.Context, name, reason string, valid time.Duration, key func(string) string) (*Verdict, error) {
	v, err := c.NewObserver(name, nil).Observe(ctx)
	if err != nil {
		return nil, err
	}
	if !v.Snapshot.Held() {
		return v, fmt.Errorf("lock %s: %w", name, ErrNotHeld)
	}
	rule := ""
	if v.State == Hot {
		rule = v.Judgement.Rule.Name
	}
	return v, c.address(ctx, v.Snapshot, key(v.Snapshot.Name), rule, reason, valid)
}

// keyWatcher follows one key.
func (c *Client) keyWatcher(key string, least time.Duration) *consulkv.Watcher[*api.KVPair] {
	return consulkv.NewWatcher(c.consul, consulkv.WatchOptions{Name: key, MinInterval: least},
		func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) { return c.consul.API().KV().Get(key, q) })
}
