package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/securefile"
	"github.com/aim-control/aimlock/internal/text"
)

// filePrefix may stand before a plugin's name in the name of its file.
const filePrefix = "aimlock-plugin-"

// maxFound bounds the files that are looked at in the folder of plugins.
const maxFound = 1000

// nameOfFile is the name of the plugin in a file: without the prefix and the ending.
func nameOfFile(file string) (name string, ok bool) {
	name = strings.TrimPrefix(file, filePrefix)
	name = strings.TrimSuffix(name, filepath.Ext(name))
	return name, validName.MatchString(name)
}

// look lists the plugins of a folder by their names: the files that may be run, or
// that a block gives an interpreter. Those with no such name are not plugins.
func look(dir string, blocks map[string]Spec) (map[string]string, error) {
	at, err := securefile.Folder(dir)
	if err != nil {
		return nil, fmt.Errorf("folder of plugins: %w", err)
	}
	entries, err := os.ReadDir(at)
	if err != nil {
		return nil, fmt.Errorf("folder of plugins: %w", err)
	}
	found := map[string]string{}
	var all []error
	for i, e := range entries {
		if i == maxFound {
			all = append(all, fmt.Errorf("folder of plugins %q has more than %d files: is it the right one?", dir, maxFound))
			break
		}
		name, ok := nameOfFile(e.Name())
		if !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		fi, err := os.Stat(path)
		if err != nil || !fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0 && len(blocks[name].Interpreter) == 0 {
			continue
		}
		if other := found[name]; other != "" {
			all = append(all, fmt.Errorf("plugin %q: both %q and %q are it: remove one, or name the file by path", name, filepath.Base(other), e.Name()))
			continue
		}
		found[name] = path
	}
	return found, errors.Join(all...)
}

// checkFile tells whether a plugin's file may be run: nobody else can change it, and
// it is the one that is pinned. It returns where the file really is.
//
// Invariant: what passed stays what it is until it is started, as all who could
// change it are trusted (internal/securefile).
func (s *Spec) checkFile(dir string) (path string, err error) {
	if s.Path == "" {
		// In a folder that others can change nothing is looked for.
		if dir != "" {
			if _, err := securefile.Folder(dir); err != nil {
				return "", fmt.Errorf("folder of plugins: %w", err)
			}
		}
		return "", fmt.Errorf("its file is not there: put it into the folder of plugins as %s, or name it by path", s.Name)
	}
	if dir != "" && filepath.Dir(s.Path) == filepath.Clean(dir) {
		path, err = securefile.FileIn(dir, filepath.Base(s.Path))
	} else {
		path, err = securefile.File(s.Path)
	}
	if err != nil {
		return "", err
	}
	if len(s.Interpreter) > 0 {
		if _, err := securefile.File(s.Interpreter[0]); err != nil {
			return "", fmt.Errorf("interpreter: %w", err)
		}
	} else if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o111 == 0 {
		return "", fmt.Errorf("%q is not executable: chmod +x it, or name its interpreter by command", s.Path)
	}
	sum, err := sums.of(path)
	switch {
	case err != nil:
		return "", err
	case s.SHA256 == "":
		return "", &NotPinnedError{Name: s.Name, Path: s.Path, Sum: sum, Block: s.Range.Filename != ""}
	case s.SHA256 != sum:
		return "", &ChecksumError{Name: s.Name, Path: s.Path, Pinned: s.SHA256, Sum: sum}
	}
	return path, nil
}

// NotPinnedError is a plugin whose checksum nobody wrote down.
type NotPinnedError struct {
	Name, Path, Sum string
	// Block: there is a `plugin` block without the line.
	Block bool
}

func (e *NotPinnedError) Error() string {
	if e.Block {
		return fmt.Sprintf("its checksum is not pinned, so it is not started: if %q is what you mean, add to its block:  sha256 = %q", text.Printable(e.Path), e.Sum)
	}
	return fmt.Sprintf("its checksum is not pinned, so it is not started: if %q is what you mean, add to the config file:  plugin %q { sha256 = %q }", text.Printable(e.Path), e.Name, e.Sum)
}

// ChecksumError is a plugin whose file is not the one that is pinned.
type ChecksumError struct{ Name, Path, Pinned, Sum string }

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("wrong checksum, so it is not started: %q has sha256 %s, and %s is pinned: find out who changed it, or pin the new one", text.Printable(e.Path), e.Sum, e.Pinned)
}

// sums are the checksums of this process's plugins.
var sums = sumCache{} //nolint:gochecknoglobals // a cache of what files hold

// sumCache keeps checksums for as long as the file is the same: its change time
// cannot be set back by its owner.
type sumCache struct {
	mu   sync.Mutex
	made map[fileID]string
}

type fileID struct {
	dev, ino      uint64
	size          int64
	mtime, change unix.Timespec
}

func (c *sumCache) of(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	id, err := idOf(f)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	sum, ok := c.made[id]
	c.mu.Unlock()
	if ok {
		return sum, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	if after, err := idOf(f); err != nil || after != id {
		return "", &fs.PathError{Op: "read", Path: path, Err: errors.New("it was changed while it was read")}
	}
	sum = hex.EncodeToString(h.Sum(nil))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == nil || len(c.made) > maxFound {
		c.made = map[fileID]string{}
	}
	c.made[id] = sum
	return sum, nil
}

func idOf(f *os.File) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileID{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return fileID{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, change: st.Ctim}, nil //nolint:unconvert // Dev differs by system
}
