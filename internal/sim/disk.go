package sim

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// disk is a node's: the files stand in a folder of this machine, and here is noted
// which of it would be there after the machine lost its power. A file's content is
// durable as of its last sync, a name as of the last sync of its folder.
type disk struct {
	node string
	root string
	seed uint64
	full atomic.Bool

	mu sync.Mutex
	// content of files that were synced, by inode; names of files by path, as of
	// the last sync of their folders.
	content map[uint64][]byte
	names   map[string]uint64
	crashes uint64
}

func newDisk(node, root string, seed uint64) *disk {
	return &disk{node: node, root: root, seed: seed, content: map[uint64][]byte{}, names: map[string]uint64{}}
}

func inode(fi fs.FileInfo) uint64 { return fi.Sys().(*syscall.Stat_t).Ino }

// sync is an fsync of the file or folder at path.
func (d *disk) sync(path string) error {
	if d.full.Load() {
		return syscall.ENOSPC
	}
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !fi.IsDir() {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		d.content[inode(fi)] = b
		return nil
	}
	for name := range d.names {
		if filepath.Dir(name) == path {
			delete(d.names, name)
		}
	}
	ents, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
			d.names[filepath.Join(path, e.Name())] = inode(fi)
		}
	}
	return nil
}

// present are the regular files that stand there now.
func (d *disk) present() (map[string]uint64, error) {
	out := map[string]uint64{}
	err := filepath.WalkDir(d.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err == nil {
			out[path] = inode(fi)
		}
		return err
	})
	return out, err
}

// powerCut is the end of the machine: what was not synced is lost, or torn, or is
// there by luck. Folders stay: a node makes them once.
func (d *disk) powerCut() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashes++
	now, err := d.present()
	if err != nil {
		return err
	}
	whole := map[uint64][]byte{}
	for path, ino := range now {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		whole[ino] = b
	}
	paths := slices.Collect(maps.Keys(now))
	for p := range d.names {
		if _, ok := now[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	var errs []error
	for _, p := range paths {
		// The lock files are empty, and whether they are there says nothing.
		if strings.HasSuffix(p, "lock") {
			continue
		}
		cur, there := now[p]
		old, kept := d.names[p]
		luck := draw(d.seed, strings.TrimPrefix(p, d.root), d.crashes)
		ino, stands := old, kept
		if (cur != old || there != kept) && luck&1 == 1 {
			ino, stands = cur, there
		}
		if !stands {
			if there {
				errs = append(errs, os.Remove(p))
			}
			continue
		}
		b, synced := d.content[ino]
		if !synced {
			b = whole[ino]
			b = b[:int(luck>>8)%(len(b)+1)]
		}
		if there && ino == cur && string(b) == string(whole[ino]) {
			continue
		}
		_ = os.Remove(p)
		mode := fs.FileMode(0o600)
		if strings.HasPrefix(p, filepath.Join(d.root, "root")) {
			mode = 0o644
		}
		errs = append(errs, os.WriteFile(p, b, mode))
	}
	d.content, d.names = map[uint64][]byte{}, map[string]uint64{}
	after, err := d.present()
	errs = append(errs, err)
	for p, ino := range after {
		b, err := os.ReadFile(p)
		errs = append(errs, err)
		d.names[p], d.content[ino] = ino, b
	}
	return errors.Join(errs...)
}

// dropLocks is a cleaner of old files that takes the lock files away.
func (d *disk) dropLocks() error {
	now, err := d.present()
	if err != nil {
		return err
	}
	for p := range now {
		if strings.HasSuffix(p, "lock") {
			err = errors.Join(err, os.Remove(p))
		}
	}
	return err
}
