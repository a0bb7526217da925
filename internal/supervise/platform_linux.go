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
	// A name of its own, for who looks and for who kills by name. Without /proc
	// it keeps the old one.
	_ = os.WriteFile("/proc/self/comm", []byte("lock-supervisor"), 0)
	return nil
}

func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// emptied: the kernel says that this process has no children left, and with
// that the tree is empty, as every orphan of it becomes one.
func (s *supervisor) emptied() act { return s.m.empty() }

// signalTree sends sig to all of the tree. It returns the names of all that it
// found, or of those that it could not reach, with the reason.
func (s *supervisor) signalTree(sig syscall.Signal) (left string, err error) {
	if sig == syscall.SIGKILL && s.child != 0 {
		// At once, before the search. Its outcome shows in what is found.
		_ = unix.Kill(-s.child, sig)
	}
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
	t.lent = setForeground(t.file, group) == nil
	return t.lent
}

// end gives the terminal back if the parent is there to have it.
func (t *terminal) end(parentAlive bool) {
	if t.lent && parentAlive {
		// A terminal that hung up needs no owner.
		_ = setForeground(t.file, t.pgrp)
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

// setForeground is for the locked thread: a process in the background that
// sets the terminal's group is stopped, unless it blocks SIGTTOU. It is blocked
// no longer than that, as the command would inherit it.
func setForeground(f *os.File, pgrp int) error {
	var block, old unix.Sigset_t
	// A set has 1024 signals, in words of this architecture.
	n, word := uint(unix.SIGTTOU)-1, 1024/uint(len(block.Val))
	block.Val[n/word] |= 1 << (n % word)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old); err != nil {
		return err
	}
	err := unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSPGRP, pgrp)
	return errors.Join(err, unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil))
}
