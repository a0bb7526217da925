package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/aim-control/aimlock/internal/durable"
	"github.com/aim-control/aimlock/internal/records"
)

// maxFile bounds the content of one config: it is held in memory.
const maxFile = 64 << 20

// target is the one file that a config is written to. All of its operations
// go through a handle of its folder, so that they stay in the folder that was
// checked, whatever is renamed or linked around it meanwhile.
type target struct {
	dir  *os.Root
	base string
	temp string
	// destination is as in the desired entry; path is where it really is.
	destination, path string
	// staged is the staged copy that this process has written, held open so that
	// its inode is given to no other file, and for reading only, since a program
	// that is open for writing cannot be run; nil: none.
	staged *os.File
}

// cleanDestination refuses what cannot name a file below the root.
func cleanDestination(dest string) (string, error) {
	switch {
	case dest == "":
		return "", errors.New("destination is empty")
	case !strings.HasPrefix(dest, "/"):
		return "", fmt.Errorf("destination %q is not absolute", dest)
	case strings.ContainsRune(dest, 0):
		return "", fmt.Errorf("destination %q holds a zero byte", dest)
	case strings.HasSuffix(dest, "/"):
		return "", fmt.Errorf("destination %q is a folder: name a file", dest)
	}
	for _, seg := range strings.Split(dest, "/") {
		if seg == ".." || seg == "." {
			return "", fmt.Errorf("destination %q holds a %q: write the path without it", dest, seg)
		}
		if len(seg) > 200 {
			return "", fmt.Errorf("destination %.40q… has a name of %d bytes: 200 at most", dest, len(seg))
		}
	}
	return path.Clean(dest), nil
}

// openTarget opens the folder of dest below root, "" for none. owner keeps the
// staged copies of different state folders and configs apart. Where make is
// false and the folder does not exist, the error is fs.ErrNotExist.
//
// With a root, no symlink leads out of it: such a path is an error. See way for
// which symlinks are followed at all.
func openTarget(root, dest, owner string, makeDirs bool) (*target, error) {
	clean, err := cleanDestination(dest)
	if err != nil {
		return nil, err
	}
	t := &target{base: path.Base(clean), destination: clean, path: filepath.Join(root, clean)}
	if root == "" {
		t.path = clean
	}
	h := sha256.Sum256([]byte(owner + "\x00" + clean))
	t.temp = ".aimlock-" + hex.EncodeToString(h[:4]) + "-" + t.base

	t.dir, err = openFolder(root, path.Dir(clean), makeDirs)
	return t, wrapFolder(err, clean, root)
}

func wrapFolder(err error, dest, root string) error {
	if err == nil {
		return nil
	}
	if root != "" && strings.Contains(err.Error(), "escapes") {
		return fmt.Errorf("folder of destination %s leads out of the root %s: %w", dest, root, err)
	}
	return fmt.Errorf("folder of destination %s: %w", dest, err)
}

func syncIn(r *os.Root, name string) error {
	d, err := r.Open(name)
	if err != nil {
		return err
	}
	err = durable.Sync(d)
	return errors.Join(err, d.Close())
}

func (t *target) close() {
	t.letGo()
	_ = t.dir.Close()
}

func (t *target) letGo() {
	if t.staged != nil {
		_ = t.staged.Close()
		t.staged = nil
	}
}

// stagedPath is where the staged copy is, for the validate command.
func (t *target) stagedPath() string { return filepath.Join(filepath.Dir(t.path), t.temp) }

// stat tells what stands at the destination now, its content included. What is
// not a regular file is an error: neither a folder nor a symlink nor a device
// is ever replaced.
func (t *target) stat() (file, []byte, error) {
	f := file{Destination: t.destination}
	fi, err := t.dir.Lstat(t.base)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f, nil, nil
	case err != nil:
		return f, nil, fmt.Errorf("destination %s: %w", t.destination, err)
	case fi.IsDir():
		return f, nil, fmt.Errorf("destination %s is a folder: name a file in it", t.destination)
	case fi.Mode()&fs.ModeSymlink != 0:
		return f, nil, fmt.Errorf("destination %s is a symlink: name the file that it points to", t.destination)
	case !fi.Mode().IsRegular():
		return f, nil, fmt.Errorf("destination %s is not a regular file", t.destination)
	}
	h, err := t.dir.OpenFile(t.base, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return f, nil, fmt.Errorf("destination %s: %w", t.destination, err)
	}
	defer func() { _ = h.Close() }()
	seen := fi
	if fi, err = h.Stat(); err != nil || !fi.Mode().IsRegular() || !os.SameFile(seen, fi) {
		return f, nil, fmt.Errorf("destination %s changed while it was read", t.destination)
	}
	content, err := readBounded(h, maxFile)
	if err != nil {
		return f, nil, fmt.Errorf("destination %s: %w", t.destination, err)
	}
	f.Exists, f.SHA256, f.Size = true, sum256(content), int64(len(content))
	f.Mode = uint32(fi.Mode().Perm())
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		f.UID, f.GID = int(st.Uid), int(st.Gid)
	}
	if dir, err := t.dir.Stat("."); err != nil {
		return f, nil, fmt.Errorf("folder of destination %s: %w", t.destination, err)
	} else if dir.Mode().Perm()&0o002 != 0 && f.UID != 0 && f.UID != os.Geteuid() {
		f.planted = true
	}
	return f, content, nil
}

// stage writes content beside the destination, whole and synced.
func (t *target) stage(content []byte, want file) error {
	t.letGo()
	if err := t.dir.Remove(t.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("staged copy of %s: %w", t.destination, err)
	}
	h, err := t.dir.OpenFile(t.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("staged copy of %s: %w", t.destination, err)
	}
	held, err := t.dir.OpenFile(t.temp, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err == nil && !sameFile(h, held) {
		err = errors.New("somebody else put another file in its place")
	}
	if err == nil {
		_, err = h.Write(content)
	}
	if err == nil && (want.UID != os.Geteuid() || want.GID != os.Getegid()) {
		err = h.Chown(want.UID, want.GID)
	}
	if err == nil {
		// After chown, which takes mode bits away.
		err = h.Chmod(fs.FileMode(want.Mode))
	}
	if err == nil {
		err = durable.Sync(h)
	}
	if err = errors.Join(err, h.Close()); err != nil {
		if held != nil {
			_ = held.Close()
		}
		_ = t.dir.Remove(t.temp)
		return fmt.Errorf("staged copy of %s: %w", t.destination, err)
	}
	t.staged = held
	return nil
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	if err != nil {
		return false
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y)
}

// unstage removes the staged copy, if there is one.
func (t *target) unstage() {
	t.letGo()
	_ = t.dir.Remove(t.temp)
}

// install puts the staged copy in place; after it returns it is durable.
//
// In a folder that somebody else may write to, he can put another file in the
// place of the staged copy. That is not stopped, since the folder is his, but it
// is not called applied.
func (t *target) install() error {
	if err := t.mine(t.temp); err != nil {
		t.unstage()
		return err
	}
	if err := t.dir.Rename(t.temp, t.base); err != nil {
		return fmt.Errorf("destination %s: %w", t.destination, err)
	}
	if err := t.mine(t.base); err != nil {
		return err
	}
	return t.sync()
}

// mine makes sure that name is the staged copy that this process has written.
func (t *target) mine(name string) error {
	if t.staged == nil {
		return nil
	}
	held, err := t.staged.Stat()
	if err != nil {
		return fmt.Errorf("staged copy of %s: %w", t.destination, err)
	}
	if fi, err := t.dir.Lstat(name); err != nil {
		return fmt.Errorf("destination %s: %w", t.destination, err)
	} else if !os.SameFile(fi, held) {
		return fmt.Errorf("destination %s: somebody else put another file in the place of the staged copy: who may write to its folder?", t.destination)
	}
	return nil
}

// remove takes the file away; after it returns it is durable.
func (t *target) remove() error {
	if err := t.dir.Remove(t.base); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("destination %s: %w", t.destination, err)
	}
	return t.sync()
}

func (t *target) sync() error {
	if err := syncIn(t.dir, "."); err != nil {
		return fmt.Errorf("folder of destination %s: %w", t.destination, err)
	}
	return nil
}

// wanted is the file that an entry asks for, given what stands now: an owner
// that the entry does not name stays as it is.
func wanted(d *records.Desired, cur file) (file, error) {
	want := file{
		Destination: cur.Destination, Exists: true, SHA256: d.SHA256, Size: d.Size, Mode: 0o644,
		UID: os.Geteuid(), GID: os.Getegid(),
	}
	if d.Mode != "" {
		m, err := strconv.ParseUint(d.Mode, 8, 32)
		if err != nil || m > 0o777 {
			return want, fmt.Errorf("mode %q is no file permission: write it in octal, such as \"0640\"", d.Mode)
		}
		want.Mode = uint32(m)
	}
	if cur.planted && d.Owner == "" {
		return want, fmt.Errorf("destination %s belongs to user %d, in a folder that everybody may write to: its owner is kept only where the spec names it (owner)", cur.Destination, cur.UID)
	}
	if cur.Exists && os.Geteuid() == 0 {
		want.UID, want.GID = cur.UID, cur.GID
	}
	if d.Target != nil {
		return want, nil // its owner and group are names of another machine
	}
	if d.Owner != "" {
		u, err := user.Lookup(d.Owner)
		if err != nil {
			u, err = user.LookupId(d.Owner)
		}
		id := d.Owner
		if err == nil {
			id = u.Uid
		}
		if want.UID, err = strconv.Atoi(id); err != nil || want.UID < 0 {
			return want, fmt.Errorf("owner %q is not known on this node", d.Owner)
		}
	}
	if d.Group != "" {
		g, err := user.LookupGroup(d.Group)
		if err != nil {
			g, err = user.LookupGroupId(d.Group)
		}
		id := d.Group
		if err == nil {
			id = g.Gid
		}
		if want.GID, err = strconv.Atoi(id); err != nil || want.GID < 0 {
			return want, fmt.Errorf("group %q is not known on this node", d.Group)
		}
	}
	return want, nil
}
