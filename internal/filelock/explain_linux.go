package filelock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/text"
)

// Scanner explains files. It keeps the last look at this machine, so that many
// files asked for at once cost one. It is safe for concurrent use.
type Scanner struct {
	scanning sync.Mutex
	last     *table

	mu    sync.Mutex
	calls map[string]*call
}

// call is a look at one path that is under way.
type call struct {
	since time.Time
	done  chan struct{} // closed when r and err are set
	r     *Report
	err   error
}

const (
	// attempts bounds how often the machine is looked at anew for one file
	// whose locks change while they are looked at.
	attempts = 3
	// patience is after what time a path is taken to be on a file system that
	// does not answer: nobody else waits for it, nor for more than maxStuck.
	patience = 2 * time.Second
	maxStuck = 8
)

// Explain tells what locks path, by a look at this machine that is at most
// maxAge old. ErrNotExist: there is no such file, and none that is known to
// have had the path. It ends with ctx, also where the path is on a file system
// that does not answer.
func (s *Scanner) Explain(ctx context.Context, path string, maxAge time.Duration) (*Report, error) {
	c, err := s.call(ctx, path, maxAge)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return c.r, c.err
	case <-ctx.Done():
		return nil, fmt.Errorf("look at %s: %w", path, context.Cause(ctx))
	}
}

func (s *Scanner) call(ctx context.Context, path string, maxAge time.Duration) (*call, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stuck := 0
	for _, c := range s.calls {
		if time.Since(c.since) > patience {
			stuck++
		}
	}
	c, ok := s.calls[path]
	switch {
	case ok && time.Since(c.since) > patience:
		return nil, fmt.Errorf("look at %s: its file system has not answered for %s", path, time.Since(c.since).Round(time.Second))
	case ok && maxAge > 0:
		return c, nil
	case stuck >= maxStuck:
		return nil, fmt.Errorf("look at %s: the file systems of %d other files do not answer", path, stuck)
	}
	c = &call{since: time.Now(), done: make(chan struct{})}
	if s.calls == nil {
		s.calls = map[string]*call{}
	}
	s.calls[path] = c
	// The goroutine ends when the file system answers, since nothing takes a
	// process out of a call into one that does not. maxStuck bounds their
	// number. Others may wait for it, so that it outlives who began it.
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer close(c.done)
		c.r, c.err = s.explain(ctx, path, maxAge)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.calls[path] == c {
			delete(s.calls, path)
		}
	}()
	return c, nil
}

func (s *Scanner) explain(ctx context.Context, path string, maxAge time.Duration) (*Report, error) {
	at, err := identify(path)
	now := err == nil
	if errors.Is(err, fs.ErrNotExist) {
		at, err = missing(path)
	}
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		t, err := s.look(ctx, maxAge)
		if err != nil {
			return nil, err
		}
		r, settled, err := t.report(path, at, now)
		if settled || try == attempts {
			return r, err
		}
		maxAge = 0
	}
}

// look returns a look at this machine.
func (s *Scanner) look(ctx context.Context, maxAge time.Duration) (*table, error) {
	s.scanning.Lock()
	defer s.scanning.Unlock()
	if s.last != nil && maxAge > 0 && time.Since(s.last.at) <= maxAge {
		return s.last, nil
	}
	t, err := scan(ctx, "/proc")
	if err == nil {
		s.last = t
	}
	return t, err
}

// report says what t knows of a file, which has its path now or had it once.
// settled is false where another look may tell more.
func (t *table) report(path string, at target, now bool) (r *Report, settled bool, err error) {
	r = &Report{Path: path, Resolved: at.resolved, At: t.at, Locks: []Lock{}, Former: []Lock{}, Unseen: t.unseen(), Notes: []string{}}
	settled = true
	if now {
		r.Locks, settled = t.locksOn(at.is)
		if at.anyDevice {
			r.Notes = append(r.Notes, "Its device is not known as the kernel lists it: the locks are found by the inode's number alone, and may be those of a file elsewhere.")
		}
	}
	ids := map[fileID]bool{}
	for _, c := range t.carriers {
		if at.former(c, now) {
			ids[c.line.file] = true
		}
	}
	if len(ids) > 0 {
		former, ok := t.locksOn(func(id fileID) bool { return ids[id] })
		settled = settled && ok
		if now {
			r.Former = former
			r.Notes = append(r.Notes, "A file that had this path was deleted or replaced, and is still locked: who opens the path now gets another file, which that lock does not guard.")
		} else {
			r.Locks, r.Deleted = former, true
		}
	}
	if !now && len(r.Locks) == 0 {
		return nil, settled, notExist(path, t, t.besides(at))
	}
	switch locked := len(r.Locks) > 0; {
	case locked:
		r.Locked = &locked
	case t.locksErr == nil && t.inner == "" && t.unread == 0 && !shared(at.fsType):
		r.Locked = &locked
	}
	if shared(at.fsType) {
		r.Unseen = append(r.Unseen, "The file is on "+at.fsType+": locks of other machines, and those that the file system keeps itself, do not show here.")
	}
	if names := t.besides(at); len(r.Locks) == 0 && len(names) > 0 {
		r.Notes = append(r.Notes, "Locked in the same folder: "+join(names)+". If it was renamed from this path, its lock does not guard the file that has the path now.")
	}
	return r, settled, nil
}

// besides names a few locked files that may have had a path and been renamed.
func (t *table) besides(at target) []string {
	var out []string
	var seen []string
	for _, c := range t.carriers {
		if at.beside(c) && !slices.Contains(seen, c.link) {
			seen = append(seen, c.link)
			out = append(out, fmt.Sprintf("%s (by %s)", text.Printable(c.link), who(c.pid, c.command)))
		}
	}
	return out[:min(len(out), 3)]
}

// bucket is what there is of locks that are equal in all that is listed.
type bucket struct {
	attrs
	lines []kernelLock
	// groups are carriers, by the open file that they have.
	groups [][]carrier
	// merged: the groups cannot be told apart.
	merged bool
}

// locksOn returns the locks on a file, in the kernel's order.
func (t *table) locksOn(is func(fileID) bool) (locks []Lock, settled bool) {
	var order []*bucket
	buckets := map[attrs]*bucket{}
	of := func(a attrs) *bucket {
		b := buckets[a]
		if b == nil {
			b = &bucket{attrs: a}
			buckets[a] = b
			order = append(order, b)
		}
		return b
	}
	for _, l := range t.locks {
		if is(l.file) {
			b := of(l.attrs)
			b.lines = append(b.lines, l)
		}
	}
	for _, c := range t.carriers {
		if is(c.line.file) {
			of(c.line.attrs).add(c, t.compare)
		}
	}
	settled = true
	locks = []Lock{}
	for _, b := range order {
		l, ok := t.locksOf(b)
		locks = append(locks, l...)
		settled = settled && ok
	}
	return locks, settled
}

// add puts a carrier to those that have the same open file or, for a POSIX
// lock, the same table of descriptors.
func (b *bucket) add(c carrier, compare func(int, carrier, carrier) (bool, bool)) {
	kind := kcmpFile
	if b.kind == Posix {
		kind = kcmpFiles
	}
	for i, g := range b.groups {
		same, known := compare(kind, g[0], c)
		if !known {
			b.merged = true
		}
		if same || !known {
			b.groups[i] = append(g, c)
			return
		}
	}
	b.groups = append(b.groups, []carrier{c})
}

func (t *table) locksOf(b *bucket) (locks []Lock, settled bool) {
	settled = true
	for i := range max(len(b.lines), len(b.groups)) {
		f := finding{attrs: b.attrs, listed: i < len(b.lines)}
		var waiters []lockLine
		if f.listed {
			waiters = b.lines[i].waiters
			f.breaking = b.lines[i].breaking
		}
		switch {
		case i < len(b.groups):
			f.carriers = b.groups[i]
		case b.merged && len(b.groups) > 0:
			// It is one of several equal locks, and all their carriers stand
			// in one group: which of them keeps which cannot be told.
			f.carriers = b.groups[len(b.groups)-1]
		}
		f.merged = b.merged && len(b.lines) > 1
		if !f.listed && t.inner == "" && t.locksErr == nil && !stillCarried(t.root, f.carriers[0]) {
			continue // let go between the two looks
		}
		settled = settled && len(f.carriers) > 0
		locks = append(locks, t.lock(f, waiters))
	}
	return locks, settled
}

// stillCarried looks again at one descriptor.
func stillCarried(root string, c carrier) bool {
	b, err := readat(unix.AT_FDCWD, fmt.Sprintf("%s/%d/task/%d/fdinfo/%d", root, c.pid, c.tid, c.fd))
	if err != nil {
		return false
	}
	info, err := parseFDInfo(b)
	return err == nil && slices.ContainsFunc(info.locks, func(l lockLine) bool { return l.attrs == c.line.attrs })
}

func (t *table) lock(f finding, waiters []lockLine) Lock {
	f.keepers = keepers(f)
	t.namedProcess(&f)
	l := Lock{
		Kind: f.kind, Mode: f.mode, PID: f.pid, PIDAlive: f.alive,
		KeptBy: f.keepers, Start: f.start,
		Complete: len(f.keepers) > 0 && len(t.blind) == 0 && t.hidden == "" && t.inner == "" && t.unread == 0 && !f.merged,
		Waiters:  []Waiter{},
	}
	if !f.eof {
		end := f.end
		l.End = &end
	}
	for _, w := range waiters {
		l.Waiters = append(l.Waiters, Waiter{PID: w.pid, Command: t.command(w.pid), Kind: w.kind, Mode: w.mode})
	}
	if len(f.keepers) == 0 {
		f.mappers = t.mappers(f.file)
	}
	l.Why = upperFirst(t.why(f))
	return l
}

// keepers are the processes of the carriers of one open file.
func keepers(f finding) []Keeper {
	var out []Keeper
	for _, c := range f.carriers {
		i := slices.IndexFunc(out, func(k Keeper) bool { return k.PID == c.pid })
		if i < 0 {
			how := InheritedOrPassed
			switch {
			case f.kind == OFD:
				how = OpenFileDescription
			case c.pid == f.pid:
				how = Owner
			}
			out = append(out, Keeper{PID: c.pid, Command: text.Printable(c.command), How: how})
			i = len(out) - 1
		}
		if !slices.Contains(out[i].FDs, c.fd) {
			out[i].FDs = append(out[i].FDs, c.fd)
		}
	}
	slices.SortFunc(out, func(a, b Keeper) int {
		if (a.How == Owner) != (b.How == Owner) {
			if a.How == Owner {
				return -1
			}
			return 1
		}
		return a.PID - b.PID
	})
	return out
}

// namedProcess finds out what has become of the process that the kernel names.
func (t *table) namedProcess(f *finding) {
	if f.pid <= 0 {
		return
	}
	yes, no := true, false
	f.command = t.command(f.pid)
	if slices.ContainsFunc(f.keepers, func(k Keeper) bool { return k.PID == f.pid }) {
		f.alive = &yes
		return
	}
	if !t.samePIDs {
		// Kill would ask about a pid of another namespace.
		_, err := readat(unix.AT_FDCWD, t.root+"/"+strconv.Itoa(f.pid)+"/stat")
		switch {
		case err == nil:
			f.alive = &yes
		case gone(err) && t.hidden == "":
			f.alive = &no
		}
		return
	}
	if alive, why := hostproc.Alive(f.pid, 0); alive == hostproc.False {
		f.alive, f.deathNote = &no, why
		return
	}
	p, err := hostproc.Lookup(f.pid)
	if err != nil {
		// It lives, and /proc hides it.
		f.alive = &yes
		return
	}
	if len(f.carriers) > 0 && t.blind[f.pid] == "" {
		older := func(c carrier) bool { return c.start != 0 && c.start < p.StartTicks }
		if !slices.ContainsFunc(f.carriers, func(c carrier) bool { return !older(c) }) {
			f.reused = true
			return
		}
	}
	f.alive = &yes
}

// command is the name of the program of a process, or "".
func (t *table) command(pid int) string {
	if pid <= 0 {
		return ""
	}
	b, err := readat(unix.AT_FDCWD, t.root+"/"+strconv.Itoa(pid)+"/comm")
	if err != nil {
		return ""
	}
	return text.Printable(string(trimNewline(b)))
}

func trimNewline(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\n' {
		return b[:n-1]
	}
	return b
}
