package guard

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hooks"
	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// Source follows locks: evidence.Sweep is the one that is used.
type Source interface {
	// Read takes a snapshot of every lock under the roots.
	Read(ctx context.Context) ([]*evidence.Snapshot, error)
	// Run does the same, hands them to changed, and after that whatever changed,
	// until ctx ends. A lock whose key is gone is handed on with a nil Pair.
	Run(ctx context.Context, changed func(batch []*evidence.Snapshot)) error
}

// Config makes a Guard.
type Config struct {
	// Client judges and breaks, by the policies that are in force at the start.
	Client *locksmith.Client
	// Source makes what follows all keys that begin with one of the roots.
	Source func(roots []string) Source
	Log    hclog.Logger
	// DryRun says what it would do, and writes nothing to Consul: it does not
	// stand for election either.
	DryRun bool
	// Reload asks for Load; both may be nil. An error of Load, which has printed
	// what is wrong, keeps the policies that are in force.
	Reload <-chan struct{}
	Load   func() (*policies.Set, error)
	// Prune deletes what else is old, at the same turns as what is old of locks;
	// it returns how much, and whether there is more. It may be nil.
	Prune func(context.Context) (n int, more bool, err error)
	// Metrics may be nil.
	Metrics *Metrics
	// Journal keeps what is seen, and Hooks are told of it; both may be nil. Give
	// OnBreak of both to the Client. The caller closes them after Run.
	Journal *locksmith.Recorder
	Hooks   *hooks.Notifier
}

// Bounds of the loop.
const (
	// maxBreaks is how many breaks are under way at a time. Each may wait for
	// its policy's steps, so there are more than the work alone would ask for.
	maxBreaks = 32
	// chunk is how many locks that are due are judged before the loop looks at
	// what else there is.
	chunk = 256
	// busyPause is when a lock is looked at again for which no break was free.
	busyPause = 500 * time.Millisecond
	// stopPatience bounds the wait for breaks at the end of a term.
	stopPatience = 10 * time.Second
)

// Guard is one locksmith. Make it with New; Run and Once may each be called once.
type Guard struct {
	cfg     Config
	log     hclog.Logger
	consul  *consulkv.Client
	keys    keys.Prefix
	metrics *Metrics
	board   *board

	batches  chan batch
	terms    chan *term
	results  chan result
	rereads  chan reread
	brakesCh chan brakes
	beat     chan pulse
	tokens   chan struct{}
	wg       sync.WaitGroup
	// spawn runs something until Run ends.
	spawn  func(func(context.Context))
	joined chan *onlooker

	onlookers onlookers

	// The rest belongs to the loop.

	client  *locksmith.Client
	cluster *evidence.Cluster
	table   *table
	living  *living
	brakes  brakes
	term    *term
	scribe  *scribe
	// eligible tells the election whether to stand, and by which policies.
	eligible chan candidacy
	source   *feed
	judged   int64
	// journalFails: the last entry was not written.
	journalFails bool
	// warned is the hash of other policies that was warned of.
	warned string
}

// New makes a guard; it does not connect.
func New(cfg Config) (*Guard, error) {
	if cfg.Client == nil || cfg.Source == nil {
		return nil, errors.New("guard: a client and a source are needed")
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics()
	}
	r := cfg.Client.Reader()
	g := &Guard{
		cfg: cfg, log: cfg.Log, consul: r.Consul, keys: r.Keys, metrics: cfg.Metrics, client: cfg.Client,
		batches: make(chan batch), terms: make(chan *term), results: make(chan result), rereads: make(chan reread), brakesCh: make(chan brakes), joined: make(chan *onlooker),
		beat: make(chan pulse, 1), tokens: make(chan struct{}, maxBreaks), eligible: make(chan candidacy, 1),
		table: newTable(), living: newLiving(), board: newBoard(cfg.DryRun),
	}
	g.board.policies(cfg.Client.Policies().Hash)
	g.metrics.watch(g.board, cfg.Hooks)
	return g, nil
}

// batch is what a source told, and which.
type batch struct {
	from  *feed
	first bool
	locks []*evidence.Snapshot
}

// feed is one source under way.
type feed struct {
	roots  []string
	cancel context.CancelFunc
	done   chan struct{}
	// begun: the first batch, which is the whole, came.
	begun bool
}

// Roots are the beginnings of the keys that the policies' locks stand under.
func Roots(set *policies.Set, prefix keys.Prefix) []string {
	var out []string
	for _, r := range set.Roots() {
		if r.Own {
			out = append(out, prefix.Locks()+keys.Escape(r.Prefix))
		} else {
			out = append(out, r.Prefix)
		}
	}
	return dedupe(out)
}

// Run guards the locks until ctx ends, and then lets go of the leadership. Its
// error is never about Consul: that may come back.
func (g *Guard) Run(ctx context.Context) (err error) {
	rctx, cancel := context.WithCancel(ctx)
	defer g.wg.Wait()
	defer cancel()
	var watched <-chan struct{}
	g.cluster, watched = evidence.WatchCluster(rctx, g.consul)
	defer func() { cancel(); <-watched }()
	if err := g.follow(rctx); err != nil {
		return err
	}
	defer func() { cancel(); <-g.source.done }()
	g.spawn = func(f func(context.Context)) { g.wg.Go(func() { f(rctx) }) }
	g.wg.Go(func() { g.followBrakes(rctx) })
	g.wg.Go(func() { g.followRights(rctx) })
	if g.scribe, err = newScribe(g.client.Reader()); err != nil {
		return err
	}
	g.wg.Go(func() { g.scribe.run(rctx, g.trouble) })
	if g.cfg.DryRun {
		g.term = newTerm(rctx, nil)
	} else {
		g.wg.Go(func() { g.elect(rctx) })
	}
	g.loop(rctx)
	return nil
}

// loop owns the table. It ends with ctx, when no break runs any more.
func (g *Guard) loop(ctx context.Context) {
	due := time.NewTimer(0)
	defer due.Stop()
	beat, look := time.NewTicker(beatEvery), time.NewTimer(aliveEvery)
	note := time.NewTicker(rememberEvery)
	defer beat.Stop()
	defer look.Stop()
	defer note.Stop()
	for {
		if at, ok := g.table.next(); ok {
			due.Reset(time.Until(at))
		} else {
			due.Stop()
		}
		select {
		case <-ctx.Done():
			g.drain()
			return
		case b := <-g.batches:
			g.update(b)
		case <-due.C:
			now := time.Now()
			for _, l := range g.table.due(now, chunk) {
				g.judge(l, now)
			}
		case r := <-g.results:
			g.finished(r)
		case r := <-g.rereads:
			g.reread(r)
		case t := <-g.terms:
			g.term = t
			g.board.leads(t)
			g.wakeHot()
		case b := <-g.brakesCh:
			g.braked(b)
			g.onlookers.tell(func(l *onlooker) { l.policies = true })
		case l := <-g.joined:
			g.welcome(l)
		case <-look.C:
			start := time.Now()
			for _, l := range g.living.changed() {
				g.judge(l, time.Now())
			}
			look.Reset(max(aliveEvery, aliveShare*time.Since(start)))
		case <-beat.C:
			g.heartbeat()
		case <-note.C:
			g.remember()
		case <-g.cfg.Reload:
			g.reload(ctx)
		}
		g.board.turned()
	}
}

// drain waits for the breaks under way, whose context has ended or is about to.
func (g *Guard) drain() {
	for range len(g.tokens) {
		g.metrics.acted(<-g.results)
	}
}

// follow starts a source for what the policies cover, in place of the one before.
func (g *Guard) follow(ctx context.Context) error {
	roots := Roots(g.client.Policies(), g.keys)
	if len(roots) == 0 {
		return errors.New("the policies have no patterns in `locks`: there is nothing to guard")
	}
	fctx, cancel := context.WithCancel(ctx)
	f := &feed{roots: roots, cancel: cancel, done: make(chan struct{})}
	g.source = f
	src := g.cfg.Source(roots)
	g.board.follows(src)
	if t, ok := src.(teller); ok {
		t.tells(func(err error) { g.trouble("watch", err) })
	}
	go func() {
		defer close(f.done)
		for fctx.Err() == nil {
			first := true
			err := src.Run(fctx, func(locks []*evidence.Snapshot) {
				select {
				case g.batches <- batch{from: f, first: first, locks: locks}:
				case <-fctx.Done():
				}
				first = false
			})
			if fctx.Err() == nil {
				g.trouble("watch", fmt.Errorf("following the locks: %w", err))
				pause(fctx, time.Second)
			}
		}
	}()
	return nil
}

// manyLocks: the first picture of so many leaves garbage, as much as it holds, that is
// worth a collection of its own.
const manyLocks = 1000

// update takes what a source tells of.
func (g *Guard) update(b batch) {
	if b.from != g.source {
		return
	}
	now := time.Now()
	seen := map[string]bool{}
	if b.first {
		seen = make(map[string]bool, len(b.locks))
	}
	for _, s := range b.locks {
		if b.first {
			seen[s.Key] = true
		}
		g.take(s, now)
	}
	if b.first {
		// What ended while nobody looked.
		for key, l := range g.table.locks {
			if !seen[key] {
				g.forget(l)
			}
		}
		b.from.begun = true
		if len(b.locks) >= manyLocks {
			debug.FreeOSMemory()
		}
		g.board.swept()
	}
	g.board.counts(len(g.table.locks))
}

// take takes one snapshot.
func (g *Guard) take(s *evidence.Snapshot, now time.Time) {
	l := g.table.locks[s.Key]
	switch {
	case s.Pair == nil, g.client.Policies().For(idOf(s)) == nil:
		if l != nil {
			g.forget(l)
		}
		return
	case l == nil:
		l = &lock{key: s.Key, snap: s, obs: g.client.NewObserver(s.Name, g.cluster), place: -1, since: now}
		g.table.locks[s.Key] = l
	case l.snap.Hold() != s.Hold():
		l.snap, l.askAt, l.tries, l.told = s, time.Time{}, 0, ""
	default:
		l.snap = s
		if l.told != "" {
			// An approval may have come, or what a freeze rests on have gone.
			l.askAt = time.Time{}
		}
	}
	g.living.follow(l, g.client.Reader().LocalProcesses(s))
	g.shown(s)
	g.judge(l, now)
}

func idOf(s *evidence.Snapshot) policies.LockID {
	return policies.LockID{Name: s.Name, Key: s.Key, Own: s.Own}
}

// forget drops a lock: its key is gone, or no policy is for it any more.
func (g *Guard) forget(l *lock) {
	g.living.follow(l, nil)
	g.unrecord(l)
	g.board.change(l.snap.Name, l.state, "")
	g.hidden(l.snap)
	g.table.drop(l)
	l.snap = nil
}

// filesEvery is how often a lock is judged anew whose policy reads facts of a
// file: nobody tells when a kernel lock is taken or let go.
const filesEvery = 5 * time.Second

// judge judges a lock as of now and sees to it that it is judged again in time.
// While a break uses the observer it waits for that.
func (g *Guard) judge(l *lock, now time.Time) {
	if l.acting || l.settling || l.snap == nil || l.ended != "" && l.ended == l.snap.Hold() {
		return
	}
	l.ended = ""
	look := l.obs.Glance
	if g.cfg.Journal != nil {
		look = l.obs.Judge // it keeps every fact
	}
	v := look(l.snap, now)
	if g.settle(l, v) {
		return
	}
	l.cools(v)
	g.judged++
	g.metrics.judgements.Inc()
	g.note(l, v)
	g.record(v)
	due := time.Time{}
	if v.State == locksmith.Cooling {
		due = l.cool
	}
	if at := g.doubts(l, now); !at.IsZero() {
		due = at
	}
	if v.Policy != nil && v.Snapshot.Held() {
		if d, ok := v.Policy.Steady(v.Facts, &v.Judgement, now); ok && (due.IsZero() || now.Add(d).Before(due)) {
			due = now.Add(d)
		}
		if soon := now.Add(filesEvery); v.Policy.ReadsFile() && (due.IsZero() || soon.Before(due)) {
			due = soon
		}
	}
	g.table.schedule(l, due)
	if v.State == locksmith.Hot {
		g.consider(l, v, now)
	}
}

// wakeHot judges every HOT lock anew: whether they may be broken has changed.
func (g *Guard) wakeHot() {
	now := time.Now()
	for _, l := range g.table.locks {
		if l.state == locksmith.Hot {
			l.askAt = time.Time{}
			g.table.schedule(l, now)
		}
	}
}

// braked takes what stops all breaking.
func (g *Guard) braked(b brakes) {
	hash := g.client.Policies().Hash
	was := g.brakes
	g.brakes = b
	switch {
	case !b.known:
	case !b.inForce(hash) && g.warned != b.applied:
		g.warned = b.applied
		g.log.Warn("these policies are not the ones applied: this locksmith watches, and does not act", "policy_hash", short(hash), "applied_hash", short(b.applied))
	case b.inForce(hash) && g.warned != "":
		g.warned = ""
		g.log.Info("these policies are the ones applied again", "policy_hash", short(hash))
	}
	if b.known && b.suspended != was.suspended {
		if b.suspended != "" {
			g.log.Warn("all automatic breaking is suspended", "by", b.suspended)
		} else if was.known {
			g.log.Info("automatic breaking is no longer suspended")
		}
	}
	g.board.braked(b, b.inForce(hash))
	g.stand()
	if b.open(hash) {
		g.wakeHot()
	}
}

// stand tells the election whether this locksmith may lead.
func (g *Guard) stand() {
	c := candidacy{client: g.client, cluster: g.cluster, stands: g.brakes.known && g.brakes.inForce(g.client.Policies().Hash)}
	if !g.brakes.known {
		// Nothing is known for a while: who leads goes on, and nobody else begins.
		c.stands, c.unsure = false, true
	}
	select {
	case <-g.eligible:
	default:
	}
	g.eligible <- c
}

// reload puts other policies in force, with all that was seen so far.
func (g *Guard) reload(ctx context.Context) {
	if g.cfg.Load == nil {
		return
	}
	old := g.client.Policies()
	set, err := g.cfg.Load()
	switch {
	case err != nil:
		g.metrics.reloads.WithLabelValues("failed").Inc()
		g.board.reloaded(err)
		g.metrics.journaled(g.cfg.Journal.Reload(journal.Reload{PolicyHash: old.Hash, Error: printable(err.Error())}))
		g.log.Error("the policies are not valid: those before stay in force", "policy_hash", short(old.Hash), "error", err)
		return
	case set.Hash == old.Hash:
		g.metrics.reloads.WithLabelValues("unchanged").Inc()
		g.board.reloaded(nil)
		g.log.Info("the policies say what they said before", "policy_hash", short(old.Hash))
		return
	}
	before := g.client
	g.client = g.client.With(set)
	if roots := Roots(set, g.keys); len(roots) == 0 {
		g.client = before
		g.metrics.reloads.WithLabelValues("failed").Inc()
		g.board.reloaded(errors.New("they have no patterns in `locks`"))
		g.log.Error("the new policies cover nothing: those before stay in force", "policy_hash", short(old.Hash))
		return
	} else if !slices.Equal(roots, g.source.roots) {
		g.source.cancel()
		if err := g.follow(ctx); err != nil {
			g.log.Error("following the locks", "error", err)
		}
	}
	g.metrics.reloads.WithLabelValues("applied").Inc()
	g.board.reloaded(nil)
	g.board.policies(set.Hash)
	g.metrics.journaled(g.cfg.Journal.Reload(journal.Reload{OK: true, PolicyHash: set.Hash, Was: old.Hash}))
	g.log.Info("other policies are in force", "policy_hash", short(set.Hash), "was", short(old.Hash))
	// A break by the old ones is not carried on.
	if g.term != nil {
		g.term.interrupt()
	}
	now := time.Now()
	for _, l := range g.table.locks {
		if set.For(idOf(l.snap)) == nil {
			g.forget(l)
			continue
		}
		l.askAt, l.tries, l.told = time.Time{}, 0, ""
		if !l.acting {
			l.obs.Under(g.client)
			g.table.schedule(l, now)
		}
	}
	g.board.counts(len(g.table.locks))
	g.warned = ""
	g.braked(g.brakes)
}

// heartbeat asks for the progress record of the leader, if the loop's picture
// is fresh: who sees nothing shall not seem to be at work.
func (g *Guard) heartbeat() {
	g.metrics.journaled(g.cfg.Journal.Watching())
	if !g.board.fresh() {
		return
	}
	p := pulse{judged: g.judged, note: fmt.Sprintf("watching %d locks, %d HOT", len(g.table.locks), g.board.count(locksmith.Hot))}
	select {
	case g.beat <- p:
	default:
	}
}

// pulse is what the loop says of itself.
type pulse struct {
	judged int64
	note   string
}

// dedupe sorts roots and drops those that begin with another.
func dedupe(roots []string) []string {
	slices.Sort(roots)
	var out []string
	for _, r := range roots {
		if n := len(out); n == 0 || !strings.HasPrefix(r, out[n-1]) {
			out = append(out, r)
		}
	}
	return out
}
