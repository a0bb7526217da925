package filelock

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/text"
)

// finding is what was found out about one lock, before there are words for it.
type finding struct {
	attrs
	breaking bool
	// listed: /proc/locks has it.
	listed   bool
	carriers []carrier
	keepers  []Keeper
	// merged: it is one of several equal ones that cannot be told apart.
	merged bool
	// command, alive, deathNote and reused are about the process that the
	// kernel names: see Lock.PIDAlive.
	command   string
	alive     *bool
	deathNote string
	reused    bool
	// mappers are processes that have the file mapped into their memory;
	// looked for only where no descriptor was found.
	mappers []string
}

// why says in one sentence why the kernel, and so lslocks, shows what it shows.
func (t *table) why(f finding) string {
	named := who(f.pid, f.command)
	kept := t.keptText(f)
	switch {
	case f.kind == OFD:
		return "An OFD lock belongs to an open file and to no process, so that the kernel shows pid -1; " + kept
	case f.pid < 0:
		return fmt.Sprintf("The kernel shows pid %d, as file systems do for a lock that another machine took; %s", f.pid, kept)
	case f.pid == 0:
		return "The kernel shows pid 0 because whoever took it has ended or is in another pid namespace, and cannot be named here; " + kept
	case f.kind == Lease:
		what := "A lease does not exclude locks: it makes whoever opens the file wait until it is given back"
		if f.breaking {
			what += ", as it is asked to be now"
		}
		return what + "; " + named + " took it; " + kept
	case f.reused:
		return fmt.Sprintf("The kernel shows pid %d, but the process that has this pid (%s) began after those that have the locked file open: the pid was reused, or the file was passed to an older process; %s", f.pid, cmp.Or(f.command, "?"), kept)
	case f.alive != nil && !*f.alive && f.kind == Posix:
		return fmt.Sprintf("Pid %d took it and has ended, but a POSIX lock belongs to a table of descriptors, which it shared with another process; %s", f.pid, kept)
	case f.alive != nil && !*f.alive:
		return fmt.Sprintf("Pid %d took it and has ended, but a flock belongs to the open file, so that the lock outlives who took it under a pid that nobody has; %s", f.pid, kept)
	case len(f.keepers) == 0:
		return named + " took it; " + kept
	case f.keepers[0].How != Owner:
		return named + " took it, lives, and does not have the locked file open any more; " + kept
	case f.kind == Posix && len(f.keepers) == 1:
		return named + " took it and has the file open; a POSIX lock ends with its process, or when that closes any descriptor of the file"
	case len(f.keepers) == 1:
		return named + " took it and has the file open; it ends when that process ends or closes it"
	default:
		return fmt.Sprintf("%s took it and has the file open, and so %s: it lasts until the last of them closes it", named, others(f.keepers[1:]))
	}
}

// keptText says who keeps a lock that its taker does not keep, or why nobody
// can be shown.
func (t *table) keptText(f finding) string {
	if len(f.keepers) > 0 {
		how := "inherited its descriptor or was passed it"
		if f.kind == OFD {
			how = "has it open"
			if len(f.keepers) > 1 {
				how = "have it open"
			}
		}
		if f.kind == Posix {
			how = "shares the table of descriptors that it belongs to"
			if len(f.keepers) > 1 {
				how = "share the table of descriptors that it belongs to"
			}
		}
		names := make([]string, len(f.keepers))
		for i, k := range f.keepers {
			names[i] = who(k.PID, k.Command)
		}
		s := fmt.Sprintf("%s %s, and it lasts until that is closed", join(names), how)
		if f.merged {
			s += " (there are several such locks, and which of these processes keeps which cannot be told as this user)"
		}
		if f.keepers[0].How == Owner {
			s = "it lasts until it is given back, or the file is closed"
		}
		return s
	}
	var reasons []string
	if owner, ok := t.blind[f.pid]; ok {
		reasons = append(reasons, "the descriptors of that process, of user "+cmp.Or(owner, "?")+", cannot be seen")
	} else if len(t.blind) > 0 {
		reasons = append(reasons, fmt.Sprintf("the descriptors of %s cannot be seen", text.Count(len(t.blind), "process")))
	}
	if t.hidden != "" {
		reasons = append(reasons, "processes of other users are hidden")
	}
	if t.inner != "" {
		reasons = append(reasons, "processes outside of this pid namespace do not show")
	}
	if len(f.mappers) > 0 {
		reasons = append(reasons, join(f.mappers)+" has the file mapped into memory, which keeps an open file without one")
	}
	if len(reasons) == 0 {
		return "who keeps it is not known: no process has a descriptor of it, so that the open file is on its way through a socket, in an io_uring, or held by the kernel itself (loop device, swap, NFS server)"
	}
	return "who keeps it is not known: no process that can be seen has a descriptor of it, and " + strings.Join(reasons, "; ")
}

// unseen says what this look could not see.
func (t *table) unseen() []string {
	out := []string{}
	if t.locksErr != nil {
		out = append(out, fmt.Sprintf("The kernel's list of locks cannot be read (%v): only locks whose descriptors can be seen are shown.", t.locksErr))
	}
	if len(t.blind) > 0 {
		users := map[string]bool{}
		for _, u := range t.blind {
			users[cmp.Or(u, "?")] = true
		}
		names := slices.Sorted(maps.Keys(users))
		if len(names) > 5 {
			names = append(names[:5], "others")
		}
		way := "run it as root, or with CAP_SYS_PTRACE"
		if mayTrace() {
			way = "a security module or a user namespace forbids it, also with CAP_SYS_PTRACE"
		}
		out = append(out, fmt.Sprintf("The descriptors of %s (of %s) cannot be seen: %s.", text.Count(len(t.blind), "process"), strings.Join(names, ", "), way))
	}
	if t.hidden != "" {
		out = append(out, t.hidden+" Run it as root, or with CAP_SYS_PTRACE.")
	}
	if t.inner != "" {
		out = append(out, t.inner+" Run it on the host.")
	}
	if t.unread > 0 {
		out = append(out, fmt.Sprintf("%s of the kernel's lists of locks could not be understood.", text.Count(t.unread, "line")))
	}
	return out
}

// mappers names the processes that have a file mapped into their memory: a
// mapping keeps an open file, and its locks, after the last descriptor is
// closed.
func (t *table) mappers(id fileID) []string {
	pids, err := numbers(unix.AT_FDCWD, t.root)
	if err != nil {
		return nil
	}
	// proc_pid_maps(5): address perms offset dev inode path.
	dev, ino := fmt.Sprintf("%02x:%02x", id.major, id.minor), strconv.FormatUint(id.ino, 10)
	var out []string
	for _, pid := range pids {
		b, err := readat(unix.AT_FDCWD, t.root+"/"+strconv.Itoa(pid)+"/maps")
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			f := bytes.Fields(line)
			if len(f) >= 5 && string(f[4]) == ino && string(f[3]) == dev {
				out = append(out, who(pid, t.command(pid)))
				break
			}
		}
	}
	return out
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func who(pid int, command string) string {
	if command == "" {
		return fmt.Sprintf("pid %d", pid)
	}
	return fmt.Sprintf("pid %d (%s)", pid, text.Printable(command))
}

func others(ks []Keeper) string {
	names := make([]string, len(ks))
	for i, k := range ks {
		names[i] = who(k.PID, k.Command)
	}
	if len(ks) == 1 {
		return "has " + names[0] + ", which inherited or was passed it"
	}
	return "have " + join(names) + ", which inherited or were passed it"
}

// join makes a list of names for a sentence, of which a long one ends early.
func join(names []string) string {
	const most = 10
	if len(names) > most {
		names = append(slices.Clone(names[:most]), fmt.Sprintf("%d more", len(names)-most))
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
