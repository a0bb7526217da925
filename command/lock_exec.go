package command

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/supervise"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// execOptions are the flags of "lock exec".
type execOptions struct {
	wait    time.Duration
	try     bool
	noBreak bool
	ttl     time.Duration
	grace   time.Duration
	slots   int

	progress progressOptions
}

func newLockExec(m *Meta) *command {
	o := execOptions{ttl: locksmith.DefaultTTL, grace: 5 * time.Second}
	return &command{
		Meta:     m,
		Synopsis: "Run a command while holding a lock",
		Usage:    "[options] NAME -- CMD…",
		Description: `Takes the lock, runs the command, and lets the lock go when it ends. While it
waits it judges whoever is in the way by the policies in force and breaks a HOT
lock where they let it.

The command finds the fencing token in AIMLOCK_TOKEN and the epoch in
AIMLOCK_EPOCH: have whatever it writes to refuse an older pair. The command and
all that it started end before the lock can pass to another: when the lock is
lost, and also when aimlock itself is killed.

The exit code is the command's (128 + n for signal n). aimlock's own refusals
and losses print ERROR: first and exit with 4, 5 or 7.`,
		Examples: []example{
			{"One deploy at a time", "aimlock lock exec deploy -- ./deploy.sh --all"},
			{"Only if it is free now", "aimlock lock exec -try nightly -- ./report"},
			{"Three backups at a time, over all machines", "aimlock lock exec -n 3 backup -- ./backup.sh"},
			{"Tell how far it is, so that one which stands still is noticed", "aimlock lock exec -progress-fd 3 import -- sh -c './a; echo 1/2 >&3; ./b; echo 2/2 >&3'"},
		},
		Groups: groupConsul | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.DurationVar(&o.wait, "wait", 0, "Give up after `DURATION`. Default: wait without limit.")
			fs.BoolVar(&o.try, "try", false, "Do not wait.")
			fs.BoolVar(&o.noBreak, "no-break", false, "Never break, whatever the policies say.")
			fs.DurationVar(&o.ttl, "ttl", o.ttl, "TTL of the session, a `DURATION` from 10s to 24h.")
			fs.IntVar(&o.slots, "n", 0, "Run at most `N` at once: take any one of the locks NAME.0 to NAME.<N-1>.\nThe command finds the number of its slot in AIMLOCK_SLOT. Give the same N everywhere.")
			o.progress.flags(fs)
			fs.DurationVar(&o.grace, "grace", o.grace, "Time, a `DURATION`, between SIGTERM and SIGKILL when the command must end.")
		},
		MinArgs: 1, MaxArgs: -1,
		Complete:    completeInOrder(completeLocks),
		CommandLine: true,
		Run: func(ctx context.Context, in *input) error {
			argv := in.Command
			if len(argv) == 0 {
				argv = in.Args[1:]
			} else if len(in.Args) > 1 {
				return usagef("aimlock lock exec takes one lock's name before --, and %q stands there too", in.Args[1])
			}
			if len(argv) == 0 {
				return usagef("no command given. Usage: aimlock lock exec [options] NAME -- CMD…")
			}
			name, err := lockName(in.Args[0])
			if err != nil {
				return err
			}
			if err := o.check(in); err != nil {
				return err
			}
			return m.lockExec(ctx, name, argv, &o)
		},
	}
}

func (o *execOptions) check(in *input) error {
	switch {
	case o.try && in.Set("wait"):
		return usagef("-try and -wait exclude each other")
	case o.wait < 0:
		return usagef("-wait %s: it must not be negative", o.wait)
	case in.Set("n") && (o.slots < 1 || o.slots > locksmith.MaxSlots):
		return usagef("-n %d: it must be from 1 to %d", o.slots, locksmith.MaxSlots)
	case o.grace < 0:
		return usagef("-grace %s: it must not be negative", o.grace)
	}
	if err := o.progress.check(in); err != nil {
		return err
	}
	return checkTTL(o.ttl)
}

func checkTTL(ttl time.Duration) error {
	if ttl < 10*time.Second || ttl > 24*time.Hour {
		return usagef("-ttl %s: Consul takes from 10s to 24h", ttl)
	}
	return nil
}

// startHeap is for how much garbage there may be, in percent of what is used, in the
// first startFor of a "lock exec": what is made to start is collected once less or
// twice, a tenth of its processor time. Until then that is 16 MB of heap, not 4.
const (
	startHeap = 400
	startFor  = time.Second
)

func easeStart() {
	if old := debug.SetGCPercent(startHeap); old < 0 || old > startHeap {
		debug.SetGCPercent(old) // GOGC has other wishes
	} else {
		time.AfterFunc(startFor, func() { debug.SetGCPercent(old) })
	}
}

func (m *Meta) lockExec(ctx context.Context, name string, argv []string, o *execOptions) error {
	easeStart()
	nonce := locksmith.NewNonce(ctx)
	// The supervisor is there before the lock is: its pid is in the holder
	// record, so that others can prove the whole tree dead. It comes up while the
	// policies are read.
	sup, err := supervise.Prepare(supervise.Config{Log: m.Log.Named("supervise"), Nonce: nonce, Grace: o.grace})
	if err != nil {
		return fmt.Errorf("prepare the command's supervisor: %w", err)
	}
	defer func() { _ = sup.Close() }()
	c, err := m.Locksmith()
	if err != nil {
		return err
	}

	if hostproc.NeedsLinux() != "" {
		m.Notef("Warning: this is %s. What the command starts, and what leaves its process group, is ended with it for certain only on Linux\n", runtime.GOOS)
	}
	names, slotsOf, acquire := []string{name}, "", c.Acquire
	if o.slots > 0 {
		names, slotsOf, acquire = slotNames(name, o.slots), name, c.AcquireAny
	}
	h, err := acquire(ctx, locksmith.Request{
		Names: names, SlotsOf: slotsOf, Operation: "lock exec",
		TTL: o.ttl, Quiesce: locksmith.DefaultQuiesce, Nonce: nonce, Processes: []records.Process{sup.Process()},
		Try: o.try, Wait: o.wait, NoBreak: o.noBreak, Notify: m.notices(),
	})
	if ref, ok := errors.AsType[*locksmith.RefusedError](err); ok && o.slots > 0 {
		return slotsRefused(name, ref)
	}
	if differ, ok := errors.AsType[*locksmith.SlotsError](err); ok {
		return slotsDiffer(name, differ)
	}
	if err != nil {
		return lockError(err)
	}
	if other, how := c.LockBeside(ctx, name); other != "" {
		m.Notef("Warning: %s is held: %s, and that lock and %s do not exclude each other\n", text.Printable(other), how, text.Printable(name))
	}
	code, err := m.runChild(ctx, h, sup, argv, o)
	m.interrupted = sup.Interrupted()

	if errors.Is(err, supervise.ErrSurvivors) {
		// The next holder must not start before what is left has had its time.
		h.Abandon(ctx)
		code := ExitFailed
		if errors.Is(err, locksmith.ErrLost) || errors.Is(err, locksmith.ErrRequested) {
			code = ExitLost
		}
		return exitf(code, "the next holder of the lock waits before it begins: %w", err)
	}
	// Only now is nothing of the command left, so the next holder owes nothing.
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	ended := endOf(h) // Release sets one of its own where there is none
	rerr := h.Release(rctx)
	switch {
	case errors.Is(err, supervise.ErrLease):
		return lockError(leaseError(h.Names()[0], h.Token(), ended, err))
	case err != nil:
		if start, ok := errors.AsType[*supervise.StartError](err); ok {
			return exitf(start.Code, "%w", err)
		}
		return lockError(err)
	case rerr != nil && errors.Is(rerr, locksmith.ErrLost):
		return lockError(rerr)
	case rerr != nil:
		// The command is done. The session ends by itself.
		m.Notef("Warning: %v\n", rerr)
	}
	return exit(code)
}

// runChild runs the command until it ends or must end. When it returns,
// nothing of the command is left.
func (m *Meta) runChild(ctx context.Context, h *locksmith.Hold, sup *supervise.Supervisor, argv []string, o *execOptions) (int, error) {
	prog, err := m.startProgress(h, &o.progress)
	if err != nil {
		return ExitFailed, err
	}
	// Before the lock is let go: who reads a released record sees where it ended.
	defer prog.close(context.WithoutCancel(ctx))
	if err := sup.ExtendTo(h.LeaseEnd()); err != nil {
		return ExitFailed, err
	}
	env := append(os.Environ(),
		"AIMLOCK_LOCK="+h.Names()[0],
		"AIMLOCK_TOKEN="+strconv.FormatUint(h.Token(), 10),
		"AIMLOCK_EPOCH="+strconv.FormatUint(h.Epoch(), 10))
	if trace := h.Traceparent(); trace != "" {
		env = append(env, "TRACEPARENT="+trace)
	}
	if o.slots > 0 {
		env = append(env, "AIMLOCK_SLOT="+slotOf(h.Names()[0]))
	}
	var extra []*os.File
	if prog != nil {
		env, extra = append(env, prog.env...), prog.files
	}
	if err := sup.Start(argv, env, os.Stdin, os.Stdout, os.Stderr, extra...); err != nil {
		return ExitFailed, err
	}
	prog.running()
	ended := make(chan childEnd, 1)
	go func() {
		code, err := sup.Wait(context.WithoutCancel(ctx))
		ended <- childEnd{code, err}
	}()
	sent, stop := catchSignals()
	defer stop()
	return m.tend(ctx, h, sup, o.grace, sent, ended)
}

// leaseError is the loss that a command ended by its lease stands for. The
// supervisor's clock may be first, before the hold has noticed: then no cause
// is there yet.
func leaseError(name string, token uint64, cause, lease error) error {
	return cmp.Or[error](cause, &locksmith.LostError{Lock: name, Token: token, Why: lease.Error()})
}
