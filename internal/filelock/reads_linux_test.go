package filelock

import (
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
