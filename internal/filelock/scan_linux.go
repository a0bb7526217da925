package filelock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/hostproc"
)

// carrier is a descriptor whose open file carries a lock.
type carrier struct {
	pid, tid, fd int
	command      string
	// start is when its process started, in ticks since boot.
	start uint64
	// link is the path of the open file, as /proc shows it.
	link string
	line lockLine
}

// table is all locks of this machine and all descriptors that carry one, as
// far as both can be seen. It is not changed once it is made.
type table struct {
	at   time.Time
	root string

	locks    []kernelLock
	locksErr error
	carriers []carrier
	// blind are the processes whose descriptors cannot be seen, with the user
	// whose they are; empty where that is not known either.
	blind map[int]string
	// unread counts lines that could not be understood.
	unread int
	// hidden says why whole processes may be missing, or is empty.
	hidden string
	// inner says why whole locks may be missing from /proc/locks, or is empty.
	inner string
	// samePIDs: the pids of this /proc are those of this process's namespace.
	samePIDs bool
	// compare tells whether two descriptors are of one open file: see kcmp.
	compare func(kind int, a, b carrier) (same, known bool)
}

// Kinds of kcmp(2).
const (
	kcmpFile  = 0
	kcmpFiles = 2
)

// kcmp tells whether two descriptors are of one open file, or two threads have
// one table of descriptors. It is not known without CONFIG_KCMP, and without
// the right to trace both.
func kcmp(kind int, a, b carrier) (same, known bool) {
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a.tid), uintptr(b.tid), uintptr(kind), uintptr(a.fd), uintptr(b.fd), 0)
	return r == 0, errno == 0
}

// scan reads all of /proc under root. What vanishes while it is read was about
// to end, and is no error.
func scan(ctx context.Context, root string) (*table, error) {
	t := &table{root: root, blind: map[int]string{}, compare: kcmp}
	t.lookAround()
	if !t.samePIDs {
		t.compare = func(int, carrier, carrier) (bool, bool) { return false, false }
	}
	pids, err := numbers(unix.AT_FDCWD, root)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		t.process(pid)
	}
	// After the descriptors, so that a lock that is listed was there to be
	// found. The converse is seen to in locksOn.
	t.readLocks()
	t.at = time.Now()
	return t, nil
}

// lockReads bounds how often the kernel's list is read until two reads agree.
const lockReads = 5

// whole reads a list of the kernel's. It holds its list still for one read(2), which is
// a page at most. Of what takes several, a lock that is taken or let go between two of
// them moves the rest: one is there twice, or not at all.
func whole(read func() (b []byte, parts int, err error)) ([]byte, error) {
	b, parts, err := read()
	for n := 1; err == nil && parts > 1 && n < lockReads; n++ {
		before := b
		if b, parts, err = read(); bytes.Equal(b, before) {
			break
		}
	}
	return b, err
}

func (t *table) readLocks() {
	b, err := whole(func() ([]byte, int, error) { return readParts(t.root + "/locks") })
	if err != nil {
		t.locksErr = err
		return
	}
	locks, bad := parseLocks(b)
	// Where no two reads agreed: nothing is locked exclusively twice.
	seen := map[attrs]bool{}
	t.locks = slices.DeleteFunc(locks, func(l kernelLock) bool {
		again := l.mode == Write && seen[l.attrs]
		seen[l.attrs] = true
		return again
	})
	t.unread += bad
}

// readParts reads a file in as few reads as it lets, and returns how many had
// something.
func readParts(path string) (b []byte, parts int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			b, parts = append(b, buf[:n]...), parts+1
		}
		if errors.Is(err, io.EOF) {
			return b, parts, nil
		}
		if err != nil {
			return nil, parts, err
		}
	}
}

// initialPIDNS is the first pid namespace's link: PROC_PID_INIT_INO of the
// kernel's linux/proc_ns.h.
const initialPIDNS = "pid:[4026531836]"

// lookAround finds out what this /proc hides.
func (t *table) lookAround() {
	status, err := os.ReadFile(t.root + "/self/status")
	levels := 0
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "NSpid:"); ok {
			// The pids of this process from the namespace of this /proc to its
			// own.
			levels = len(strings.Fields(v))
		}
	}
	t.samePIDs = err == nil && levels == 1
	var ns string
	if t.samePIDs {
		ns, _ = os.Readlink(t.root + "/self/ns/pid")
	} else {
		ns, _ = os.Readlink(t.root + "/1/ns/pid")
	}
	if ns != initialPIDNS && !kernelThreads(t.root) {
		t.inner = "This is a pid namespace of its own, such as a container's: the kernel does not list here the locks whose takers are outside of it or have ended."
	}
	t.hidden = hidepid(t.root)
}

// kernelThreads reports whether this /proc shows the kernel's own threads,
// which only that of the first pid namespace does. kthreadd is its pid 2.
func kernelThreads(root string) bool {
	b, err := os.ReadFile(root + "/2/stat")
	return err == nil && bytes.Contains(b, []byte("(kthreadd)")) && bytes.Contains(b, []byte(") S 0 0 0 "))
}

// hidepid says why processes may be missing from /proc, or "". Who may trace
// everything sees everything, also with hidepid.
func hidepid(root string) string {
	b, err := os.ReadFile(root + "/self/mountinfo")
	if err != nil {
		return ""
	}
	mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(b), mountinfo.SingleEntryFilter(root))
	if err != nil || len(mounts) == 0 {
		return ""
	}
	for _, opt := range strings.Split(mounts[0].VFSOptions, ",") {
		if v, ok := strings.CutPrefix(opt, "hidepid="); ok && !slices.Contains([]string{"0", "off"}, v) && !mayTrace() {
			return "/proc is mounted with " + opt + ": processes of other users do not show."
		}
	}
	return ""
}

// mayTrace reports whether this process has CAP_SYS_PTRACE.
func mayTrace() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_PTRACE) != 0
}

// process looks at the descriptors of one process and of those of its threads
// that have a table of their own.
func (t *table) process(pid int) {
	// The descriptor stands for the very process: once it has ended, nothing
	// can be read through it, whoever has its pid then.
	dir, err := unix.Open(t.root+"/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	if !t.descriptors(dir, "", pid, pid) {
		return
	}
	tids, err := numbers(dir, "task")
	if err != nil || len(tids) < 2 {
		return
	}
	seen := []carrier{{tid: pid}}
next:
	for _, tid := range tids {
		if tid == pid {
			continue
		}
		for _, s := range seen {
			if same, known := t.compare(kcmpFiles, s, carrier{tid: tid}); same && known {
				continue next
			}
		}
		seen = append(seen, carrier{tid: tid})
		t.descriptors(dir, "task/"+strconv.Itoa(tid)+"/", pid, tid)
	}
}

// descriptors looks at one table of descriptors, below in of the process's
// folder. It returns false if it cannot be looked at.
func (t *table) descriptors(dir int, in string, pid, tid int) bool {
	fds, err := numbers(dir, in+"fd")
	switch {
	case gone(err):
		return true // a zombie's threads may live on
	case err != nil:
		t.blind[pid] = owner(dir)
		return false
	}
	for _, fd := range fds {
		name := strconv.Itoa(fd)
		link, err := readlinkat(dir, in+"fd/"+name)
		if err == nil {
			if strings.HasPrefix(link, "socket:[") || strings.HasPrefix(link, "pipe:[") || strings.HasPrefix(link, "anon_inode:") {
				continue // nothing that has a path
			}
			var b []byte
			if b, err = readat(dir, in+"fdinfo/"+name); err == nil {
				err = t.descriptor(dir, b, carrier{pid: pid, tid: tid, fd: fd, link: link})
			}
		}
		if err != nil && !gone(err) {
			t.blind[pid] = owner(dir)
			return false
		}
	}
	return true
}

func (t *table) descriptor(dir int, b []byte, c carrier) error {
	if !bytes.Contains(b, []byte("\nlock:")) {
		return nil
	}
	info, err := parseFDInfo(b)
	t.unread += info.bad
	if err != nil {
		t.unread++
	}
	comm, err := readat(dir, "comm")
	if err != nil {
		return err
	}
	c.command = strings.TrimSuffix(string(comm), "\n")
	if p, err := hostproc.Lookup(c.pid); err == nil && t.samePIDs {
		c.start = p.StartTicks
	}
	for _, l := range info.locks {
		c.line = l
		t.carriers = append(t.carriers, c)
	}
	return nil
}

// gone reports whether an error of /proc says that what it was about ended.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}

// owner names the user of a process, as far as it can be told.
func owner(dir int) string {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return ""
	}
	uid := strconv.FormatUint(uint64(st.Uid), 10)
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return "uid " + uid
}

// numbers lists the entries of a folder that are numbers, in order.
func numbers(dir int, path string) ([]int, error) {
	fd, err := openat(dir, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	out := make([]int, 0, len(names))
	for _, n := range names {
		if v, err := strconv.Atoi(n); err == nil && v >= 0 {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out, nil
}

func openat(dir int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, path, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// readat reads a whole file of /proc. It is for many thousands of them: what
// package os does around a read costs more than the read.
func readat(dir int, path string) ([]byte, error) {
	fd, err := openat(dir, path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 1024)
	for {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, cap(buf))
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}

func readlinkat(dir int, path string) (string, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(dir, path, buf)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}
