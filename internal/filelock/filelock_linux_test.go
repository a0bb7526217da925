package filelock

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNotLocked(t *testing.T) {
	t.Parallel()
	r := explain(t, newFile(t))
	if boolText(r.Locked) != "false" || r.Locks == nil || len(r.Locks) != 0 {
		t.Errorf("got %s", show(r))
	}
}

func TestLiveOwner(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		kind, name, mode, how, why string
		named                      bool
	}{
		{Flock, Flock, Write, Owner, "took it and has the file open", true},
		{"flock read", Flock, Read, Owner, "took it and has the file open", true},
		{Posix, Posix, Write, Owner, "a POSIX lock ends with its process", true},
		{OFD, OFD, Write, OpenFileDescription, "pid -1; pid ", false},
		{Lease, Lease, Write, Owner, "A lease does not exclude locks", true},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			t.Parallel()
			path := newFile(t)
			p := hold(t, path, tc.kind)
			l := one(t, explain(t, path))
			pid, alive := p.Process.Pid, "true"
			if !tc.named {
				pid, alive = -1, "unknown"
			}
			expect(t, l, tc.name, tc.mode, pid, alive, map[int]string{p.Process.Pid: tc.how}, tc.why)
			if ranged := tc.kind == Posix || tc.kind == OFD; ranged != (l.Start == 10 && l.End != nil && *l.End == 99) || !ranged && l.End != nil {
				t.Errorf("the range is wrong: %s", show(l))
			}
			p.end(t)
			if r := explain(t, path); boolText(r.Locked) != "false" {
				t.Errorf("after its end: %s", show(r))
			}
		})
	}
}

// The taker of a flock is gone; a child has the descriptor that it inherited.
func TestDeadTaker(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{Flock, OFD} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			path := newFile(t)
			p := start(t, "taker", path, kind)
			kid := p.number(t)
			if _, err := p.Process.Wait(); err != nil {
				t.Fatal(err)
			}
			l := one(t, explain(t, path))
			if kind == OFD {
				expect(t, l, OFD, Write, -1, "unknown", map[int]string{kid: OpenFileDescription}, "belongs to an open file and to no process")
			} else {
				expect(t, l, Flock, Write, p.Process.Pid, "false", map[int]string{kid: InheritedOrPassed}, "under a pid that nobody has")
			}
		})
	}
}

// A zombie has closed its files, and is dead although it has a pid.
func TestZombieTaker(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	p := start(t, "taker", path, Flock)
	kid := p.number(t)
	eventually(t, path, func(r *Report) bool { return keeper(one(t, r), p.Process.Pid) == "" })
	l := one(t, eventually(t, path, func(r *Report) bool { return boolText(one(t, r).PIDAlive) == "false" }))
	expect(t, l, Flock, Write, p.Process.Pid, "false", map[int]string{kid: InheritedOrPassed}, "has ended")
}

// A POSIX lock is not inherited, though the descriptor is.
func TestPosixIsNotInherited(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	p := start(t, "taker", path, Posix)
	p.number(t)
	if _, err := p.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	if r := explain(t, path); boolText(r.Locked) != "false" {
		t.Errorf("got %s", show(r))
	}
}

func TestPassedOverSocket(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	a, b := pair(t)
	giver := start(t, "give", path, "", with(a))
	giver.line(t)
	if _, err := giver.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	// On its way, nobody has it.
	l := one(t, explain(t, path))
	expect(t, l, Flock, Write, giver.Process.Pid, "false", nil, "who keeps it is not known")
	if l.KeptBy != nil || l.Complete {
		t.Errorf("somebody keeps it: %s", show(l))
	}
	taker := start(t, "receive", path, "", with(b))
	fd := taker.number(t)
	l = one(t, explain(t, path))
	expect(t, l, Flock, Write, giver.Process.Pid, "false", map[int]string{taker.Process.Pid: InheritedOrPassed}, "was passed it")
	if len(l.KeptBy) != 1 || len(l.KeptBy[0].FDs) != 1 || l.KeptBy[0].FDs[0] != fd {
		t.Errorf("want descriptor %d: %s", fd, show(l))
	}
}

// Both processes and the parent have the very open file: all keep it.
func TestInheritedAndOwned(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := take(f, Flock); err != nil {
		t.Fatal(err)
	}
	p := start(t, "block", path, "", with(f))
	p.line(t)
	want := map[int]string{os.Getpid(): Owner, p.Process.Pid: InheritedOrPassed}
	l := one(t, explain(t, path))
	expect(t, l, Flock, Write, os.Getpid(), "true", want, "until the last of them closes it")
	if l.Complete != (len(explain(t, path).Unseen) == 0) {
		t.Errorf("complete is %t: %s", l.Complete, show(explain(t, path)))
	}
}

// Two locks that are equal in all that is listed are told apart by their open
// files.
func TestEqualLocks(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	p := start(t, "two", path, "")
	p.line(t)
	r := explain(t, path)
	if len(r.Locks) != 2 {
		t.Fatalf("want two locks: %s", show(r))
	}
	if a, b := len(r.Locks[0].KeptBy), len(r.Locks[1].KeptBy); a+b != 3 || a == b {
		t.Errorf("one is kept by its taker alone, one by two: %s", show(r))
	}
}

func TestWaiters(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	hold(t, path, Posix)
	p := start(t, "hold", path, Posix)
	l := one(t, eventually(t, path, func(r *Report) bool { return len(one(t, r).Waiters) > 0 }))
	if w := l.Waiters[0]; len(l.Waiters) != 1 || w.PID != p.Process.Pid || w.Kind != Posix || w.Mode != Write || w.Command == "" {
		t.Errorf("want pid %d: %s", p.Process.Pid, show(l))
	}
}

func TestMapped(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	p := start(t, "map", path, "")
	p.line(t)
	l := one(t, explain(t, path))
	expect(t, l, Flock, Write, p.Process.Pid, "true", nil, "has the file mapped into memory")
	if l.KeptBy != nil {
		t.Errorf("got %s", show(l))
	}
}

func TestDeletedReplacedRenamed(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	p := hold(t, path, Flock)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want := map[int]string{p.Process.Pid: Owner}
	r := explain(t, path)
	if !r.Deleted {
		t.Errorf("not known to be deleted: %s", show(r))
	}
	expect(t, one(t, r), Flock, Write, p.Process.Pid, "true", want, "")

	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	r = explain(t, path)
	if boolText(r.Locked) != "false" || len(r.Locks) != 0 || len(r.Former) != 1 || r.Deleted {
		t.Fatalf("the path names another file now: %s", show(r))
	}
	expect(t, r.Former[0], Flock, Write, p.Process.Pid, "true", want, "")

	// Renamed: the lock goes with the file, and the path names another.
	q := hold(t, path, Flock)
	aside := path + ".1"
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	if _, err := new(Scanner).Explain(t.Context(), path+"x", 0); !errors.Is(err, ErrNotExist) {
		t.Errorf("of a path that never was: %v", err)
	}
	expect(t, one(t, explain(t, aside)), Flock, Write, q.Process.Pid, "true", map[int]string{q.Process.Pid: Owner}, "")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	r = explain(t, path)
	if boolText(r.Locked) != "false" || !strings.Contains(strings.Join(r.Notes, " "), aside) {
		t.Errorf("want not locked, and a hint at %s: %s", aside, show(r))
	}
}

func TestRenamedAway(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	hold(t, path, Flock)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	_, err := new(Scanner).Explain(t.Context(), path, 0)
	if !errors.Is(err, ErrNotExist) || !strings.Contains(err.Error(), path+".old") {
		t.Errorf("got %v", err)
	}
}

// A name that ends like the kernel's mark of a deleted file is no deleted file.
func TestCalledDeleted(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	if err := os.WriteFile(path+deletedMark, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	hold(t, path+deletedMark, Flock)
	if r := explain(t, path); len(r.Former) != 0 || boolText(r.Locked) != "false" {
		t.Errorf("got %s", show(r))
	}
	one(t, explain(t, path+deletedMark))
}

func TestBadPaths(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		path + "/below":            "not a directory",
		loop:                       "too many levels of symbolic links",
		filepath.Dir(path) + "/no": "no such file",
		"/no/such/folder/file":     "no such file",
		"\x00":                     "invalid argument",
		strings.Repeat("x", 5000):  "file name too long",
		filepath.Join(path, "..x"): "not a directory",
	} {
		r, err := new(Scanner).Explain(t.Context(), path, 0)
		if r != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", path, err, want)
		}
	}
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	hold(t, path, Flock)
	if r := explain(t, link); r.Path != link || r.Resolved != path {
		t.Errorf("through a link: %s", show(r))
	}
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := take(f, Flock); err != nil {
		t.Fatal(err)
	}
	one(t, explain(t, dir)) // a folder can be locked too
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
}

// From the outside, a lock of a container's process has the outside's pid.
func TestContainerFromOutside(t *testing.T) {
	needRoot(t)
	t.Parallel()
	path := newFile(t)
	p := start(t, "container", path, Flock, inContainer)
	p.line(t)
	expect(t, one(t, explain(t, path)), Flock, Write, p.Process.Pid, "true", map[int]string{p.Process.Pid: Owner}, "")
}

// From within a container, a lock that was taken outside has pid 0 where its
// descriptor came in, and is not listed at all where it did not.
func TestOutsideFromContainer(t *testing.T) {
	needRoot(t)
	t.Parallel()
	path := newFile(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := take(f, Flock); err != nil {
		t.Fatal(err)
	}
	r := start(t, "container", path, "", inContainer, with(f)).report(t)
	l := one(t, r)
	expect(t, l, Flock, Write, 0, "unknown", map[int]string{1: InheritedOrPassed}, "pid 0 because whoever took it has ended or is in another pid namespace")
	if l.Complete || len(r.Unseen) == 0 {
		t.Errorf("it cannot see the taker: %s", show(r))
	}
	r = start(t, "container", path, "", inContainer).report(t)
	if r.Locked != nil || len(r.Unseen) == 0 || !strings.Contains(r.Unseen[0], "pid namespace") {
		t.Errorf("it cannot know: %s", show(r))
	}
}

func asNobody(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// Without root, a lock that somebody keeps is not kept by nobody.
func TestNotRoot(t *testing.T) {
	needRoot(t)
	t.Parallel()
	dir, err := os.MkdirTemp("", "filelock") //nolint:usetesting // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a.lock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	exe := copyExe(t, dir)
	look := func(path string) *proc {
		return start(t, "explain", path, "", asNobody, func(c *exec.Cmd) { c.Path = exe })
	}
	p := hold(t, path, Flock)
	r := look(path).report(t)
	l := one(t, r)
	expect(t, l, Flock, Write, p.Process.Pid, "true", nil, "of user root, cannot be seen")
	if l.KeptBy != nil || len(r.Unseen) == 0 || !strings.Contains(r.Unseen[0], "root") {
		t.Errorf("got %s", show(r))
	}
	if s := look(path + "x").line(t); !strings.Contains(s, "that can be seen as this user") {
		t.Errorf("of a file that is not there it says %q", s)
	}
	// What is its own is seen.
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	p.end(t)
	own := hold(t, path, Flock, asNobody, func(c *exec.Cmd) { c.Path = exe })
	l = one(t, look(path).report(t))
	expect(t, l, Flock, Write, own.Process.Pid, "true", map[int]string{own.Process.Pid: Owner}, "")
	if l.Complete {
		t.Errorf("others may keep it too: %s", show(l))
	}
}

func copyExe(t *testing.T, dir string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "exe")
	if err := os.WriteFile(out, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return out
}

// On overlay, stat and the kernel's list of locks name different devices.
func TestOverlay(t *testing.T) {
	needRoot(t)
	t.Parallel()
	dir := t.TempDir()
	for _, d := range []string{"lower", "top", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(source, target, kind, data string) {
		if err := unix.Mount(source, target, kind, 0, data); err != nil {
			t.Skipf("SKIPPED: no mount of %s here: %v", kind, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	lower, top, merged := filepath.Join(dir, "lower"), filepath.Join(dir, "top"), filepath.Join(dir, "merged")
	// The layers are on two file systems: then stat names the lower one.
	mount("tmpfs", lower, "tmpfs", "")
	mount("tmpfs", top, "tmpfs", "")
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(lower, "a.lock"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	mount("overlay", merged, "overlay", "lowerdir="+lower+",upperdir="+top+"/upper,workdir="+top+"/work,xino=off")
	path := filepath.Join(merged, "a.lock")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := take(f, Flock); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	at, err := identify(path)
	if err != nil || at.anyDevice || (at.id == fileID{unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino}) {
		t.Errorf("stat names the file as the kernel's list does, so that this tests nothing: %+v, %v", at, err)
	}
	expect(t, one(t, explain(t, path)), Flock, Write, os.Getpid(), "true", map[int]string{os.Getpid(): Owner}, "")
	if r := explain(t, filepath.Join(lower, "a.lock")); boolText(r.Locked) != "false" {
		t.Errorf("the file below is another one: %s", show(r))
	}
}
