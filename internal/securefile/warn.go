package securefile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Writable says who else can change a file or folder, or put another in its
// place, and what to do about it; "" if nobody can, or if it cannot be told.
//
// A group that has the number of the file's owner is taken for that user's own
// and not for others, as where each user has a group and the umask is 002. Nor does
// a group's right count below a folder that others may not enter. What everybody may
// write to, or what is another account's, counts there too: it was opened on purpose,
// and what others cannot reach by its path may be mounted where they can, as Nomad
// does with the folder that the tasks of an allocation share, and container runtimes
// with volumes. A process does not see the mounts of others.
func Writable(path string) string { return own().writable(path) }

func (c checker) writable(path string) string {
	at, fi, err := c.follow(path)
	if err == nil {
		err = writers(path, at, fi)
	}
	bad, ok := errors.AsType[*Error](err)
	if !ok {
		return ""
	}
	if fi, err := os.Lstat(bad.Path); err == nil && fi.Mode().Perm()&0o002 == 0 && fi.Mode().Perm()&0o020 != 0 {
		uid, gid, err := ids(bad.Path, fi)
		if err == nil && (uid == c.uid || uid == 0) && (uid == gid || c.shut(bad.Path)) {
			return ""
		}
	}
	return bad.Error()
}

// shut tells whether a folder above path keeps all others out.
func (c checker) shut(path string) bool {
	for dir := filepath.Dir(path); dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			return false
		}
		if uid, _, err := ids(dir, fi); err == nil && (uid == 0 || uid == c.uid) && fi.Mode().Perm()&0o011 == 0 {
			return true
		}
	}
	return false
}

// Readable says that everybody on this machine can read a file that should be
// secret, and what to do about it; "" if not, or if it cannot be told. A file
// below a folder that others may not enter is taken for one that they cannot read. That its
// group may read it is taken for what was meant.
func Readable(path string) string {
	at, err := filepath.Abs(path)
	if err == nil {
		at, err = filepath.EvalSymlinks(at)
	}
	if err != nil {
		return ""
	}
	fi, err := os.Stat(at)
	if err != nil || !fi.Mode().IsRegular() || fi.Mode().Perm()&0o004 == 0 {
		return ""
	}
	perm := fi.Mode().Perm()
	for dir := filepath.Dir(at); ; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil || fi.Mode().Perm()&0o001 == 0 {
			return ""
		}
		if dir == filepath.Dir(dir) {
			return fmt.Sprintf("%q can be read by everybody on this machine (mode %04o): chmod o-rwx it", path, perm)
		}
	}
}
