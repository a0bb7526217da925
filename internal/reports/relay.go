package reports

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// Every is the least time between two writes: what comes faster is summed
	// up by the newest.
	Every = time.Second
	// lastPatience bounds the write of the last report at the end.
	lastPatience = 2 * time.Second
)

// Relay reads the reports of one command and writes the newest of them on. It
// must be closed.
type Relay struct {
	write func(context.Context, Report) error
	warn  func(error)

	ctx    context.Context //nolint:containedctx // the life of the relay is a context, by design
	cancel context.CancelFunc
	// sources are the readers, and writing is closed when the writer ended.
	sources sync.WaitGroup
	writing chan struct{}
	pipe    *os.File

	mu     sync.Mutex
	newest *Report
	fresh  chan struct{}
	warned bool
}

// New makes a relay. write may fail: the next report is tried all the same. warn
// is told of the first line that cannot be read, and of no other.
func New(write func(context.Context, Report) error, warn func(error)) *Relay {
	r := &Relay{write: write, warn: warn, fresh: make(chan struct{}, 1), writing: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	go r.writer()
	return r
}

// Report passes one report on.
func (r *Relay) Report(p Report) {
	r.mu.Lock()
	r.newest = &p
	r.mu.Unlock()
	select {
	case r.fresh <- struct{}{}:
	default:
	}
}

func (r *Relay) takeNewest() *Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.newest
	r.newest = nil
	return p
}

// putBack is for a report whose write was cut off, unless a newer one came.
func (r *Relay) putBack(p *Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.newest == nil {
		r.newest = p
	}
}

func (r *Relay) writer() {
	defer close(r.writing)
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.fresh:
		}
		if p := r.takeNewest(); p != nil {
			err := r.write(r.ctx, *p)
			switch {
			case err == nil:
			case r.ctx.Err() != nil:
				r.putBack(p)
			default:
				r.complain(fmt.Errorf("a report of progress was not written: %w", err))
			}
		}
		t := time.NewTimer(Every)
		select {
		case <-r.ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

func (r *Relay) complain(err error) {
	r.mu.Lock()
	first := !r.warned
	r.warned = true
	r.mu.Unlock()
	if first {
		r.warn(err)
	}
}

// Pipe reads lines from f, which becomes the relay's, until its other end is
// closed or the relay is. It takes one call.
func (r *Relay) Pipe(f *os.File) {
	r.pipe = f
	r.sources.Go(func() {
		err := readLines(f, r.line)
		if err != nil && !errors.Is(err, fs.ErrClosed) && r.ctx.Err() == nil {
			r.complain(fmt.Errorf("the command's progress cannot be read: %w", err))
		}
	})
}

func (r *Relay) line(n int, line []byte, err error) {
	if err == nil && len(bytes.TrimSpace(line)) == 0 {
		return
	}
	var p Report
	if err == nil {
		p, err = Parse(line)
	}
	if err != nil {
		r.complain(fmt.Errorf("line %d of the command's progress: %w; it is passed over, as will be what else cannot be read", n, err))
		return
	}
	r.Report(p)
}

var errLong = fmt.Errorf("the line has more than %d bytes", MaxLine)

// readLines calls each with every line, numbered from 1, and with errLong in the
// place of one that is too long. A last line without an end counts.
func readLines(in io.Reader, each func(n int, line []byte, err error)) error {
	b := bufio.NewReaderSize(in, MaxLine+2) // an end of two bytes
	for n := 1; ; n++ {
		line, err := b.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = b.ReadSlice('\n')
		}
		switch {
		case long:
			each(n, nil, errLong)
		case len(line) > 0 && (err == nil || errors.Is(err, io.EOF)):
			each(n, bytes.TrimRight(line, "\r\n"), nil)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// lookEvery is how often a file is looked at.
const lookEvery = 500 * time.Millisecond

// File follows the file at path: whenever it changed, its last whole line is the
// report. It need not exist yet, and may be appended to, rewritten, or replaced
// by another. What stands there already is from an earlier run, and is left.
//
// A symlink, a file with another name, and in a folder that everybody may write to
// the file of another account are not read: whoever could put one there would have a
// command look alive that is not, or have another file's text shown.
func (r *Relay) File(path string) {
	last, err := os.Lstat(path)
	if err != nil {
		last = nil // look tells why, if it stays so
	}
	r.sources.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for r.ctx.Err() == nil {
			last = r.look(path, last)
			select {
			case <-r.ctx.Done():
			case <-tick.C:
			}
		}
		r.look(path, last) // what came at the very end
	})
}

// look reports the last line of a file if it changed since last.
func (r *Relay) look(path string, last os.FileInfo) os.FileInfo {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return last
	case err != nil:
		r.complain(fmt.Errorf("the progress file: %w", err))
		return last
	case last != nil && os.SameFile(info, last) && info.ModTime().Equal(last.ModTime()) && info.Size() == last.Size():
		return last
	}
	f, err := openReport(path)
	if err != nil {
		r.complain(fmt.Errorf("the progress file %w", err))
		return info
	}
	defer f.Close()
	line, err := lastLine(f)
	if err != nil {
		r.complain(fmt.Errorf("the progress file: %w", err))
		return info
	}
	if line == nil {
		return info // it is being written
	}
	p, err := Parse(line)
	if err != nil {
		r.complain(fmt.Errorf("the last line of the progress file %s: %w; it is passed over, as will be what else cannot be read", path, err))
		return info
	}
	r.Report(p)
	return info
}

// openReport opens a progress file. Its error begins with the path.
func openReport(path string) (*os.File, error) {
	// What was a file a moment ago may be a pipe by now, and must not block.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symlink: it is not read; name the file itself", path)
	}
	if err != nil {
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var why string
	switch info, err := f.Stat(); {
	case err != nil:
		why = err.Error()
	case !info.Mode().IsRegular():
		why = "is not a regular file"
	default:
		why = notOurs(path, info)
	}
	if why != "" {
		_ = f.Close()
		return nil, fmt.Errorf("%s %s: it is not read", path, why)
	}
	return f, nil
}

// notOurs says why a file may be somebody's who has nothing to report; "" if not. The
// command may run as another account, in a folder of its own.
func notOurs(path string, info os.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "is of nobody that can be told"
	}
	if st.Nlink > 1 {
		return "has another name, by a hard link"
	}
	if st.Uid == 0 || int(st.Uid) == os.Geteuid() {
		return ""
	}
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || dir.Mode().Perm()&0o002 != 0 {
		return fmt.Sprintf("belongs to user %d, in a folder that everybody can write to", st.Uid)
	}
	return ""
}

// lastLine reads the last line that is ended and not empty; nil if there is none.
func lastLine(f *os.File) ([]byte, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	// A line that is a byte too long is seen as such.
	const tail = 2 * (MaxLine + 2)
	buf := make([]byte, min(size, tail))
	n, err := f.ReadAt(buf, size-int64(len(buf)))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	buf = buf[:n]
	end := bytes.LastIndexByte(buf, '\n')
	if end < 0 {
		if size >= tail {
			return nil, errLong
		}
		return nil, nil
	}
	text := bytes.TrimRight(buf[:end], "\r\n\t ")
	if len(text) == 0 {
		return nil, nil
	}
	return text[bytes.LastIndexByte(text, '\n')+1:], nil
}

// Close stops reading, writes the last report if it is still to be written, and
// waits for all of the relay to end. ctx is for that write.
func (r *Relay) Close(ctx context.Context) {
	if r.pipe != nil {
		// What is in the pipe is read; whoever still has its other end is not
		// waited for.
		_ = r.pipe.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	}
	r.cancel()
	<-r.writing
	r.sources.Wait()
	if r.pipe != nil {
		r.pipe.Close()
	}
	if p := r.takeNewest(); p != nil && ctx.Err() == nil {
		wctx, cancel := context.WithTimeout(ctx, lastPatience)
		defer cancel()
		_ = r.write(wctx, *p) // it is for the record of a hold that ends now
	}
}
