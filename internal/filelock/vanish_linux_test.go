package filelock

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process that ends between the moment it was listed and each of the reads
// about it is no error, and nothing is taken from who has its pid then.
func TestProcessVanishesWhileRead(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	p := hold(t, path, Flock)
	dir, err := unix.Open("/proc/"+strconv.Itoa(p.Process.Pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	fd := -1
	look := func() *table {
		t.Helper()
		tb := &table{root: "/proc", blind: map[int]string{}, compare: kcmp}
		if !tb.descriptors(dir, "", p.Process.Pid, p.Process.Pid) {
			t.Fatalf("cannot look at it: %v", tb.blind)
		}
		return tb
	}
	for _, c := range look().carriers {
		if c.link == path {
			fd = c.fd
		}
	}
	if fd < 0 {
		t.Fatal("its descriptor was not found while it lived")
	}
	info, err := readat(dir, "fdinfo/"+strconv.Itoa(fd))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.end(t)
	if tb := look(); len(tb.carriers) > 0 || len(tb.blind) > 0 {
		t.Errorf("a process that is gone has %v and hides %v", tb.carriers, tb.blind)
	}
	// Its descriptor was read, and then it ended.
	tb := &table{root: "/proc", blind: map[int]string{}, compare: kcmp}
	if err := tb.descriptor(dir, info, carrier{pid: p.Process.Pid, tid: p.Process.Pid, fd: fd, link: path}); !gone(err) || len(tb.carriers) > 0 {
		t.Errorf("got %v and %v", err, tb.carriers)
	}
	tb.process(p.Process.Pid)
	if stillCarried("/proc", carrier{pid: p.Process.Pid, tid: p.Process.Pid, fd: fd}) || len(tb.carriers) > 0 || len(tb.blind) > 0 {
		t.Errorf("it still has %v", tb.carriers)
	}
}

// Processes come and go all the while, and what stays is seen each time.
func TestWhileProcessesComeAndGo(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	p := hold(t, path, Flock)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				exec.Command("/bin/true").Run()
			}
		})
	}
	// And locks of other files do.
	wg.Go(func() {
		other := filepath.Join(t.TempDir(), "b.lock")
		for ctx.Err() == nil {
			if f, err := os.Create(other); err == nil {
				take(f, Flock)
				f.Close()
			}
		}
	})
	for range 20 {
		l := one(t, explain(t, path))
		expect(t, l, Flock, Write, p.Process.Pid, "true", map[int]string{p.Process.Pid: Owner}, "")
	}
}

// What a look at /proc finds where the kernel's list of locks is missing
// (a /proc mounted with subset=pid) is what descriptors tell.
func TestWithoutListOfLocks(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	p := hold(t, path, Flock)
	tb, err := scan(t.Context(), "/proc")
	if err != nil {
		t.Fatal(err)
	}
	at, err := identify(path)
	if err != nil {
		t.Fatal(err)
	}
	none := *tb
	none.locks, none.locksErr = nil, os.ErrNotExist
	r, _, err := none.report(path, at, true)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, one(t, r), Flock, Write, p.Process.Pid, "true", map[int]string{p.Process.Pid: Owner}, "")
	none.carriers = nil
	if r, _, err := none.report(path, at, true); err != nil || r.Locked != nil || len(r.Unseen) == 0 {
		t.Errorf("without any of both it is not known: %s, %v", show(r), err)
	}
}

// Whoever asks gets an answer in time, also while a file system gives none.
func TestFileSystemThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	path := newFile(t)
	stuck := &call{since: time.Now(), done: make(chan struct{})}
	s := &Scanner{calls: map[string]*call{path: stuck}}
	ctx, cancel := context.WithCancelCause(t.Context())
	late := errors.New("no answer within 1s")
	cancel(late)
	if _, err := s.Explain(ctx, path, time.Second); !errors.Is(err, late) {
		t.Errorf("got %v", err)
	}
	stuck.since = time.Now().Add(-time.Hour)
	if _, err := s.Explain(t.Context(), path, time.Second); err == nil {
		t.Error("waits for what does not come")
	}
	for i := range maxStuck {
		s.calls[strconv.Itoa(i)] = stuck
	}
	if _, err := s.Explain(t.Context(), path+"x", time.Second); err == nil || len(s.calls) != maxStuck+1 {
		t.Errorf("%v, and %d calls", err, len(s.calls))
	}
	delete(s.calls, "0")
	delete(s.calls, path)
	if _, err := s.Explain(t.Context(), path, time.Second); err != nil {
		t.Error(err)
	}
}
