//go:build unix

package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
)

var (
	// ErrSurvivors: it is not certain that nothing of the command runs on. A
	// lock that it ran under must not be released as clean.
	ErrSurvivors = errors.New("processes of the command may still run")
	// ErrLease: the lease ran out, so the command was ended, or not started.
	ErrLease = errors.New("the lease of the command ran out")
	// ErrSupervisorDied: somebody killed the supervisor. Its command was killed
	// with it, and so was what could be found of the rest; but that is no proof,
	// so ErrSurvivors comes with it.
	ErrSupervisorDied = errors.New("the supervisor of the command was killed")
	// ErrNotStarted: there is no command to do this to.
	ErrNotStarted = errors.New("no command was started")
	// ErrClosed: the supervisor was closed before a command was started.
	ErrClosed = errors.New("the supervisor is closed")
)

// StartError says why a command could not be started. Code is what a shell
// would exit with: 127 where there is no such program, 126 otherwise.
type StartError struct {
	Code   int
	Reason string
}

func (e *StartError) Error() string { return "cannot start the command: " + e.Reason }

const (
	// readyTimeout bounds the start of the supervisor, startTimeout that of the
	// command (a program on a file system that hangs).
	readyTimeout = 10 * time.Second
	startTimeout = 30 * time.Second
	startTick    = time.Second
	// stopTimeout is what Stop waits beyond the grace: the supervisor tells of
	// survivors stuckAfter it began to kill.
	stopTimeout = stuckAfter + 2*time.Second
	// rescueTimeout bounds the search for what a dead supervisor left.
	rescueTimeout = 5 * time.Second
)

// supervisorName is what a list of processes shows: 15 bytes at most.
const supervisorName = "lock-supervisor"

// Config is for Prepare.
type Config struct {
	// Log is for what happens to the command besides its end; nil discards it.
	Log hclog.Logger
	// Nonce marks the command's environment (hostproc.NonceVar), so that others
	// on this host can tell what ran under the lock.
	Nonce string
	// Grace between SIGTERM and SIGKILL for what the command leaves behind at
	// its end. When a lease runs out, at most a fifth of the lease.
	Grace time.Duration
	// OrphanGrace is the same for the death of this process. 0 kills at once:
	// the lock may pass on at any moment.
	OrphanGrace time.Duration
}

// Supervisor is this process's side of one supervisor process. Its methods may
// be called from several goroutines.
type Supervisor struct {
	cfg  Config
	log  hclog.Logger
	proc *os.Process
	id   hostproc.Process
	link *link

	// startOnce guards the one start.
	startOnce sync.Once
	startErr  error
	// up is closed when the supervisor is ready, or never will be.
	up chan struct{}
	// started is closed when the command runs, or never will.
	started chan struct{}
	// settled is closed when the tree is gone, or cannot be made to be.
	settled   chan struct{}
	settleOne sync.Once
	// done is closed when the supervisor process is reaped and nothing of this
	// Supervisor runs any more.
	done chan struct{}

	mu    sync.Mutex
	ready bool
	child hostproc.Process
	code  int
	// keyboard: the command was ended by ^C on the terminal that it was lent.
	keyboard bool
	failed   *StartError
	ending   reason
	gone     bool
	died     bool
	stuck    string
	// letBe: this side closed the link on a supervisor that lives on.
	letBe bool
}

// Prepare starts the supervisor process. It comes up while its caller goes on;
// Start waits for that, and fails where it does not. It must be closed.
func Prepare(cfg Config) (*Supervisor, error) {
	if cfg.Nonce == "" || strings.ContainsAny(cfg.Nonce, ",\x00") {
		return nil, errors.New("prepare a supervisor: the nonce must be a word without commas")
	}
	log := cfg.Log
	if log == nil {
		log = hclog.NewNullLogger()
	}
	s := &Supervisor{
		cfg: cfg, log: log,
		up: make(chan struct{}), started: make(chan struct{}), settled: make(chan struct{}), done: make(chan struct{}),
	}
	if err := s.launch(); err != nil {
		return nil, fmt.Errorf("start the supervisor of the command: %w", err)
	}
	go s.watch()
	return s, nil
}

// launch leaves nothing behind when it fails.
func (s *Supervisor) launch() (err error) {
	path, err := program()
	if err != nil {
		return err
	}
	mine, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if s.link, err = newLink(mine); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		s.link.close()
		return err
	}
	defer null.Close()
	// Its own group and name: what a terminal sends is not for it, nor what kills
	// this process by name.
	s.proc, err = os.StartProcess(path, []string{supervisorName, Subcommand}, &os.ProcAttr{
		Env:   supervisorEnv(os.Environ()),
		Files: []*os.File{null, null, os.Stderr, theirs},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		s.link.close()
		return err
	}
	theirs.Close()
	if s.id, err = hostproc.Lookup(s.proc.Pid); err == nil {
		// It reads this when it has come up.
		err = s.link.send(order{Kind: orderSetUp, Grace: s.cfg.Grace, OrphanGrace: s.cfg.OrphanGrace})
	}
	if err != nil {
		s.link.close()
		// It never started anything.
		_ = s.proc.Kill()
		_, _ = s.proc.Wait()
		return err
	}
	return nil
}

// comeUp waits until the supervisor is ready.
func (s *Supervisor) comeUp() error {
	tick := time.NewTicker(startTick)
	defer tick.Stop()
	if !before(s.up, int(readyTimeout/startTick), tick.C) {
		s.abandon()
		return fmt.Errorf("start the command: its supervisor was not ready within %s", readyTimeout)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ready {
		return errors.New("start the command: its supervisor ended before it was ready")
	}
	return nil
}

// supervisorEnv keeps what a Go program itself reads, and the mark of a lock
// that this process runs under. Tokens and the like are none of its business.
func supervisorEnv(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return !slices.Contains([]string{hostproc.NonceVar, "GODEBUG", "GOTRACEBACK", "GORACE", "GOCOVERDIR", "GOMAXPROCS"}, name)
	})
}

func socketPair() (mine, theirs *os.File, err error) {
	// No other process may inherit our end, or our death would not show.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return os.NewFile(uintptr(fds[0]), "supervisor"), os.NewFile(uintptr(fds[1]), "parent"), nil
}

// Process names the supervisor process, for the holder record: while it lives,
// something of the command may.
func (s *Supervisor) Process() records.Process {
	return records.Process{PID: s.id.PID, StartTicks: s.id.StartTicks}
}

// Child names the command's own process; ok is false before it started.
func (s *Supervisor) Child() (p records.Process, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return records.Process{PID: s.child.PID, StartTicks: s.child.StartTicks}, s.child.PID != 0
}

// Start starts argv, looked up in the PATH of env, and returns when it runs. nil
// files are /dev/null; extra ones become descriptors 3, 4, …; all stay the
// caller's. A command whose stdin is a terminal gets that terminal for its time,
// as in a shell with job control: keys such as ^C go to it and not to this
// process, so a caller should end as interrupted where Interrupted says so.
//
// The error is a *StartError where the command cannot be started, ErrLease
// where a lease was given and is over. The supervisor ends then.
func (s *Supervisor) Start(argv, env []string, stdin, stdout, stderr *os.File, extra ...*os.File) error {
	first := false
	s.startOnce.Do(func() {
		first, s.startErr = true, s.start(argv, env, append([]*os.File{stdin, stdout, stderr}, extra...))
	})
	if !first {
		return errors.New("start the command: it was started before, or the supervisor is closed")
	}
	return s.startErr
}

func (s *Supervisor) start(argv, env []string, files []*os.File) error {
	refuse := func(err *StartError) error {
		s.mu.Lock()
		s.failed = err
		s.mu.Unlock()
		return errors.Join(err, s.Stop(0))
	}
	if len(argv) == 0 {
		return refuse(&StartError{Code: codeCannotRun, Reason: "no command was given"})
	}
	if len(files) > maxFiles {
		return refuse(&StartError{Code: codeCannotRun, Reason: fmt.Sprintf("%d descriptors are too many (at most %d)", len(files), maxFiles)})
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return refuse(&StartError{Code: codeCannotRun, Reason: err.Error()})
	}
	defer null.Close()
	for i, f := range files {
		if f == nil {
			files[i] = null
		}
	}
	o := order{Kind: orderStart, Argv: argv, Env: withNonce(env, s.cfg.Nonce), Files: len(files), Pgrp: unix.Getpgrp()}
	if err := s.comeUp(); err != nil {
		return err
	}
	if err := s.link.send(o, files...); err != nil {
		s.abandon()
		return fmt.Errorf("start the command: the supervisor does not take the order: %w", err)
	}
	tick := time.NewTicker(startTick)
	defer tick.Stop()
	if !before(s.started, int(startTimeout/startTick), tick.C) {
		return refuse(&StartError{Code: codeCannotRun, Reason: fmt.Sprintf("%s was not loaded within %s", argv[0], startTimeout)})
	}
	return s.outcome().startErr()
}

// before tells whether done closes before n ticks have come. A ticker drops the
// ticks that nobody took, so the time for which this process was stopped counts
// as one: it wakes to find an answer that waits for it.
func before(done <-chan struct{}, n int, tick <-chan time.Time) bool {
	for range n {
		select {
		case <-done:
			return true
		case <-tick:
		}
	}
	return false
}

// abandon kills a supervisor that does not do its part. Its command dies with
// it, and watch sees to the rest.
func (s *Supervisor) abandon() {
	if err := s.proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.log.Warn("cannot kill the supervisor of the command", "pid", s.id.PID, "error", err)
	}
}

// withNonce puts the nonce before those of the locks around this one.
func withNonce(env []string, nonce string) []string {
	outer := ""
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		v, ok := strings.CutPrefix(kv, hostproc.NonceVar+"=")
		if ok && v != "" {
			outer += "," + v
		}
		return ok
	})
	return append(out, hostproc.NonceVar+"="+nonce+outer)
}

// Extend sets the lease to end d from now. An error means that the supervisor
// is ending, or does not read: the lease then runs out by itself. ExtendTo is to be preferred: nobody
// knows how long this process was stopped between the reckoning of d and now.
func (s *Supervisor) Extend(d time.Duration) error { return s.lease(bootNow() + d) }

// ExtendTo sets the lease to end at deadline, whose monotonic reading counts.
// Without any lease the command runs without limit.
func (s *Supervisor) ExtendTo(deadline time.Time) error {
	// In this order: a stop of this process between the two makes the lease
	// shorter than it is.
	now := bootNow()
	return s.lease(now + time.Until(deadline))
}

func (s *Supervisor) lease(until time.Duration) error {
	s.rouse()
	if err := s.link.send(order{Kind: orderLease, Until: until}); err != nil {
		return fmt.Errorf("extend the lease of the command: %w", err)
	}
	return nil
}

// rouse continues a supervisor that somebody stopped: it could not do its part.
func (s *Supervisor) rouse() {
	if state, ok := hostproc.StateOf(s.id.PID); !ok || state != 'T' {
		return
	}
	err := hostproc.SignalProcess(s.id.PID, s.id.StartTicks, syscall.SIGCONT)
	s.log.Warn("the supervisor of the command was stopped, continuing it", "pid", s.id.PID, "error", err)
}

// Signal sends sig to the command's process group. SIGCONT also lends it the
// terminal again, if this process has come to the foreground.
func (s *Supervisor) Signal(sig os.Signal) error {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal the command: %v is no signal of this system", sig)
	}
	if _, ok := s.Child(); !ok {
		return fmt.Errorf("signal the command: %w", ErrNotStarted)
	}
	if err := s.link.send(order{Kind: orderSignal, Signal: int(n)}); err != nil {
		return fmt.Errorf("signal the command: %w", err)
	}
	return nil
}

// Stop ends the tree: SIGTERM to all of it, SIGKILL after grace, never later
// than the lease allows. It returns when nothing is left, or ErrSurvivors some
// seconds after the grace. Called again it only shortens the grace.
func (s *Supervisor) Stop(grace time.Duration) error {
	grace = max(grace, 0)
	s.rouse()
	if err := s.link.send(order{Kind: orderStop, Grace: grace}); err != nil {
		select {
		case <-s.settled:
		default:
			s.abandon()
		}
	}
	timer := time.NewTimer(grace + stopTimeout)
	defer timer.Stop()
	select {
	case <-s.settled:
		return s.outcome().survivors()
	case <-timer.C:
	}
	// It hangs, in the kernel or in a debugger.
	s.log.Warn("the supervisor of the command does not answer, killing it", "pid", s.id.PID)
	s.abandon()
	timer.Reset(stopTimeout + rescueTimeout)
	select {
	case <-s.settled:
		return s.outcome().survivors()
	case <-timer.C:
		return fmt.Errorf("%w: the supervisor (pid %d) cannot be killed", ErrSurvivors, s.id.PID)
	}
}

// Wait returns the command's exit code, 128 + n where signal n ended it, when
// nothing of its tree is left: what it left behind is ended first. The error is
// a *StartError, ErrClosed, ErrLease, ErrSupervisorDied, ErrSurvivors (or two of
// them), or ctx's, which ends the wait and nothing else.
func (s *Supervisor) Wait(ctx context.Context) (code int, err error) {
	select {
	case <-s.settled:
		return s.outcome().result()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// Interrupted tells whether the command was ended by ^C on this process's
// terminal, which nobody but the command was sent.
func (s *Supervisor) Interrupted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keyboard
}

// Close ends the supervisor, and at once what runs under it. It may be called
// at any time and more than once.
func (s *Supervisor) Close() error {
	s.startOnce.Do(func() { s.startErr = ErrClosed })
	err := s.Stop(0)
	if errors.Is(err, ErrSurvivors) {
		// The supervisor goes on trying by itself, and stays, for all to see, as
		// long as something is left. watch stays to reap it.
		s.mu.Lock()
		s.letBe = true
		s.mu.Unlock()
		s.link.close()
		return err
	}
	<-s.done
	return err
}
