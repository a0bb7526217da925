package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/plugin"
)

// Config makes a Host.
type Config struct {
	// Specs are the `plugin` blocks.
	Specs []Spec
	// Dir is the folder of plugins; empty: there is none.
	Dir string
	// LookupEnv reads the environment that plugins get a part of; nil: that of this
	// process.
	LookupEnv func(string) (string, bool)
	// Log is what plugins log to, each by its name; nil discards it.
	Log hclog.Logger
}

// Host has all plugins of this process. It is safe for concurrent use.
type Host struct {
	cfg     Config
	plugins map[string]*Plugin
	// dirErr is why the folder cannot be used.
	dirErr error

	sockets sockets
	// life ends with Close, and with it what starts or runs.
	life context.Context //nolint:containedctx // it is that of the host
	end  context.CancelCauseFunc

	mu sync.Mutex
	// background looks after plugins that were late. Nothing is added to it once
	// life has ended.
	background sync.WaitGroup
}

// later runs f, unless the host is closed: then it returns false.
func (h *Host) later(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life.Err() != nil {
		return false
	}
	h.background.Go(f)
	return true
}

// ErrClosed: the host was closed.
var ErrClosed = errors.New("plugins are being ended")

// New joins blocks and folder. No plugin runs yet, and a folder that cannot be used
// is an error of the plugins that would be in it.
func New(cfg Config) *Host {
	if cfg.LookupEnv == nil {
		cfg.LookupEnv = os.LookupEnv
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	h := &Host{cfg: cfg, plugins: map[string]*Plugin{}}
	h.life, h.end = context.WithCancelCause(context.Background())
	blocks := map[string]Spec{}
	for _, s := range cfg.Specs {
		blocks[s.Name] = s
	}
	var found map[string]string
	if abs, err := filepath.Abs(h.cfg.Dir); h.cfg.Dir != "" && err == nil {
		h.cfg.Dir = abs
		cfg.Dir = abs
	}
	if cfg.Dir != "" {
		found, h.dirErr = look(cfg.Dir, blocks)
	}
	for name, path := range found {
		s, ok := blocks[name]
		if !ok {
			s = Spec{Name: name}
		}
		if s.Path == "" {
			s.Path = path
		}
		blocks[name] = s
	}
	for name, s := range blocks {
		h.plugins[name] = newPlugin(h, s.withDefaults())
	}
	return h
}

// Names are those of all plugins that are known, sorted.
func (h *Host) Names() []string { return slices.Sorted(maps.Keys(h.plugins)) }

// Err is what is wrong with the folder of plugins.
func (h *Host) Err() error { return h.dirErr }

// ErrUnknown: there is no plugin of that name.
var ErrUnknown = errors.New("there is no such plugin")

// Plugin finds one by its name. The error is ErrUnknown, and says what to do.
func (h *Host) Plugin(name string) (*Plugin, error) {
	if p := h.plugins[name]; p != nil {
		return p, nil
	}
	hint := "name its file in a block plugin \"" + name + "\" of the config file, or put it into the folder of plugins (plugin_dir, -plugin-dir or AIMLOCK_PLUGIN_DIR)"
	if h.dirErr != nil {
		hint = h.dirErr.Error()
	} else if names := h.Names(); len(names) > 0 {
		hint += "; there are " + strings.Join(names, ", ")
	}
	return nil, &Error{Plugin: name, Err: ErrUnknown, Hint: hint}
}

// Close ends all plugins. It returns when nothing of them is left, within seconds.
func (h *Host) Close() {
	h.mu.Lock()
	h.end(ErrClosed)
	h.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range h.plugins {
		wg.Go(p.close)
	}
	wg.Wait()
	h.background.Wait()
	h.sockets.remove()
}

// Error is something that went wrong with a plugin.
type Error struct {
	// Plugin is its name here, and Op what was asked of it; Op may be empty.
	Plugin, Op string
	Err        error
	// Hint is the way out; it may be empty.
	Hint string
}

func (e *Error) Error() string {
	s := "plugin " + e.Plugin + ": "
	if e.Op != "" {
		s += e.Op + ": "
	}
	s += e.Err.Error()
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// env is the environment of a plugin.
func (h *Host) env(s *Spec) []string {
	var out []string
	for _, name := range append(baseEnv(), s.Env...) {
		if v, ok := h.cfg.LookupEnv(name); ok {
			out = append(out, name+"="+v)
		}
	}
	return out
}

// sockets is the folder of the sockets of a host's plugins, which only its user
// can enter. It is locked while the host lives, so that what a killed one left is
// known to be nobody's.
type sockets struct {
	mu   sync.Mutex
	dir  string
	lock *flock.Flock
	gone bool
}

const socketsPrefix = "aimlock-plugins-"

// maxSocketBase: the path of a unix socket has 107 bytes at most (sun_path of
// unix(7)), and some 65 of them come below this.
const maxSocketBase = 40

func (s *sockets) folder() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir != "" || s.gone {
		return s.dir, nil
	}
	base := os.TempDir()
	if len(base) > maxSocketBase {
		base = "/tmp"
	}
	removeStale(base)
	dir, err := os.MkdirTemp(base, socketsPrefix)
	if err != nil {
		return "", fmt.Errorf("folder for the plugins' sockets: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	if ok, err := lock.TryLock(); err != nil || !ok {
		return "", errors.Join(fmt.Errorf("folder for the plugins' sockets: lock it: %w", err), os.RemoveAll(dir))
	}
	s.dir, s.lock = dir, lock
	return dir, nil
}

func (s *sockets) remove() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
		_ = s.lock.Close()
		s.dir = ""
	}
}

// maxStale bounds what is cleaned up at one start.
const maxStale = 50

// removeStale removes what hosts of the same user left that were killed. Everybody
// can make a folder of such a name in /tmp, with a pipe in it to wait for.
func removeStale(in string) {
	dirs, err := filepath.Glob(filepath.Join(in, socketsPrefix+"*"))
	if err != nil {
		return
	}
	n := 0
	for _, dir := range dirs {
		fi, err := os.Lstat(dir)
		if err != nil || !isOwn(fi) || time.Since(fi.ModTime()) < time.Minute {
			continue // one that is being made is not locked yet
		}
		if n++; n > maxStale {
			return
		}
		path := filepath.Join(dir, "lock")
		if fi, err := os.Lstat(path); err != nil || !fi.Mode().IsRegular() {
			continue
		}
		// Nobody else can have changed it meanwhile.
		lock := flock.New(path)
		if ok, err := lock.TryLock(); err == nil && ok {
			_ = os.RemoveAll(dir)
		}
		_ = lock.Close()
	}
}

// isOwn is true for a folder that is this user's, and that nobody else can enter.
func isOwn(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.IsDir() && fi.Mode().Perm()&0o077 == 0 && int(st.Uid) == os.Geteuid()
}

// kinds says what a plugin is.
func kinds(i *plugin.Info) string {
	var names []string
	for n := range i.Kinds {
		names = append(names, string(i.Kinds[n].Kind))
	}
	return strings.Join(names, ", ")
}

// Stray is the plugin in a file that no block and no folder has. It is not pinned.
func (h *Host) Stray(path string) (*Plugin, error) {
	name, ok := nameOfFile(filepath.Base(path))
	if !ok {
		return nil, fmt.Errorf("%q is no name for the file of a plugin: use lower case letters, digits, - and _", filepath.Base(path))
	}
	return newPlugin(h, Spec{Name: name, Path: path}.withDefaults()), nil
}
