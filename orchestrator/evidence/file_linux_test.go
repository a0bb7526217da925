package evidence_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// lockedFile makes a file that this process has locked until it is closed.
func lockedFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return f
}
