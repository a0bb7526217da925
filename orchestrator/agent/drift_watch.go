package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/plugin"
)

const (
	// driftPoll is how often every file is looked at whatever the kernel says: a
	// look at a file that did not change is one lstat.
	driftPoll = 5 * time.Minute
	// driftSettle is how long after a change the file is read: editors write in
	// several steps.
	driftSettle = 500 * time.Millisecond
	// driftRetry is when a look, or a try to put a file back, that came to nothing
	// is made again.
	driftRetry = 10 * time.Second
	// driftCalm is the least time between two reports of a file that something
	// changes again and again; it doubles up to driftCalmMax.
	driftCalm    = 10 * time.Second
	driftCalmMax = 10 * time.Minute
	// restoreCalm is how long a file must stand after it was put back for the
	// pauses to begin anew.
	restoreCalm = 2 * time.Hour
)

// restorePauses come before each time that a file is put back. What rewrites it
// after the last one is not fought any more until there is a new order.
func restorePauses() []time.Duration {
	return []time.Duration{0, 10 * time.Second, time.Minute, 10 * time.Minute, time.Hour}
}

// driftWatch looks for drift, of all configs in one goroutine. The kernel tells
// of changes in the folders of the files and of the states (inotify watches
// folders, so that a file that is replaced or removed stays in sight); the poll
// is for what it does not tell: network file systems, and watches that are used
// up.
type driftWatch struct {
	a  *Agent
	fs *fsnotify.Watcher // nil: it cannot be had
	// files are those of the node, by config; dirs what is watched for them.
	files map[string]*watchedFile
	dirs  map[string]bool
	back  chan putBack
	found chan lookedThere
	// again is when all states are to be read again; zero: not soon.
	again time.Time
	wg    sync.WaitGroup
}

// watchedFile is what is remembered of one config between two looks.
type watchedFile struct {
	stateDir, dir string
	// mark and seen are of the last look that found what it could.
	mark string
	seen seenFile
	due  time.Time // zero: nothing is due
	// busy: it is being put back. tries are how often it was, lately, and last
	// when.
	busy  bool
	tries int
	last  time.Time
	// looked is when the file was read last. While it drifts and changes on, it is
	// read, and reported, no sooner than pause later.
	looked time.Time
	pause  time.Duration
	// next is when a target is asked again.
	next time.Time
}

// seenFile tells that a file was not touched.
type seenFile struct {
	mod   time.Time
	size  int64
	mode  fs.FileMode
	gone  bool
	inode os.FileInfo
}

func (s seenFile) same(t seenFile) bool {
	return s.mod.Equal(t.mod) && s.size == t.size && s.mode == t.mode && s.gone == t.gone &&
		(s.inode == nil) == (t.inode == nil) && (s.inode == nil || os.SameFile(s.inode, t.inode))
}

func lookAt(path string) seenFile {
	fi, err := os.Lstat(path)
	if err != nil {
		return seenFile{gone: true}
	}
	return seenFile{mod: fi.ModTime(), size: fi.Size(), mode: fi.Mode(), inode: fi}
}

// putBack is the end of a try to put a file back.
type putBack struct {
	config string
	reps   map[string]*records.Actual
	err    error
}

func (a *Agent) watchDrift(ctx context.Context) {
	d := &driftWatch{a: a, files: map[string]*watchedFile{}, dirs: map[string]bool{}, back: make(chan putBack), found: make(chan lookedThere)}
	var events <-chan fsnotify.Event
	var errs <-chan error
	if a.cfg.NoEvents {
		a.cfg.Log.Debug("changes of files by others are found by looking only", "every", driftRetry.String())
	} else if w, err := fsnotify.NewWatcher(); err != nil {
		a.cfg.Log.Warn("changes of files by others are found by looking only, every "+driftRetry.String(), "error", err)
	} else {
		d.fs, events, errs = w, w.Events, w.Errors
		defer func() { _ = w.Close() }()
	}
	defer d.wg.Wait()
	d.watch(filepath.Join(a.cfg.StateDir, "configs"))
	d.all(time.Now())
	every := driftPoll
	if d.fs == nil {
		every = driftRetry
	}
	poll := time.NewTicker(every)
	defer poll.Stop()
	next := time.NewTimer(driftPoll)
	defer next.Stop()
	for {
		next.Reset(d.work(ctx))
		select {
		case <-ctx.Done():
			// Who puts a file back sends its end, or sees that nobody waits.
			return
		case e, ok := <-events:
			if ok {
				d.changed(e.Name)
			}
		case err := <-errs:
			// Too many changes at once: some are lost.
			a.cfg.Log.Debug("watching files", "error", err)
			d.all(time.Now())
		case <-poll.C:
			d.all(time.Now())
		case b := <-d.back:
			d.ended(b)
		case l := <-d.found:
			d.answered(ctx, l)
		case <-next.C:
		}
	}
}

// watch asks the kernel to tell of changes in a folder.
func (d *driftWatch) watch(dir string) {
	if d.fs == nil || d.dirs[dir] {
		return
	}
	if err := d.fs.Add(dir); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			d.a.trouble.other("drift", fmt.Errorf("folder %s cannot be watched, so that it is looked at every %s: %w", dir, driftRetry, err))
		}
		return
	}
	d.dirs[dir] = true
}

// all makes a look at every config due.
func (d *driftWatch) all(at time.Time) {
	// A folder that was removed is watched no more, though it may be back.
	if d.fs != nil {
		clear(d.dirs)
		for _, dir := range d.fs.WatchList() {
			d.dirs[dir] = true
		}
	}
	// A folder without a state is that of a first order that is under way. It is
	// watched before the states are read, so that none is written unseen.
	configs := filepath.Join(d.a.cfg.StateDir, "configs")
	ents, err := os.ReadDir(configs)
	if err != nil {
		d.a.trouble.other("drift", err)
	}
	for _, e := range ents {
		d.watch(filepath.Join(configs, e.Name()))
	}
	for _, st := range states(d.a.cfg.StateDir) {
		if st.err == nil {
			d.file(st.Config, st.dir).due = at
		}
	}
}

func (d *driftWatch) file(config, stateDir string) *watchedFile {
	f := d.files[config]
	if f == nil {
		f = &watchedFile{stateDir: stateDir}
		d.files[config] = f
		d.watch(stateDir)
	}
	return f
}

// changed makes due what a changed path concerns.
func (d *driftWatch) changed(path string) {
	at, dir := time.Now().Add(driftSettle), filepath.Dir(path)
	configs := filepath.Join(d.a.cfg.StateDir, "configs")
	if dir == configs {
		// A config that is new: its state is written by and by.
		d.watch(path)
		d.again = at
		return
	}
	if filepath.Dir(dir) == configs && filepath.Base(path) == stateFile && !d.knows(dir) {
		d.again = at
		return
	}
	// The folder itself was moved or removed: what stands in its place is another
	// one, which nobody watches yet.
	delete(d.dirs, path)
	for _, f := range d.files {
		if f.dir != "" && (dir == f.dir || path == f.dir) || dir == f.stateDir && filepath.Base(path) == stateFile {
			f.due = at
		}
	}
}

func (d *driftWatch) knows(stateDir string) bool {
	for _, f := range d.files {
		if f.stateDir == stateDir {
			return true
		}
	}
	return false
}

// work does what is due, and returns for how long nothing is.
func (d *driftWatch) work(ctx context.Context) time.Duration {
	wait, now := driftPoll, time.Now()
	if left := d.again.Sub(now); !d.again.IsZero() && left <= 0 {
		d.again = time.Time{}
		d.all(now)
	} else if !d.again.IsZero() {
		wait = min(wait, left)
	}
	for config, f := range d.files {
		if f.busy || f.due.IsZero() {
			continue
		}
		if left := f.due.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		f.due = time.Time{}
		if err := d.look(ctx, config, f); err != nil && ctx.Err() == nil {
			if _, busy := errors.AsType[*BusyError](err); !busy {
				d.a.trouble.other(config, err)
			}
			f.due = now.Add(driftRetry)
		}
		if !f.due.IsZero() {
			wait = min(wait, max(0, f.due.Sub(now)))
		}
	}
	return wait
}

// look looks at one file, and puts it back where that is wanted and due.
func (d *driftWatch) look(ctx context.Context, config string, f *watchedFile) error {
	st, err := loadState(f.stateDir, config)
	if errors.Is(err, errNoState) || err == nil && (st.Managed == nil || st.Phase != phaseDone || st.Report == nil) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Managed.Via != "" {
		d.lookThere(ctx, config, f, st)
		return nil
	}
	path := filepath.Join(d.a.cfg.Root, st.Managed.Destination)
	f.dir = filepath.Dir(path)
	d.watch(f.dir)
	if d.fs == nil || !d.dirs[f.dir] {
		// It is not there, or the kernel tells of no more folders: what happens in
		// it is seen by looking again.
		f.due = time.Now().Add(driftRetry)
	}
	seen, mark := lookAt(path), st.Mark.String()
	if mark != f.mark {
		f.tries = 0
	}
	if mark == f.mark && seen.same(f.seen) && st.Report.Drift == nil {
		return nil
	}
	if left := f.pause - time.Since(f.looked); mark == f.mark && st.Report.Drift != nil && left > 0 {
		f.due = time.Now().Add(left)
		return nil
	}
	f.looked = time.Now()
	found, err := d.a.fence.lookForDrift(ctx, config)
	if err != nil {
		return err
	}
	switch {
	case !found.is:
		f.pause = 0
	case found.rep != nil && st.Report.Drift != nil:
		f.pause = min(max(2*f.pause, driftCalm), driftCalmMax)
	}
	f.mark, f.seen = mark, seen
	if found.rep != nil {
		d.a.reports.set(config, found.rep)
	}
	if !found.is || !found.may {
		return nil
	}
	return d.mend(ctx, config, f, nil)
}

// mend puts a file back, if that is due; there is what stands at its target, if it
// has one.
func (d *driftWatch) mend(ctx context.Context, config string, f *watchedFile, there *plugin.State) error {
	pauses, now := restorePauses(), time.Now()
	if f.tries > 0 && now.Sub(f.last) > restoreCalm {
		f.tries = 0
	}
	if f.tries >= len(pauses) {
		rep, err := d.a.fence.giveUp(ctx, config, fmt.Sprintf("put back %d times, and changed again each time: something else writes this file; it is left until the next order", f.tries), there)
		if rep != nil {
			d.a.reports.set(config, rep)
		}
		return err
	}
	if left := pauses[f.tries] - now.Sub(f.last); f.tries > 0 && left > 0 {
		f.due = now.Add(left)
		return nil
	}
	f.busy, f.last = true, now
	f.tries++
	d.wg.Go(func() {
		reps, err := d.a.fence.putBackDrifted(ctx, config, there, d.a.contentOf)
		select {
		case d.back <- putBack{config: config, reps: reps, err: err}:
		case <-ctx.Done():
		}
	})
	return nil
}

func (a *Agent) contentOf(config string, want *records.Desired) source {
	return func(ctx context.Context) ([]byte, error) {
		return fetchChunks(ctx, a.cfg.Consul, a.cfg.Prefix, config, want)
	}
}

func (d *driftWatch) ended(b putBack) {
	f := d.files[b.config]
	f.busy, f.due = false, time.Now()
	for config, rep := range b.reps {
		d.a.reports.set(config, rep)
	}
	if b.err != nil {
		// Consul cannot be had, or others work on the config: no fault of who
		// changed the file.
		f.tries--
		f.due = time.Now().Add(driftRetry)
		f.next = f.due
		d.a.trouble.other(b.config, fmt.Errorf("a changed file is not put back yet: %w", b.err))
	}
}
