package filelock

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// fileID names an inode as the kernel names it in its lists of locks: by the
// device of the superblock, which is not always that of stat (btrfs, overlay).
type fileID struct {
	major, minor uint32
	ino          uint64
}

// attrs is all that the kernel says of a lock. Two locks may be equal in it.
type attrs struct {
	kind, mode string
	pid        int
	file       fileID
	start, end uint64
	eof        bool // end is the end of the file
}

// lockLine is a line of /proc/locks, or that of a `lock:` in fdinfo.
type lockLine struct {
	attrs
	// depth is 0 for a lock; a waiter waits for the nearest line before it
	// whose depth is less.
	depth int
	// breaking: a lease that is being taken away.
	breaking bool
}

var errLine = errors.New("not a line of the kernel's list of locks")

// parseLine reads what lock_get_status of the kernel's fs/locks.c writes:
//
//	1: FLOCK  ADVISORY  WRITE 5740 fe:00:9977898 0 EOF
//	1: -> POSIX  ADVISORY  READ 77 fe:00:9977898 0 99
//
// ok is false, without an error, for a line that is about no file.
func parseLine(line string) (l lockLine, ok bool, err error) {
	f := strings.Fields(line)
	if len(f) < 2 || !strings.HasSuffix(f[0], ":") {
		return l, false, errLine
	}
	if f[1] == "->" {
		// The arrow is indented by a blank for each step below the first.
		_, rest, _ := strings.Cut(line, ":")
		l.depth = strings.Index(rest, "->")
		f = append(f[:1], f[2:]...)
	}
	if len(f) != 8 {
		return l, false, errLine
	}
	switch f[1] {
	case "FLOCK":
		l.kind = Flock
	case "POSIX", "ACCESS":
		l.kind = Posix
	case "OFDLCK":
		l.kind = OFD
	case "LEASE", "DELEG":
		l.kind = Lease
	default:
		return l, false, errLine
	}
	l.breaking = f[2] == "BREAKING" || f[2] == "BREAKER"
	switch f[3] {
	case "READ":
		l.mode = Read
	case "WRITE":
		l.mode = Write
	case "UNLCK":
		return l, false, nil // of a lease that is on its way out
	default:
		return l, false, errLine
	}
	if l.pid, err = strconv.Atoi(f[4]); err != nil {
		return l, false, errLine
	}
	if f[2] == "*NOINODE*" || strings.HasPrefix(f[5], "<none>") {
		return l, false, nil
	}
	if l.file, err = parseFileID(f[5]); err != nil {
		return l, false, err
	}
	if l.start, err = strconv.ParseUint(f[6], 10, 64); err != nil {
		return l, false, errLine
	}
	if l.eof = f[7] == "EOF"; !l.eof {
		if l.end, err = strconv.ParseUint(f[7], 10, 64); err != nil {
			return l, false, errLine
		}
	}
	return l, true, nil
}

// parseFileID reads a device in hexadecimal and an inode in decimal.
func parseFileID(s string) (fileID, error) {
	p := strings.Split(s, ":")
	if len(p) != 3 {
		return fileID{}, errLine
	}
	major, err1 := strconv.ParseUint(p[0], 16, 32)
	minor, err2 := strconv.ParseUint(p[1], 16, 32)
	ino, err3 := strconv.ParseUint(p[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return fileID{}, errLine
	}
	return fileID{uint32(major), uint32(minor), ino}, nil
}

// kernelLock is a lock of /proc/locks with those who wait for it.
type kernelLock struct {
	lockLine
	waiters []lockLine
}

// parseLocks reads /proc/locks. bad counts lines that it cannot read.
func parseLocks(b []byte) (locks []kernelLock, bad int) {
	skipping := false
	for line := range strings.Lines(string(b)) {
		l, ok, err := parseLine(line)
		switch {
		case err != nil:
			bad++
		case l.depth > 0 && ok && !skipping && len(locks) > 0:
			last := &locks[len(locks)-1]
			last.waiters = append(last.waiters, l)
		case l.depth == 0 && ok:
			locks = append(locks, kernelLock{lockLine: l})
			skipping = false
		case l.depth == 0:
			skipping = true
		}
	}
	return locks, bad
}

// fdInfo is what is read of /proc/PID/fdinfo/FD.
type fdInfo struct {
	mount int
	// ino is 0 where the kernel does not tell (before Linux 5.14).
	ino   uint64
	locks []lockLine
	bad   int // lines of locks that cannot be read
}

// parseFDInfo reads proc_pid_fdinfo(5).
func parseFDInfo(b []byte) (fdInfo, error) {
	info := fdInfo{mount: -1}
	for line := range bytes.Lines(b) {
		name, value, ok := strings.Cut(string(line), ":")
		value = strings.TrimSpace(value)
		if !ok {
			continue // drivers add lines of their own
		}
		var err error
		switch name {
		case "mnt_id":
			info.mount, err = strconv.Atoi(value)
		case "ino":
			info.ino, err = strconv.ParseUint(value, 10, 64)
		case "lock":
			switch l, ok, lineErr := parseLine(value); {
			case lineErr != nil:
				info.bad++
			case ok && l.depth == 0:
				info.locks = append(info.locks, l)
			}
		}
		if err != nil {
			return info, fmt.Errorf("%s: %w", name, err)
		}
	}
	return info, nil
}
