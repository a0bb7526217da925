package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/durable"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/plugin"
)

// fence applies entries to one node's files. It holds nothing in memory that
// outlives a call: any number of fences, in any number of processes, may work
// on one state folder.
type fence struct {
	node     string
	stateDir string
	root     string
	agent    string // version, for reports
	instance string // of the state folder, for reports
	lockWait time.Duration
	now      func() time.Time
	log      hclog.Logger
	// recover reads this node's last report from Consul; nil and no error
	// where there is none.
	recover func(ctx context.Context, config string) (*records.Actual, error)
	// settled is told of answers for configs beside the one that is applied,
	// whose group had to be ended first; nil: nobody is told.
	settled func(config string, rep *records.Actual)
	// consul is where secrets are read; nil: nowhere.
	consul *consulkv.Client
	// tell is told of changed files; nil: nobody is.
	tell Tell
	// targets are the plugins that entries may name; nil: there are none.
	targets Targets
	// behindAnother: who hands entries over has let them pass a fence of its own, and
	// puts back here what failed there; see work.putsBack.
	behindAnother bool
	// step is called between any two writes; tests end the process there.
	step func(name string)
}

// source brings the content that an entry names.
type source func(context.Context) ([]byte, error)

// outcome is what became of one entry.
type outcome struct {
	// Report is the answer; nil where there is nothing new to say.
	Report *records.Actual
	// Standing is the answer given before, or what it would be now, where the
	// entry was answered.
	Standing *records.Actual
	// Refused is why the entry was not taken, at every try.
	Refused *OlderError
	// Changed: the file on disk was changed for this entry.
	Changed bool
}

// OlderError is an entry whose order is older than one accepted before, or was
// given by somebody who cannot have known of that one.
type OlderError struct {
	Config         string
	Order, Highest orchestrator.Order
	// After, with an Order above Highest, is what stood for the node when Order was
	// given: older than Highest, which stood there before.
	After *orchestrator.Order
	// Twin is the rollout that gave Order before, with another entry: Highest is Order.
	Twin string
	// Target is the target that refused it; empty: this node did.
	Target string
}

func (e *OlderError) Error() string {
	if e.Twin != "" {
		return fmt.Sprintf("%s: order %s (epoch.token.seq) was accepted by this node as one of rollout %s, and is another one now: Consul lost its data, or was restored from a snapshot, and gives the same indexes again: refused until `aimlock recover`",
			e.Config, e.Order, e.Twin)
	}
	if e.After != nil {
		return fmt.Sprintf("%s: order %s (epoch.token.seq) was given after %s, and this node has accepted %s, which is newer: Consul has lost it, or was restored from a snapshot: refused until `aimlock recover`",
			e.Config, e.Order, told(*e.After), e.Highest)
	}
	if e.Target != "" {
		return fmt.Sprintf("%s: order %s (epoch.token.seq) is older than %s, which target %s has seen: refused", e.Config, e.Order, e.Highest, e.Target)
	}
	return fmt.Sprintf("%s: order %s (epoch.token.seq) is older than %s, which this node has accepted: refused", e.Config, e.Order, e.Highest)
}

func told(o orchestrator.Order) string {
	if o.IsZero() {
		return "none"
	}
	return o.String()
}

// behind says why the entry d is refused although its order is not older than the
// mark; nil where it is not.
//
// Invariant: within an epoch each order that a node accepts was given by somebody
// who knew of the one before it. Who gives orders holds the lock, and reads what
// stands for the node: of a Consul that lost its data, or was restored, that is
// older than the mark, and what is decided there was decided before (a revision that
// was taken back since, a rollout that was aborted). The index of the restored
// Consul may be above all former ones, so that its orders are no older; or be the very
// one that a lock was taken at before, so that an order stands for another entry than
// the one that was accepted.
func (w *work) behind(d *records.Desired) *OlderError {
	mark := w.st.Mark
	if mark == d.Order {
		if r, ok := w.st.other(d); ok && !w.putsBack(d) {
			return &OlderError{Config: w.config, Order: d.Order, Highest: mark, After: d.After, Twin: r}
		}
		return nil
	}
	if d.After == nil || d.Epoch > mark.Epoch || !mark.Less(d.Order) || !d.After.Less(mark) {
		return nil
	}
	return &OlderError{Config: w.config, Order: d.Order, Highest: mark, After: d.After}
}

// other tells whether the order of d, which is the mark, was accepted with another
// entry, and of which rollout. What an agent of an older version may not have kept of
// an entry is left out. A state that was lost, and has only the mark, tells nothing.
func (st *state) other(d *records.Desired) (rollout string, is bool) {
	e := st.Desired
	if e == nil {
		return "", false
	}
	return e.Rollout, e.Rollout != d.Rollout || e.Action != d.Action || e.Revision != d.Revision || e.SHA256 != d.SHA256
}

// putsBack reports whether d is what an agent puts back at its target, where what the
// order at the mark brought has failed: it comes under that order, of the same rollout.
// Of another rollout it is a twin here as everywhere.
func (w *work) putsBack(d *records.Desired) bool {
	if !w.behindAnother || w.st.Mark != d.Order {
		return false
	}
	r, other := w.st.other(d)
	return other && r == d.Rollout
}

// abandon has an unfinished order taken back and not finished: its giver has given it up.
func (w *work) abandon() error {
	if w.st.Phase != phaseStaged {
		return nil
	}
	w.st.Report = w.failure(*w.st.Prev, errors.New("it was taken back before it was done"))
	return w.save(phaseFailing)
}

// configDir is the state folder of one config.
func configDir(stateDir, config string) string {
	seg := keys.Escape(config)
	if len(seg) > 150 {
		seg = seg[:100] + "~" + sum256([]byte(config))[:16]
	}
	return filepath.Join(stateDir, "configs", seg)
}

// apply brings the node to d, or refuses. A nil error is an answer; an error
// means that there is none yet: nothing was decided, try again later.
//
// The order of the writes is the contract. With the config's lock held:
//
//  1. the mark, synced                       from here on nothing older passes
//  2. copies of what stands, synced          so that it can come back
//  3. the staged copy, synced, and validated
//  4. the journal: staged                    after a crash: look at the disk
//  5. the mark and the lock, checked again
//  6. the rename, and a sync of the folder
//  7. reload, healthy; on failure the journal says failing, then the copy of
//     step 2 is put back and reload runs again
//  8. the journal: done, with the report
func (f *fence) apply(ctx context.Context, config string, d *records.Desired, content source) (outcome, error) {
	if err := keys.CheckName("config", config); err != nil {
		return outcome{}, err
	}
	h, err := f.hold(ctx, config)
	if err != nil {
		return outcome{}, err
	}
	defer h.close()
	w := h.by[config]
	if ctx.Err() != nil {
		// Who gave this call up may have handed over, under the same order, what was to
		// come after it.
		return outcome{}, context.Cause(ctx)
	}

	c := d.Compare(w.st.Mark)
	lost, back := w.behind(d), w.putsBack(d)
	if back {
		if err := w.abandon(); err != nil {
			return outcome{}, err
		}
	}
	if c == 0 && lost == nil && !back && !together(w.st.Desired) && (w.st.Phase == phaseStaged || w.st.Phase == phaseFailing) {
		if out, err := w.resume(ctx); !errors.Is(err, errNotStaged) {
			return out, err
		}
	} else if c >= 0 && h.unfinished(w) {
		err := h.settle(ctx, w)
		switch {
		case ctx.Err() != nil:
			return outcome{}, context.Cause(ctx)
		case err != nil && !errors.Is(err, errNotStaged):
			// It does not hold a newer order up.
			w.marked().Warn("an unfinished order could not be ended", "error", err)
		}
	}
	switch {
	case c < 0:
		return w.refuse(d, &OlderError{Config: config, Order: d.Order, Highest: w.st.Mark})
	case lost != nil:
		return w.refuse(d, lost)
	case c == 0 && w.st.Phase == phaseDone && !w.behindAnother:
		return outcome{Standing: w.st.Report}, nil
	}
	if err := w.accept(d); err != nil {
		return outcome{}, err
	}
	ctx, span := w.applying(ctx, d)
	out, err := w.carryOut(ctx, content)
	endApply(span, out.Report, err)
	return out, err
}

// accept makes the order of d the mark. It is the mark already where the order
// is carried out again.
func (w *work) accept(d *records.Desired) error {
	e := *d
	if w.st.Mark != d.Order {
		w.st.Refused = nil
	}
	w.st.Mark, w.st.Desired, w.st.Prev = d.Order, &e, nil
	w.st.Waiting, w.st.Changes, w.st.Stays = nil, false, false
	return w.save(phaseAccepted)
}

// finish brings an unfinished order to its end after a restart. Orders of
// which nothing is on disk but the mark wait for their entry.
func (f *fence) finish(ctx context.Context, config string) (outcome, error) {
	h, err := f.hold(ctx, config)
	if err != nil {
		return outcome{}, err
	}
	defer h.close()
	w := h.by[config]
	if !h.unfinished(w) {
		return outcome{}, nil
	}
	var out outcome
	if together(w.st.Desired) {
		last := w.st.Report
		if err = h.settle(ctx, w); err == nil && w.st.Report != last {
			out.Report = w.st.Report
		}
	} else {
		out, err = w.resume(ctx)
	}
	if errors.Is(err, errNotStaged) {
		err = nil
	}
	return out, err
}

// work is one config under its lock.
type work struct {
	*fence
	config string
	dir    string
	lock   *configLock
	blobs  blobs
	st     *state
	// fresh: the disk was not touched since the last answer, so a file that
	// is as wanted has been reloaded too.
	fresh bool
	// values are the secrets of the order at the mark, once they are read.
	values map[string][]byte
	// there is what stands at the target, where that was asked; nil: it was not.
	there *plugin.State
	// handed: the target of the order at the mark has taken its content, or may have.
	handed bool
	// peers are the works of its group, itself among them.
	peers []*work
}

// open locks one config and reads its state. Where must is false, a state that
// cannot be read counts as none.
func (f *fence) open(ctx context.Context, config string, wait time.Duration, must bool) (*work, error) {
	dir := configDir(f.stateDir, config)
	if err := folder(dir); err != nil {
		return nil, fmt.Errorf("state folder of %s: %w", config, err)
	}
	l, err := lockConfig(ctx, dir, max(wait, minLockWait))
	if busy, ok := errors.AsType[*BusyError](err); ok {
		busy.Waited = f.lockWait
	}
	if err != nil {
		return nil, err
	}
	w := &work{fence: f, config: config, dir: dir, lock: l, blobs: blobs{filepath.Join(dir, blobDir)}}
	if must {
		w.st, err = w.load(ctx)
	} else if w.st, err = loadState(w.dir, config); err != nil {
		w.st, err = &state{Config: config, Phase: phaseAccepted}, nil
	}
	if err != nil {
		w.close()
		return nil, err
	}
	w.fresh = w.st.Phase == phaseDone || w.st.Phase == phaseAccepted
	return w, nil
}

func (w *work) close() { w.lock.unlock() }

// load reads the state, or recovers the mark from Consul where it is lost.
func (w *work) load(ctx context.Context) (*state, error) {
	st, err := loadState(w.dir, w.config)
	if err == nil {
		return st, nil
	}
	corrupt, isCorrupt := errors.AsType[*CorruptError](err)
	if !isCorrupt && !errors.Is(err, errNoState) {
		return nil, err
	}
	if w.recover == nil {
		return nil, fmt.Errorf("%s: the node has no state of it, and Consul is not asked", w.config)
	}
	rep, rerr := w.recover(ctx, w.config)
	switch {
	case rerr != nil && isCorrupt:
		return nil, fmt.Errorf("%s: %w, and its mark cannot be recovered from Consul: nothing is written until it is: %w", w.config, corrupt, rerr)
	case rerr != nil:
		return nil, fmt.Errorf("%s: the node has no state of it, and cannot ask Consul what it has accepted: nothing is written until it can: %w", w.config, rerr)
	case rep == nil && isCorrupt:
		return nil, fmt.Errorf("%s: %w, and Consul has no report of this node to recover its mark from: nothing is written; remove the file to take the next order as the first", w.config, corrupt)
	}
	st = &state{Config: w.config, Phase: phaseAccepted}
	if rep == nil {
		return st, nil
	}
	// Not done: the file may be as lost as the state. The same order is
	// carried out again, which changes nothing where it stands.
	st.Mark = rep.Order
	if rep.Result == records.ResultApplied || rep.Result == records.ResultRefused {
		st.Recovered = rep.Rollout
	}
	if isCorrupt {
		if err := os.Rename(corrupt.Path, corrupt.Path+".damaged"); err != nil {
			return nil, err
		}
		w.log.Error("state file was damaged: moved aside, mark recovered from this node's report in Consul",
			"config", w.config, "file", corrupt.Path+".damaged", "mark", st.Mark.String())
	} else {
		w.log.Warn("state was lost: mark recovered from this node's report in Consul", "config", w.config, "mark", st.Mark.String(),
			"another_machine", rep.Instance != "" && rep.Instance != w.instance)
	}
	return st, nil
}

// save moves the journal to p. After it returns, p is on disk.
//
// Invariant: the mark on disk never decreases, not even for somebody who lost
// the lock, because its file was deleted, without noticing yet.
func (w *work) save(p phase) error {
	w.step("before " + string(p))
	if err := w.recheck(); err != nil {
		return err
	}
	w.st.Phase = p
	w.conceal(w.st.Report)
	if p == phaseDone {
		w.st.forgetHidden()
	}
	b, err := w.st.encode()
	if err == nil {
		err = durable.WriteFile(filepath.Join(w.dir, stateFile), b)
	}
	if err != nil {
		return fmt.Errorf("%s: state cannot be written: %w", w.config, err)
	}
	w.step("after " + string(p))
	return nil
}

// recheck makes sure, just before something is changed, that nobody came
// between: the lock file is the one held, and no newer order stands on disk.
func (w *work) recheck() error {
	if err := w.lock.check(); err != nil {
		return err
	}
	st, err := loadState(w.dir, w.config)
	if errors.Is(err, errNoState) {
		return nil
	}
	if err != nil {
		return err
	}
	if w.st.Mark.Less(st.Mark) {
		return &OlderError{Config: w.config, Order: w.st.Mark, Highest: st.Mark}
	}
	return nil
}

// refuse answers an order that is older than the mark, of this config or of one
// that belongs with it, or that was given in ignorance of it, once for each.
func (w *work) refuse(d *records.Desired, older *OlderError) (outcome, error) {
	said := w.st.Refused != nil && *w.st.Refused == d.Order
	log := w.about(d.Order, d.Rollout)
	switch {
	case said:
	case older.Twin != "":
		log.Warn("refused an order that this node has accepted with another entry: Consul was restored from a snapshot; `aimlock recover` makes the next ones pass",
			"accepted_of", older.Twin)
	case older.After != nil:
		log.Warn("refused an order: Consul has lost the one before it, or was restored from a snapshot; `aimlock recover` makes the next ones pass",
			"given_after", older.After.String(), "mark", older.Highest.String())
	default:
		log.Warn("refused an older order", "other", older.Config, "mark", older.Highest.String())
	}
	rep := w.report(records.ResultRefused, d.Rollout, older.Error(), "")
	o := d.Order
	rep.Refused = &o
	if last := w.st.Report; last != nil {
		rep.Revision, rep.SHA256, rep.Previous = last.Revision, last.SHA256, last.Previous
	}
	if w.st.Phase == phaseStaged || w.st.Phase == phaseFailing {
		// A crash left the order at the mark unfinished: only the disk knows
		// which of the two files stands.
		if cur, err := w.standing(); err == nil {
			rep.Revision, rep.SHA256 = cur.revision(), cur.SHA256
		}
	}
	w.conceal(rep)
	if said {
		// A restore of Consul may have taken the answer away.
		return outcome{Standing: rep, Refused: older}, nil
	}
	// The answer to the mark stays what it is, and so does the journal.
	w.st.Refused = &o
	if err := w.save(w.st.Phase); err != nil {
		return outcome{}, err
	}
	return outcome{Report: rep, Refused: older}, nil
}

// standing reads what stands at the destination of an unfinished order.
func (w *work) standing() (file, error) {
	t, err := w.target(w.st.Prev.Destination, false)
	if err != nil {
		return file{}, err
	}
	defer t.close()
	cur, _, err := t.stat()
	return cur, err
}

func (w *work) report(result, rollout, problem, output string) *records.Actual {
	return &records.Actual{
		Version: records.Version, Node: w.node, Config: w.config, Order: w.st.Mark, Rollout: rollout,
		Result: result, Error: problem, Output: output, Time: w.now().UTC(), Agent: w.agent, Instance: w.instance,
	}
}

// settle ends an unfinished order before a newer one is accepted, so that what
// stands when the newer one begins is either verified or put back. That it
// fails does not hold the newer order up.
func (w *work) settle(ctx context.Context) error {
	_, err := w.resume(ctx)
	w.fresh = w.st.Phase == phaseDone || w.st.Phase == phaseAccepted
	return err
}

// target opens a destination of this config: of an order with a target, the copy
// that stands for it.
func (w *work) target(dest string, makeDirs bool) (*target, error) {
	if d := w.st.Desired; d != nil && d.Target != nil {
		root, err := w.copies(d.Target)
		if err != nil {
			return nil, fmt.Errorf("copies of what target %s was given: %w", d.Target.Name, err)
		}
		return openTarget(root, dest, w.stateDir+"\x00"+w.config, makeDirs)
	}
	return openTarget(w.root, dest, w.stateDir+"\x00"+w.config, makeDirs)
}

// env and subst are what the commands of the order at the mark see.
func (w *work) env(t *target, staged bool) []string {
	d := w.st.Desired
	vars := map[string]string{
		"AIMLOCK_CONFIG_NAME": w.config,
		"AIMLOCK_NODE":        w.node,
		"AIMLOCK_REVISION":    d.Revision,
		"AIMLOCK_EPOCH":       fmt.Sprint(d.Epoch),
		"AIMLOCK_TOKEN":       fmt.Sprint(d.Token),
		"AIMLOCK_SEQ":         fmt.Sprint(d.Seq),
		"AIMLOCK_DESTINATION": t.path,
	}
	if staged {
		vars["AIMLOCK_STAGED"] = t.stagedPath()
	}
	return environment(vars)
}

func (w *work) subst(t *target) *strings.Replacer {
	return strings.NewReplacer("${staged}", t.stagedPath(), "${destination}", t.path)
}

func (w *work) run(ctx context.Context, what string, c *records.Command, t *target) (err error) {
	w.step("before " + what)
	if c != nil && len(c.Argv) > 0 {
		var span *tracing.Span
		ctx, span = tracing.Start(ctx, tracing.Command)
		defer func() { span.Str(tracing.StepKind, what).Outcome(endOf(err), err != nil); span.End() }()
	}
	err = run(ctx, what, c, w.env(t, what == "validate"), w.subst(t), w.clean(ctx))
	w.step("after " + what)
	return err
}
