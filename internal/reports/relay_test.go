package reports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// book is what a relay wrote, and when.
type book struct {
	mu    sync.Mutex
	got   []Report
	at    []time.Time
	warns []string
	fail  error
}

func (b *book) write(_ context.Context, p Report) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got, b.at = append(b.got, p), append(b.at, time.Now())
	return b.fail
}

func (b *book) warn(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.warns = append(b.warns, err.Error())
}

func (b *book) last() Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.got) == 0 {
		return Report{Done: -1}
	}
	return b.got[len(b.got)-1]
}

func (b *book) warned() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.warns)
}

// However fast a command reports, writes keep their distance, and the newest
// report is written, at the end at the latest.
func TestRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		r := New(b.write, b.warn)
		for i := range 5000 {
			r.Report(Report{Done: int64(i)})
			time.Sleep(time.Millisecond)
		}
		r.Report(Report{Done: 5000})
		r.Close(t.Context())
		if n := len(b.got); n < 5 || n > 7 {
			t.Errorf("%d writes in 5 s", n)
		}
		for i := 1; i < len(b.at)-1; i++ {
			if d := b.at[i].Sub(b.at[i-1]); d < Every {
				t.Errorf("%s between two writes", d)
			}
		}
		if b.last().Done != 5000 {
			t.Errorf("the last write is %+v", b.last())
		}
	})
}

// A write that fails is told once, and the next report is tried all the same.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &book{fail: errors.New("no leader")}
		r := New(b.write, b.warn)
		for i := range 3 {
			r.Report(Report{Done: int64(i)})
			time.Sleep(2 * time.Second)
		}
		r.Close(t.Context())
		if len(b.got) != 3 || len(b.warns) != 1 || !strings.Contains(b.warns[0], "no leader") {
			t.Errorf("%v, %q", b.got, b.warns)
		}
	})
}

// A write that is cut off by the end is made up for.
func TestCutOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, hang := &book{}, true
		r := New(func(ctx context.Context, p Report) error {
			if hang {
				hang = false
				<-ctx.Done()
				return ctx.Err()
			}
			return b.write(ctx, p)
		}, b.warn)
		r.Report(Report{Done: 7})
		synctest.Wait()
		r.Close(t.Context())
		if b.last().Done != 7 || len(b.warns) > 0 {
			t.Errorf("%v, %q", b.got, b.warns)
		}
	})
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// Garbage gives one warning, and what follows is read. The writer of a pipe never
// has to wait, and one that keeps it open does not keep the relay.
func TestPipe(t *testing.T) {
	t.Parallel()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	b := &book{}
	r := New(b.write, b.warn)
	r.Pipe(in)
	long := strings.Repeat("x", 300<<10)
	if _, err := io.WriteString(out, "1/9\n\n\x1b]0;evil\a\n"+long+"\nrubbish\n8/9 files almost\r\n9/9"); err != nil {
		t.Fatal(err)
	}
	until(t, "the newest report", func() bool { return b.last() == Report{8, 9, "files", "almost"} })
	start := time.Now()
	r.Close(t.Context())
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the relay took %s to close", d)
	}
	if w := b.warned(); len(w) != 1 || !strings.HasPrefix(w[0], "line 3 of the command's progress: ") || strings.ContainsRune(w[0], '\x1b') {
		t.Errorf("warnings: %q", w)
	}
	if b.last() == (Report{9, 9, "", ""}) {
		t.Error("a line was read that was never ended, from a pipe that is still open")
	}
}

// A pipe that is closed ends the reports, with the last line, and no harm.
func TestPipeClosed(t *testing.T) {
	t.Parallel()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	b := &book{}
	r := New(b.write, b.warn)
	r.Pipe(in)
	_, _ = io.WriteString(out, "9/9")
	out.Close()
	until(t, "the last report", func() bool { return b.last().Done == 9 })
	r.Close(t.Context())
	if w := b.warned(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "progress")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("99/99 old run\n")
	b := &book{}
	r := New(b.write, b.warn)
	r.File(path)
	put("1/9\n2/9 half a li")
	until(t, "the whole line", func() bool { return b.last().Done == 1 })
	put(strings.Repeat("1/9 files\n", 5000) + "3/9 files\n\n")
	until(t, "the last line of a long file", func() bool { return b.last() == Report{3, 9, "files", ""} })
	// Replaced, as who writes atomically does.
	if err := os.WriteFile(path+".new", []byte("4/9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	until(t, "the replacement", func() bool { return b.last().Done == 4 })
	put("nonsense\n")
	until(t, "the warning", func() bool { return len(b.warned()) == 1 })
	put(strings.Repeat("y", 100<<10))
	// A pipe in its place does not block anything.
	if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	r.Close(t.Context())
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if w := b.warned(); len(w) != 1 || !strings.Contains(w[0], path) {
		t.Errorf("warnings: %q", w)
	}
	for _, p := range b.got {
		if p.Done == 99 {
			t.Error("the report of an earlier run was taken for this one's")
		}
	}
}

// What is written just before the end is seen.
func TestFileAtTheEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "progress")
	b := &book{}
	r := New(b.write, b.warn)
	r.File(path)
	if err := os.WriteFile(path, []byte("5/5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Close(t.Context())
	if b.last().Done != 5 {
		t.Errorf("the last write is %+v", b.last())
	}
}

// Lines are the same however the bytes come in, and one that is too long never
// hides the next.
func TestLines(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var all strings.Builder
		var want []string
		n := rapid.IntRange(0, 8).Draw(t, "lines")
		for i := range n {
			size := rapid.SampledFrom([]int{1, 2, 30, MaxLine - 1, MaxLine, MaxLine + 1, MaxLine + 2, MaxLine + 3, 3 * MaxLine}).Draw(t, "size")
			line := strings.Repeat(string(rune('a'+i)), size)
			want = append(want, line)
			all.WriteString(line + "\n")
		}
		in := io.Reader(strings.NewReader(all.String()))
		if rapid.Bool().Draw(t, "byte by byte") {
			in = iotest.OneByteReader(in)
		}
		got := 0
		err := readLines(in, func(n int, line []byte, err error) {
			if n != got+1 || got >= len(want) {
				t.Fatalf("line %d after %d of %d", n, got, len(want))
			}
			w := want[got]
			got++
			tooLong := len(w) > MaxLine+1 // one that just fits is refused by Parse
			if tooLong != (err != nil) || err == nil && string(line) != w {
				t.Fatalf("line %d of %d bytes: %d bytes, %v", n, len(w), len(line), err)
			}
		})
		if err != nil || got != len(want) {
			t.Fatalf("%d lines of %d, %v", got, len(want), err)
		}
	})
}

func ExampleParse() {
	r, _ := Parse([]byte("3/10 files now the big ones"))
	fmt.Println(r.Done, r.Total, r.Unit, r.Note)
	// Output: 3 10 files now the big ones
}
