package journal_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aim-control/aimlock/internal/journal"
)

// open opens a journal that the test closes.
func open(t *testing.T, dir string, opts journal.Options) *journal.Writer {
	t.Helper()
	w, err := journal.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func errorEntry(what string) journal.Entry {
	return journal.Entry{Kind: journal.KindError, Error: &journal.Error{What: what, Error: "it failed"}}
}

func write(t *testing.T, w *journal.Writer, whats ...string) {
	t.Helper()
	for _, what := range whats {
		if err := w.Write(errorEntry(what)); err != nil {
			t.Fatal(err)
		}
	}
}

// read returns what a journal says of errors, and its problems.
func read(t *testing.T, path string) (whats []string, problems []string) {
	t.Helper()
	for e, err := range journal.Read(path) {
		switch p, ok := errors.AsType[*journal.Problem](err); {
		case ok:
			problems = append(problems, strings.TrimPrefix(p.Error(), path+"/"))
		case err != nil:
			t.Fatal(err)
		case e.Kind == journal.KindError:
			whats = append(whats, e.Error.What)
		}
	}
	return whats, problems
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestWriteAndRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "journal")
	w := open(t, dir, journal.Options{Start: journal.Start{Host: "h1", PID: 7, By: "root@h1", Lag: 2}})
	begun := time.Now()
	write(t, w, "one", "two")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	last := time.Duration(-1)
	for e, err := range journal.Read(dir) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, fmt.Sprintf("%s:%d %s", filepath.Base(e.File), e.Line, e.Kind))
		if e.T < last || e.Run != w.Run() || e.Version != journal.Version || e.At.Before(begun.Add(-time.Minute)) {
			t.Errorf("%+v", e)
		}
		last = e.T
		if e.Kind == journal.KindStart && (e.Start.Host != "h1" || e.Start.PID != 7 || e.Start.Lag != 2 || e.Start.Continues) {
			t.Errorf("%+v", e.Start)
		}
	}
	same(t, "entries", kinds, []string{"journal-00000001.jsonl:1 start", "journal-00000001.jsonl:2 error", "journal-00000001.jsonl:3 error"})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(errorEntry("late")); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("a closed journal: %v", err)
	}
}

func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, journal.Options{})
	_, err := journal.Open(dir, journal.Options{})
	if _, ok := errors.AsType[*journal.InUseError](err); !ok || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d on ", os.Getpid())) {
		t.Fatalf("a second writer: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, journal.Options{})
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	opts := journal.Options{MaxFile: 2000, MaxTotal: 9000}
	w := open(t, dir, opts)
	var want []string
	for i := range 200 {
		what := fmt.Sprintf("entry %03d", i)
		want = append(want, what)
		write(t, w, what)
		if total := size(t, dir); total > opts.MaxTotal+1000 {
			t.Fatalf("after entry %d the journal has %d bytes", i, total)
		}
	}
	got, problems := read(t, dir)
	if len(got) < 20 || len(got) > 100 || len(problems) > 0 {
		t.Fatalf("%d entries are left, problems %q", len(got), problems)
	}
	same(t, "the newest are left", got, want[len(want)-len(got):])
	files, _ := filepath.Glob(filepath.Join(dir, "journal-*"))
	for _, f := range files {
		for e, err := range journal.Read(f) {
			if err != nil || e.Kind != journal.KindStart || !e.Start.Continues {
				t.Errorf("%s begins with %+v, %v", f, e, err)
			}
			break
		}
	}
	// A journal that is opened again goes on in its last file.
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = open(t, dir, opts)
	write(t, w, "again")
	again, _ := read(t, dir)
	if again[len(again)-1] != "again" {
		t.Errorf("%q", again)
	}
	if now, _ := filepath.Glob(filepath.Join(dir, "journal-*")); len(now) > len(files)+1 {
		t.Errorf("%d files became %d", len(files), len(now))
	}
}

func TestMaxFiles(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, journal.Options{MaxFile: 300, MaxFiles: 3})
	for i := range 50 {
		write(t, w, fmt.Sprint(i))
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "journal-*")); len(files) != 3 {
		t.Errorf("%d files", len(files))
	}
}

func size(t *testing.T, dir string) (total int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "journal-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	return total
}

// Whatever a crash left of the last line, nothing is joined to it and no other
// entry is lost.
func TestTornLine(t *testing.T) {
	whole := t.TempDir()
	w := open(t, whole, journal.Options{})
	write(t, w, "one", "two")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(whole, "journal-00000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	before := len(text) - len(lines[2])
	for cut := before; cut < len(text); cut++ {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "journal-00000001.jsonl"), text[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want, wantProblems := []string{"one"}, []string{"journal-00000001.jsonl:3: the line was cut off by a crash or a full disk; it is skipped"}
		switch cut {
		case before:
			wantProblems = nil
		case len(text) - 1: // only its newline is missing
			want, wantProblems = []string{"one", "two"}, nil
		}
		got, problems := read(t, dir)
		same(t, fmt.Sprintf("cut at %d", cut), got, want)
		same(t, fmt.Sprintf("cut at %d: problems", cut), problems, wantProblems)

		w := open(t, dir, journal.Options{})
		write(t, w, "three")
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got, problems = read(t, dir)
		same(t, fmt.Sprintf("cut at %d, then written", cut), got, append(want, "three"))
		same(t, fmt.Sprintf("cut at %d, then written: problems", cut), problems, wantProblems)
	}
}

func TestProblems(t *testing.T) {
	dir := t.TempDir()
	good := `{"v":1,"kind":"error","at":"2026-03-01T12:00:00Z","t":1,"run":"r","error":{"what":"%s","error":"x"}}` + "\n"
	text := fmt.Sprintf(good, "one") +
		"\x1b[31mred\n" +
		`[1,2]` + "\n" +
		`{"kind":"error"}` + "\n" +
		`{"v":2,"kind":"error","new":1}` + "\n" +
		`{"v":1,"kind":"error"}` + "\n" +
		`{"v":1,"kind":"observation","observation":{}}` + "\n" +
		`{"v":1,"kind":"error","at":7,"error":{}}` + "\n" +
		`{"v":1,"kind":"later","at":"2026-03-01T12:00:00Z"}` + "\n" +
		strings.Repeat("x", journal.MaxLine+5) + "\n" +
		"\n" +
		fmt.Sprintf(good, "two")
	if err := os.WriteFile(filepath.Join(dir, "journal-00000003.jsonl"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal-notes.jsonl"), []byte("not of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "journal-00000002.jsonl"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, problems := read(t, dir)
	same(t, "entries", got, []string{"one", "two"})
	same(t, "problems", problems, []string{
		"journal-00000002.jsonl: is not a regular file; it is skipped",
		"journal-00000003.jsonl:2: not an entry of a journal: not a JSON object; it is skipped",
		"journal-00000003.jsonl:3: not an entry of a journal: not a JSON object; it is skipped",
		"journal-00000003.jsonl:4: not an entry of a journal: it has no version or no kind; it is skipped",
		"journal-00000003.jsonl:5: written by a newer aimlock (entry version 2, this one reads up to 1): upgrade this aimlock; it is skipped",
		"journal-00000003.jsonl:6: an entry of the kind error without \"error\"; it is skipped",
		"journal-00000003.jsonl:7: an entry of the kind observation without \"lock\"; it is skipped",
		"journal-00000003.jsonl:8: not an entry of a journal: Time.UnmarshalJSON: input is not a JSON string; it is skipped",
		fmt.Sprintf("journal-00000003.jsonl:10: the line has more than %d bytes; it is skipped", journal.MaxLine),
	})
	for _, tc := range []struct{ path, want string }{
		{filepath.Join(dir, "none"), "there is no journal"},
		{t.TempDir(), "there is no journal: the folder has no journal-*.jsonl"},
	} {
		for _, err := range journal.Read(tc.path) {
			if !errors.Is(err, journal.ErrNone) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", tc.path, err)
			}
		}
	}
}

// Any bytes are read without a panic, and a line that is good is found among
// whatever stands before and after it.
func FuzzRead(f *testing.F) {
	good := `{"v":1,"kind":"error","at":"2026-03-01T12:00:00Z","t":1,"run":"r","error":{"what":"here","error":"x"}}`
	for _, s := range []string{"", good, "{\"v\":1,", "{\"v\":1}\n\n\x00", strings.Repeat("[", 10000), `{"v":1,"kind":"observation","lock":"a","observation":{"n":1,"base":7,"hold":{"session":"s"},"facts":{"x":{"*":{}}},"numbers":{"a":1}}}`} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		found := false
		var fold journal.Fold
		for e, err := range journal.ReadFrom(strings.NewReader(before+"\n"+good+"\n"+after), "fuzz") {
			if err != nil {
				continue
			}
			found = found || e.Kind == journal.KindError && e.Error.What == "here"
			if o, _ := fold.Add(&e); o != nil {
				fold.FactsAt(o, o.T+time.Second)
			}
		}
		if !found {
			t.Fatalf("the good line was not found")
		}
	})
}
