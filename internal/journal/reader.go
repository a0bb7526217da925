package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"syscall"

	"github.com/aim-control/aimlock/internal/text"
)

// Problem is something in a journal that could not be read. The rest of it can.
type Problem struct {
	File string
	Line int // 0: the file as a whole
	What string
	// Torn: the line is the beginning of an entry that a crash or a full disk
	// cut off.
	Torn bool
}

func (p *Problem) Error() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.What)
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.What)
}

// ErrNone says that there is no journal at a path.
var ErrNone = errors.New("there is no journal")

// Read reads a journal, oldest entry first: the files of a folder, or one file.
// An error that is a *Problem is about one line or file, which is skipped; any
// other is the last.
func Read(path string) iter.Seq2[Entry, error] { return readAll(path, nil) }

// ReadLock is Read of what stands there of one lock, and of what all locks
// share. It may yield a few others: look at Entry.Lock.
func ReadLock(path, lock string) iter.Seq2[Entry, error] {
	name, err := json.Marshal(lock)
	if err != nil {
		panic(err) // a string can always be encoded
	}
	of, every := append([]byte(`"lock":`), name...), []byte(`"lock":`)
	return readAll(path, func(line []byte) bool { return bytes.Contains(line, of) || !bytes.Contains(line, every) })
}

// readAll reads the lines that want picks, nil for all.
func readAll(path string, want func(line []byte) bool) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		files, folder, err := filesOf(path)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		open := os.Open // a pipe that is named is meant
		if folder {
			open = openFile
		}
		for _, name := range files {
			f, err := open(name)
			if errors.Is(err, fs.ErrNotExist) && len(files) > 1 {
				continue // it was the oldest, and went meanwhile
			}
			if err != nil {
				if !yield(Entry{}, &Problem{File: name, What: reason(err)}) {
					return
				}
				continue
			}
			more := read(f, name, want, yield)
			_ = f.Close()
			if !more {
				return
			}
		}
	}
}

// openFile opens a file that was found in a folder. A pipe would be waited for, and a
// device may have no end.
func openFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("is not a regular file; it is skipped")
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// filesOf are the files of the journal at path, and whether that is a folder.
func filesOf(path string) (files []string, folder bool, err error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, fmt.Errorf("%s: %w", path, ErrNone)
	case err != nil:
		return nil, false, err
	case !info.IsDir():
		return []string{path}, false, nil
	}
	list, err := segments(path)
	if err != nil {
		return nil, true, err
	}
	if len(list) == 0 {
		return nil, true, fmt.Errorf("%s: %w: the folder has no %s*%s", path, ErrNone, filePrefix, fileSuffix)
	}
	for _, s := range list {
		files = append(files, s.path)
	}
	return files, true, nil
}

func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return err.Error()
}

// ReadFrom is Read of one file's text, which name names in problems.
func ReadFrom(r io.Reader, name string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) { read(r, name, nil, yield) }
}

// read yields the entries of one file, and reports whether to go on.
func read(r io.Reader, name string, want func([]byte) bool, yield func(Entry, error) bool) bool {
	in := bufio.NewReaderSize(r, 64<<10)
	for line := 1; ; line++ {
		b, long, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return yield(Entry{}, &Problem{File: name, Line: line, What: reason(err)})
		}
		end := err != nil
		if end && len(b) == 0 && !long {
			return true
		}
		if want != nil && !long && !want(b) {
			if end {
				return true
			}
			continue
		}
		e, problem := decode(b, long)
		switch {
		case problem == "" && e == nil: // an empty line, where a torn one was closed
		case problem == "":
			e.File, e.Line = name, line
			if !yield(*e, nil) {
				return false
			}
		default:
			p := &Problem{File: name, Line: line, What: problem, Torn: end || torn(b)}
			if p.Torn {
				p.What = "the line was cut off by a crash or a full disk; it is skipped"
			}
			if !yield(Entry{}, p) {
				return false
			}
		}
		if end {
			return true
		}
	}
}

// readLine returns the next line without its newline. Of a line that is too
// long it returns nothing but that.
func readLine(in *bufio.Reader) (line []byte, long bool, err error) {
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			line, long = nil, true
		}
		if !long {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimSuffix(line, []byte{'\n'}), long, err
		}
	}
}

// torn reports whether b is the beginning of an entry: it breaks off before the
// JSON is complete.
func torn(b []byte) bool {
	if len(b) == 0 || b[0] != '{' {
		return false
	}
	var whole json.RawMessage
	return errors.Is(json.NewDecoder(bytes.NewReader(b)).Decode(&whole), io.ErrUnexpectedEOF)
}

// decode returns the entry of one line; nil for an empty line.
func decode(b []byte, long bool) (_ *Entry, problem string) {
	if long {
		return nil, fmt.Sprintf("the line has more than %d bytes; it is skipped", MaxLine)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, ""
	}
	var head struct {
		Version int  `json:"v"`
		Kind    Kind `json:"kind"`
	}
	if b[0] != '{' {
		return nil, "not an entry of a journal: not a JSON object; it is skipped"
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, "not an entry of a journal: " + text.Clip(text.Printable(err.Error()), 200) + "; it is skipped"
	}
	if head.Version > Version {
		return nil, fmt.Sprintf("written by a newer aimlock (entry version %d, this one reads up to %d): upgrade this aimlock; it is skipped", head.Version, Version)
	}
	if head.Version < 1 || head.Kind == "" {
		return nil, "not an entry of a journal: it has no version or no kind; it is skipped"
	}
	e := &Entry{}
	if err := json.Unmarshal(b, e); err != nil {
		return nil, "not an entry of a journal: " + text.Clip(text.Printable(err.Error()), 200) + "; it is skipped"
	}
	if missing := e.missing(); missing != "" {
		return nil, fmt.Sprintf("an entry of the kind %s without %q; it is skipped", text.Clip(text.Printable(string(e.Kind)), 40), missing)
	}
	return e, ""
}

// missing is the field that an entry of its kind must have and does not; "" if
// it is whole. Kinds of a later version pass.
func (e *Entry) missing() string {
	switch {
	case e.Kind == KindStart && e.Start == nil:
		return "start"
	case (e.Kind == KindObservation || e.Kind == KindVerdict) && e.Observation == nil:
		return "observation"
	case (e.Kind == KindObservation || e.Kind == KindVerdict || e.Kind == KindBreak) && e.Lock == "":
		return "lock"
	case e.Kind == KindCluster && e.Cluster == nil:
		return "cluster"
	case e.Kind == KindBreak && e.Break == nil:
		return "break"
	case e.Kind == KindLeader && e.Leader == nil:
		return "leader"
	case e.Kind == KindReload && e.Reload == nil:
		return "reload"
	case e.Kind == KindError && e.Error == nil:
		return "error"
	}
	return ""
}
