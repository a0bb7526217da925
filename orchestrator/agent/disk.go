package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"github.com/aim-control/aimlock/internal/durable"
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func sum256(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func readBounded(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("larger than %d bytes", limit)
	}
	return b, err
}

// blobs holds copies of contents, named by their SHA-256.
type blobs struct{ dir string }

func (b blobs) path(sha string) string { return filepath.Join(b.dir, sha) }

// put keeps content; after it returns the copy is durable.
func (b blobs) put(sha string, content []byte) error {
	if old, err := b.get(sha); err == nil && len(old) == len(content) {
		return nil
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(b.dir)); err != nil {
		return err
	}
	return durable.WriteFile(b.path(sha), content)
}

// get returns the content named sha, or an error where there is no whole copy.
func (b blobs) get(sha string) ([]byte, error) {
	if !isSHA256(sha) {
		return nil, fmt.Errorf("copy %q: not a SHA-256", sha)
	}
	f, err := os.Open(b.path(sha))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	c, err := readBounded(f, maxFile)
	if err != nil {
		return nil, err
	}
	if sum256(c) != sha {
		return nil, fmt.Errorf("copy %s is damaged", b.path(sha))
	}
	return c, nil
}

// sweep removes what keep does not name. It is no part of any promise: what it
// leaves is removed another time.
func (b blobs) sweep(keep map[string]bool) {
	ents, err := os.ReadDir(b.dir)
	if err != nil {
		return
	}
	for _, e := range ents {
		if !keep[e.Name()] {
			_ = os.Remove(filepath.Join(b.dir, e.Name()))
		}
	}
}

// configLock is the sidecar of one config: whoever changes the config's state
// or its file holds it. The lock file is never renamed and never deleted: a
// lock on the state or on the file itself would die with their renames.
type configLock struct {
	fl   *flock.Flock
	path string
}

// BusyError: another process holds a lock file for longer than was waited.
type BusyError struct {
	Path   string
	Waited time.Duration
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s is locked by another aimlock on this node; waited %s", e.Path, e.Waited.Round(time.Second))
}

// lockConfig waits at most wait for the sidecar in dir.
func lockConfig(ctx context.Context, dir string, wait time.Duration) (*configLock, error) {
	path := filepath.Join(dir, lockFile)
	l := &configLock{fl: flock.New(path, flock.SetPermissions(0o600)), path: path}
	tctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ok, err := l.fl.TryLockContext(tctx, 50*time.Millisecond)
	switch {
	case ok:
		if err := l.check(); err != nil {
			l.unlock()
			return nil, err
		}
		return l, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, &BusyError{Path: path, Waited: wait}
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// check makes sure that the lock that is held is the one that others will
// find: someone may have deleted the file.
func (l *configLock) check() error {
	held, err := l.fl.Stat()
	if err != nil {
		return fmt.Errorf("lock %s: %w", l.path, err)
	}
	there, err := os.Stat(l.path)
	if err != nil {
		return fmt.Errorf("lock file was taken away while it was held: %w", err)
	}
	if !os.SameFile(held, there) {
		return fmt.Errorf("lock file %s was replaced while it was held: nothing is written", l.path)
	}
	return nil
}

func (l *configLock) unlock() { _ = l.fl.Close() }

// folder makes the state folder of a config.
func folder(path string) error {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
