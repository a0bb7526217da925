package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/plugin"
)

// Drift is what stands at a destination where the last order left something
// else: a person or a program has changed, replaced or removed the file. It is
// reported, and by the entry's choice the file is left or put back; see
// drift_watch.go for when it is looked for.
//
// What is compared with is the file as the last order that went well left it
// (state.Managed). An order that failed put back what it found, so that it
// changes nothing about what drift is.
//
// Invariant: a file is only put back under its config's lock, while the order at
// the mark is the one that left it and is answered, by the same steps as an
// order: staged, validated, checked against the mark, renamed, reloaded, found
// healthy. What fails is taken back to what was found. The answer to the order
// stays what it was.

// driftOf tells how what stands differs from what the last order left. what is
// empty where it does not, or where nothing was left. stands is zero where no
// file stands, or what does is none.
func (w *work) driftOf() (what string, stands file, err error) {
	m := w.st.Managed
	switch {
	case m == nil:
		return "", file{}, nil
	case m.Via != "":
		what, stands = w.driftThere()
		return what, stands, nil
	}
	t, err := w.target(m.Destination, false)
	if errors.Is(err, fs.ErrNotExist) {
		return "removed, with its folder", file{}, nil
	}
	if err != nil {
		return "", file{}, err
	}
	defer t.close()
	if fi, err := t.dir.Lstat(t.base); err == nil && !fi.Mode().IsRegular() {
		return "replaced by what is no regular file", file{}, nil
	}
	cur, _, err := t.stat()
	d := w.st.Desired
	switch {
	case err != nil:
		return "", file{}, err
	case !cur.Exists:
		return "removed", file{}, nil
	case cur.SHA256 != m.SHA256:
		return "its content was changed", cur, nil
	case cur.Mode != m.Mode:
		return fmt.Sprintf("its mode is %04o in place of %04o", cur.Mode, m.Mode), cur, nil
	case d != nil && (d.Owner != "" && cur.UID != m.UID || d.Group != "" && cur.GID != m.GID):
		return fmt.Sprintf("its owner is %d:%d in place of %d:%d", cur.UID, cur.GID, m.UID, m.GID), cur, nil
	}
	return "", cur, nil
}

// drifted is what became of one look.
type drifted struct {
	// rep is the report to bring; nil: there is nothing new.
	rep *records.Actual
	// is: the file drifts now. may: it is to be put back, and can be.
	is, may bool
	// stands is what was looked at; there is what a target told of it.
	stands file
	there  *plugin.State
}

// lookForDrift compares and writes down what it found. An order under way is not
// waited for: its end is looked at.
func (f *fence) lookForDrift(ctx context.Context, config string) (drifted, error) {
	quick := *f
	quick.lockWait = minLockWait
	h, err := quick.hold(ctx, config)
	if err != nil {
		return drifted{}, err
	}
	defer h.close()
	return h.by[config].noteDrift("")
}

// noteDrift looks, and saves what is new. failed is why the file could not be put
// back, or is not any more.
func (w *work) noteDrift(failed string) (drifted, error) {
	if w.st.Phase != phaseDone || w.st.Report == nil || w.st.Managed == nil || w.st.Managed.Via != "" && w.there == nil {
		return drifted{}, nil
	}
	what, stands, err := w.driftOf()
	if err != nil {
		return drifted{}, err
	}
	out := drifted{is: what != "", stands: stands}
	old := w.st.Report.Drift
	var now *records.Drift
	if out.is {
		now = &records.Drift{Since: w.now().UTC().Truncate(time.Second), What: what, Error: failed}
		if stands.Exists && w.mayTell() {
			now.SHA256 = stands.SHA256
		}
		if old != nil {
			now.Since = old.Since
			if failed == "" && old.What == now.What && old.SHA256 == now.SHA256 {
				now.Error = old.Error
			}
		}
		d := w.st.Desired
		out.may = d != nil && d.Drift == records.DriftRestore && w.answeredWell()
	}
	if (old == nil) == (now == nil) && (old == nil || *old == *now) {
		return out, nil
	}
	rep := *w.st.Report
	rep.Drift = now
	w.st.Report, out.rep = &rep, &rep
	if err := w.save(phaseDone); err != nil {
		return drifted{}, err
	}
	if now == nil {
		w.log.Info("the file stands as it was left again", "config", w.config)
	} else if old == nil || old.What != now.What || old.SHA256 != now.SHA256 {
		w.log.Warn("the file was changed by somebody else", "config", w.config, "destination", w.st.Managed.Destination, "what", what)
	}
	return out, nil
}

// giveUp writes down why a file is not put back any more. there is what stands at its
// target, if it has one.
func (f *fence) giveUp(ctx context.Context, config, why string, there *plugin.State) (*records.Actual, error) {
	h, err := f.hold(ctx, config)
	if err != nil {
		return nil, err
	}
	defer h.close()
	w := h.by[config]
	w.there = there
	found, err := w.noteDrift(why)
	return found.rep, err
}

// answeredWell: what stands was left by the order at the mark.
func (w *work) answeredWell() bool {
	r := w.st.Report
	return r.Result == records.ResultApplied || r.Result == records.ResultRolledBack
}

// mayTell reports whether the SHA-256 of what stands may leave the node: of a
// file with a short password in it, it lets anybody try passwords.
func (w *work) mayTell() bool { return !w.st.secretive() }

// putBackDrifted carries the order at the mark out again, with those that belong
// with it. It returns the reports to bring. The error is about a try that came to
// nothing for now; what failed for good stands in the report. there is as in giveUp.
func (f *fence) putBackDrifted(ctx context.Context, config string, there *plugin.State, content func(config string, d *records.Desired) source) (map[string]*records.Actual, error) {
	configs := []string{config}
	if st := f.peek(config); st != nil && together(st.Desired) {
		configs = slices.Clone(st.Desired.Configs)
	}
	h, err := f.hold(ctx, configs...)
	if err != nil {
		return nil, err
	}
	defer h.close()
	w := h.by[config]
	w.there = there
	for _, c := range configs {
		if !h.by[c].restorable(w, len(configs) > 1) {
			return nil, nil
		}
	}
	what, _, err := w.driftOf()
	if err != nil || what == "" || w.st.Desired.Drift != records.DriftRestore {
		return nil, err
	}
	// The others' orders are carried out with it: none may undo what is to be left.
	for _, c := range configs {
		other := h.by[c]
		if other.st.Desired.Drift == records.DriftRestore {
			continue
		}
		changed, _, err := other.driftOf()
		if err != nil {
			return nil, err
		}
		if changed == "" {
			continue
		}
		why := fmt.Errorf("%s, which is applied together with it, was changed too and is to be left as it is", c)
		found, err := w.noteDrift(why.Error())
		return map[string]*records.Actual{config: found.rep}, errors.Join(why, err)
	}
	if len(configs) > 1 {
		return h.group(configs).putBackDrifted(ctx, w, what, content)
	}
	last := w.st.Report
	w.st.Prev, w.fresh = nil, false
	out, err := w.carryOut(ctx, content(config, w.st.Desired))
	if err != nil {
		return nil, err
	}
	if err := w.againAnswered(last, what, out.Report); err != nil {
		return nil, err
	}
	return map[string]*records.Actual{config: w.st.Report}, nil
}

// restorable reports whether the order at the mark may be carried out again for a
// file of it, or of w's.
func (w *work) restorable(of *work, group bool) bool {
	d := w.st.Desired
	if w.st.Phase != phaseDone || d == nil || w.st.Report == nil || !w.answeredWell() || together(d) != group {
		return false
	}
	return !group || w.st.Stays && sameGroup(d, of.st.Desired)
}

// putBackDrifted carries out the orders of all configs that belong together:
// files that stand are not touched.
func (g *group) putBackDrifted(ctx context.Context, drifted *work, what string, content func(string, *records.Desired) source) (map[string]*records.Actual, error) {
	ds, contents, lasts := make([]*records.Desired, len(g.ws)), make([]source, len(g.ws)), make([]*records.Actual, len(g.ws))
	for i, w := range g.ws {
		ds[i], lasts[i] = w.st.Desired, w.st.Report
		contents[i] = content(w.config, ds[i])
	}
	// As for any order of theirs: a journal that is done is a verdict on all.
	if err := g.accept(ds, g.ws); err != nil {
		return nil, err
	}
	outs, err := g.carryOut(ctx, contents)
	if err != nil {
		if !slices.ContainsFunc(g.ws, func(w *work) bool { return w.st.Phase != phaseAccepted }) {
			// Nothing was touched: the answers stand.
			for i, w := range g.ws {
				w.st.Report = lasts[i]
			}
			err = errors.Join(err, g.answer(true))
		}
		return nil, err
	}
	reps := map[string]*records.Actual{}
	err = g.leaderLast(func(i int, w *work) error {
		cause := ""
		if w == drifted {
			cause = what
		}
		if err := w.againAnswered(lasts[i], cause, outs[i].Report); err != nil {
			return err
		}
		reps[w.config] = w.st.Report
		return nil
	})
	return reps, err
}

// againAnswered leaves the answer to the order what it was before files were put
// back. what says how this one differed; empty: it did not.
func (w *work) againAnswered(last *records.Actual, what string, now *records.Actual) error {
	rep, at := *last, w.now().UTC().Truncate(time.Second)
	switch {
	case what == "":
	case now.Result == last.Result:
		n := records.Restored{Times: 1, Last: at, What: what}
		if last.Restored != nil {
			n.Times += last.Restored.Times
		}
		rep.Restored, rep.Drift = &n, nil
		w.log.Warn("the file was put back as its order left it", "config", w.config, "what", what, "times", n.Times)
	default:
		d := records.Drift{Since: at, What: what}
		if last.Drift != nil {
			d = *last.Drift
		}
		d.Error = "it could not be put back: " + now.Error
		rep.Drift = &d
	}
	w.st.Report, w.st.Stays = &rep, together(w.st.Desired)
	return w.save(phaseDone)
}
