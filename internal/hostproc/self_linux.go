package hostproc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ticksPerSecond is USER_HZ, the unit of times in /proc: 100 on every
// architecture that Go runs Linux on.
const ticksPerSecond = 100

// NeedsLinux says what is missing where this is not Linux: here, nothing.
func NeedsLinux() string { return "" }

// Self identifies this process.
func Self() (Identity, error) {
	host, err := os.Hostname()
	if err != nil {
		return Identity{}, fmt.Errorf("host name: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Identity{}, fmt.Errorf("boot id: %w", err)
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return Identity{}, fmt.Errorf("pid namespace: %w", err)
	}
	timeNS, err := timeNamespace()
	if err != nil {
		return Identity{}, err
	}
	if timeNS != "" {
		ns += " " + timeNS
	}
	pid := os.Getpid()
	// A /proc that was mounted in another pid namespace tells of other processes.
	if l, err := os.Readlink("/proc/self"); err != nil || l != strconv.Itoa(pid) {
		return Identity{}, fmt.Errorf("/proc is that of another pid namespace, where this process is not number %d: mount /proc anew in this one, as unshare --mount-proc does", pid)
	}
	s, err := readStat(pid)
	if err != nil {
		return Identity{}, fmt.Errorf("start time of pid %d: %w", pid, err)
	}
	// A kernel without cgroups is as good as one with a single one.
	cg, _ := cgroupOf(pid)
	return Identity{
		Host:       host,
		BootID:     strings.TrimSpace(string(boot)),
		PIDNS:      ns,
		CGroup:     cg,
		User:       userName(),
		PID:        pid,
		StartTicks: s.startTicks,
		StartedAt:  startedAt(s.startTicks),
	}, nil
}

// initialTimeNS is the first time namespace's link: PROC_TIME_INIT_INO of the
// kernel's proc_ns.h.
const initialTimeNS = "time:[4026531834]"

// timeNamespace names the time namespace of this process; empty: the first one, or
// the kernel has none.
func timeNamespace() (string, error) {
	ns, err := os.Readlink("/proc/self/ns/time")
	switch {
	case errors.Is(err, fs.ErrNotExist) || ns == initialTimeNS:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("time namespace: %w", err)
	}
	return ns, nil
}

// BootSeconds is the time since this host booted, suspended time included. It
// compares across the processes of one boot and one time namespace.
func BootSeconds() float64 { return bootNow().Seconds() }

func bootNow() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Only for an unknown clock or a bad pointer: a defect.
		panic(fmt.Sprintf("hostproc: CLOCK_BOOTTIME: %v", err))
	}
	return time.Duration(ts.Nano())
}

func startedAt(ticks uint64) time.Time {
	age := bootNow() - time.Duration(ticks)*(time.Second/ticksPerSecond)
	return time.Now().Add(-age).UTC().Truncate(time.Millisecond)
}

// userName needs no answer from a name service: a number is a name too.
func userName() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return strconv.Itoa(os.Getuid())
}

// cgroupOf returns the cgroups of a process in a form that compares equal for
// two processes in the same ones: the path alone with cgroup v2, otherwise all
// hierarchies in which it does not sit at the root.
func cgroupOf(pid int) (string, error) {
	b, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return "", vanished(err)
	}
	return cgroupName(b), nil
}

func cgroupName(b []byte) string {
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	if len(lines) == 1 {
		if path, ok := strings.CutPrefix(lines[0], "0::"); ok && path != "" {
			return path
		}
	}
	var parts []string
	for _, l := range lines {
		// The first of the three fields numbers the hierarchy: it is no more
		// than an order of mounting.
		_, rest, ok := strings.Cut(l, ":")
		if _, path, _ := strings.Cut(rest, ":"); ok && path != "/" && path != "" {
			parts = append(parts, rest)
		}
	}
	if len(parts) == 0 {
		return "/"
	}
	return strings.Join(parts, ";")
}
