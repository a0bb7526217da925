package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/aim-control/aimlock/internal/records"
)

// Left is one config's file as the fence leaves it on this node.
type Left struct {
	Config string
	// Path is where it stands, the root included.
	Path string
	// Exists: there is a file. A config that the node never had, or whose first
	// rollout was taken back, has none.
	Exists bool
	// SHA256 is of what is on disk, with secrets put in: it is not to be told to
	// others. Mode is 0 where it is not known.
	SHA256 string
	Mode   uint32
	// Restored is how often a file that somebody else had changed was put back
	// since its order. Only ReadLeft tells it.
	Restored int
}

// Same reports whether two are the same file, as far as is known.
func (l Left) Same(o Left) bool {
	return l.Exists == o.Exists && l.Path == o.Path && l.SHA256 == o.SHA256 &&
		(l.Mode == o.Mode || l.Mode == 0 || o.Mode == 0)
}

// Tell is told of files that were put in place, or taken back, after the reload
// commands of their orders and before healthy. An error fails the order as one
// of reload does, and what stood before is put back, which is told too. Configs
// that are applied all or none come in one call. Until it returns, the configs
// stay locked.
type Tell func(ctx context.Context, left []Left) error

// left is what stands at t.
func (w *work) left(t *target, f file) Left {
	return Left{Config: w.config, Path: t.path, Exists: f.Exists, SHA256: f.SHA256, Mode: f.Mode}
}

// reload tells the programs that f stands now.
func (w *work) reload(ctx context.Context, t *target, f file) error {
	if err := w.push(ctx, t, f); err != nil {
		return err
	}
	if err := w.run(ctx, "reload", w.st.Desired.Reload, t); err != nil {
		return err
	}
	if w.st.Desired.Target != nil {
		return nil // no file of this machine has changed
	}
	return w.telling(ctx, []Left{w.left(t, f)})
}

// reload tells the programs of all files of the group that have changed; stands
// is what stands of each now. An error is about the work returned.
func (g *group) reload(ctx context.Context, ps []*plan, stands func(*work, *plan) file) (*work, error) {
	if w, err := g.runs(ctx, "reload", ps, func(p *plan) bool { return p.changes }); err != nil {
		return w, err
	}
	var first *work
	var all []Left
	for i, w := range g.ws {
		if !ps[i].changes || ps[i].t == nil {
			continue
		}
		if first == nil {
			first = w
		}
		all = append(all, w.left(ps[i].t, stands(w, ps[i])))
	}
	return first, g.telling(ctx, all)
}

func (f *fence) telling(ctx context.Context, left []Left) error {
	if f.tell == nil || len(left) == 0 {
		return nil
	}
	f.step("before tell")
	err := f.tell(ctx, left)
	f.step("after tell")
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("reload: %w", err)
	}
	return nil
}

const (
	// followPoll is how often states are read although the kernel told of
	// nothing; followBlind where it cannot tell.
	followPoll  = 30 * time.Second
	followBlind = time.Second
)

// Follow calls changed at once, and whenever the node's state of one of the
// configs may have changed: then [ReadLeft] tells what there is. It reads the
// state folder and nothing else: whoever delivers to it, in this process or
// another, is followed. A folder that is not there yet is waited for. It ends
// with ctx.
func Follow(ctx context.Context, stateDir string, configs []string, changed func()) {
	var events chan fsnotify.Event
	var errs chan error
	kernel, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = kernel.Close() }()
		events, errs = kernel.Events, kernel.Errors
	}
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		poll := followBlind
		if err == nil && watchStates(kernel, stateDir, configs) {
			poll = followPoll
		}
		changed()
		t.Reset(poll)
		select {
		case <-events:
			drain(events)
		case lost := <-errs:
			if !errors.Is(lost, fsnotify.ErrEventOverflow) {
				err = lost // it is not relied on any more
			}
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// drain takes what came together: a state is written in several steps.
func drain(events <-chan fsnotify.Event) {
	for {
		select {
		case <-events:
		default:
			return
		}
	}
}

// watchStates reports whether the kernel tells of all that has to be seen.
func watchStates(k *fsnotify.Watcher, stateDir string, configs []string) bool {
	all := k.Add(filepath.Join(stateDir, "configs")) == nil
	for _, c := range configs {
		dir := configDir(stateDir, c)
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			continue // it shows in the folder above
		}
		all = k.Add(dir) == nil && all
	}
	return all
}

// ReadLeft reads what the node has of each config, in their order. It is settled
// if nothing is under way that may change what stands; else try again when Follow
// says so.
func ReadLeft(stateDir, root string, configs []string) (all []Left, settled bool) {
	load := func(config string) *state {
		st, err := loadState(configDir(stateDir, config), config)
		if err != nil {
			return nil
		}
		return st
	}
	still := func(st *state) bool { return st == nil || st.Phase == phaseDone || st.Phase == phaseAccepted }
	for _, c := range configs {
		st := load(c)
		if !still(st) {
			return nil, false
		}
		if st != nil && together(st.Desired) && slices.ContainsFunc(st.Desired.Configs, func(m string) bool { return !still(load(m)) }) {
			return nil, false
		}
		all = append(all, leftOf(c, st, root))
	}
	return all, true
}

// leftOf is what a state tells of the file. Where no order went well yet, the
// last answer names what it found.
func leftOf(config string, st *state, root string) Left {
	l := Left{Config: config}
	if st == nil {
		return l
	}
	at := ""
	switch {
	case st.Managed != nil && st.Managed.Via != "":
		return l // it stands on another machine
	case st.Managed != nil:
		l.SHA256, l.Mode, at = st.Managed.SHA256, st.Managed.Mode, st.Managed.Destination
	case st.Report != nil && st.Desired != nil && st.Desired.Target == nil && isSHA256(st.Report.SHA256) && st.Report.Result != records.ResultRolledBack:
		l.SHA256, at = st.Report.SHA256, st.Desired.Destination
	}
	clean, err := cleanDestination(at)
	if err != nil {
		l.SHA256, l.Mode = "", 0
		return l
	}
	if l.Path = clean; root != "" {
		l.Path = filepath.Join(root, clean)
	}
	l.Exists = true
	if st.Report != nil && st.Report.Restored != nil {
		l.Restored = st.Report.Restored.Times
	}
	return l
}
