package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/plugin"
)

// An entry with a target is about a machine that runs no agent, such as a router:
// the plugin that the target names writes there. All that an agent does for an
// entry is done here first, on a copy in the state folder that stands for the file
// there: the fence, the validation, the last good copy. The plugin is called where
// the file of another entry has just been renamed into place, and before reload,
// with the same order: what fails there is taken back here and there.
//
// Invariant: the copy is what the target was given last, as far as it has answered.
// It is never a reason to leave the target alone: each order is handed over, since
// only the target knows what stands there.

// Targets calls the plugins that entries name. Package plugin/host has them.
type Targets interface {
	// Known tells why there is no such plugin here, without starting it.
	Known(name string) error
	// Fenced tells whether the plugin itself refuses older orders.
	Fenced(ctx context.Context, name string) (bool, error)
	// Apply writes, and Restore brings back what stood before a rollout. An order that
	// is older than what the target has seen is a *plugin.StaleError.
	Apply(ctx context.Context, name string, config json.RawMessage, r *plugin.ApplyRequest) (*plugin.Applied, error)
	Restore(ctx context.Context, name string, config json.RawMessage, r *plugin.RestoreRequest) (*plugin.Applied, error)
	// Read tells what stands there.
	Read(ctx context.Context, name string, config json.RawMessage, r *plugin.ReadRequest) (*plugin.State, error)
}

// maxTargetWords bounds what of a plugin's error is told.
const maxTargetWords = 2 << 10

// targetError is what a target answered.
type targetError struct {
	name, words string
	err         error
}

func (e *targetError) Error() string { return fmt.Sprintf("target %s: %s", e.name, e.words) }

func (e *targetError) Unwrap() error { return e.err }

// keepsNothing: the target cannot bring back what this agent has not given it.
func keepsNothing(err error) bool {
	return errors.Is(err, plugin.ErrNotFound) || errors.Is(err, plugin.ErrUnsupported)
}

// checkTarget refuses an entry whose target cannot be used here.
func (f *fence) checkTarget(d *records.Desired) error {
	t := d.Target
	switch {
	case t == nil:
		return nil
	case together(d):
		return errors.New("the entry has a target and belongs together with others: what stands on several machines cannot be applied all or none")
	case keys.CheckName("target", t.Name) != nil:
		return keys.CheckName("target", t.Name)
	case f.targets == nil:
		return fmt.Errorf("the entry's target is plugin %q, and this agent runs no plugins: name it in a block plugin %q of the agent's -config", t.Name, t.Name)
	}
	if err := f.targets.Known(t.Name); err != nil {
		return fmt.Errorf("the entry's target is plugin %q, which this agent cannot run: %w; the agent reads -config when it starts", t.Name, err)
	}
	return nil
}

// checkFenced refuses a target that is less than its entry counts on.
func (f *fence) checkFenced(ctx context.Context, t *records.Target) error {
	if t == nil || !t.Fenced {
		return nil
	}
	switch fenced, err := f.targets.Fenced(ctx, t.Name); {
	case err != nil:
		return fmt.Errorf("whether the entry's target, plugin %q, is fenced on this agent is not known: %w", t.Name, err)
	case !fenced:
		return fmt.Errorf("the entry counts on a target that is fenced, and plugin %q of this agent is not, as that of the rollout is: give both the same plugin", t.Name)
	}
	return nil
}

// copies is where the copies of what a target was given stand; each target has its
// own, since what one was given says nothing of another.
func (w *work) copies(t *records.Target) (string, error) {
	dir := filepath.Join(w.dir, "target", sum256([]byte(t.Name))[:16])
	return dir, folder(dir)
}

// placeOf is where the target of an entry writes.
func (f *fence) placeOf(config string, d *records.Desired, destination string) plugin.Place {
	return plugin.Place{Node: f.node, Meta: d.Target.Meta, Config: config, Destination: destination}
}

// push tells the target of the order at the mark that f shall stand, of which t is
// the copy. Its errors are *targetError, or of this machine.
func (w *work) push(ctx context.Context, t *target, f file) error {
	d := w.st.Desired
	if d.Target == nil {
		return nil
	}
	if w.targets == nil {
		return w.checkTarget(d)
	}
	// The agent may have been started anew, with another plugin, since it was accepted.
	if err := w.checkFenced(ctx, d.Target); err != nil {
		return err
	}
	if err := w.recheck(); err != nil {
		return err
	}
	place := w.placeOf(w.config, d, t.destination)
	o := plugin.Order(d.Order)
	w.step("before target")
	defer w.step("after target")
	if !f.Exists {
		_, err := w.targets.Restore(ctx, d.Target.Name, d.Target.Config, &plugin.RestoreRequest{Place: place, Order: o, Rollout: d.Rollout})
		if keepsNothing(err) {
			err = fmt.Errorf("what stood there before was not written by this agent, and the target cannot bring it back: %w", err)
		}
		return w.answered(ctx, err)
	}
	cur, content, err := t.stat()
	if err != nil {
		return err
	}
	if cur.SHA256 != f.SHA256 {
		return fmt.Errorf("the copy of %s in the state folder was changed meanwhile", t.destination)
	}
	rev := f.revision()
	if f.SHA256 == d.SHA256 || f.SHA256 == w.st.Real {
		rev = d.Revision
	}
	a, err := w.targets.Apply(ctx, d.Target.Name, d.Target.Config, &plugin.ApplyRequest{
		Place: place, Order: o, Revision: rev, Rollout: d.Rollout, SHA256: f.SHA256, Content: content,
		Mode: fmt.Sprintf("%04o", f.Mode), Owner: d.Owner, Group: d.Group,
	})
	if err == nil && a.SHA256 != "" && a.SHA256 != f.SHA256 {
		err = errors.New("it answers that another content stands than it was given")
	}
	w.handed = w.handed || err == nil || errors.Is(err, context.DeadlineExceeded)
	return w.answered(ctx, err)
}

// answered makes an error of a target one that may be told.
func (w *work) answered(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	words := []byte(err.Error())
	if clean := w.clean(ctx); clean != nil {
		words = clean(words, false)
	}
	name := w.st.Desired.Target.Name
	words = bytes.TrimPrefix(words, []byte("plugin "+name+": "))
	said := text.Clip(text.Printable(string(words)), maxTargetWords)
	if errors.Is(err, context.DeadlineExceeded) {
		said += "; whether it was carried out there is not known, and it still may be: look at what stands there"
	}
	return &targetError{name: name, words: said, err: err}
}

// refusedThere answers an order that is older than what the target has seen: the
// target is left alone, and the copy is what it was.
func (w *work) refusedThere(ctx context.Context, t *target, stale *plugin.StaleError) (outcome, error) {
	o, highest := w.st.Mark, orchestrator.Order(stale.Highest)
	older := &OlderError{Config: w.config, Order: o, Highest: highest, Target: w.st.Desired.Target.Name}
	rep := w.report(records.ResultRefused, w.st.Desired.Rollout, older.Error(), "")
	rep.Revision, rep.SHA256 = w.st.Prev.revision(), w.st.Prev.SHA256
	rep.Refused = &o
	if !highest.IsZero() {
		rep.Order = highest
	}
	if sn := w.st.snapshot(w.st.Desired.Rollout); sn != nil {
		rep.Previous = sn.File.revision()
	}
	w.st.Report = rep
	if err := w.save(phaseFailing); err != nil {
		return outcome{}, err
	}
	out, err := w.putBack(ctx, t, *w.st.Prev)
	out.Refused = older
	return out, err
}
