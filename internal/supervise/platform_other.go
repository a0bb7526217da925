//go:build unix && !linux

package supervise

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func program() (string, error) { return os.Executable() }

const (
	waitAll      = 0
	receiveFlags = 0
)

// bootNow is the wall clock here: it is the one that two processes share.
func bootNow() time.Duration { return time.Duration(time.Now().UnixNano()) }

// becomeReaper does nothing: orphans go to init here.
func becomeReaper() error { return nil }

func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// emptied: the command is reaped. Its group may have others in it.
func (s *supervisor) emptied() act {
	if s.m.phase == idle || s.group == 0 || unix.Kill(-s.group, 0) != nil {
		return s.m.empty()
	}
	return s.m.commandEnded(bootNow())
}

// killNearest has nothing that signalTree has not.
func (s *supervisor) killNearest() {}

// signalTree sends sig to the command's process group, which is all that can be
// found here.
func (s *supervisor) signalTree(sig syscall.Signal) (left string, err error) {
	left = fmt.Sprintf("process group %d", s.group)
	if err := unix.Kill(-s.group, sig); err != nil && err != unix.ESRCH { //nolint:errorlint // an errno of the system call itself
		return left, err
	}
	return left, nil
}

// terminal is never lent here: the command reads it from the background or not
// at all.
type terminal struct{ eager, lent bool }

func lendable(_, _ *os.File, _ int) terminal { return terminal{} }

func (t *terminal) lend(int) bool { return false }

func (t *terminal) end(_, _ bool) {}
