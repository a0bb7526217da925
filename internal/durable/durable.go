// Package durable has what makes files outlive a crash of the machine, in one
// place: a write that was not synced may be lost or torn, and a name that was not
// synced in its folder may lead to the file that stood there before.
//
// It imports only the standard library and renameio. A simulation of crashes puts
// itself between these calls and the disk, by Simulate.
package durable

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/google/renameio/v2"
)

// disk is what Sync does; nil: the machine's own.
//
//nolint:gochecknoglobals // what stands for the machine's disk is one for a process
var disk atomic.Pointer[func(*os.File) error]

// Simulate has sync called in place of every fsync of this process. It is for
// simulations alone, and is called before anything else.
func Simulate(sync func(*os.File) error) { disk.Store(&sync) }

// Sync makes the content of a file, or the names in a folder, durable.
func Sync(f *os.File) error {
	if sync := disk.Load(); sync != nil {
		return (*sync)(f)
	}
	return f.Sync()
}

// SyncDir makes the names in the folder at path durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(Sync(d), d.Close())
}

// WriteFile replaces the file at path so that after a crash the old one or the new
// one stands, and after a return the new one. Only the owner may read it.
func WriteFile(path string, b []byte) error {
	if err := replace(path, b); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// replace leaves the name of the file to be synced.
func replace(path string, b []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o600), renameio.IgnoreUmask())
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := Sync(f.File); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}
