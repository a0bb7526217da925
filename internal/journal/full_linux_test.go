package journal_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/journal"
)

// A file that cannot grow stands for a full disk: the limit is the process's
// own, so that a child has it.
func TestDiskFull(t *testing.T) {
	dir := os.Getenv("JOURNAL_TEST_FULL")
	if dir == "" {
		dir = t.TempDir()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiskFull$")
		cmd.Env = append(os.Environ(), "JOURNAL_TEST_FULL="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		got, problems := read(t, dir)
		if len(problems) > 0 || len(got) < 3 || got[len(got)-2] != "journal" || got[len(got)-1] != "room again" {
			t.Errorf("the journal has %q, problems %q", got, problems)
		}
		return
	}
	w := open(t, dir, journal.Options{})
	limit := unix.Rlimit{Cur: 4000, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	var err error
	written := 0
	for ; err == nil && written < 100; written++ {
		err = w.Write(errorEntry(strings.Repeat("x", 200)))
	}
	if !errors.Is(err, syscall.EFBIG) {
		t.Fatalf("after %d entries: %v", written, err)
	}
	if again := w.Write(errorEntry("lost too")); again == nil {
		t.Fatal("it fitted")
	}
	limit.Cur = unix.RLIM_INFINITY
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(errorEntry("room again")); err != nil {
		t.Fatal(err)
	}
}
