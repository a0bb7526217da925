package host

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

// What a host left that was killed is removed: it is this user's, and nobody has its
// lock. Whatever else has such a name is left, and not waited for.
func TestStaleSockets(t *testing.T) {
	t.Parallel()
	in := t.TempDir()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// folder makes one of an hour ago.
	folder := func(name string, mode os.FileMode, lock func(path string) error) string {
		t.Helper()
		dir := filepath.Join(in, socketsPrefix+name)
		do(os.Mkdir(dir, 0o700))
		if lock != nil {
			do(lock(filepath.Join(dir, "lock")))
		}
		do(os.Chmod(dir, mode))
		hour := time.Now().Add(-time.Hour)
		do(os.Chtimes(dir, hour, hour))
		return dir
	}
	file := func(path string) error { return os.WriteFile(path, nil, 0o600) }
	stale := folder("stale", 0o700, file)
	var left []string
	left = append(left, folder("being-made", 0o700, nil))
	left = append(left, folder("open-to-others", 0o755, file))
	left = append(left, folder("pipe", 0o700, func(path string) error { return syscall.Mkfifo(path, 0o666) }))
	left = append(left, folder("symlink", 0o700, func(path string) error { return os.Symlink("/dev/tty", path) }))
	used := folder("used", 0o700, file)
	lock := flock.New(filepath.Join(used, "lock"))
	if ok, err := lock.TryLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	t.Cleanup(func() { _ = lock.Close() })
	left = append(left, used)
	young := folder("young", 0o700, file)
	do(os.Chtimes(young, time.Now(), time.Now()))
	left = append(left, young)
	if os.Geteuid() == 0 {
		other := folder("of-another-user", 0o700, func(path string) error { return syscall.Mkfifo(path, 0o666) })
		do(os.Chown(other, 4242, 4242))
		left = append(left, other)
	} else {
		t.Log("NOT RUN: the folder of another user: only root can give one away")
	}
	removeStale(in)
	if _, err := os.Lstat(stale); err == nil {
		t.Error("what a killed host left is still there")
	}
	for _, dir := range left {
		if _, err := os.Lstat(dir); err != nil {
			t.Errorf("%s was removed: %v", filepath.Base(dir), err)
		}
	}
}

// Of a plugin in a folder that others can change it is said what is wrong with the
// folder, and not that the plugin is not there.
func TestFolderOfPluginsOfOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	s := Spec{Name: "p"}
	if _, err := s.checkFile(dir); err == nil || !strings.Contains(err.Error(), "can be written by everybody (mode 0777): chmod go-w it") {
		t.Errorf("got %v", err)
	}
}
