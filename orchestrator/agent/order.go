package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/plugin"
)

// plan is what the order at the mark comes to on this node.
type plan struct {
	t       *target
	prev    file // what stands now
	want    file // what shall stand
	result  string
	content []byte // of want, where it exists and is known already
	changes bool   // of a group: the file is not as wanted
}

// carryOut does the order at the mark, from the beginning.
func (w *work) carryOut(ctx context.Context, content source) (outcome, error) {
	warnShared(w)
	p, err := w.plan(w.st.Desired)
	if err == nil {
		err = w.checkFenced(ctx, w.st.Desired.Target)
	}
	if err != nil {
		closePlans([]*plan{p})
		if ctx.Err() != nil {
			return outcome{}, context.Cause(ctx)
		}
		return w.fail(file{}, err)
	}
	if p.t == nil {
		return w.done(p, false)
	}
	defer p.t.close()
	if err := w.reveal(ctx, p, content); err != nil {
		if retry := unanswered(ctx, err); retry != nil {
			return outcome{}, retry
		}
		return w.fail(p.prev, err)
	}
	if w.stands(p) {
		return w.done(p, false)
	}
	err = w.prepare(ctx, p, content)
	if err == nil {
		err = w.validate(ctx, p)
	}
	if err != nil {
		p.t.unstage()
		if retry := unanswered(ctx, err); retry != nil {
			return outcome{}, retry
		}
		return w.fail(p.prev, err)
	}
	if err := w.save(phaseStaged); err != nil {
		p.t.unstage()
		return outcome{}, err
	}
	if err := w.recheck(); err != nil {
		// Not ours any more: neither the file nor the journal is touched.
		p.t.unstage()
		return outcome{}, err
	}
	if err := w.swap(p); err != nil {
		return w.takeBack(ctx, p.t, err)
	}
	return w.verify(ctx, p)
}

// plan looks at what the entry asks for and at what there is.
func (w *work) plan(d *records.Desired) (*plan, error) {
	if err := checkFeatures(d); err != nil {
		return nil, err
	}
	if err := w.checkTarget(d); err != nil {
		return nil, err
	}
	switch d.Action {
	case "", records.ActionApply, records.ActionApplyWith:
		return w.planApply(d)
	case records.ActionRestore:
		return w.planRestore(d)
	}
	return nil, fmt.Errorf("action %q is not known to this agent: upgrade it", d.Action)
}

// stands reports whether there is nothing to do: the file is as wanted, and so
// its program has been told of it. Whether it does at a target is the target's to say.
func (w *work) stands(p *plan) bool {
	return w.st.Desired.Target == nil && p.prev.same(p.want) && ownerStands(w.st.Desired, p) && w.fresh
}

// ownerStands reports whether an owner that the entry names is in place.
func ownerStands(d *records.Desired, p *plan) bool {
	return (d.Owner == "" || p.prev.UID == p.want.UID) && (d.Group == "" || p.prev.GID == p.want.GID)
}

// planApply keeps what stands as the snapshot of the rollout, once.
func (w *work) planApply(d *records.Desired) (*plan, error) {
	if err := checkDesired(d); err != nil {
		return nil, err
	}
	t, err := w.target(d.Destination, true)
	if err != nil {
		return nil, err
	}
	p := &plan{t: t, result: records.ResultApplied}
	if err := w.look(p); err != nil {
		t.close()
		return nil, err
	}
	if p.want, err = wanted(d, p.prev); err != nil {
		t.close()
		return nil, err
	}
	if d.Rollout != "" && w.st.snapshot(d.Rollout) == nil && w.st.Recovered != d.Rollout {
		w.st.addSnapshot(d.Rollout, p.prev)
	}
	return p, nil
}

// planRestore finds what stood before the rollout. A node that the rollout
// never touched has nothing to do, and that is an answer too.
func (w *work) planRestore(d *records.Desired) (*plan, error) {
	p := &plan{result: records.ResultRolledBack}
	sn := w.st.snapshot(d.Rollout)
	switch {
	case sn == nil && w.st.Recovered != "" && w.st.Recovered == d.Rollout:
		return nil, fmt.Errorf("what stood before rollout %q is not known: the state of this node was lost since", d.Rollout)
	case sn == nil:
		return p, nil
	case sn.Gone:
		return nil, fmt.Errorf("what stood before rollout %q is no longer kept: newer rollouts came after it", d.Rollout)
	}
	t, err := w.target(sn.File.Destination, sn.File.Exists || d.Target != nil)
	if errors.Is(err, fs.ErrNotExist) && !sn.File.Exists {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	p.t, p.want = t, sn.File
	if sn.File.Exists {
		if p.content, err = w.blobs.get(sn.File.SHA256); err != nil {
			t.close()
			return nil, fmt.Errorf("what stood before rollout %q: %w", d.Rollout, err)
		}
	}
	if err := w.look(p); err != nil {
		t.close()
		return nil, err
	}
	return p, nil
}

// look reads what stands and keeps a durable copy of it.
func (w *work) look(p *plan) error {
	prev, content, err := p.t.stat()
	if err != nil {
		return err
	}
	p.prev = prev
	w.st.Prev = &prev
	if !prev.Exists {
		return nil
	}
	w.step("before copy")
	if err := w.blobs.put(prev.SHA256, content); err != nil {
		return fmt.Errorf("copy of the last good file: %w", err)
	}
	w.step("after copy")
	return nil
}

// prepare brings the content and stages it. With validate it is all that can
// fail before the file is touched.
func (w *work) prepare(ctx context.Context, p *plan, content source) error {
	if !p.want.Exists {
		return nil
	}
	d := w.st.Desired
	if p.content == nil {
		c, err := w.fetch(ctx, d, content)
		if err != nil {
			return err
		}
		p.content = c
	}
	w.step("before stage")
	if err := p.t.stage(p.content, p.want); err != nil {
		return err
	}
	w.step("after stage")
	return nil
}

// validate asks the program about a staged copy. What stood before a rollout
// is put back unasked.
func (w *work) validate(ctx context.Context, p *plan) error {
	if !p.want.Exists || p.result != records.ResultApplied {
		return nil
	}
	return w.run(ctx, "validate", w.st.Desired.Validate, p.t)
}

// fetch takes the content from a copy on this node, or from where it comes.
func (w *work) fetch(ctx context.Context, d *records.Desired, content source) ([]byte, error) {
	if c, err := w.blobs.get(d.SHA256); err == nil {
		return c, nil
	}
	c, err := content(ctx)
	if err != nil {
		return nil, err
	}
	if int64(len(c)) != d.Size {
		return nil, fmt.Errorf("content of revision %s has %d bytes, its entry says %d", d.Revision, len(c), d.Size)
	}
	if sum := sum256(c); sum != d.SHA256 {
		return nil, fmt.Errorf("content of revision %s has the SHA-256 %s, its entry says %s", d.Revision, sum, d.SHA256)
	}
	return c, nil
}

// swap puts the file in place, or takes it away.
func (w *work) swap(p *plan) error {
	w.step("before rename")
	var err error
	if p.want.Exists {
		err = p.t.install()
	} else {
		err = p.t.remove()
	}
	w.step("after rename")
	return err
}

// verify runs what comes after the rename.
func (w *work) verify(ctx context.Context, p *plan) (outcome, error) {
	d := w.st.Desired
	err := w.reload(ctx, p.t, p.want)
	if err == nil {
		err = w.run(ctx, "healthy", d.Healthy, p.t)
	}
	switch {
	case err == nil:
		return w.done(p, true)
	case ctx.Err() != nil:
		return outcome{}, err
	}
	if _, there := errors.AsType[*targetError](err); there {
		if stale, ok := errors.AsType[*plugin.StaleError](err); ok {
			return w.refusedThere(ctx, p.t, stale)
		}
		if p.result == records.ResultRolledBack {
			return w.stays(p, err)
		}
	}
	if p.result == records.ResultRolledBack {
		// What was put back is the last good file: there is no other.
		out, ferr := w.fail(p.want, fmt.Errorf("the file from before the rollout was put back, but %w", err))
		out.Changed = true
		return out, ferr
	}
	return w.takeBack(ctx, p.t, err)
}

// stays answers a restore that the target did not carry out: the copy becomes again
// what stands there. A crash before the answer has the order carried out again.
func (w *work) stays(p *plan, cause error) (outcome, error) {
	if err := w.restore(p.t, p.prev); err != nil {
		cause = fmt.Errorf("%w; and its copy in the state folder could not be put back: %w", cause, err)
	}
	return w.fail(p.prev, cause)
}

// takeBack puts back what stood before the order at the mark. The journal
// keeps saying failing until it is done, so that a crash does not stop it.
func (w *work) takeBack(ctx context.Context, t *target, cause error) (outcome, error) {
	prev := *w.st.Prev
	w.st.Report = w.failure(prev, cause)
	if err := w.save(phaseFailing); err != nil {
		return outcome{}, err
	}
	return w.putBack(ctx, t, prev)
}

func (w *work) putBack(ctx context.Context, t *target, prev file) (outcome, error) {
	if err := w.recheck(); err != nil {
		return outcome{}, err
	}
	rep := w.st.Report
	if err := w.restore(t, prev); err != nil {
		// The report must not wait for a disk that may never be mended; the
		// journal stays, so that a restart tries again.
		rep.Error += "; and the last good file could not be put back: " + err.Error()
		if cur, _, err := t.stat(); err == nil {
			rep.Revision, rep.SHA256 = cur.revision(), cur.SHA256
			w.conceal(rep)
		}
		w.marked().Error("the last good file could not be put back", "error", err)
		return outcome{Report: rep, Changed: true}, nil
	}
	if err := w.reloadBack(ctx, t, prev); err != nil {
		if ctx.Err() != nil {
			return outcome{}, err
		}
		if _, there := errors.AsType[*targetError](err); there && w.handed {
			rep.Revision, rep.SHA256 = w.st.Desired.Revision, w.st.Desired.SHA256
		}
		rep.Error += "; and after the last good file was put back, " + err.Error()
	}
	if err := w.save(phaseDone); err != nil {
		return outcome{}, err
	}
	w.tidy()
	w.marked().Error("failed", "revision", w.st.Desired.Revision, "error", rep.Error)
	return outcome{Report: rep, Changed: true}, nil
}

// reloadBack tells of the last good file. Of an order that the target refused there
// is nothing to tell.
func (w *work) reloadBack(ctx context.Context, t *target, prev file) error {
	if w.st.Report.Result == records.ResultRefused {
		return nil
	}
	return w.reload(ctx, t, prev)
}

func (w *work) restore(t *target, prev file) error {
	cur, _, err := t.stat()
	if err != nil {
		return err
	}
	if cur.same(prev) && cur.UID == prev.UID && cur.GID == prev.GID {
		return t.sync()
	}
	if !prev.Exists {
		w.step("before restore")
		return t.remove()
	}
	content, err := w.blobs.get(prev.SHA256)
	if err != nil {
		return err
	}
	if err := t.stage(content, prev); err != nil {
		return err
	}
	w.step("before restore")
	err = t.install()
	w.step("after restore")
	return err
}

// resume goes on where a crash or a stop ended the order at the mark.
func (w *work) resume(ctx context.Context) (outcome, error) {
	t, err := w.target(w.st.Prev.Destination, true)
	if err != nil {
		return w.fail(*w.st.Prev, err)
	}
	defer t.close()
	t.unstage()
	cur, _, err := t.stat()
	if err != nil {
		return w.fail(*w.st.Prev, err)
	}
	if w.st.Phase == phaseFailing {
		return w.putBack(ctx, t, *w.st.Prev)
	}
	p := &plan{t: t, prev: *w.st.Prev}
	if err := w.again(p); err != nil {
		return w.fail(cur, err)
	}
	if cur.same(p.want) {
		return w.verify(ctx, p)
	}
	// The rename did not happen: the order waits for its entry again.
	if err := w.save(phaseAccepted); err != nil {
		return outcome{}, err
	}
	return outcome{}, errNotStaged
}

// again tells what the order at the mark, which is staged, asks for.
func (w *work) again(p *plan) (err error) {
	d := w.st.Desired
	if d.Action != records.ActionRestore {
		p.result = records.ResultApplied
		p.want, err = wanted(d, p.prev)
		w.unveil(&p.want)
		return err
	}
	p.result = records.ResultRolledBack
	sn := w.st.snapshot(d.Rollout)
	if sn == nil {
		return fmt.Errorf("what stood before rollout %q is not known", d.Rollout)
	}
	p.want = sn.File
	return nil
}

// errNotStaged: an unfinished order of which the disk shows nothing.
var errNotStaged = errors.New("nothing of the order stands on disk: it is carried out again")

// done answers the order at the mark.
func (w *work) done(p *plan, changed bool) (outcome, error) {
	w.st.Report, w.st.Prev = w.success(p), nil
	if err := w.save(phaseDone); err != nil {
		return outcome{}, err
	}
	w.tidy()
	w.marked().Info(w.st.Report.Result, "revision", w.st.Report.Revision, "changed", changed)
	return outcome{Report: w.st.Report, Changed: changed}, nil
}

// success is the answer where the file stands as wanted.
func (w *work) success(p *plan) *records.Actual {
	d := w.st.Desired
	rep := w.report(p.result, d.Rollout, "", "")
	switch {
	case p.t != nil:
		rep.Revision, rep.SHA256 = p.want.revision(), p.want.SHA256
		if w.st.Managed = nil; p.want.Exists {
			left := p.want
			left.Destination = p.t.destination
			if d.Target != nil {
				left.Via = d.Target.Name
			}
			w.st.Managed = &left
		}
		if p.result == records.ResultApplied {
			rep.Revision = d.Revision
		}
	case w.st.Report != nil:
		rep.Revision, rep.SHA256 = w.st.Report.Revision, w.st.Report.SHA256
	}
	if sn := w.st.snapshot(d.Rollout); sn != nil {
		rep.Previous = sn.File.revision()
	}
	return rep
}

func (w *work) failure(stands file, cause error) *records.Actual {
	d := w.st.Desired
	var output string
	if ce, ok := errors.AsType[*commandError](cause); ok {
		output = ce.Output
	}
	rep := w.report(records.ResultFailed, d.Rollout, cause.Error(), output)
	rep.Revision, rep.SHA256 = stands.revision(), stands.SHA256
	if sn := w.st.snapshot(d.Rollout); sn != nil {
		rep.Previous = sn.File.revision()
	}
	return rep
}

// fail answers the order at the mark where stands is still what stood.
func (w *work) fail(stands file, cause error) (outcome, error) {
	if stands == (file{}) {
		stands = w.believed()
	}
	w.st.Report, w.st.Prev = w.failure(stands, cause), nil
	if err := w.save(phaseDone); err != nil {
		return outcome{}, err
	}
	w.tidy()
	w.marked().Error("failed", "revision", w.st.Desired.Revision, "error", cause)
	return outcome{Report: w.st.Report}, nil
}

// believed is what stands as far as the last answer tells.
func (w *work) believed() file {
	if rep := w.st.Report; rep != nil && isSHA256(rep.SHA256) {
		return file{Exists: true, SHA256: rep.SHA256}
	}
	return file{}
}

// tidy drops the copies that nothing refers to any more.
func (w *work) tidy() { w.blobs.sweep(w.st.blobs()) }

// unanswered returns the error that a try is to end with, if the order cannot
// be answered now: the agent stops, or Consul cannot be had.
func unanswered(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*consulkv.Error](err); ok && (e.Temporary() || e.Kind == consulkv.NotConsul) {
		return err
	}
	return nil
}
