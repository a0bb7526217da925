package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// The queue. A Start whose rollout is new waits for its turn: for the locks, and
// where its spec says conflict = "queue" for the end of the rollouts before it.
// Meanwhile it has a record at queue/<id>, so that others see it and may end it.
//
// No lock fences that record, so it has a rule of its own:
//
//   - It is created once and never rewritten. A session of its process has the
//     key, with behavior "delete": it lives as long as that process and not much
//     longer, and nobody has to clean up after one that died.
//   - Whether the rollout begins is decided by who takes the record away. The
//     process that wrote it does so in the transaction that writes the rollout's
//     first header, under its locks; an operator who aborts it, and a rollout
//     that takes its place, in the transaction that writes a header which says
//     so. Each compares the record's index, so one of them wins, and the other
//     learns of it.
//   - Its place is its CreateIndex, which no clock can change.
type queuedRecord struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Name    string `json:"name"`
	Hash    string `json:"hash"`
	// Conflict is what its spec says about the rollouts before it.
	Conflict string                      `json:"conflict,omitempty"`
	Configs  []orchestrator.HeaderConfig `json:"configs"`
	Stages   []string                    `json:"stages"`
	By       string                      `json:"by"`
	records.Who
	At time.Time `json:"at"`
}

// queueTTL is the TTL of the session of a record. Consul may take twice that.
const queueTTL = 15 * time.Second

// Waiting is a rollout that has not begun: it waits for its turn.
type Waiting struct {
	ID       string                      `json:"id"`
	Name     string                      `json:"name"`
	Conflict string                      `json:"conflict"`
	Configs  []orchestrator.HeaderConfig `json:"-"`
	// For says what it waits for, for people; ForRollout is the id of the
	// rollout, if it is one.
	For        string `json:"for"`
	ForRollout string `json:"for_rollout,omitempty"`
	// Place is its place among those that wait for the same configs, from 1, of
	// Of.
	Place int       `json:"place"`
	Of    int       `json:"of"`
	Since time.Time `json:"since"`
	By    string    `json:"by"`
	Host  string    `json:"host,omitempty"`

	rec   queuedRecord
	index uint64
	place uint64 // CreateIndex
}

// Header is what a rollout that waits looks like to who asks for its header.
func (w *Waiting) Header() *orchestrator.Header {
	h := &orchestrator.Header{
		Version: orchestrator.HeaderVersion, ID: w.ID, Name: w.Name, Hash: w.rec.Hash, State: orchestrator.Waiting,
		Configs: w.Configs, CreatedAt: w.Since, UpdatedAt: w.Since, QueuedAt: w.place, BegunBy: w.By, Conflict: w.rec.Conflict,
	}
	for _, s := range w.rec.Stages {
		h.Stages = append(h.Stages, orchestrator.HeaderStage{Name: s})
	}
	if len(w.rec.Stages) > 0 {
		h.Stage = w.rec.Stages[0]
	}
	if w.For != "" {
		h.Reason = "it waits for " + w.For
	}
	return h
}

// queue reads who waits, in the order of their places. A record that no session
// has is what somebody wrote by hand: it waits for nothing.
func (r *Runner) queue(ctx context.Context) ([]*Waiting, error) {
	list, err := r.consul.List(ctx, r.keys.Queue())
	if err != nil {
		return nil, err
	}
	var out []*Waiting
	for _, p := range list {
		var rec queuedRecord
		if err := records.Decode(p.Key, p.Value, &rec); err != nil {
			r.log.Warn("not a rollout that waits", "error", err)
			continue
		}
		if p.Session == "" || p.Key != r.keys.Queued(rec.ID) {
			continue
		}
		out = append(out, &Waiting{
			ID: rec.ID, Name: rec.Name, Conflict: cmp.Or(rec.Conflict, orchestrator.ConflictSupersede), Configs: rec.Configs,
			Since: rec.At, By: rec.By, Host: rec.Host, rec: rec, index: p.ModifyIndex, place: p.CreateIndex,
		})
	}
	slices.SortFunc(out, func(a, b *Waiting) int { return cmp.Compare(a.place, b.place) })
	for i, w := range out {
		for k, o := range out {
			if k == i || overlap(w.Configs, o.Configs) {
				w.Of++
				if k <= i {
					w.Place++
				}
			}
		}
	}
	return out, nil
}

func overlap(a, b []orchestrator.HeaderConfig) bool {
	return slices.ContainsFunc(a, func(x orchestrator.HeaderConfig) bool {
		return slices.ContainsFunc(b, func(y orchestrator.HeaderConfig) bool { return x.Name == y.Name })
	})
}

// Queue reads which rollouts have not begun and wait for their turn, in the
// order in which they came, with what they wait for. heads are all headers.
func (r *Runner) Queue(ctx context.Context, heads []*orchestrator.Header) ([]*Waiting, error) {
	list, err := r.queue(ctx)
	if err != nil {
		return nil, err
	}
	for i, w := range list {
		if err := r.explainWait(ctx, w, list[:i], heads); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (r *Runner) explainWait(ctx context.Context, w *Waiting, ahead []*Waiting, heads []*orchestrator.Header) error {
	older := slices.DeleteFunc(slices.Clone(heads), func(h *orchestrator.Header) bool {
		return h.FinishedAt != nil || !overlap(h.Configs, w.Configs)
	})
	if w.Conflict == orchestrator.ConflictQueue {
		if b := blockedBy(w.Configs, older, ahead); b != nil {
			w.For, w.ForRollout = b.text, b.id
			return nil
		}
	}
	for _, c := range w.Configs {
		p, err := r.consul.Get(ctx, r.keys.Lock(c.Name))
		if err != nil {
			return err
		}
		if p == nil || p.Session == "" {
			continue
		}
		w.For = "lock " + c.Name
		var rec records.Holder
		if records.Decode(p.Key, p.Value, &rec) == nil && rec.RolloutID == w.ID {
			w.For = "its plan to be written: it has its locks"
			return nil
		}
		if rec.RolloutID != "" {
			w.For, w.ForRollout = w.For+", which rollout "+rec.RolloutID+" has", rec.RolloutID
		}
		return nil
	}
	w.For = "its locks"
	return nil
}

// blocker is what a rollout with conflict = "queue" lets go first.
type blocker struct {
	id   string
	text string
	head *orchestrator.Header // nil: it waits itself
}

// blockedBy finds what comes before a rollout of configs: the nearest that has
// waited for longer, or else the unfinished one.
func blockedBy(configs []orchestrator.HeaderConfig, older []*orchestrator.Header, ahead []*Waiting) *blocker {
	for _, w := range slices.Backward(ahead) {
		if overlap(w.Configs, configs) {
			return &blocker{w.ID, fmt.Sprintf("rollout %s (which waits too)", w.ID), nil}
		}
	}
	if len(older) > 0 {
		h := older[0]
		return &blocker{h.ID, fmt.Sprintf("rollout %s (%s)", h.ID, h.State), h}
	}
	return nil
}

// place is this process's own record in the queue.
type place struct {
	r   *Runner
	rec queuedRecord
	key string
	// index is the record's, and created its place.
	index, created uint64

	// ctx ends, with errNotQueued, when somebody else has taken the record away.
	ctx     context.Context //nolint:containedctx // of the record's life
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed: the session is let go
	leaving sync.Once
	wg      sync.WaitGroup
}

// errNotQueued: the record is gone. Either it was ended, and a header says so,
// or the session ended, as of a process that was stopped for a while.
var errNotQueued = errors.New("it does not wait any more")

// enqueue writes the record of a new rollout.
func (r *Runner) enqueue(ctx context.Context, spec *orchestrator.Spec, id string) (*place, error) {
	rec := queuedRecord{
		Version: records.Version, ID: id, Name: spec.Name, Hash: spec.Hash, Conflict: spec.Conflict,
		By: r.by, Who: r.who(ctx), At: time.Now().UTC(), Configs: headerConfigs(spec),
	}
	for _, s := range spec.Stages {
		rec.Stages = append(rec.Stages, s.Name)
	}
	// No check of the node: a record lives with its process.
	sessions := r.consul.API().Session()
	sid, err := consulkv.Retry(ctx, r.consul, "join the queue", func(ctx context.Context) (string, error) {
		sid, _, err := sessions.CreateNoChecks(&api.SessionEntry{
			Name: "aimlock rollout " + id, TTL: queueTTL.String(), Behavior: api.SessionBehaviorDelete, LockDelay: time.Millisecond,
		}, (&api.WriteOptions{}).WithContext(ctx))
		if err != nil {
			return "", r.consul.Classify("create a session", err)
		}
		return sid, nil
	})
	if err != nil {
		return nil, err
	}
	q := &place{r: r, rec: rec, key: r.keys.Queued(id), done: make(chan struct{})}
	q.ctx, q.cancel = context.WithCancelCause(ctx)
	q.wg.Go(func() { q.keep(sid) })
	// The session is new, so repeating the lock changes nothing.
	res, err := consulkv.Retry(ctx, r.consul, "join the queue", func(ctx context.Context) (consulkv.Results, error) {
		return r.consul.Txn(ctx, consulkv.Lock(q.key, records.Encode(&rec), sid))
	})
	if err == nil && len(res) != 1 {
		err = fmt.Errorf("join the queue: Consul answered %d operations of 1", len(res))
	}
	if err != nil {
		q.leave()
		return nil, err
	}
	q.index, q.created = res[0].ModifyIndex, res[0].CreateIndex
	q.wg.Go(func() { q.watch(sid) })
	return q, nil
}

func headerConfigs(spec *orchestrator.Spec) []orchestrator.HeaderConfig {
	return orchestrator.NewHeader("", *spec, time.Time{}).Configs
}

// keep renews the session, and ends it, and with it the record, when done is
// closed. Every request has its bound: an answer that never comes must not keep the
// rollout from its end.
func (q *place) keep(session string) {
	sessions := q.r.consul.API().Session()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(q.ctx), leavePatience)
		defer cancel()
		if _, err := sessions.Destroy(session, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
			// It ends by its TTL.
			q.r.log.Debug("the session of a rollout that waited", "rollout", q.rec.ID, "error", err)
		}
	}()
	every := time.NewTicker(queueTTL / 3)
	defer every.Stop()
	for {
		select {
		case <-q.done:
			return
		case <-every.C:
		}
		entry, err := consulkv.Retry(q.ctx, q.r.consul, "renew a place in the queue", func(ctx context.Context) (*api.SessionEntry, error) {
			entry, _, err := sessions.Renew(session, (&api.WriteOptions{}).WithContext(ctx))
			return entry, err
		})
		switch {
		case q.ctx.Err() != nil:
		case err != nil:
			q.r.log.Warn("the session of a rollout that waits", "rollout", q.rec.ID, "error", err)
		case entry == nil:
			q.r.log.Warn("Consul ended the session of a rollout that waits", "rollout", q.rec.ID)
			<-q.done
			return
		}
	}
}

// leavePatience bounds the end of a place's session.
const leavePatience = 3 * time.Second

// watch ends ctx when the record is gone.
func (q *place) watch(session string) {
	w := consulkv.NewWatcher(q.r.consul, consulkv.WatchOptions{Name: q.key, MinInterval: 100 * time.Millisecond},
		func(o *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
			return q.r.consul.API().KV().Get(q.key, o)
		})
	for q.ctx.Err() == nil {
		p, err := w.Next(q.ctx)
		switch {
		case err != nil && q.ctx.Err() == nil:
			q.r.log.Warn("watching the queue", "rollout", q.rec.ID, "error", err)
			pause(q.ctx, time.Second)
		case err == nil && (p == nil || p.Session != session):
			q.cancel(errNotQueued)
		}
	}
}

// header is what the rollout looks like that waits at this place.
func (q *place) header() *orchestrator.Header {
	return (&Waiting{ID: q.rec.ID, rec: q.rec, Configs: q.rec.Configs, Name: q.rec.Name}).Header()
}

// gone tells whether somebody else has taken the record away.
func (q *place) gone() bool { return errors.Is(context.Cause(q.ctx), errNotQueued) }

// leave takes the record away, if it is still there. A nil place has none.
func (q *place) leave() {
	if q == nil {
		return
	}
	q.leaving.Do(func() {
		q.cancel(context.Canceled)
		close(q.done)
		q.wg.Wait()
	})
}

// claim are the operations that turn the record into a rollout: they belong into
// the transaction that writes its first header.
func (q *place) claim() []consulkv.Op {
	if q == nil {
		return nil
	}
	return []consulkv.Op{consulkv.CheckIndex(q.key, q.index), consulkv.Delete(q.key)}
}

// refusedClaim tells whether a transaction was refused because the record is gone.
func (q *place) refusedClaim(err error) bool {
	ref, ok := errors.AsType[*consulkv.Refused](err)
	if q == nil || !ok {
		return false
	}
	_, about := ref.First(q.key)
	return about
}

// endQueued ends a rollout that waits, in one transaction by send: its record
// goes, and a header that has ended stands in its place. It returns false if
// somebody was faster.
func (r *Runner) endQueued(ctx context.Context, w *Waiting, end func(*orchestrator.Header), send func(context.Context, ...consulkv.Op) (consulkv.Results, error)) (*orchestrator.Header, bool, error) {
	head := w.Header()
	head.Reason = ""
	end(head)
	v, err := encodeHeader(head)
	if err != nil {
		return nil, false, err
	}
	_, err = send(ctx, consulkv.CheckIndex(r.keys.Queued(w.ID), w.index), consulkv.CAS(r.keys.Rollout(w.ID), v, 0), consulkv.Delete(r.keys.Queued(w.ID)))
	if ref, ok := errors.AsType[*consulkv.Refused](err); ok {
		if _, about := ref.First(r.keys.Queued(w.ID)); about {
			return nil, false, nil
		}
		if _, begun := ref.First(r.keys.Rollout(w.ID)); begun {
			// A try to join the queue whose answer was lost came late, and put the
			// record back. The header that stands is the rollout's own.
			_, err = send(ctx, consulkv.DeleteCAS(r.keys.Queued(w.ID), w.index))
			if _, refused := errors.AsType[*consulkv.Refused](err); refused {
				err = nil
			}
			return nil, false, err
		}
	}
	if err != nil && consulkv.Ambiguous(err) {
		// The record is gone by this one's hand or by another's: what stands says.
		if h, rerr := r.header(ctx, w.ID); rerr == nil && h.FinishedAt != nil {
			return h, true, nil
		}
	}
	return head, err == nil, err
}

// clearQueue is done by a new rollout when it begins: copies of it that wait
// need not, and where it supersedes what is unfinished, it supersedes what has
// waited for longer than it, too.
func (r *Runner) clearQueue(ctx context.Context, h Hold, spec *orchestrator.Spec, id string, q *place) error {
	list, err := r.queue(ctx)
	if err != nil {
		return err
	}
	for _, w := range list {
		switch {
		case w.ID == id || !overlap(w.Configs, headerConfigs(spec)):
		case w.Name == spec.Name && w.rec.Hash == spec.Hash:
			_, err = h.Txn(ctx, consulkv.DeleteCAS(r.keys.Queued(w.ID), w.index))
			if _, refused := errors.AsType[*consulkv.Refused](err); refused {
				err = nil
			}
		case spec.Conflict == orchestrator.ConflictQueue || q != nil && w.place > q.created:
		default:
			var head *orchestrator.Header
			var ok bool
			head, ok, err = r.endQueued(ctx, w, func(head *orchestrator.Header) {
				head.Epoch, head.SupersededBy = h.Epoch(), id
				head.End(orchestrator.Superseded, orchestrator.TookPlace(id, r.by)+": this one had not begun", time.Now().UTC())
			}, h.Txn)
			if ok {
				r.tell(Progress{Kind: orchestrator.TellStatus, Text: fmt.Sprintf("rollout %s, which was waiting, is superseded", w.ID), Header: *head})
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// abortQueued takes an operator's command for a rollout that has not begun. A
// nil header without an error: it waits no more, and the command is for whatever
// became of it.
func (r *Runner) abortQueued(ctx context.Context, o Order) (*orchestrator.Header, error) {
	heads, err := r.Headers(ctx)
	if err != nil {
		return nil, err
	}
	list, err := r.Queue(ctx, heads)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(w *Waiting) bool { return w.ID == o.ID })
	if i < 0 {
		return nil, nil
	}
	w := list[i]
	if o.Verb != orchestrator.Abort {
		return nil, fmt.Errorf("rollout %s: %w: it waits for %s, and can only be aborted", o.ID, ErrNotBegun, w.For)
	}
	why := "by " + r.by + " before it began"
	if o.Reason != "" {
		why += ": " + o.Reason
	}
	head, done, err := r.endQueued(ctx, w, func(h *orchestrator.Header) {
		for _, o := range heads {
			h.Epoch = max(h.Epoch, o.Epoch)
		}
		now := time.Now().UTC()
		h.Took(orchestrator.CommandSeen{N: 1, Verb: o.Verb, By: r.by, Accessor: r.who(ctx).Accessor, At: now, OK: true, Result: "done"})
		h.End(orchestrator.Aborted, why, now)
	}, r.consul.Txn)
	if err != nil || !done {
		return nil, err
	}
	return head, nil
}

// ErrNotBegun: a command is for a rollout that still waits for its turn.
var ErrNotBegun = errors.New("it has not begun")

// turn waits until a rollout with conflict = "queue" may take its locks: nothing
// of its configs is unfinished, and nobody has waited for longer. It returns the
// job as it is by then.
func (r *Runner) turn(ctx context.Context, in *Input, q *place, j *job) (*job, *Outcome, error) {
	said := ""
	for {
		if j.resume != nil {
			return j, nil, nil
		}
		b, err := r.before(ctx, in, q, j)
		if err != nil || b == nil {
			return j, nil, err
		}
		text, err := r.waitText(ctx, b, &in.Spec)
		if err != nil {
			return nil, nil, err
		}
		if text != said {
			said = text
			r.tell(Progress{Kind: orchestrator.TellStatus, Text: q.rec.ID + " " + text, Header: *q.header()})
		}
		r.awaitBlocker(q.ctx, b)
		if q.ctx.Err() != nil {
			return nil, nil, context.Cause(q.ctx)
		}
		var done *Outcome
		if j, done, err = r.decide(ctx, in, untilEnd, j.seen); err != nil || done != nil {
			return nil, done, err
		}
	}
}

// waitText says what a rollout with conflict = "queue" waits for.
func (r *Runner) waitText(ctx context.Context, b *blocker, spec *orchestrator.Spec) (string, error) {
	text := "waits for " + b.text
	if b.head == nil {
		return text, nil
	}
	driven, err := r.driven(ctx, b.head)
	if err != nil {
		return "", err
	}
	if !driven {
		text += fmt.Sprintf(", which nobody drives now: start it again, or `%s`", r.typed("abort", b.id))
	}
	if b.head.Name == spec.Name {
		text += ": it was begun with another version of this spec"
	}
	return text, nil
}

// before finds what comes before a rollout with conflict = "queue", which has the
// place q or none yet.
func (r *Runner) before(ctx context.Context, in *Input, q *place, j *job) (*blocker, error) {
	ahead, err := r.queue(ctx)
	if err != nil {
		return nil, err
	}
	same := func(w *Waiting) bool { return w.Name == in.Spec.Name && w.rec.Hash == in.Spec.Hash }
	if i := slices.IndexFunc(ahead, same); q == nil && i >= 0 {
		return &blocker{ahead[i].ID, "its own start, rollout " + ahead[i].ID + ", which waits already", nil}, nil
	}
	ahead = slices.DeleteFunc(ahead, func(w *Waiting) bool {
		// A copy of the same rollout is no other one.
		return q != nil && w.place >= q.created || same(w)
	})
	return blockedBy(headerConfigs(&in.Spec), j.older, ahead), nil
}

// blockerEvery is how often a blocker is looked at without any news of it.
const blockerEvery = 10 * time.Second

// awaitBlocker waits until something becomes of a blocker, at most blockerEvery.
func (r *Runner) awaitBlocker(ctx context.Context, b *blocker) {
	wctx, cancel := context.WithTimeout(ctx, blockerEvery)
	defer cancel()
	key := r.keys.Queued(b.id)
	if b.head != nil {
		key = r.keys.Rollout(b.id)
	}
	w := consulkv.NewWatcher(r.consul, consulkv.WatchOptions{Name: key, MinInterval: time.Second},
		func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) { return r.consul.API().KV().Get(key, q) })
	for {
		p, err := w.Next(wctx)
		if err != nil && wctx.Err() == nil {
			pause(wctx, time.Second)
			continue
		}
		if err != nil || p == nil {
			return
		}
		var h orchestrator.Header
		if b.head != nil && (records.Decode(key, p.Value, &h) != nil || h.FinishedAt != nil || h.State != b.head.State) {
			return
		}
	}
}

// maybeWaiting is what a call has done that does not wait for a blocker: its
// rollout has not begun.
func maybeWaiting(in *Input, id string, b *blocker) *Outcome {
	if b == nil {
		return nil
	}
	h := orchestrator.NewHeader(id, in.Spec, time.Now().UTC())
	h.Stage = in.Spec.Stages[0].Name
	h.Reason = "it waits for " + b.text
	return &Outcome{ID: id, Header: h, Note: "it has not begun: its spec says conflict = \"queue\""}
}
