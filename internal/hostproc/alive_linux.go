package hostproc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxPID is above every pid of Linux (PID_MAX_LIMIT of 64-bit machines). The kernel
// would take a greater number for another pid, or for a process group.
const maxPID = 1 << 22

// Alive tells whether the process that once had this pid and started at
// startTicks still runs, on this host and in this pid namespace, and why it
// thinks so. A stopped process is alive; one that was killed and not reaped by
// its parent is not. With startTicks 0 only a pid that nobody has, or that a
// zombie has, proves anything.
func Alive(pid int, startTicks uint64) (alive Tri, why string) {
	if pid <= 0 {
		return Unknown, "no pid was recorded"
	}
	if pid > maxPID {
		return Unknown, fmt.Sprintf("%d is no pid", pid)
	}
	// An entry that is missing although the pid exists was either just
	// vanishing, which the second look shows, or is hidden from us.
	for try := 0; ; try++ {
		if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
			return False, fmt.Sprintf("no process has pid %d", pid)
		}
		alive, why, err := aliveByStat(pid, startTicks)
		if err == nil {
			return alive, why
		}
		if try == 0 && errors.Is(err, errVanished) {
			continue
		}
		if errors.Is(err, errVanished) {
			return Unknown, fmt.Sprintf("pid %d exists, but /proc hides it (hidepid)", pid)
		}
		return Unknown, fmt.Sprintf("pid %d exists, but cannot be looked at: %v", pid, err)
	}
}

// aliveByStat is for a pid that somebody has.
func aliveByStat(pid int, startTicks uint64) (Tri, string, error) {
	s, err := readStat(pid)
	if err != nil {
		return Unknown, "", err
	}
	if startTicks != 0 && s.startTicks != startTicks {
		return False, fmt.Sprintf("pid %d was reused: it started at tick %d, not %d", pid, s.startTicks, startTicks), nil
	}
	if s.dead() {
		tid, err := liveThread(pid)
		if err != nil {
			return Unknown, "", err
		}
		if tid == 0 {
			return False, fmt.Sprintf("pid %d is a zombie: it ended, and its parent has not reaped it", pid), nil
		}
	}
	if startTicks == 0 {
		return Unknown, fmt.Sprintf("a process has pid %d, but no start time was recorded to tell whether it is the same", pid), nil
	}
	if s.state == 'T' || s.state == 't' {
		return True, fmt.Sprintf("pid %d is stopped", pid), nil
	}
	return True, fmt.Sprintf("pid %d runs", pid), nil
}

// StateOf returns the state of a process as one letter of proc_pid_stat(5):
// 'R', 'S', 'D', 'T' stopped, 't' traced, 'Z' zombie …. ok is false where there
// is no such process, or it cannot be looked at.
func StateOf(pid int) (state byte, ok bool) {
	s, err := readStat(pid)
	return s.state, err == nil
}

// Lookup names the process that has pid now.
func Lookup(pid int) (Process, error) {
	s, err := readStat(pid)
	if err != nil {
		return Process{}, fmt.Errorf("pid %d: %w", pid, err)
	}
	return Process{PID: pid, StartTicks: s.startTicks}, nil
}

// SignalProcess sends sig to the process with this pid that started at
// startTicks. The pid is pinned by a descriptor before its start is compared,
// so that a reused pid is never signalled. os.ErrProcessDone: it is gone.
// ErrReused: another process has its pid. ErrUnverified: its start is not
// recorded, or not to be had here.
func SignalProcess(pid int, startTicks uint64, sig unix.Signal) error {
	if pid <= 0 || startTicks == 0 {
		return fmt.Errorf("signal pid %d: no start time was recorded: %w", pid, ErrUnverified)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("signal pid %d: %w", pid, os.ErrProcessDone)
	case errors.Is(err, unix.EINVAL):
		// The number is that of a thread now, and no process has it.
		return fmt.Errorf("signal pid %d: %w", pid, os.ErrProcessDone)
	case err != nil:
		return fmt.Errorf("signal pid %d: pidfd_open (needs Linux 5.3): %w: %w", pid, err, ErrUnverified)
	}
	defer unix.Close(fd)
	s, err := readStat(pid)
	switch {
	case errors.Is(err, errVanished):
		// Gone, or hidden: the descriptor knows.
		if err := unix.PidfdSendSignal(fd, 0, nil, 0); errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal pid %d: %w", pid, os.ErrProcessDone)
		}
		return fmt.Errorf("signal pid %d: /proc hides it: %w", pid, ErrUnverified)
	case err != nil:
		return fmt.Errorf("signal pid %d: %w: %w", pid, err, ErrUnverified)
	case s.startTicks != startTicks:
		return fmt.Errorf("signal pid %d: %w", pid, ErrReused)
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal pid %d: %w", pid, os.ErrProcessDone)
	} else if err != nil {
		return fmt.Errorf("signal pid %d with %s: %w", pid, sig, err)
	}
	return nil
}
