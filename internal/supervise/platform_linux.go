package supervise

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/hostproc"
)

// program is the file to start a supervisor from: what this process runs, even
// where it was replaced on disk since.
func program() (string, error) { return "/proc/self/exe", nil }

// waitAll makes wait4 report children of every kind.
const waitAll = unix.WALL

// receiveFlags: descriptors that come must not reach a process that is started in
// the same moment.
const receiveFlags = unix.MSG_CMSG_CLOEXEC

func bootNow() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Only for an unknown clock or a bad pointer: a defect.
		panic(fmt.Sprintf("supervise: CLOCK_BOOTTIME: %v", err))
	}
	return time.Duration(ts.Nano())
}

func becomeReaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	// Without /proc it keeps the name of the file that it was started from.
	_ = os.WriteFile("/proc/self/comm", []byte(supervisorName), 0)
	return nil
}

func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// emptied: the kernel says that this process has no children left, and with
// that the tree is empty, as every orphan of it becomes one.
func (s *supervisor) emptied() act { return s.m.empty() }

// killNearest kills the command's group and the supervisor's own children, to
// which every orphan belongs: at once, without a search of all processes. So it
// catches up with what forks and ends faster than a search takes. Their pids are
// theirs, as nobody else reaps them.
func (s *supervisor) killNearest() {
	// The outcome shows in what is found afterwards.
	if s.child != 0 {
		_ = unix.Kill(-s.child, unix.SIGKILL)
	}
	children, err := hostproc.Children(os.Getpid())
	if err != nil {
		return // the search finds them
	}
	for _, pid := range children {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// signalTree sends sig to all of the tree. It returns the names of all that it
// found, or of those that it could not reach, with the reason.
func (s *supervisor) signalTree(sig syscall.Signal) (left string, err error) {
	self := os.Getpid()
	ds, err := hostproc.Descendants(self)
	if err != nil {
		return "what the command started", err
	}
	var all, failed []string
	for _, d := range ds {
		all = append(all, strconv.Itoa(d.PID))
		sigErr := hostproc.SignalProcess(d.PID, d.StartTicks, sig)
		if errors.Is(sigErr, hostproc.ErrUnverified) && d.Parent == self {
			// Nobody else reaps our children, so their pids are theirs. The
			// children of a killed one become ours.
			sigErr = unix.Kill(d.PID, sig)
		}
		switch {
		case sigErr == nil, errors.Is(sigErr, os.ErrProcessDone), errors.Is(sigErr, hostproc.ErrReused), errors.Is(sigErr, unix.ESRCH):
		default:
			failed = append(failed, strconv.Itoa(d.PID))
			err = errors.Unwrap(sigErr)
			if err == nil {
				err = sigErr
			}
		}
	}
	if err != nil {
		all = failed
	}
	return "pid " + strings.Join(all, ", "), err
}

// terminal is the parent's terminal while the command's group may have it.
type terminal struct {
	file *os.File
	// pgrp is the parent's group.
	pgrp int
	// eager: the command gets it at its start, and not when it asks for it.
	eager bool
	lent  bool
	// modes are what to set when the command could not do so itself.
	modes *unix.Termios
}

// lendable keeps a command's stdin if it is a terminal. Where its stdout goes
// to another program, that one may need the terminal (a pager), so the command
// gets it only when it asks for it.
func lendable(stdin, stdout *os.File, pgrp int) terminal {
	t := terminal{pgrp: pgrp}
	if _, err := foreground(stdin); err != nil {
		return t
	}
	fd, err := unix.FcntlInt(stdin.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return t
	}
	t.file = os.NewFile(uintptr(fd), "terminal")
	info, err := stdout.Stat()
	t.eager = err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0
	return t
}

// lend makes group the foreground group, if the parent's is, or group is.
func (t *terminal) lend(group int) bool {
	if t.file == nil {
		f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return false
		}
		t.file = f
	}
	switch now, err := foreground(t.file); {
	case err != nil:
		return false
	case now == group && t.lent:
		return true
	case now != t.pgrp:
		return false
	}
	if t.modes == nil {
		t.modes, _ = unix.IoctlGetTermios(int(t.file.Fd()), unix.TCGETS)
	}
	t.lent = setForeground(t.file, group) == nil
	return t.lent
}

// end gives the terminal back if the parent is there to have it, as it was if the
// command was killed over it.
func (t *terminal) end(parentAlive, killed bool) {
	if t.lent && parentAlive {
		// A terminal that hung up needs no owner.
		_ = setForeground(t.file, t.pgrp)
		if killed && t.modes != nil {
			_ = withoutTTOU(func() error { return unix.IoctlSetTermios(int(t.file.Fd()), unix.TCSETSW, t.modes) })
		}
	}
	t.lent = false
	if t.file != nil {
		t.file.Close()
	}
}

// foreground fails for what is not this session's terminal.
func foreground(f *os.File) (pgrp int, err error) {
	v, err := unix.IoctlGetUint32(int(f.Fd()), unix.TIOCGPGRP)
	return int(v), err
}

func setForeground(f *os.File, pgrp int) error {
	return withoutTTOU(func() error { return unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSPGRP, pgrp) })
}

// withoutTTOU is for the locked thread: a process in the background that changes
// its terminal is stopped, unless it blocks SIGTTOU. It is blocked no longer
// than that, as the command would inherit it.
func withoutTTOU(change func() error) error {
	var block, old unix.Sigset_t
	// A set has 1024 signals, in words of this architecture.
	n, word := uint(unix.SIGTTOU)-1, 1024/uint(len(block.Val))
	block.Val[n/word] |= 1 << (n % word)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old); err != nil {
		return err
	}
	return errors.Join(change(), unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil))
}
