package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
)

func checkName(config string) error { return keys.CheckName("config", config) }

// held are configs under their locks: those asked for, and those of every
// group that one of them has to be settled with.
type held struct {
	*fence
	by map[string]*work
}

func (h *held) close() {
	for _, w := range h.by {
		w.close()
	}
}

// maxHold bounds how often the set of locks is made anew because a group has
// changed meanwhile.
const maxHold = 20

// hold locks the configs, and the rest of each group that is unfinished and has
// one of them: what stands of a group is settled as a whole. All locks are taken
// in the order of the names, so that no two wait for each other.
func (f *fence) hold(ctx context.Context, configs ...string) (*held, error) {
	deadline := time.Now().Add(f.lockWait)
	for range maxHold {
		h := &held{fence: f, by: map[string]*work{}}
		for _, c := range f.closure(configs, f.peek) {
			w, err := f.open(ctx, c, time.Until(deadline), slices.Contains(configs, c))
			if err != nil {
				h.close()
				return nil, err
			}
			h.by[c] = w
		}
		whole := true
		for _, c := range f.closure(configs, h.state) {
			whole = whole && h.by[c] != nil
		}
		if whole {
			return h, nil
		}
		h.close()
	}
	return nil, fmt.Errorf("%s: others keep changing what has to be settled with it", strings.Join(configs, ", "))
}

// state is a config's state, which may only be relied on where it is held; but
// a group that was finished stays so.
func (h *held) state(config string) *state {
	if w := h.by[config]; w != nil {
		return w.st
	}
	return h.peek(config)
}

// peek reads a state without its lock; nil where there is none to be read.
func (f *fence) peek(config string) *state {
	st, err := loadState(configDir(f.stateDir, config), config)
	if err != nil {
		return nil
	}
	return st
}

// closure is the configs and all that have to be settled with them, sorted.
func (f *fence) closure(configs []string, load func(string) *state) []string {
	all := slices.Clone(configs)
	for i := 0; i < len(all); i++ {
		st := load(all[i])
		if st == nil || !together(st.Desired) || finished(st, load) {
			continue
		}
		for _, c := range st.Desired.Configs {
			if !slices.Contains(all, c) {
				all = append(all, c)
			}
		}
	}
	slices.Sort(all)
	return all
}

// finished reports whether all configs of the group of st's order are done:
// its own journal and that of the leader, which is the last, tell.
func finished(st *state, load func(string) *state) bool {
	if st.Phase != phaseDone {
		return false
	}
	l := leader(st.Desired.Configs)
	if l == st.Config {
		return true
	}
	ls := load(l)
	return ls != nil && (st.Mark.Less(ls.Mark) || ls.Mark == st.Mark && ls.Phase == phaseDone)
}

// group makes the group of configs that are all held.
func (h *held) group(configs []string) *group {
	g := &group{fence: h.fence, configs: configs}
	for _, c := range configs {
		g.ws = append(g.ws, h.by[c])
	}
	return g
}

// unfinished reports whether something of the order at a config's mark is to be
// settled before a newer one.
func (h *held) unfinished(w *work) bool {
	if together(w.st.Desired) {
		return !finished(w.st, h.state)
	}
	return w.st.Phase == phaseStaged || w.st.Phase == phaseFailing
}

// settle ends what is unfinished of a config's order, with the whole group.
func (h *held) settle(ctx context.Context, w *work) error {
	if !together(w.st.Desired) {
		return w.settle(ctx)
	}
	d := *w.st.Desired
	before := map[string]*records.Actual{}
	for _, c := range d.Configs {
		if h.by[c] == nil {
			return fmt.Errorf("the state of %s was taken away meanwhile", leader(d.Configs))
		}
		before[c] = h.by[c].st.Report
	}
	err := h.group(d.Configs).resume(ctx, &d)
	for _, c := range d.Configs {
		m := h.by[c]
		m.fresh = m.fresh || m.st.Phase == phaseDone
		if rep := m.st.Report; rep != before[c] && rep != nil && h.settled != nil {
			h.settled(c, rep)
		}
	}
	return err
}

// applyGroup brings the node to entries that belong together, or refuses all of
// them. As with apply, an error means that there is no answer yet. ds and
// contents are in the order of configs.
func (f *fence) applyGroup(ctx context.Context, configs []string, ds []*records.Desired, contents []source) (outcomes, error) {
	h, err := f.hold(ctx, configs...)
	if err != nil {
		return nil, err
	}
	defer h.close()
	g, o := h.group(configs), ds[0].Order

	resumed := false
	for _, w := range g.ws {
		if !h.unfinished(w) {
			continue
		}
		same := w.st.Mark == o
		err := h.settle(ctx, w)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == nil:
			resumed = resumed || same
		case errors.Is(err, errNotStaged):
		case same:
			return nil, err
		default:
			w.marked().Warn("an unfinished order could not be ended", "error", err)
		}
	}
	for i, w := range g.ws {
		if o.Less(w.st.Mark) || w.behind(ds[i]) != nil {
			return g.refuse(ds, i)
		}
	}
	var answered, open []*work
	var verdict *records.Actual
	for i, w := range g.ws {
		if w.st.Mark != o || w.st.Phase == phaseAccepted {
			open = append(open, w)
			continue
		}
		answered = append(answered, w)
		if !w.st.Stays || w.st.Report == nil || w.st.Desired == nil || !sameGroup(w.st.Desired, ds[i]) || w.st.Report.Result == records.ResultFailed {
			verdict = w.st.Report
		}
	}
	if len(open) == 0 {
		outs := make(outcomes, len(g.ws))
		for i, w := range g.ws {
			if outs[i].Standing = w.st.Report; resumed {
				outs[i] = outcome{Report: w.st.Report}
			}
		}
		return outs, nil
	}
	if len(answered) > 0 && verdict != nil {
		return g.join(ds, open, verdict)
	}
	if err := g.accept(ds, g.ws); err != nil {
		return nil, err
	}
	ctx, span := g.ws[0].applying(ctx, g.ws[0].st.Desired)
	span.Strs(tracing.Configs, g.configs)
	outs, err := g.carryOut(ctx, contents)
	var answer *records.Actual
	if len(outs) > 0 {
		answer = outs[0].Report
	}
	endApply(span, answer, err)
	return outs, err
}

// accept makes the entries' order the mark of each config.
func (g *group) accept(ds []*records.Desired, ws []*work) error {
	for i, w := range g.ws {
		if slices.Contains(ws, w) {
			if err := w.accept(ds[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// join ends configs of a group of which others have answered the order before,
// and not by files that stay: their states were lost, or somebody gave them the
// order without these.
func (g *group) join(ds []*records.Desired, open []*work, verdict *records.Actual) (outcomes, error) {
	cause := verdict.Error
	if verdict.Result != records.ResultFailed {
		cause = fmt.Sprintf("%s has answered this order before, without the configs that belong with it: nothing is applied", verdict.Config)
	}
	if err := g.accept(ds, open); err != nil {
		return nil, err
	}
	rest := &group{fence: g.fence, configs: g.configs, ws: open}
	if _, err := rest.fail(nil, errors.New(cause)); err != nil {
		return nil, err
	}
	outs := make(outcomes, len(g.ws))
	for i, w := range g.ws {
		if outs[i].Standing = w.st.Report; slices.Contains(open, w) {
			outs[i] = outcome{Report: w.st.Report}
		}
	}
	return outs, nil
}

// refuse answers a group's entries of which one, that of config at, is older than
// its mark or was given in ignorance of it: none is taken.
func (g *group) refuse(ds []*records.Desired, at int) (outcomes, error) {
	newer := g.ws[at]
	outs := make(outcomes, len(g.ws))
	for i, w := range g.ws {
		lost := w.behind(ds[i])
		if w.st.Mark == ds[i].Order && w.st.Phase == phaseDone && lost == nil {
			outs[i] = outcome{Standing: w.st.Report}
			continue
		}
		older := &OlderError{Config: w.config, Order: ds[i].Order, Highest: w.st.Mark}
		if !ds[i].Less(w.st.Mark) {
			if older = lost; older == nil {
				older = newer.behind(ds[at])
			}
			if older == nil {
				older = &OlderError{Config: newer.config, Order: ds[i].Order, Highest: newer.st.Mark}
			}
		}
		out, err := w.refuse(ds[i], older)
		if err != nil {
			return nil, err
		}
		outs[i] = out
	}
	return outs, nil
}

// wait remembers why an entry of a group is not carried out yet. Nothing of it
// is taken: neither the mark nor a file changes.
func (f *fence) wait(ctx context.Context, config string, d *records.Desired, why string) (outcome, error) {
	h, err := f.hold(ctx, config)
	if err != nil {
		return outcome{}, err
	}
	defer h.close()
	w := h.by[config]
	switch c := d.Compare(w.st.Mark); {
	case c < 0:
		return w.refuse(d, &OlderError{Config: config, Order: d.Order, Highest: w.st.Mark})
	case c == 0 && w.behind(d) != nil:
		return w.refuse(d, w.behind(d))
	case c == 0 && w.st.Phase == phaseDone:
		return outcome{Standing: w.st.Report}, nil
	}
	rep := &records.Actual{Version: records.Version, Node: f.node, Config: config, Order: w.st.Mark, Agent: f.agent, Instance: f.instance}
	if w.st.Report != nil {
		last := *w.st.Report
		rep = &last
	}
	rep.Waiting, rep.Time = fmt.Sprintf("order %s waits: %s", d.Order, why), f.now().UTC()
	if last := w.st.Waiting; last != nil && last.Order == d.Order && last.Why == why {
		return outcome{Standing: rep}, nil
	}
	w.st.Waiting = &waiting{Order: d.Order, Why: why}
	if err := w.save(w.st.Phase); err != nil {
		return outcome{}, err
	}
	w.about(d.Order, d.Rollout).Warn("an entry waits for those that belong with it", "why", why)
	return outcome{Report: rep}, nil
}
