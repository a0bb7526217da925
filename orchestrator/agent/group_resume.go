package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/aim-control/aimlock/internal/records"
)

// resume goes on where a crash or a stop ended the orders of d's group, of
// which all locks are held. What it answers stands in the works' reports; the
// error is errNotStaged where the orders wait for their entries again.
//
// A config that has a newer mark was overtaken: it is nobody's business here
// any more. One that has an older mark, or none, had not accepted the order.
func (g *group) resume(ctx context.Context, d *records.Desired) error {
	g.meet()
	live := &group{fence: g.fence, configs: g.configs}
	var verdict *work
	allStaged, touched := true, false
	for _, w := range g.ws {
		switch {
		case d.Order.Less(w.st.Mark):
		case w.st.Mark != d.Order || w.st.Desired == nil || !sameGroup(w.st.Desired, d):
			allStaged = false
		case w.st.Phase == phaseDone:
			verdict = w
		default:
			if w.st.Phase == phaseFailing && verdict == nil {
				verdict = w
			}
			allStaged = allStaged && w.st.Phase == phaseStaged
			touched = touched || w.st.Phase != phaseAccepted
			live.ws = append(live.ws, w)
		}
	}
	switch {
	case len(live.ws) == 0:
		return nil
	case verdict == nil && !touched:
		for _, w := range live.ws {
			w.clear()
		}
		return errNotStaged
	}
	if verdict != nil && verdict.st.Phase == phaseDone && verdict.st.Stays {
		return live.commit(verdict.st.Report)
	}
	ps := make([]*plan, len(live.ws))
	defer closePlans(ps)
	var lost error
	for i, w := range live.ws {
		if ps[i] = (&plan{}); w.st.Phase == phaseAccepted {
			w.clear()
			continue
		}
		p, err := w.openPrev()
		if err != nil {
			p = &plan{changes: w.st.Changes}
			lost = errors.Join(lost, g.because(w, err))
		}
		ps[i] = p
	}
	switch {
	case verdict != nil:
		return live.back(ctx, ps, verdict.st.Report)
	case lost != nil && allStaged:
		_, err := live.takeBack(ctx, ps, lost)
		return err
	case lost != nil:
		return lost
	}
	swapped, all, err := live.look(ps)
	if err != nil {
		return err
	}
	if all && allStaged {
		_, err := live.verify(ctx, ps)
		return err
	}
	return live.undo(ctx, ps, swapped)
}

// clear removes the staged copy of an order that is accepted and no more.
func (w *work) clear() {
	places := []string{w.st.Desired.Destination}
	if sn := w.st.snapshot(w.st.Desired.Rollout); sn != nil {
		places = append(places, sn.File.Destination)
	}
	for _, dest := range places {
		if t, err := w.target(dest, false); err == nil {
			t.unstage()
			t.close()
		}
	}
}

// look tells which of the files are the new ones already.
func (g *group) look(ps []*plan) (swapped []bool, all bool, err error) {
	swapped, all = make([]bool, len(ps)), true
	for i, w := range g.ws {
		if !ps[i].changes {
			continue
		}
		if swapped[i], err = w.swapped(ps[i]); err != nil {
			return nil, false, g.because(w, err)
		}
		all = all && swapped[i]
	}
	return swapped, all, nil
}

// commit ends those that are left of a group whose files stay.
func (g *group) commit(verdict *records.Actual) error {
	for _, w := range g.ws {
		open := w.openPrev
		if w.st.Prev == nil {
			open = func() (*plan, error) { return w.plan(w.st.Desired) }
		}
		p, err := open()
		if err != nil {
			return g.because(w, err)
		}
		if verdict.Result == records.ResultFailed {
			stands := w.believed()
			if p.t != nil {
				stands = p.want
			}
			w.st.Report = w.failure(stands, errors.New(verdict.Error))
			w.st.Report.Output = verdict.Output
		} else {
			w.st.Report = w.success(p)
		}
		closePlans([]*plan{p})
	}
	return g.answer(true)
}

// back ends those that are left of a group that failed.
func (g *group) back(ctx context.Context, ps []*plan, verdict *records.Actual) error {
	for _, w := range g.ws {
		stands := w.believed()
		if w.st.Prev != nil {
			stands = *w.st.Prev
		}
		w.st.Report = w.failure(stands, errors.New(verdict.Error))
		w.st.Report.Output = verdict.Output
	}
	_, err := g.putBack(ctx, ps)
	return err
}

// undo makes all files the old ones again: some were renamed, and what the
// others were to be is no longer there. No program was told of them, but one
// that started by itself since may have read them, so reload runs. The orders
// wait for their entries again.
func (g *group) undo(ctx context.Context, ps []*plan, swapped []bool) error {
	put := false
	for i, w := range g.ws {
		if ps[i].t != nil {
			ps[i].t.unstage()
		}
		if !ps[i].changes || !swapped[i] {
			ps[i].changes = false
			continue
		}
		put = true
		if err := w.recheck(); err != nil {
			return err
		}
		if err := w.restore(ps[i].t, *w.st.Prev); err != nil {
			return g.because(w, fmt.Errorf("the last good file could not be put back: %w", err))
		}
	}
	if put {
		if w, err := g.reload(ctx, ps, func(w *work, _ *plan) file { return *w.st.Prev }); err != nil {
			if ctx.Err() != nil {
				return err
			}
			g.log.Warn("reload after files of an interrupted order were put back", "config", w.config, "error", err)
		}
	}
	for _, w := range g.ws {
		w.fresh = !w.st.Changes
		w.st.Prev, w.st.Changes = nil, false
		if err := w.save(phaseAccepted); err != nil {
			return err
		}
	}
	return errNotStaged
}
