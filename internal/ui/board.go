package ui

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// Bounds of what is shown.
const (
	// shownLocks are the gravest; of the others there are counts.
	shownLocks = 500
	// keptVerdicts are the locks of which the whole verdict is kept, with all its
	// facts. Of more, a detail is observed anew.
	keptVerdicts = 1000
	// shownRollouts that have ended.
	shownRollouts = 50
	// linger is how long the board goes on to look after the last viewer left: a
	// page that is loaded again does not begin anew.
	linger = 10 * time.Second
)

// board is what is known of all locks and rollouts. It follows them while it has
// lookers.
type board struct {
	cfg Config
	ctx context.Context //nolint:containedctx // the life of the server

	mu      sync.Mutex
	lookers map[*looker]struct{}
	// stop ends the following under way; nil: none is. idle is what ends it some
	// time after the last looker left.
	stop context.CancelFunc
	idle *time.Timer
	wg   sync.WaitGroup

	locks map[string]*lockRow // by key
	// free are those that nobody holds, by key; lastFree is what is shown of them, nil
	// until it is asked for.
	free     map[string]*freeRow
	lastFree *freeChange
	// lastRev is the last rev that a lock got.
	lastRev  uint64
	counts   map[string]int
	troubles map[string]string // what cannot be read, by part
	// away are the parts of which Consul does not answer, and awayAt is since when
	// that is known of any; it stays until all of them are answered again.
	away   map[string]struct{}
	awayAt time.Time
	// ready: the first sweep came. quiet counts how often Follow told of nothing
	// before that.
	ready bool
	quiet int

	// brake is the switch of all automatic breaking as it was read last, and
	// policies grows with each word that it or what is applied may have changed.
	brake    brake
	policies int

	rollouts []rolloutRow
	listed   bool
	stories  map[string]*tale
	// still is since when nobody is seen to drive a rollout, by id.
	still map[string]time.Time
}

// looker is one stream. wake has room for one: what changed meanwhile is told
// together.
type looker struct{ wake chan struct{} }

type lockRow struct {
	st *locksmith.Status
	// at is when it was held for as long as st says.
	at time.Time
	// v is nil where there are too many to keep all.
	v *locksmith.Verdict
	// rev is another one with each verdict that says something else, also where the
	// lock was gone in between.
	rev  uint64
	sign string
	// rollout is the id that its holder names.
	rollout string
}

type rolloutRow struct {
	ID   string          `json:"id"`
	View json.RawMessage `json:"view"`
	// Driving is null for one that has ended or has not begun. It is told as of when
	// the row is.
	Driving *driving `json:"driving"`
	// rev grows with each view that is another one; open: it has not ended.
	rev  uint64
	open bool
	// header is nil for one that has not begun.
	header *orchestrator.Header
}

func newBoard(ctx context.Context, cfg Config) *board {
	return &board{
		cfg: cfg, ctx: ctx, lookers: map[*looker]struct{}{}, stories: map[string]*tale{},
	}
}

// look adds a looker, unless there are too many; leave takes it away.
func (b *board) look() (l *looker, leave func(), ok bool) {
	l = &looker{wake: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lookers) >= maxStreams {
		return nil, nil, false
	}
	if b.idle != nil {
		b.idle.Stop()
		b.idle = nil
	}
	b.lookers[l] = struct{}{}
	if b.stop == nil {
		b.begin()
	}
	l.poke()
	return l, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.lookers, l)
		if len(b.lookers) == 0 && b.stop != nil {
			b.idle = time.AfterFunc(linger, b.rest)
		}
	}, true
}

// begin starts the following. The caller has the mutex.
func (b *board) begin() {
	ctx, cancel := context.WithCancel(b.ctx)
	b.stop = cancel
	b.free, b.lastFree = map[string]*freeRow{}, nil
	b.locks, b.counts, b.troubles = map[string]*lockRow{}, map[string]int{}, map[string]string{}
	b.away, b.awayAt = map[string]struct{}{}, time.Time{}
	b.still = map[string]time.Time{}
	b.ready, b.listed, b.rollouts, b.quiet, b.brake = false, false, nil, 0, brake{}
	b.wg.Go(func() {
		// It ends with ctx, and for no other reason.
		_ = b.cfg.Locks.Follow(ctx, locksmith.Following{
			Tell:   b.judged,
			Failed: func(part string, err error) { b.trouble(part, err) },
			Source: b.cfg.Source,
		})
	})
	b.wg.Go(func() {
		b.cfg.PolicySource(ctx, func() { b.switched(ctx) })
	})
	b.wg.Go(func() {
		b.cfg.Rollouts.FollowAll(ctx, runner.Filter{Ended: shownRollouts}, b.listing, func(err error) { b.trouble("rollouts", err) })
	})
}

// rest ends the following if nobody looks.
func (b *board) rest() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lookers) > 0 || b.stop == nil {
		return
	}
	b.stop()
	b.stop, b.locks, b.rollouts = nil, nil, nil
	b.free, b.lastFree = nil, nil
	clear(b.stories)
}

func (l *looker) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// tell wakes all lookers. The caller has the mutex.
func (b *board) tell() {
	for l := range b.lookers {
		l.poke()
	}
}

func (b *board) trouble(part string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.troubles == nil {
		return
	}
	if err == nil {
		delete(b.troubles, part)
	} else {
		b.troubles[part] = err.Error()
	}
	b.answered(part, err)
	b.tell()
}

// answered notes whether Consul serves a part. The caller has the mutex.
func (b *board) answered(part string, err error) {
	if !unanswered(err) {
		delete(b.away, part)
		return
	}
	if len(b.away) == 0 {
		b.awayAt = time.Now()
	}
	b.away[part] = struct{}{}
}

// unanswered reports whether Consul did not serve at all, unlike one that refuses. A
// 5xx is that too: a client agent answers so whose server went away ("rpc error making
// call: EOF").
func unanswered(err error) bool {
	switch consulkv.KindOf(err) {
	case consulkv.Unreachable, consulkv.Broken, consulkv.NoLeader, consulkv.ServerError:
		return true
	}
	return false
}

// awaySince is when it became known that Consul does not answer, zero while it does:
// what is shown was read before. The caller has the mutex.
func (b *board) awaySince() time.Time {
	if len(b.away) == 0 {
		return time.Time{}
	}
	return b.awayAt
}

// partBrake is the switch of all automatic breaking, among the parts that are away.
const partBrake = "brake"

// brake is whether all automatic breaking is suspended.
type brake struct {
	suspended *records.PolicySuspended
	// why it is not known.
	why string
}

// switched reads what may have changed, until it is had or refused.
func (b *board) switched(ctx context.Context) {
	b.mu.Lock()
	b.policies++
	b.tell()
	b.mu.Unlock()
	for {
		read, cancel := context.WithTimeout(ctx, detailPatience)
		s, err := b.cfg.Locks.Suspended(read)
		cancel()
		if ctx.Err() != nil {
			return
		}
		b.mu.Lock()
		b.answered(partBrake, err)
		if err != nil {
			b.brake.why = err.Error() // what was seen last stays
		} else {
			b.brake = brake{suspended: s}
		}
		b.tell()
		b.mu.Unlock()
		if err == nil || consulkv.KindOf(err) == consulkv.Denied || wait(ctx, again) != nil {
			return
		}
	}
}

// judged takes verdicts in.
func (b *board) judged(changed []*locksmith.Verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.locks == nil {
		return
	}
	fresh := false
	for _, v := range changed {
		fresh = b.take(v) || fresh
	}
	if b.quiet++; !b.ready && len(b.troubles) == 0 && (len(changed) > 0 || b.quiet >= quietFor && b.listed) {
		b.ready, fresh = true, true
	}
	if fresh {
		b.tell()
	}
}

// quietFor is how often Follow may tell of nothing, once a second, before that
// means that there is nothing: if Consul has answered anything, the rollouts.
const quietFor = 3

// take takes one verdict in, and tells whether it says something new.
func (b *board) take(v *locksmith.Verdict) bool {
	key := v.Snapshot.Key
	old := b.locks[key]
	if !v.Occupied() && v.State != locksmith.Cooling {
		fresh := b.letGo(key, freeOf(v))
		if old == nil {
			return fresh
		}
		b.counts[old.st.State]--
		delete(b.locks, key)
		return true
	}
	b.letGo(key, nil)
	st := b.cfg.Locks.Status(v)
	st.Next = b.cfg.Locks.Next(v, nil)
	st.Evidence = nil
	row := &lockRow{st: st, at: v.At, sign: sign(st)}
	if rec := v.Snapshot.Holder; rec != nil && st.Session != nil {
		row.rollout = rec.RolloutID
	}
	if len(b.away) > 0 && old != nil && old.st.Token != nil && st.Token != nil && *old.st.Token == *st.Token {
		// All viewers are told the very same age, also where not all parts are away.
		st.HeldFor, row.at = old.st.HeldFor, old.at
	}
	if len(b.locks) < keptVerdicts || old != nil && old.v != nil {
		row.v = v
	}
	if old != nil {
		row.rev = old.rev
		b.counts[old.st.State]--
	}
	b.counts[st.State]++
	b.locks[key] = row
	if old == nil || old.sign != row.sign {
		b.lastRev++
		row.rev = b.lastRev
		return true
	}
	return false
}

// sign is all of a status but for what time alone changes.
func sign(st *locksmith.Status) string {
	c := *st
	c.HeldFor, c.DelayLeft, c.Since = nil, nil, nil
	if c.Progress != nil {
		p := *c.Progress
		p.Age, p.Rate = nil, nil
		c.Progress = &p
	}
	text, err := json.Marshal(&c)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// listing takes the rollouts in.
func (b *board) listing(list *runner.Listing) {
	var rows []rolloutRow
	add := func(id string, open bool, h *orchestrator.Header, view any) {
		text, err := json.Marshal(view)
		if err != nil {
			b.cfg.Log.Warn("a rollout cannot be shown", "rollout", id, "error", err)
			return
		}
		rows = append(rows, rolloutRow{ID: id, View: text, open: open, header: h})
	}
	for _, w := range list.Waiting {
		add(w.ID, true, nil, b.cfg.Waiting(w))
	}
	for _, h := range list.Headers {
		add(h.ID, h.FinishedAt == nil, h, b.cfg.Rollout(h))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := map[string]rolloutRow{}
	for _, r := range b.rollouts {
		old[r.ID] = r
	}
	changed := len(rows) != len(b.rollouts) || !b.listed
	for i := range rows {
		was, known := old[rows[i].ID]
		rows[i].rev = was.rev
		if !known || !bytes.Equal(was.View, rows[i].View) {
			rows[i].rev++
			changed = true
		}
	}
	b.rollouts, b.listed = rows, true
	if changed {
		b.tell()
	}
}

// isAway reports whether Consul is known not to answer.
func (b *board) isAway() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.away) > 0
}

// gravest are the locks that are shown, the gravest and among them the oldest
// trouble first, and how many more there are. The caller has the mutex.
func (b *board) gravest() (rows []*lockRow, more int) {
	rows = slices.Collect(maps.Values(b.locks))
	slices.SortFunc(rows, func(x, y *lockRow) int {
		return cmp.Or(
			cmp.Compare(locksmith.Gravity(y.st.State), locksmith.Gravity(x.st.State)),
			cmp.Compare(age(y), age(x)),
			cmp.Compare(x.st.Key, y.st.Key),
		)
	})
	if len(rows) > shownLocks {
		return rows[:shownLocks], len(rows) - shownLocks
	}
	return rows, 0
}

// age is for how long a lock has been held, as known; of two that hold, the order
// does not change with time.
func age(r *lockRow) float64 {
	if r.st.HeldFor == nil {
		return 0
	}
	return *r.st.HeldFor - float64(r.at.UnixMilli())/1000
}
