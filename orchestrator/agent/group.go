package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/records"
)

// group is several configs of one node under their locks, whose entries belong
// together: all of their files become the new ones, or all stay the old ones.
//
// Every config keeps its own mark and its own journal. What makes them one is
// the order of the writes, with all locks held:
//
//  1. every mark, synced
//  2. copies, staged copies and validation of all
//  3. every journal: staged
//  4. the renames
//  5. reload, healthy
//  6. every journal: done, with the same verdict
//
// So after a crash a journal that is done, or failing, tells the verdict for
// all. Where there is none, either all journals are staged, and the disk tells
// how far the renames went, or one is not, and no rename was begun.
//
// Invariant: the journal of the leader is the last that becomes done, so a
// leader that is done tells that all are.
type group struct {
	*fence
	// configs in the order of the entries, and their works.
	configs []string
	ws      []*work
}

// together reports whether an entry is one of several.
func together(d *records.Desired) bool { return d != nil && len(d.Configs) > 1 }

// leader is the config of a group whose journal is done last.
func leader(configs []string) string { return slices.Min(configs) }

// sameGroup reports whether two entries are of one order for the same configs.
func sameGroup(d, e *records.Desired) bool {
	return d.Order == e.Order && d.Rollout == e.Rollout && slices.Equal(d.Configs, e.Configs)
}

// checkGroup refuses a list of configs that cannot be those of config's entry.
func checkGroup(config string, configs []string) error {
	if len(configs) == 0 {
		return nil
	}
	if len(configs) > records.MaxGroup {
		return fmt.Errorf("the entry names %d configs that belong together: %d at most", len(configs), records.MaxGroup)
	}
	if !slices.Contains(configs, config) {
		return fmt.Errorf("the entry names configs that belong together, but not %q itself", config)
	}
	seen := map[string]bool{}
	for _, c := range configs {
		if err := checkName(c); err != nil {
			return err
		}
		if seen[c] {
			return fmt.Errorf("the entry names %q twice among the configs that belong together", c)
		}
		seen[c] = true
	}
	return nil
}

// GroupError is what one config of a group failed by, for all of them.
type GroupError struct {
	// Config is the one that failed, of so many.
	Config string
	Of     int
	Err    error
}

func (e *GroupError) Error() string {
	return fmt.Sprintf("%s: %v (one of %d configs that are applied all or none)", e.Config, e.Err, e.Of)
}

func (e *GroupError) Unwrap() error { return e.Err }

func (g *group) because(w *work, err error) error {
	return &GroupError{Config: w.config, Of: len(g.configs), Err: err}
}

// outcomes has one outcome for each config of a group, in its order.
type outcomes []outcome

// leaderLast calls fn for each work, for that of the leader last.
func (g *group) leaderLast(fn func(i int, w *work) error) error {
	last := -1
	for i, w := range g.ws {
		if w.config == leader(g.configs) {
			last = i
			continue
		}
		if err := fn(i, w); err != nil {
			return err
		}
	}
	if last < 0 {
		return nil
	}
	return fn(last, g.ws[last])
}

// carryOut does the orders at the marks, from the beginning.
func (g *group) carryOut(ctx context.Context, contents []source) (outcomes, error) {
	warnShared(g.ws...)
	g.meet()
	ps := make([]*plan, len(g.ws))
	defer closePlans(ps)
	places := map[string]string{}
	changes := false
	for i, w := range g.ws {
		p, err := w.plan(w.st.Desired)
		if err != nil {
			return g.fail(nil, g.because(w, err))
		}
		ps[i] = p
		if p.t == nil {
			continue
		}
		if other := places[p.t.destination]; other != "" {
			p.t.close()
			ps[i] = nil
			return g.fail(ps, g.because(w, fmt.Errorf("its destination %s is that of %s too", w.st.Desired.Destination, other)))
		}
		places[p.t.destination] = w.config
		if err := w.reveal(ctx, p, contents[i]); err != nil {
			if retry := unanswered(ctx, err); retry != nil {
				return nil, retry
			}
			return g.fail(ps, g.because(w, err))
		}
		p.changes = !w.stands(p)
		changes = changes || p.changes
	}
	if !changes {
		return g.done(ps, false)
	}
	if w, err := g.prepare(ctx, ps, contents); err != nil {
		unstage(ps)
		if retry := unanswered(ctx, err); retry != nil {
			return nil, retry
		}
		return g.fail(ps, g.because(w, err))
	}
	if err := g.stage(ps); err != nil {
		// Not answered, or not ours any more: no file was touched.
		unstage(ps)
		return nil, err
	}
	if w, err := g.swap(ps); err != nil {
		if _, lost := errors.AsType[*lostError](err); lost {
			unstage(ps)
			return nil, err
		}
		return g.takeBack(ctx, ps, g.because(w, err))
	}
	return g.verify(ctx, ps)
}

func closePlans(ps []*plan) {
	for _, p := range ps {
		if p != nil && p.t != nil {
			p.t.close()
		}
	}
}

func unstage(ps []*plan) {
	for _, p := range ps {
		if p != nil && p.changes {
			p.t.unstage()
		}
	}
}

// prepare brings and stages all contents, then validates all: a program may
// look at the others' staged copies. An error is about the work returned.
func (g *group) prepare(ctx context.Context, ps []*plan, contents []source) (*work, error) {
	for i, w := range g.ws {
		if ps[i].changes {
			if err := w.prepare(ctx, ps[i], contents[i]); err != nil {
				return w, err
			}
		}
	}
	for i, w := range g.ws {
		if ps[i].changes {
			if err := w.validate(ctx, ps[i]); err != nil {
				return w, err
			}
		}
	}
	return nil, nil
}

// stage writes into every journal that renames may follow, and makes sure that
// all configs are still ours. Invariant: every journal is staged before the
// first rename.
func (g *group) stage(ps []*plan) error {
	for i, w := range g.ws {
		if w.st.Changes = ps[i].changes; w.st.Prev == nil {
			// A restore of what the rollout never touched.
			w.st.Prev = &file{}
		}
		if err := w.save(phaseStaged); err != nil {
			return err
		}
	}
	for _, w := range g.ws {
		if err := w.recheck(); err != nil {
			return err
		}
	}
	return nil
}

// lostError: a config is no longer ours.
type lostError struct{ error }

func (e *lostError) Unwrap() error { return e.error }

// swap renames all staged copies into place. Until the last one has happened,
// no program is told of any.
func (g *group) swap(ps []*plan) (*work, error) {
	for i, w := range g.ws {
		if !ps[i].changes {
			continue
		}
		if err := w.recheck(); err != nil {
			return w, &lostError{err}
		}
		if err := w.swap(ps[i]); err != nil {
			return w, err
		}
	}
	return nil, nil
}

// verify tells the programs and asks how they are: reload where the file has
// changed, healthy of all, since one that reads an unchanged file may not bear
// the others. Commands that are alike run once.
func (g *group) verify(ctx context.Context, ps []*plan) (outcomes, error) {
	w, err := g.reload(ctx, ps, func(_ *work, p *plan) file { return p.want })
	if err == nil {
		w, err = g.runs(ctx, "healthy", ps, func(p *plan) bool { return p.t != nil })
	}
	switch {
	case err == nil:
		return g.done(ps, true)
	case ctx.Err() != nil:
		return nil, err
	case g.restores():
		// What was put back are the last good files: there are no others.
		return g.stay(ps, g.because(w, fmt.Errorf("the file from before the rollout was put back, but %w", err)))
	}
	return g.takeBack(ctx, ps, g.because(w, err))
}

func (g *group) restores() bool { return g.ws[0].st.Desired.Action == records.ActionRestore }

// takeBack puts back what stood before the orders at the marks. From the first
// journal that says failing on, a crash does not stop it.
func (g *group) takeBack(ctx context.Context, ps []*plan, cause error) (outcomes, error) {
	for _, w := range g.ws {
		w.st.Report = w.failure(*w.st.Prev, cause)
		if err := w.save(phaseFailing); err != nil {
			return nil, err
		}
	}
	return g.putBack(ctx, ps)
}

func (g *group) putBack(ctx context.Context, ps []*plan) (outcomes, error) {
	var problem error
	for i, w := range g.ws {
		if !ps[i].changes {
			continue
		}
		if ps[i].t == nil {
			problem = errors.Join(problem, fmt.Errorf("%s: its folder cannot be opened", w.config))
			continue
		}
		if err := w.recheck(); err != nil {
			return nil, err
		}
		ps[i].t.unstage()
		if err := w.restore(ps[i].t, *w.st.Prev); err != nil {
			problem = errors.Join(problem, fmt.Errorf("%s: the last good file could not be put back: %w", w.config, err))
		}
	}
	outs := make(outcomes, len(g.ws))
	for i, w := range g.ws {
		outs[i] = outcome{Report: w.st.Report, Changed: ps[i].changes}
	}
	if problem != nil {
		// The reports must not wait for a disk that may never be mended; the
		// journals stay, so that a restart tries again.
		for i, w := range g.ws {
			w.st.Report.Error += "; and " + problem.Error()
			if ps[i].changes && ps[i].t != nil {
				if cur, _, err := ps[i].t.stat(); err == nil {
					w.st.Report.Revision, w.st.Report.SHA256 = cur.revision(), cur.SHA256
					w.conceal(w.st.Report)
				}
			}
			w.marked().Error("the last good files could not be put back", "error", problem)
		}
		return outs, nil
	}
	if _, err := g.reload(ctx, ps, func(w *work, _ *plan) file { return *w.st.Prev }); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		for _, w := range g.ws {
			w.st.Report.Error += "; and after the last good files were put back, " + err.Error()
		}
	}
	return outs, g.answer(false)
}

// answer makes every journal done, with the verdict; the reports are made.
func (g *group) answer(stays bool) error {
	err := g.leaderLast(func(_ int, w *work) error {
		w.st.Prev, w.st.Changes, w.st.Stays = nil, false, stays
		return w.save(phaseDone)
	})
	if err != nil {
		return err
	}
	for _, w := range g.ws {
		w.tidy()
		if rep := w.st.Report; rep.Result == records.ResultFailed {
			w.marked().Error("failed", "revision", w.st.Desired.Revision, "error", rep.Error)
		} else {
			w.marked().Info(rep.Result, "revision", rep.Revision, "with", len(g.configs)-1)
		}
	}
	return nil
}

// runs runs one of the commands of the entries that are picked. Commands that
// are alike after their paths were put in run once, unless they read what they
// are run for from the environment. An error is about the work returned.
func (g *group) runs(ctx context.Context, what string, ps []*plan, pick func(*plan) bool) (*work, error) {
	ran := map[string]bool{}
	for i, w := range g.ws {
		if !pick(ps[i]) || ps[i].t == nil {
			continue
		}
		c := w.st.Desired.Reload
		if what == "healthy" {
			c = w.st.Desired.Healthy
		}
		if c == nil || len(c.Argv) == 0 {
			continue
		}
		argv := w.subst(ps[i].t).Replace(strings.Join(c.Argv, "\x00"))
		if ran[argv] {
			continue
		}
		ran[argv] = !strings.Contains(argv, "AIMLOCK_")
		if err := w.run(ctx, what, c, ps[i].t); err != nil {
			return w, err
		}
	}
	return nil, nil
}

// done answers that all files stand.
func (g *group) done(ps []*plan, changed bool) (outcomes, error) {
	outs := make(outcomes, len(g.ws))
	for i, w := range g.ws {
		w.st.Report = w.success(ps[i])
		outs[i] = outcome{Report: w.st.Report, Changed: changed && ps[i].changes}
	}
	return outs, g.answer(true)
}

// fail answers where no file was touched. ps may be nil or in part, where what
// stands is not known.
func (g *group) fail(ps []*plan, cause error) (outcomes, error) {
	outs := make(outcomes, len(g.ws))
	for i, w := range g.ws {
		stands := w.believed()
		if len(ps) > i && ps[i] != nil && ps[i].t != nil {
			stands = ps[i].prev
		}
		w.st.Report = w.failure(stands, cause)
		outs[i] = outcome{Report: w.st.Report}
	}
	return outs, g.answer(false)
}

// stay answers that all files were put in place, but are not well there.
func (g *group) stay(ps []*plan, cause error) (outcomes, error) {
	outs := make(outcomes, len(g.ws))
	for i, w := range g.ws {
		stands := w.believed()
		if ps[i].t != nil {
			stands = ps[i].want
		}
		w.st.Report = w.failure(stands, cause)
		outs[i] = outcome{Report: w.st.Report, Changed: ps[i].changes}
	}
	return outs, g.answer(true)
}

// standing is the state of the disk against a config's journal: swapped tells
// that the rename has happened.
func (w *work) swapped(p *plan) (bool, error) {
	cur, _, err := p.t.stat()
	return err == nil && cur.same(p.want) &&
		(!cur.Exists || !p.prev.same(p.want) || cur.UID == p.want.UID && cur.GID == p.want.GID), err
}

// openPrev opens what a staged journal is about; nil where it is about no file.
func (w *work) openPrev() (*plan, error) {
	p := &plan{prev: *w.st.Prev, changes: w.st.Changes}
	if err := w.again(p); err != nil && w.st.Changes {
		return nil, err
	}
	if w.st.Prev.Destination == "" {
		return p, nil
	}
	t, err := w.target(w.st.Prev.Destination, w.st.Changes)
	if errors.Is(err, fs.ErrNotExist) && !w.st.Changes {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	p.t = t
	t.unstage()
	return p, nil
}
