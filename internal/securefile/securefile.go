package securefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks bounds the symlinks of one path, as Linux does.
const maxLinks = 40

// Error is a path that somebody else can change.
type Error struct {
	// Asked is the path that was looked at, and Path the step of the way to it
	// that is at fault: the same, a folder above it, or where a symlink leads.
	Asked, Path string
	// Problem says what is wrong with Path, and Hint the way out.
	Problem, Hint string
}

func (e *Error) Error() string {
	where := fmt.Sprintf("%q", e.Path)
	if e.Path != e.Asked {
		where = fmt.Sprintf("%q: %q", e.Asked, e.Path)
	}
	return fmt.Sprintf("%s %s: %s", where, e.Problem, e.Hint)
}

// Folder checks that nobody but root and the process's own user can change what
// is in a folder, or put another folder in its place, and returns where it really
// is, without symlinks. The error is an *Error, or of the file system.
func Folder(path string) (string, error) { return own().folder(path) }

// File checks the same of a regular file.
func File(path string) (string, error) { return own().file(path) }

// FileIn checks the same of the file called name in a folder, and that it is in
// that folder: a symlink may lead to another file there, and no further. Both
// paths are without symlinks.
func FileIn(folder, name string) (string, error) { return own().fileIn(folder, name) }

// checker is what is trusted: root, and uid.
type checker struct{ uid int }

func own() checker { return checker{uid: os.Geteuid()} }

func (c checker) folder(path string) (string, error) {
	at, fi, err := c.follow(path)
	if err != nil {
		return "", err
	}
	if !fi.IsDir() {
		return "", &fs.PathError{Op: "open", Path: path, Err: syscall.ENOTDIR}
	}
	// In a folder such as /tmp a file of ours stays, but others put theirs beside it.
	if err := writers(path, at, fi); err != nil {
		return "", err
	}
	return at, nil
}

func (c checker) file(path string) (string, error) {
	at, fi, err := c.follow(path)
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() {
		return "", &Error{Asked: path, Path: at, Problem: "is not a regular file", Hint: "name a file"}
	}
	if err := writers(path, at, fi); err != nil {
		return "", err
	}
	return at, nil
}

func (c checker) fileIn(folder, name string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("%q is no name of a file in %q", name, folder)
	}
	dir, err := c.folder(folder)
	if err != nil {
		return "", err
	}
	at, err := c.file(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	if filepath.Dir(at) != dir {
		return "", &Error{
			Asked: filepath.Join(folder, name), Path: filepath.Join(folder, name),
			Problem: fmt.Sprintf("is a symlink to %q, out of its folder", at), Hint: "put the file itself there",
		}
	}
	return at, nil
}

// follow walks to path from the root. Invariant: whoever can change a name that
// was passed is root or c.uid; the mode of the last one is for the caller to judge.
func (c checker) follow(path string) (string, fs.FileInfo, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", nil, err
	}
	at, links := "/", 0
	fi, err := os.Lstat(at)
	if err != nil {
		return "", nil, err
	}
	if err := c.owner(path, at, fi); err != nil {
		return "", nil, err
	}
	todo := steps(abs)
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if !fi.IsDir() {
			return "", nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENOTDIR}
		}
		if err := renamers(path, at, fi); err != nil {
			return "", nil, err
		}
		next := filepath.Join(at, name)
		nfi, err := os.Lstat(next)
		if err != nil {
			return "", nil, err
		}
		if err := c.owner(path, next, nfi); err != nil {
			return "", nil, err
		}
		if nfi.Mode()&fs.ModeSymlink == 0 {
			at, fi = next, nfi
			continue
		}
		if links++; links > maxLinks {
			return "", nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
		}
		to, err := os.Readlink(next)
		if err != nil {
			return "", nil, err
		}
		todo = append(steps(to), todo...)
		if filepath.IsAbs(to) {
			at = "/"
			if fi, err = os.Lstat(at); err != nil {
				return "", nil, err
			}
		}
	}
	return at, fi, nil
}

// steps are the names of a path. "." and ".." need no care of their own: at is
// never a symlink where they are followed.
func steps(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func (c checker) owner(asked, path string, fi fs.FileInfo) error {
	uid, _, err := ids(path, fi)
	if err != nil || uid == 0 || uid == c.uid {
		return err
	}
	return &Error{
		Asked: asked, Path: path, Problem: fmt.Sprintf("belongs to user %d, who can change it", uid),
		Hint: fmt.Sprintf("it must belong to root or to user %d: chown it", c.uid),
	}
}

// renamers refuses a folder in which others can rename or remove what is not
// theirs. With the sticky bit they cannot.
func renamers(asked, path string, fi fs.FileInfo) error {
	if fi.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	return writers(asked, path, fi)
}

func writers(asked, path string, fi fs.FileInfo) error {
	perm := fi.Mode().Perm()
	if perm&0o022 == 0 {
		return nil
	}
	who, bits := "its group", "g-w"
	if perm&0o002 != 0 {
		who, bits = "everybody", "go-w"
	}
	return &Error{
		Asked: asked, Path: path, Problem: fmt.Sprintf("can be written by %s (mode %04o)", who, perm),
		Hint: "chmod " + bits + " it",
	}
}

func ids(path string, fi fs.FileInfo) (uid, gid int, err error) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, &fs.PathError{Op: "stat", Path: path, Err: errors.ErrUnsupported}
	}
	return int(st.Uid), int(st.Gid), nil
}
