package hostproc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mark is what the look at one process says.
type mark int

const (
	// unmarked: it is not of the hold, or it ended.
	unmarked mark = iota
	marked
	// unsettled: it has no environment for now. It is in the middle of an exec
	// or of its end, and another look will tell.
	unsettled
	// unreadable: its environment may not be read.
	unreadable
)

// How long TreeGone waits for processes to settle.
const (
	settleEvery = 5 * time.Millisecond
	settleLooks = 100
)

// TreeGone tells whether no process is left that carries nonce in its
// environment (see NonceVar): the processes that ran under a hold. It looks at
// what started at startedAfter or later, which is the start of the holder
// itself. A process whose environment may not be read makes the answer Unknown
// if it also sits in cgroup, the holder's; with cgroup "" wherever it sits.
//
// It answers True only after two looks in a row that found nothing, because a
// process may fork and end while one is under way. It takes half a second at
// most. What it cannot see is a process that was started with a cleaned
// environment, or wrote over it, as daemons that set their title do, and whose
// marked ancestors all ended: package supervise, which does not go by the mark,
// sees to that one for as long as it lives.
func TreeGone(nonce string, startedAfter uint64, cgroup string) (gone Tri, why string) {
	if nonce == "" {
		return Unknown, "no nonce was recorded"
	}
	if why := hidden(); why != "" {
		return Unknown, why
	}
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	clean, waits := 0, 0
	for clean < 2 {
		l, err := look(nonce, startedAfter)
		if err != nil {
			return Unknown, fmt.Sprintf("/proc cannot be read: %v", err)
		}
		if len(l.marked) > 0 {
			return False, fmt.Sprintf("pid %d was started under this hold and runs on", l.marked[0].PID)
		}
		if pid := among(l.unreadable, cgroup); pid > 0 {
			return Unknown, fmt.Sprintf("pid %d started after the holder in the same cgroup, and its environment cannot be read", pid)
		}
		pid := among(l.unsettled, cgroup)
		if pid == 0 {
			clean++
			continue
		}
		if clean = 0; waits == settleLooks {
			return Unknown, fmt.Sprintf("pid %d started after the holder in the same cgroup, and keeps having no environment", pid)
		}
		waits++
		<-tick.C
	}
	return True, "no process of this hold is left"
}

// Marked lists the live processes that carry nonce in their environment and
// started at startedAfter or later. Processes that may not be looked at are not
// in it, so an empty list proves nothing: that is for TreeGone.
func Marked(nonce string, startedAfter uint64) ([]Process, error) {
	if nonce == "" {
		return nil, errors.New("no nonce was recorded")
	}
	l, err := look(nonce, startedAfter)
	return l.marked, err
}

// looked is the outcome of one look at all processes.
type looked struct {
	marked     []Process
	unsettled  []int
	unreadable []int
}

func look(nonce string, startedAfter uint64) (looked, error) {
	all, err := pids()
	if err != nil {
		return looked{}, err
	}
	var l looked
	for _, pid := range all {
		s, m := markOf(pid, nonce, startedAfter)
		switch m {
		case marked:
			l.marked = append(l.marked, Process{PID: pid, StartTicks: s.startTicks})
		case unsettled:
			l.unsettled = append(l.unsettled, pid)
		case unreadable:
			l.unreadable = append(l.unreadable, pid)
		case unmarked:
		}
	}
	return l, nil
}

func markOf(pid int, nonce string, startedAfter uint64) (stat, mark) {
	s, err := readStat(pid)
	switch {
	case errors.Is(err, errVanished):
		return s, unmarked
	case err != nil:
		return s, unreadable
	case s.startTicks < startedAfter, s.kernelThread():
		return s, unmarked
	}
	environ := "environ"
	if s.dead() {
		// A zombie leader has no environment to show, but its threads do.
		tid, err := liveThread(pid)
		switch {
		case err != nil:
			return s, unreadable
		case tid == 0:
			return s, unmarked
		}
		environ = "task/" + strconv.Itoa(tid) + "/environ"
	}
	env, err := os.ReadFile(procPath(pid, environ))
	err = vanished(err)
	switch {
	case errors.Is(err, errVanished) && environ != "environ":
		return s, unsettled // that thread ended; others may not have
	case errors.Is(err, errVanished):
		return s, unmarked
	case err != nil:
		return s, unreadable
	case hasNonce(env, nonce):
		return s, marked
	case len(env) > 0:
		return s, unmarked
	}
	// An empty environment is real where it has bounds, and they are one.
	again, err := readStat(pid)
	switch {
	case errors.Is(err, errVanished):
		return s, unmarked
	case err == nil && again.envEnd != 0 && again.envStart == again.envEnd:
		return s, unmarked
	}
	return s, unsettled
}

// among returns one of the processes that sits in cgroup for all we can see, or
// 0. Everything sits in cgroup "".
func among(procs []int, cgroup string) int {
	for _, pid := range procs {
		cg, err := cgroupOf(pid)
		if errors.Is(err, errVanished) {
			continue
		}
		if err != nil || cgroup == "" || cg == cgroup {
			return pid
		}
	}
	return 0
}

// hidden says why this process cannot see all others in /proc, or "".
func hidden() string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "it cannot be told whether /proc shows all processes: " + err.Error()
	}
	if !hidesPids(string(mounts)) {
		return ""
	}
	status, err := os.ReadFile("/proc/self/status")
	if err == nil && mayTraceAll(string(status)) {
		return ""
	}
	return "/proc is mounted with hidepid, so processes of other users are not seen"
}

// hidesPids reads proc_pid_mountinfo(5): the mount point is the fifth field,
// and the options of the file system are the last.
func hidesPids(mountinfo string) bool {
	hides := false
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 10 || f[4] != "/proc" {
			continue
		}
		// The last mount on /proc is the one that is seen.
		hides = false
		for opt := range strings.SplitSeq(f[len(f)-1], ",") {
			switch opt {
			case "hidepid=2", "hidepid=4", "hidepid=invisible", "hidepid=ptraceable":
				hides = true
			}
		}
	}
	return hides
}

// mayTraceAll looks for CAP_SYS_PTRACE, which hidepid does not apply to.
func mayTraceAll(status string) bool {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && caps&(1<<unix.CAP_SYS_PTRACE) != 0
		}
	}
	return false
}

// hasNonce looks for nonce in the list of any NonceVar of an environment.
func hasNonce(env []byte, nonce string) bool {
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		v, ok := bytes.CutPrefix(kv, []byte(NonceVar+"="))
		if !ok {
			continue
		}
		for n := range strings.SplitSeq(string(v), ",") {
			if n == nonce {
				return true
			}
		}
	}
	return false
}

// Descendants lists the live processes whose ancestor is root, nearest first, as
// one look at /proc shows them. A process that forks while it is under way may
// be missed; so may the children of one that just ended: look again.
func Descendants(root int) ([]Relative, error) {
	all, err := stats()
	if err != nil {
		return nil, err
	}
	children := map[int][]stat{}
	for _, s := range all {
		children[s.ppid] = append(children[s.ppid], s)
	}
	var out []Relative
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for _, s := range children[queue[0]] {
			if s.gone() {
				continue
			}
			out = append(out, s.relative())
			queue = append(queue, s.pid)
		}
		// A look that is not of one moment may show a circle.
		delete(children, queue[0])
	}
	return out, nil
}

// Children lists the pids of the children of root, zombies included. It takes
// microseconds where the kernel keeps such lists (CONFIG_PROC_CHILDREN), and is
// an error elsewhere.
func Children(root int) ([]int, error) {
	d, err := os.Open(procPath(root, "task"))
	if err != nil {
		return nil, vanished(err)
	}
	defer d.Close()
	tids, err := d.Readdirnames(-1)
	if err != nil {
		return nil, vanished(err)
	}
	var out []int
	for _, tid := range tids {
		b, err := os.ReadFile(procPath(root, "task/"+tid+"/children"))
		if _, gone := os.Stat(procPath(root, "task/"+tid)); err != nil && gone == nil {
			return nil, err
		}
		for f := range bytes.FieldsSeq(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out, nil
}

// Group lists the live processes of a process group that started at
// startedAfter or later.
func Group(pgrp int, startedAfter uint64) ([]Relative, error) {
	all, err := stats()
	if err != nil {
		return nil, err
	}
	var out []Relative
	for _, s := range all {
		if s.pgrp == pgrp && s.startTicks >= startedAfter && !s.gone() {
			out = append(out, s.relative())
		}
	}
	return out, nil
}

func stats() ([]stat, error) {
	all, err := pids()
	if err != nil {
		return nil, err
	}
	out := make([]stat, 0, len(all))
	for _, pid := range all {
		if s, err := readStat(pid); err == nil {
			out = append(out, s)
		}
	}
	return out, nil
}

func (s stat) relative() Relative {
	return Relative{Process: Process{PID: s.pid, StartTicks: s.startTicks}, Parent: s.ppid}
}

// gone is dead of the whole process: a leader may end before its threads.
func (s stat) gone() bool {
	if !s.dead() {
		return false
	}
	tid, err := liveThread(s.pid)
	return err == nil && tid == 0
}
