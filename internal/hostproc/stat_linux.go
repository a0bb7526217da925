package hostproc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
)

// stat is what is read of /proc/PID/stat.
type stat struct {
	pid, ppid, pgrp int
	state           byte
	flags           uint64
	startTicks      uint64
	// envStart and envEnd are 0 while an exec is under way, and for a reader
	// who may not trace the process.
	envStart, envEnd uint64
}

// flagKernelThread is PF_KTHREAD of the kernel's sched.h.
const flagKernelThread = 0x00200000

func (s stat) kernelThread() bool { return s.flags&flagKernelThread != 0 }

// dead is about the one thread that the line describes.
func (s stat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

// errVanished: there is no such entry under /proc, or no longer.
var errVanished = errors.New("no such process")

func readStat(pid int) (stat, error) { return readStatFile(procPath(pid, "stat")) }

func readStatFile(path string) (stat, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return stat{}, vanished(err)
	}
	s, err := parseStat(b)
	if err != nil {
		return stat{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// vanished makes one error of the ways in which /proc says that a process
// ended before or while it was read.
func vanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return errVanished
	}
	return err
}

// parseStat reads one line of proc_pid_stat(5). The program's name stands in
// parentheses and may itself hold parentheses, spaces and newlines, so the last
// closing one counts.
func parseStat(b []byte) (stat, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return stat{}, errors.New("no program name in parentheses")
	}
	var s stat
	var err error
	if s.pid, err = strconv.Atoi(string(bytes.TrimSpace(b[:open]))); err != nil {
		return stat{}, errors.New("no pid at its start")
	}
	// Fields are counted from 1 in the manual; the first after the name is 3.
	f := bytes.Fields(b[end+1:])
	if len(f) < 22-2 {
		return stat{}, fmt.Errorf("%d fields after the program name, want at least 20", len(f))
	}
	if c := f[0][0]; len(f[0]) != 1 || (c|0x20) < 'a' || (c|0x20) > 'z' {
		return stat{}, fmt.Errorf("the state %q is no letter", f[0])
	}
	field := func(n int) uint64 {
		if err != nil || n-3 >= len(f) {
			return 0
		}
		var v uint64
		v, err = strconv.ParseUint(string(f[n-3]), 10, 64)
		return v
	}
	s.state = f[0][0]
	s.ppid, s.pgrp = int(field(4)), int(field(5))
	s.flags, s.startTicks = field(9), field(22)
	s.envStart, s.envEnd = field(50), field(51)
	if err != nil {
		return stat{}, fmt.Errorf("a field is no number: %w", err)
	}
	return s, nil
}

// pids lists the processes that /proc shows.
func pids() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	out := make([]int, 0, len(names))
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	return out, nil
}

// liveThread returns a thread of a process that is neither dead nor gone, or 0.
// It is asked when the leader is a zombie: a leader may end before its threads.
func liveThread(pid int) (tid int, err error) {
	d, err := os.Open(procPath(pid, "task"))
	if err == nil {
		defer d.Close()
		var names []string
		names, err = d.Readdirnames(-1)
		for _, n := range names {
			s, err := readStatFile(procPath(pid, "task/"+n+"/stat"))
			switch {
			case errors.Is(err, errVanished):
			case err != nil:
				return 0, err
			case !s.dead():
				return s.pid, nil
			}
		}
	}
	if err := vanished(err); err != nil && !errors.Is(err, errVanished) {
		return 0, err
	}
	return 0, nil
}

func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}
