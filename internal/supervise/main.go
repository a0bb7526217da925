//go:build unix

package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/hostproc"
)

// Subcommand is the first argument of this program when it runs as a
// supervisor.
const Subcommand = "__supervise"

// init makes a supervisor of a process that was started as one, in every program that
// uses this package. It is done here and not by main, so that it comes before any
// package starts goroutines or processes, and that most of what a supervisor has no
// use for is never set up in it: half of the processor time of its start. How much
// that is depends on what this package imports: package net comes late.
func init() { //nolint:gochecknoinits // it must run before the packages that it saves
	if len(os.Args) > 1 && os.Args[1] == Subcommand {
		os.Exit(superviseMain(os.Args[2:])) //nolint:forbidigo // a supervisor has no other main
	}
}

// linkFD is the descriptor on which a supervisor finds its end of the link.
const linkFD = 3

// Exit codes of a command that could not be started, as shells have them.
const (
	codeCannotRun = 126
	codeNotFound  = 127
)

const (
	// killEvery is the first pause between two looks for what is left to kill;
	// it doubles up to killRarely.
	killEvery  = 2 * time.Millisecond
	killRarely = 250 * time.Millisecond
	// stuckAfter is how long SIGKILL is tried before the parent is told.
	stuckAfter = 5 * time.Second
	// terminalEvery is how often a command that waits for the terminal is looked
	// at: nobody tells when a shell puts its job in the foreground.
	terminalEvery = 100 * time.Millisecond
	// nudgeFor is how long a command that waits for the terminal is let run every
	// terminalEvery after a signal.
	nudgeFor = 10 * time.Second
	// checkEvery bounds the sleep before a deadline: timers do not count the
	// time for which the machine is suspended, the boot clock does.
	checkEvery = time.Second
)

// superviseMain is the supervisor. It returns when nothing is left of what it started.
func superviseMain(args []string) int {
	if len(args) != 0 {
		fmt.Fprintf(os.Stderr, "%s is for aimlock itself: it takes no arguments\n", Subcommand)
		return 2
	}
	l, err := newLink(os.NewFile(linkFD, "link"))
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s is for aimlock itself: descriptor %d: %v\n", Subcommand, linkFD, err)
		return 2
	}
	defer l.close()
	// The parent-death signal of the command is tied to the thread that forks:
	// this one, which lives as long as the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := becomeReaper(); err != nil {
		fmt.Fprintf(os.Stderr, "aimlock: supervisor: %v\n", err)
		return 1
	}
	s := &supervisor{link: l, signals: make(chan os.Signal, 1), parent: os.Getppid()}
	// What a terminal or a stop of a whole service sends to this process is not
	// for it: it goes by its parent's orders. They are caught and not ignored,
	// because what is ignored stays so in the command; and for the same reason
	// what came ignored (nohup) is left alone.
	for _, sig := range []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGALRM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU,
	} {
		if !signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
	signal.Notify(s.signals, syscall.SIGCHLD)
	s.run()
	return 0
}

// supervisor carries out what machine decides. All of it runs in one goroutine,
// on one thread.
type supervisor struct {
	m       machine
	link    *link
	signals chan os.Signal

	// parent is who gave the orders; another process has its place when it is gone.
	parent int
	// child is the command's process; 0 before the start and after it was reaped.
	child int
	// group is the command's process group, from the start on.
	group int
	term  terminal
	// wants: the command was stopped because it used a terminal that another job
	// has.
	wants bool
	// nudgeUntil: a signal was passed on, and a command that waits for the
	// terminal is let run now and then until this moment, to act on it. Once is not
	// enough: its thread that reads can stop it again before the one that handles
	// the signal is done.
	nudgeUntil time.Duration
	// passedINT: a SIGINT that ends the command may be the parent's.
	passedINT bool

	// orphaned: the parent is gone, and nobody hears events.
	orphaned bool

	killSince time.Duration
	// killPause comes before the next search for what is left, at killNext.
	killPause time.Duration
	killNext  time.Duration
	stuck     bool
}

// received is an order with the descriptors that came beside it.
type received struct {
	order
	files []*os.File
}

func (s *supervisor) run() {
	orders := make(chan received)
	quit := make(chan struct{})
	defer close(quit)
	go s.receive(orders, quit)
	s.tell(event{Kind: eventReady})

	timer := time.NewTimer(checkEvery)
	defer timer.Stop()
	for {
		next := nothing
		select {
		case o, ok := <-orders:
			if ok {
				next = s.obey(o)
				break
			}
			orders, s.orphaned = nil, true
			next = s.m.parentGone(bootNow())
		case <-s.signals:
		case <-timer.C:
			s.follow()
		}
		if s.do(next) || s.reap() || s.do(s.m.tick(bootNow())) {
			s.tell(event{Kind: eventGone})
			return
		}
		timer.Reset(s.pause())
	}
}

// receive ends when the parent's end of the link closes, which is its death, or
// when what comes makes no sense, which is treated as such.
func (s *supervisor) receive(orders chan<- received, quit <-chan struct{}) {
	defer close(orders)
	for {
		var r received
		if err := s.link.receive(&r.order); err != nil {
			return
		}
		files, err := s.link.takeFiles(r.Files)
		if err != nil {
			return
		}
		r.files = files
		select {
		case orders <- r:
		case <-quit:
			closeFiles(files)
			return
		}
	}
}

func (s *supervisor) obey(o received) act {
	now := bootNow()
	switch o.Kind {
	case orderSetUp:
		s.m.grace, s.m.orphanGrace = o.Grace, o.OrphanGrace
	case orderLease:
		return s.m.extend(now, o.Until)
	case orderStart:
		defer closeFiles(o.files)
		return s.start(o)
	case orderSignal:
		// The child's pid, and with it the group's, is ours until it is reaped.
		if s.child != 0 {
			s.resume(syscall.Signal(o.Signal))
			s.passedINT = s.passedINT || syscall.Signal(o.Signal) == syscall.SIGINT
			s.nudgeUntil = now + nudgeFor
			if err := unix.Kill(-s.child, syscall.Signal(o.Signal)); err != nil {
				s.warn("signal %s: %v", syscall.Signal(o.Signal), err)
			}
			if s.wants {
				s.continueGroup() // what is stopped cannot act on it
			}
		}
	case orderStop:
		return s.m.stop(now, o.Grace, becauseStop)
	}
	return nothing
}

// do carries an act out. It returns true when the supervisor's work is over.
func (s *supervisor) do(a act) bool {
	switch a {
	case ask:
		s.tell(event{Kind: eventEnding, Why: s.m.why, Text: "SIGTERM"})
		s.askTree()
	case kill:
		s.tell(event{Kind: eventEnding, Why: s.m.why, Text: "SIGKILL"})
		s.killSince, s.killPause, s.killNext = bootNow(), killEvery, 0
		s.killTree()
	case leave:
		return true
	case nothing:
		// Whatever woke us: something forked, or ended, or time passed.
		if s.m.phase == killing {
			s.killTree()
		}
	}
	return false
}

// pause is how long to wait for something to happen.
func (s *supervisor) pause() time.Duration {
	if s.m.phase == killing {
		return max(s.killNext-bootNow(), 0)
	}
	longest := checkEvery
	if s.wants {
		longest = terminalEvery
	}
	if at, ok := s.m.wake(); ok {
		return min(max(at-bootNow(), 0), longest)
	}
	return longest
}

// start starts the command, or tells why not. A failed start is the end of this
// supervisor, too.
func (s *supervisor) start(o received) act {
	now := bootNow()
	if s.m.phase != idle {
		s.warn("a second order to start was ignored")
		return nothing
	}
	if !s.m.start(now) {
		s.tell(event{Kind: eventFailed, Why: becauseLease, Code: 1, Text: string(becauseLease)})
		return s.m.stop(now, 0, becauseLease)
	}
	fail := func(code int, err error) act {
		s.tell(event{Kind: eventFailed, Code: code, Text: err.Error()})
		return s.m.empty()
	}
	if len(o.Argv) == 0 || len(o.files) < 3 {
		return fail(codeCannotRun, errors.New("the order to start makes no sense"))
	}
	path, err := lookPath(o.Argv[0], o.Env)
	if err != nil {
		return fail(startCode(err), err)
	}
	fds := make([]uintptr, len(o.files))
	for i, f := range o.files {
		fds[i] = f.Fd()
	}
	pid, err := syscall.ForkExec(path, o.Argv, &syscall.ProcAttr{Env: o.Env, Files: fds, Sys: childAttr()})
	if err != nil {
		return fail(startCode(err), fmt.Errorf("%s: %w", path, err))
	}
	s.child, s.group = pid, pid
	s.term = lendable(o.files[0], o.files[1], o.Pgrp)
	if s.term.eager {
		s.lend()
	}
	var ticks uint64
	if p, err := hostproc.Lookup(pid); err == nil {
		ticks = p.StartTicks
	}
	s.tell(event{Kind: eventStarted, PID: pid, Ticks: ticks})
	return nothing
}

// reap takes the ends of all processes that have ended, and tells whether none
// is left.
func (s *supervisor) reap() bool {
	ended := false
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WUNTRACED|waitAll, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return s.do(s.emptied())
		case err != nil || pid == 0:
			return ended && s.do(s.m.commandEnded(bootNow()))
		case pid != s.child:
		case ws.Stopped():
			s.stopped(ws.StopSignal())
		default:
			ended = true
			s.childEnded(ws)
		}
	}
}

func (s *supervisor) childEnded(ws unix.WaitStatus) {
	keyboard := s.term.lent && !s.passedINT && ws.Signaled() && ws.Signal() == syscall.SIGINT
	// With a dead parent the terminal is back with the shell already.
	s.term.end(os.Getppid() == s.parent, ws.Signaled())
	s.child = 0
	code := ws.ExitStatus()
	if ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	s.tell(event{Kind: eventExit, Code: code, Keyboard: keyboard})
}

// stopped is for job control. A holder of a lock cannot be suspended from its
// keyboard: the shell would not learn of it, and the lease runs on.
func (s *supervisor) stopped(sig syscall.Signal) {
	switch sig {
	case syscall.SIGTTIN, syscall.SIGTTOU:
		if !s.lend() && !s.wants {
			s.wants = true
			s.warn("the command waits for the terminal, which another job has")
		}
	case syscall.SIGTSTP:
		if s.term.lent {
			s.warn("not suspended: the command runs under a lock")
			s.continueGroup()
		}
	}
}

// resume makes SIGCONT what it is in a shell: whoever sends it to a parent that
// has the terminal wants the command to have it.
func (s *supervisor) resume(sig syscall.Signal) {
	if sig == syscall.SIGCONT && s.term.eager {
		s.lend()
	}
}

// follow is for a parent that came to the foreground, by which the shell means
// the command: a job that was started in the background gets its keys then.
func (s *supervisor) follow() {
	if s.child == 0 || !s.wants && (!s.term.eager || s.term.lent) {
		return
	}
	if !s.lend() && s.wants && bootNow() < s.nudgeUntil {
		s.continueGroup()
	}
}

// lend gives the parent's terminal to the command's group, if the parent's has
// it. A command that already touched it was stopped for that.
func (s *supervisor) lend() bool {
	ok := s.term.lend(s.child)
	if ok {
		s.wants = false
		s.continueGroup()
	}
	return ok
}

func (s *supervisor) continueGroup() {
	if err := unix.Kill(-s.child, syscall.SIGCONT); err != nil {
		s.warn("continue the command: %v", err)
	}
}

func (s *supervisor) askTree() {
	s.nudgeUntil = bootNow() + nudgeFor
	if left, err := s.signalTree(syscall.SIGTERM); err != nil {
		s.warn("SIGTERM to %s: %v", left, err)
	}
	// What is stopped cannot act on it. What cannot be reached was just named.
	_, _ = s.signalTree(syscall.SIGCONT)
}

func (s *supervisor) killTree() {
	s.killNearest()
	if bootNow() < s.killNext {
		return
	}
	left, err := s.signalTree(syscall.SIGKILL)
	now := bootNow()
	s.killNext, s.killPause = now+s.killPause, min(2*s.killPause, killRarely)
	if s.stuck || now-s.killSince < stuckAfter {
		return
	}
	s.stuck = true
	if err != nil {
		left = fmt.Sprintf("%s: %v", left, err)
	}
	s.tell(event{Kind: eventStuck, Text: left})
}

// tell sends an event. Who is gone does not hear it, and who is stopped will.
func (s *supervisor) tell(e event) {
	if s.orphaned {
		return
	}
	if err := s.link.send(e); err != nil {
		// The parent is dying, or has been stopped for very long: that it is
		// gone shows at the other end of the link.
		return
	}
}

func (s *supervisor) warn(format string, args ...any) {
	s.tell(event{Kind: eventWarn, Text: fmt.Sprintf(format, args...)})
}

// lookPath finds a program as a shell with the environment env does.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/usr/bin:/bin" // where env has no PATH
	for _, kv := range env {
		if p, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = p
			break
		}
	}
	err := error(notInPath(name))
	for dir := range strings.SplitSeq(path, string(filepath.ListSeparator)) {
		file := filepath.Join(dir, name)
		if dir == "" {
			file = "./" + name
		}
		info, statErr := os.Stat(file)
		if statErr != nil || info.IsDir() {
			continue
		}
		if info.Mode()&0o111 != 0 {
			return file, nil
		}
		err = fmt.Errorf("%s: %w", file, fs.ErrPermission)
	}
	return "", err
}

// notInPath is the error for a program of that name.
type notInPath string

func (n notInPath) Error() string { return fmt.Sprintf("%q is not in PATH", string(n)) }

func (notInPath) Unwrap() error { return fs.ErrNotExist }

func startCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return codeNotFound
	}
	return codeCannotRun
}
