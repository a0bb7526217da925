package filelock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A list of locks that is longer than what the kernel gives at once is read whole, and
// each lock once.
func TestManyLocks(t *testing.T) {
	const many = 200
	dir := t.TempDir()
	want := map[uint64]bool{}
	for i := range many {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		want[info.Sys().(*syscall.Stat_t).Ino] = true
	}
	if _, parts, err := readParts("/proc/locks"); err != nil || parts < 2 {
		t.Fatalf("%d parts, %v: the test tests nothing", parts, err)
	}
	tab := &table{root: "/proc"}
	tab.readLocks()
	if tab.locksErr != nil || tab.unread > 0 {
		t.Fatal(tab.locksErr, tab.unread)
	}
	seen := map[uint64]int{}
	for _, l := range tab.locks {
		if want[l.file.ino] && l.pid == os.Getpid() {
			seen[l.file.ino]++
		}
	}
	for ino := range want {
		if seen[ino] != 1 {
			t.Errorf("the lock on inode %d is there %d times", ino, seen[ino])
		}
	}
}

// A list that changes while it is read in several parts is read again, until two reads
// agree, and not without end.
func TestChangesWhileRead(t *testing.T) {
	for name, tc := range map[string]struct {
		lists []string
		parts int
		want  string
		reads int
	}{
		"in one part":       {[]string{"a", "b"}, 1, "a", 1},
		"stands still":      {[]string{"a", "a", "b"}, 2, "a", 2},
		"changes once":      {[]string{"a", "b", "b", "c"}, 2, "b", 3},
		"changes each time": {[]string{"a", "b", "c", "d", "e", "f", "g"}, 2, "e", lockReads},
	} {
		reads := 0
		b, err := whole(func() ([]byte, int, error) {
			reads++
			return []byte(tc.lists[reads-1]), tc.parts, nil
		})
		if string(b) != tc.want || reads != tc.reads || err != nil {
			t.Errorf("%s: %q after %d reads, %v; want %q after %d", name, b, reads, err, tc.want, tc.reads)
		}
	}
	reads := 0
	if _, err := whole(func() ([]byte, int, error) {
		reads++
		return []byte{byte(reads)}, 2, []error{nil, os.ErrPermission}[reads-1]
	}); !errors.Is(err, os.ErrPermission) || reads != 2 {
		t.Errorf("an error after %d reads: %v", reads, err)
	}
}

// An exclusive lock that the list has twice moved while the list was read; shared ones
// of one process may be equal.
func TestTwiceInTheList(t *testing.T) {
	root := t.TempDir()
	list := "1: FLOCK  ADVISORY  WRITE 7 fe:00:11 0 EOF\n2: FLOCK  ADVISORY  READ 8 fe:00:12 0 EOF\n" +
		"3: FLOCK  ADVISORY  WRITE 7 fe:00:11 0 EOF\n4: FLOCK  ADVISORY  READ 8 fe:00:12 0 EOF\n"
	if err := os.WriteFile(filepath.Join(root, "locks"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	tab := &table{root: root}
	tab.readLocks()
	modes := ""
	for _, l := range tab.locks {
		modes += l.mode + " "
	}
	if modes != Write+" "+Read+" "+Read+" " {
		t.Errorf("it reads %s", modes)
	}
}
