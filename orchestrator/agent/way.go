package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/durable"
)

// maxLinks bounds the symlinks on the way to a folder, as Linux does.
const maxLinks = 40

// way walks to the folder of a destination, from one handle to the next, so that
// nothing which is renamed or linked meanwhile leads elsewhere.
//
// Invariant: a symlink is followed only if nobody but root and this process's
// user could have made it: it is theirs, and so is all of the way to it, without
// a right to write for others. Past the first folder that somebody else can
// change no symlink is followed: whoever may write to /srv/app must not have an
// agent that is root write to /etc.
type way struct {
	// at are the folders from the top to where it stands, as open handles.
	at    []*os.File
	names []string
	// trusted[i]: nobody else can change which names stand in at[i].
	trusted []bool
	root    bool // a root is given: nothing leads out of it
	make    bool // make what is missing
	links   int
}

// errEscapes is a way that leads out of the root.
var errEscapes = errors.New("path escapes from the root")

// openFolder opens the folder at path, absolute, below root ("": none).
func openFolder(root, path string, makeDirs bool) (*os.Root, error) {
	w := &way{root: root != "", make: makeDirs}
	defer w.close()
	top := "/"
	if w.root {
		// Who chose the root answers for the way to it.
		var err error
		if top, err = filepath.EvalSymlinks(root); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(top, openWay|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := w.push(f, "", true); err != nil {
		return nil, err
	}
	if err := w.walk(path); err != nil {
		return nil, err
	}
	// os.Root is opened by name: it must be the folder that was walked to.
	path = filepath.Join(append([]string{top}, w.names[1:]...)...)
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	there, err := dir.Stat(".")
	if err == nil {
		var here os.FileInfo
		if here, err = w.at[len(w.at)-1].Stat(); err == nil && !os.SameFile(here, there) {
			err = fmt.Errorf("%s was replaced while it was opened", path)
		}
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, nil
}

func (w *way) close() {
	for _, f := range w.at {
		_ = f.Close()
	}
}

// push stands in a folder. It closes the handle if it cannot.
func (w *way) push(f *os.File, name string, above bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return errors.Join(err, f.Close())
	}
	w.at, w.names = append(w.at, f), append(w.names, name)
	w.trusted = append(w.trusted, above && ownedByUs(st.Uid) && (st.Mode&0o022 == 0 || st.Mode&unix.S_ISVTX != 0))
	return nil
}

// pop goes one folder up; at the top it stays, as in the file system.
func (w *way) pop() {
	n := len(w.at) - 1
	if n == 0 {
		return
	}
	_ = w.at[n].Close()
	w.at, w.names, w.trusted = w.at[:n], w.names[:n], w.trusted[:n]
}

func ownedByUs(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

func segments(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func (w *way) walk(path string) error {
	todo := segments(path)
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case ".":
			continue
		case "..":
			if w.root && len(w.at) == 1 {
				return errEscapes
			}
			w.pop()
			continue
		}
		to, err := w.step(name)
		if err != nil {
			return err
		}
		if to != "" {
			todo = append(segments(to), todo...)
		}
	}
	return nil
}

// step goes to a name, or returns where the symlink of that name leads.
func (w *way) step(name string) (link string, err error) {
	n := len(w.at) - 1
	dir := int(w.at[n].Fd())
	where := "/" + filepath.Join(append(append([]string(nil), w.names...), name)...)
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(dir, name, openWay|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	switch {
	case err == nil:
		return "", w.push(os.NewFile(uintptr(fd), where), name, w.trusted[n])
	case errors.Is(err, unix.ENOENT) && w.make:
		return "", w.mkdir(name, where)
	case !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP):
		return "", &fs.PathError{Op: "open", Path: where, Err: err}
	}
	var st unix.Stat_t
	if serr := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); serr != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", &fs.PathError{Op: "open", Path: where, Err: err}
	}
	if !w.trusted[n] || !ownedByUs(st.Uid) {
		return "", fmt.Errorf("%s is a symlink that somebody else can make or change (it belongs to user %d): name the folder that it leads to", where, st.Uid)
	}
	if w.links++; w.links > maxLinks {
		return "", &fs.PathError{Op: "open", Path: where, Err: unix.ELOOP}
	}
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: where, Err: err}
	}
	link = string(buf[:k])
	if strings.HasPrefix(link, "/") {
		if w.root {
			return "", errEscapes
		}
		for len(w.at) > 1 {
			w.pop()
		}
	}
	return link, nil
}

// mkdir makes a folder, 0755 whatever the umask, and stands in it. Its name is
// synced.
func (w *way) mkdir(name, where string) error {
	n := len(w.at) - 1
	dir := int(w.at[n].Fd())
	if err := unix.Mkdirat(dir, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "mkdir", Path: where, Err: err}
	} else if err == nil {
		fd, err := ignoringEINTR(func() (int, error) {
			return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return &fs.PathError{Op: "open", Path: where, Err: err}
		}
		made := os.NewFile(uintptr(fd), where)
		defer func() { _ = made.Close() }()
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		// It may be another one by now.
		if int(st.Uid) == os.Geteuid() {
			if err := made.Chmod(0o755); err != nil {
				return err
			}
		}
		if err := syncAt(dir); err != nil {
			return fmt.Errorf("folder of %s: %w", where, err)
		}
	}
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(dir, name, openWay|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return &fs.PathError{Op: "open", Path: where, Err: err}
	}
	return w.push(os.NewFile(uintptr(fd), where), name, w.trusted[n])
}

func syncAt(dir int) error {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), ".")
	return errors.Join(durable.Sync(f), f.Close())
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
