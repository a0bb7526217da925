package journal

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/aim-control/aimlock/internal/securefile"
	"github.com/aim-control/aimlock/internal/text"
)

// Bounds of a journal where Options name none.
const (
	DefaultMaxFile  = 64 << 20
	DefaultMaxTotal = 512 << 20
	DefaultMaxFiles = 100
	// MaxLine is the most bytes that an entry may have, its newline included.
	MaxLine = 1 << 20
)

const (
	filePrefix, fileSuffix = "journal-", ".jsonl"
	lockFile               = "journal.lock"
)

// Options bound a journal and name its writer. Zero values are the defaults.
type Options struct {
	// MaxFile is the size in bytes at which a file is followed by the next one:
	// it has at most one entry more. MaxTotal bounds all files together, and
	// MaxFiles their number; the one that is written is never removed.
	MaxFile, MaxTotal int64
	MaxFiles          int
	// Start says who writes. Host and PID are filled in.
	Start Start
}

// Writer appends to a journal. It is safe for concurrent use.
type Writer struct {
	dir   string
	opts  Options
	lock  *flock.Flock
	run   string
	begun time.Time

	mu     sync.Mutex
	file   *os.File
	number uint64
	size   int64
	older  []segment // oldest first, without the one that is written
	headed bool      // the file has this run's start entry
	first  bool      // no start entry was written yet
	torn   bool      // the file may end in half a line
	lost   uint64    // entries that could not be written since the last that was
	closed bool
}

// segment is one file of a journal.
type segment struct {
	path   string
	number uint64
	size   int64
}

// ErrClosed is returned by a closed Writer.
var ErrClosed = errors.New("the journal is closed")

// InUseError says that another process writes the journal.
type InUseError struct{ Dir, By string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("journal %s is written by another process%s: one process at a time can write a journal, so give each its own folder", e.Dir, e.By)
}

// Open opens the journal in the folder dir for writing, and makes it if it is
// not there. A *InUseError says that another process has it open.
//
// A folder that another account can change is refused, and what stands in it is
// written only where it is a file of this process's user or of root with no other
// name: whoever could put a link, a pipe or a device there would have another file
// written, cut short or waited for.
func Open(dir string, opts Options) (*Writer, error) {
	if dir == "" {
		return nil, errors.New("the journal has no folder")
	}
	if opts.MaxFile <= 0 {
		opts.MaxFile = DefaultMaxFile
	}
	if opts.MaxTotal <= 0 {
		opts.MaxTotal = max(DefaultMaxTotal, opts.MaxFile)
	}
	if opts.MaxFiles <= 0 {
		opts.MaxFiles = DefaultMaxFiles
	}
	if opts.MaxTotal < opts.MaxFile {
		return nil, fmt.Errorf("journal %s: %d bytes in all are fewer than the %d of one file", dir, opts.MaxTotal, opts.MaxFile)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if why := securefile.Writable(dir); why != "" {
		return nil, fmt.Errorf("journal: %s", why)
	}
	w := &Writer{dir: dir, opts: opts, begun: time.Now(), lock: flock.New(filepath.Join(dir, lockFile), flock.SetPermissions(0o640))}
	// Made here, as the lock's own open would follow a link and wait for a pipe. Nobody
	// else can change it from now on.
	f, err := openOwn(w.lock.Path(), os.O_CREATE|os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", dir, err)
	}
	_ = f.Close()
	ok, err := w.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", dir, err)
	}
	if !ok {
		return nil, &InUseError{Dir: dir, By: user(filepath.Join(dir, lockFile))}
	}
	if err := w.open(); err != nil {
		_ = w.lock.Close()
		return nil, fmt.Errorf("journal %s: %w", dir, err)
	}
	return w, nil
}

// user says who has the journal, for a message.
func user(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 || len(b) > 200 {
		return ""
	}
	return " (" + text.Printable(strings.TrimSpace(string(b))) + ")"
}

// openOwn opens a file of the journal for writing. What stands there already must be
// a file of this process's user or of root, and not have another name.
func openOwn(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o640)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symlink: a journal is not written through one; remove it", path)
	}
	if err != nil {
		return nil, err
	}
	if err := checkOwn(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func checkOwn(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: remove it", f.Name())
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: whose it is cannot be told: %w", f.Name(), errors.ErrUnsupported)
	}
	if st.Nlink > 1 {
		return fmt.Errorf("%s is a hard link: another file would be written with it; remove it", f.Name())
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, who can change it: remove it", f.Name(), st.Uid)
	}
	return nil
}

func (w *Writer) open() error {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	w.run = hex.EncodeToString(id)
	if w.opts.Start.Host == "" {
		w.opts.Start.Host, _ = os.Hostname()
	}
	if w.opts.Start.PID == 0 {
		w.opts.Start.PID = os.Getpid()
	}
	_ = os.WriteFile(w.lock.Path(), fmt.Appendf(nil, "pid %d on %s\n", w.opts.Start.PID, w.opts.Start.Host), 0o640)
	all, err := segments(w.dir)
	if err != nil {
		return err
	}
	if n := len(all); n > 0 {
		w.older, w.number = all[:n-1], all[n-1].number
	} else {
		w.number = 1
	}
	if err := w.openFile(); err != nil {
		return err
	}
	w.first = true
	return w.ready()
}

func (w *Writer) path(number uint64) string {
	return filepath.Join(w.dir, fmt.Sprintf("%s%08d%s", filePrefix, number, fileSuffix))
}

// openFile opens the file that w.number names and finds out whether it ends in
// half a line.
func (w *Writer) openFile() error {
	f, err := openOwn(w.path(w.number), os.O_CREATE|os.O_RDWR|os.O_APPEND)
	if err != nil {
		return err
	}
	last := []byte{'\n'}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		_, err = f.ReadAt(last, info.Size()-1)
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	w.file, w.size, w.torn, w.headed = f, info.Size(), last[0] != '\n', false
	return nil
}

// ready makes sure that there is a file with room, and that it says who writes.
func (w *Writer) ready() error {
	if w.file == nil || w.size >= w.opts.MaxFile {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	if w.headed {
		return nil
	}
	s := w.opts.Start
	s.Continues = !w.first
	if err := w.write(&Entry{Kind: KindStart, Start: &s}); err != nil {
		return err
	}
	w.headed, w.first = true, false
	w.prune()
	return nil
}

// Run names this opening of the journal.
func (w *Writer) Run() string { return w.run }

// Since is the time of at on the clock of Entry.T.
func (w *Writer) Since(at time.Time) time.Duration { return at.Sub(w.begun) }

// File is the number of the file that the next entry goes to. What is written
// there must not rest on what stands in another, which may be removed any time.
func (w *Writer) File() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.number
}

// Write appends one entry. Version, T and Run are filled in; At too where it is
// zero. The entry is in the file when Write returns nil, and lost if it does
// not: Write never waits for room, and a later one may succeed.
func (w *Writer) Write(e Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	if err := w.append(&e); err != nil {
		w.lost++
		return fmt.Errorf("journal: %w", err)
	}
	if w.size >= w.opts.MaxFile {
		// If it fails, the next Write tries again and says so.
		_ = w.ready()
	}
	return nil
}

func (w *Writer) append(e *Entry) error {
	if err := w.ready(); err != nil {
		return err
	}
	if w.lost > 0 {
		gap := Error{What: "journal", Error: "entries could not be written", Lost: w.lost}
		if err := w.write(&Entry{Kind: KindError, Error: &gap}); err != nil {
			return err
		}
		w.lost = 0
	}
	return w.write(e)
}

func (w *Writer) write(e *Entry) error {
	e.Version, e.Run = Version, w.run
	if e.At.IsZero() {
		e.At = time.Now()
	}
	e.T = e.At.Sub(w.begun)
	e.At = e.At.UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode a %s entry: %w", e.Kind, err)
	}
	line = append(line, '\n')
	if len(line) > MaxLine {
		return fmt.Errorf("a %s entry of %d bytes is too long: %d at most", e.Kind, len(line), MaxLine)
	}
	if w.torn {
		line = slices.Insert(line, 0, '\n')
	}
	n, err := w.file.Write(line)
	w.size += int64(n)
	if err == nil {
		w.torn = false
		return nil
	}
	if n > 0 {
		// What is left of it goes, if the disk lets it; else the next entry
		// begins on a line of its own.
		w.torn = w.torn || line[n-1] != '\n'
		if terr := w.file.Truncate(w.size - int64(n)); terr == nil {
			w.size -= int64(n)
			w.torn = line[0] == '\n'
		}
	}
	return err
}

// rotate begins the next file.
func (w *Writer) rotate() error {
	if w.file != nil {
		done := segment{path: w.path(w.number), number: w.number, size: w.size}
		// The data of a file that nobody writes any more is to stay.
		err := errors.Join(w.file.Sync(), w.file.Close())
		w.file = nil
		w.older = append(w.older, done)
		w.number++
		if err != nil {
			return err
		}
	}
	return w.openFile()
}

// prune removes the oldest files until the bounds are kept. A file that cannot
// be removed counts as gone: it is tried again when the journal is opened.
func (w *Writer) prune() {
	total := w.opts.MaxFile
	for _, s := range w.older {
		total += s.size
	}
	for len(w.older) > 0 && (total > w.opts.MaxTotal || len(w.older) >= w.opts.MaxFiles) {
		_ = os.Remove(w.older[0].path)
		total -= w.older[0].size
		w.older = w.older[1:]
	}
}

// Flush makes what was written outlast the machine's death.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	if w.file == nil {
		return nil
	}
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Close flushes the journal and lets another process have it. A second call
// does nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	var err error
	if w.file != nil {
		err = errors.Join(w.file.Sync(), w.file.Close())
	}
	// An empty file names nobody.
	err = errors.Join(err, os.Truncate(w.lock.Path(), 0), w.lock.Close())
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

var _ io.Closer = (*Writer)(nil)

// segments lists the files of a journal, oldest first.
func segments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []segment
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), filePrefix)
		if digits, ok2 := strings.CutSuffix(digits, fileSuffix); ok && ok2 {
			n, err := strconv.ParseUint(digits, 10, 64)
			info, ierr := e.Info()
			if err != nil || errors.Is(ierr, fs.ErrNotExist) {
				continue
			}
			if ierr != nil {
				return nil, ierr
			}
			out = append(out, segment{path: filepath.Join(dir, e.Name()), number: n, size: info.Size()})
		}
	}
	slices.SortFunc(out, func(a, b segment) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	return out, nil
}
