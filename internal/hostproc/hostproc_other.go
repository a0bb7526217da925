//go:build !linux

package hostproc

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"syscall"
	"time"
)

// NeedsLinux says what is missing where this is not Linux.
func NeedsLinux() string {
	return "this is " + runtime.GOOS + ", and only Linux tells whether a process that was recorded still lives: nothing is proved of processes here"
}

// Self identifies this process as far as this operating system allows: boot,
// namespaces and start time stay empty, so nothing is ever proved about it.
func Self() (Identity, error) {
	host, err := os.Hostname()
	if err != nil {
		return Identity{}, fmt.Errorf("host name: %w", err)
	}
	id := Identity{Host: host, PID: os.Getpid(), StartedAt: time.Now().UTC().Truncate(time.Millisecond)}
	if u, err := user.Current(); err == nil {
		id.User = u.Username
	}
	return id, nil
}

// BootSeconds is 0 where there is no such clock.
func BootSeconds() float64 { return 0 }

// Alive tells only that nobody has the pid.
func Alive(pid int, _ uint64) (alive Tri, why string) {
	if pid <= 0 {
		return Unknown, "no pid was recorded"
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		defer p.Release() //nolint:errcheck // nothing is lost with it
		err = p.Signal(syscall.Signal(0))
	}
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
		return False, fmt.Sprintf("no process has pid %d", pid)
	}
	return Unknown, NeedsLinux()
}

// StateOf is not to be had here.
func StateOf(int) (state byte, ok bool) { return 0, false }

// Lookup knows no start times here.
func Lookup(pid int) (Process, error) { return Process{PID: pid}, nil }

// SignalProcess refuses: nothing here tells a reused pid.
func SignalProcess(pid int, _ uint64, _ syscall.Signal) error {
	return fmt.Errorf("signal pid %d: %s: %w", pid, NeedsLinux(), ErrUnverified)
}

// TreeGone is not to be had here.
func TreeGone(string, uint64, string) (gone Tri, why string) {
	return Unknown, NeedsLinux()
}

// Marked is not to be had here.
func Marked(string, uint64) ([]Process, error) {
	return nil, errNeedsLinux()
}

// Descendants is not to be had here.
func Descendants(int) ([]Relative, error) { return nil, errNeedsLinux() }

// Children is not to be had here.
func Children(int) ([]int, error) { return nil, errNeedsLinux() }

// Group is not to be had here.
func Group(int, uint64) ([]Relative, error) { return nil, errNeedsLinux() }

func errNeedsLinux() error { return fmt.Errorf("%s: %w", NeedsLinux(), errors.ErrUnsupported) }
