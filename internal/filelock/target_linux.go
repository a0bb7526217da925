package filelock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// target is the file that a path names now.
type target struct {
	id fileID
	// anyDevice: the device in id is not the one that the kernel lists locks
	// under, so that the inode's number alone counts.
	anyDevice bool
	resolved  string
	fsType    string
}

func (t target) is(id fileID) bool {
	return t.id.ino == id.ino && (t.anyDevice || t.id == id)
}

// identify finds out how the kernel names a file in its list of locks. It
// opens the file with O_PATH, which reads nothing, waits for nothing, breaks
// no lease, and needs no right on the file itself.
func identify(path string) (target, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_PATH)
	if err != nil {
		return target{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return target{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	t := target{
		id:        fileID{unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino},
		anyDevice: true,
		resolved:  path,
	}
	self := strconv.Itoa(fd)
	if link, err := os.Readlink("/proc/self/fd/" + self); err == nil {
		t.resolved = link
	}
	// What stat says is not what the kernel lists: on btrfs each subvolume has
	// a device of its own, on overlay each layer, and the list has that of the
	// superblock and the inode's own number. Both are to be had of the mount.
	b, err := os.ReadFile("/proc/self/fdinfo/" + self)
	if err != nil {
		return t, nil
	}
	info, err := parseFDInfo(b)
	if err != nil {
		return t, nil
	}
	if info.ino != 0 {
		t.id.ino = info.ino
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.ID != info.mount, m.ID == info.mount
	})
	if err != nil || len(mounts) != 1 {
		// A mount of another namespace, reached through /proc/PID/root.
		return t, nil
	}
	m := mounts[0]
	t.id.major, t.id.minor = uint32(m.Major), uint32(m.Minor)
	t.anyDevice = false
	t.fsType = m.FSType
	return t, nil
}

// shared reports whether a file system can be locked by others than this
// kernel's processes, whose locks it does not list.
func shared(fsType string) bool {
	base, _, _ := strings.Cut(fsType, ".")
	switch base {
	case "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "afs", "gfs2", "ocfs2", "lustre", "beegfs",
		"virtiofs", "orangefs", "coda", "vboxsf", "fuse", "fuseblk", "glusterfs", "gpfs":
		return true
	}
	return false
}

// deletedMark ends the link of a descriptor whose file nothing has the path of
// any more.
const deletedMark = " (deleted)"

// missing finds where a path that names nothing would be: the folder that it
// is in must be there.
func missing(path string) (target, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return target{}, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if errors.Is(err, fs.ErrNotExist) {
		return target{resolved: abs, anyDevice: true}, nil // its folder may be gone with it
	} else if err != nil {
		return target{}, err
	}
	t, err := identify(dir)
	if err != nil {
		return target{}, err
	}
	t.resolved = filepath.Join(dir, filepath.Base(abs))
	return t, nil
}

// former reports whether the carrier's file once had the path of t, and is
// another one than t's.
func (t target) former(c carrier, now bool) bool {
	if c.link != t.resolved+deletedMark || now && t.is(c.line.file) {
		return false
	}
	if !t.anyDevice && (c.line.file.major != t.id.major || c.line.file.minor != t.id.minor) {
		return false // a file of the same path in another mount namespace
	}
	// A file may really be called so.
	literal, err := identify(c.link)
	return err != nil || !literal.is(c.line.file)
}

// beside reports whether the carrier's file stands in the folder of t under
// a name that one gives a file when it is put aside: f.1, f.old, f~.
func (t target) beside(c carrier) bool {
	return strings.HasPrefix(c.link, t.resolved) && filepath.Dir(c.link) == filepath.Dir(t.resolved) && c.link != t.resolved &&
		!strings.HasSuffix(c.link, deletedMark) &&
		!t.anyDevice && c.line.file.major == t.id.major && c.line.file.minor == t.id.minor
}

// notExist says that there is neither the file nor a lock on a deleted one.
func notExist(path string, t *table, besides []string) error {
	text := ""
	if len(t.blind) > 0 || t.hidden != "" {
		text = " that can be seen as this user"
	}
	hint := ""
	if len(besides) > 0 {
		hint = ". In the same folder, locked: " + strings.Join(besides, ", ") + "; it may have been renamed"
	}
	return fmt.Errorf("%s: %w, and no process%s holds a lock on a deleted file of that name%s", path, ErrNotExist, text, hint)
}
