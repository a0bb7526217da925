package witness

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

const (
	// settle is how old a hold must be before it is said that its holder lives:
	// short holds, which are most, then cost Consul nothing. A death is told at
	// once.
	settle = time.Second
	// lookAgain is how often is looked at what no event tells: a process that
	// may not be looked at, or one that outlives its holder.
	lookAgain = 2 * time.Second
	// treePatience is how long the children of a dead holder, which a supervisor
	// is ending, are waited for before the holder alone is reported.
	treePatience = 500 * time.Millisecond
	treeEvery    = 20 * time.Millisecond
)

// follower watches one lock that a holder on this host may have.
type follower struct {
	w    *Witness
	name string
	key  string
	seen string // its record
	wake chan struct{}
	// named: a service of this node names the lock. Guarded by w.mu.
	named bool

	// hold is the one that was looked at last, and since is when it was seen
	// first.
	hold  string
	since time.Time
}

func (f *follower) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// look is what one consistent read shows of the lock.
type look struct {
	pair, record *api.KVPair // nil: not there
	holder       *records.Holder
	progress     *records.Progress
	// old is the record that stands, if it is one of this hold.
	old *records.Observed
	// over: the record that stands is of a hold that does not any more.
	over bool
}

func (f *follower) run(ctx context.Context) {
	kctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { f.followKey(kctx) })
	lost := false
	for ctx.Err() == nil {
		l, err := f.read(ctx)
		if err != nil {
			// What it reads there it also writes.
			err = consulkv.Needs(err, f.seen, "write")
			lost = f.w.say(f.key, "lock "+text.Printable(f.name)+" is not watched now", err) || lost
			f.wait(ctx, nil, lookAgain)
			continue
		}
		if lost {
			lost = false
			f.w.cfg.Log.Info("lock " + text.Printable(f.name) + " is watched again")
		}
		if l.holder == nil {
			f.tidy(ctx, l)
			if f.w.leave(f) {
				return
			}
			f.wait(ctx, nil, 0)
			continue
		}
		alive, again := f.witness(ctx, l)
		f.wait(ctx, alive, again)
	}
}

// followKey pokes when the lock's key changes.
func (f *follower) followKey(ctx context.Context) {
	c := f.w.cfg.Consul
	w := consulkv.NewWatcher(c, consulkv.WatchOptions{Name: f.key, Wait: blockFor, MinInterval: 50 * time.Millisecond},
		func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) { return c.API().KV().Get(f.key, q) })
	for ctx.Err() == nil {
		p, err := w.Next(ctx)
		switch {
		case err != nil:
			sleep(ctx, time.Second)
		case p == nil:
			// The query for a missing key returns at every write.
			sleep(ctx, time.Second)
			fallthrough
		default:
			f.poke()
		}
	}
}

// wait returns when the lock may have changed, when one of the processes ends,
// or after d; 0: without that bound.
func (f *follower) wait(ctx context.Context, procs []records.Process, d time.Duration) {
	if d == 0 {
		d = math.MaxInt64
	}
	wctx, cancel := context.WithTimeout(ctx, d)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, p := range procs {
		wg.Go(func() {
			defer cancel()
			_ = hostproc.WaitEnd(wctx, hostproc.Process(p))
		})
	}
	select {
	case <-f.wake:
	case <-wctx.Done():
	}
}

// read takes one picture of the lock, its progress, and what was said of it.
// The holder is nil unless its hold stands, or ended without a word, and is of
// this host and boot.
func (f *follower) read(ctx context.Context) (*look, error) {
	progress := f.w.cfg.Prefix.Progress(f.name)
	res, err := consulkv.Retry(ctx, f.w.cfg.Consul, "read lock "+f.name, func(ctx context.Context) (consulkv.Results, error) {
		return f.w.cfg.Consul.Txn(ctx, consulkv.GetOrEmpty(f.key), consulkv.GetOrEmpty(progress), consulkv.GetOrEmpty(f.seen))
	})
	if err != nil {
		return nil, err
	}
	l := &look{pair: there(res, f.key), record: there(res, f.seen)}
	l.over = l.record != nil
	if l.pair == nil {
		return l, nil
	}
	var h records.Holder
	self := f.w.cfg.Self
	ok := records.Decode(f.key, l.pair.Value, &h) == nil
	switch {
	case !ok, h.Lock != f.name, h.Session == "", h.Nonce == "":
		return l, nil
	case l.pair.Session != "" && l.pair.Session != h.Session, h.Released, h.Broken != "":
		return l, nil
	}
	var o records.Observed
	if l.record != nil && records.Decode(f.seen, l.record.Value, &o) == nil && o.Session == h.Session && o.Nonce == h.Nonce {
		l.old, l.over = &o, false
	}
	if h.Host != self.Host || h.BootID != self.BootID {
		return l, nil
	}
	l.holder = &h
	var p records.Progress
	if b := there(res, progress); b != nil && records.Decode(progress, b.Value, &p) == nil && p.Session == h.Session {
		l.progress = &p
	}
	return l, nil
}

func there(res consulkv.Results, key string) *api.KVPair {
	if p := res.Find(key); p != nil && p.ModifyIndex != 0 {
		return p
	}
	return nil
}

// witness looks at the processes of a hold and writes what changed. It returns
// the processes whose end is to be waited for, and for how long at most.
func (f *follower) witness(ctx context.Context, l *look) (alive []records.Process, again time.Duration) {
	if hold := l.holder.Session + l.holder.Nonce; hold != f.hold {
		f.hold, f.since = hold, time.Now()
	}
	o := f.seeing(l)
	// What is waited for is what this look saw alive: with a second look a process that
	// ends between the two would be waited for by nobody.
	state, why, alive := f.w.reader.Living(l.holder, l.progress)
	switch state {
	case hostproc.True:
		yes := true
		o.Alive = &yes
	case hostproc.False:
		no := false
		o.Alive = &no
		o.Gone, o.Why = f.treeGone(ctx, l)
		if !o.Gone {
			again = lookAgain
		}
	default:
		o.Why, again = why, lookAgain
	}
	if o.Alive == nil || *o.Alive {
		if left := settle - time.Since(f.since); left > 0 {
			return alive, left
		}
	}
	if !news(l.old, o) {
		return alive, again
	}
	if err := f.write(ctx, l, o); err != nil {
		f.w.say(f.seen, "what is seen of a holder on this host cannot be written: other hosts do not learn of its end", err)
		return alive, lookAgain
	}
	f.w.cfg.Log.Debug("seen", "lock", f.name, "alive", o.Alive != nil && *o.Alive, "dead", o.Alive != nil && !*o.Alive, "gone", o.Gone, "why", o.Why)
	return alive, again
}

func (f *follower) seeing(l *look) *records.Observed {
	h, self := l.holder, f.w.cfg.Self
	o := &records.Observed{
		Version: records.Version, Kind: records.ObservedHost, Observer: f.w.node, Lock: h.Lock, Session: h.Session, Nonce: h.Nonce,
		Token: l.pair.ModifyIndex, At: time.Now().UTC(), Host: self.Host, BootID: self.BootID, PIDNS: self.PIDNS, Agent: f.w.cfg.Agent,
	}
	for _, p := range evidence.Processes(h, l.progress) {
		if !slices.Contains(o.Processes, p) {
			o.Processes = append(o.Processes, p)
		}
	}
	return o
}

// treeGone waits a little for what the holder's supervisor is ending.
func (f *follower) treeGone(ctx context.Context, l *look) (bool, string) {
	h := l.holder
	for deadline := time.Now().Add(treePatience); ; {
		gone, why := hostproc.TreeGone(h.Nonce, h.StartTicks, h.CGroup)
		if gone == hostproc.True {
			return true, ""
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return false, why
		}
		sleep(ctx, treeEvery)
	}
}

// news tells whether o says something that the record which stands does not.
// Two agents may stand on one host: the one that knows is not overruled by one
// that does not, and a death is final.
func news(old, o *records.Observed) bool {
	switch {
	case old == nil:
		return true
	case o.Alive == nil:
		return old.Alive == nil && old.Why != o.Why
	case old.Alive == nil:
		return true
	case !*o.Alive:
		return *old.Alive || o.Gone && !old.Gone || !covers(old.Processes, o.Processes)
	}
	return !*old.Alive
}

func covers(all, some []records.Process) bool {
	for _, p := range some {
		if !slices.Contains(all, p) {
			return false
		}
	}
	return true
}

// write puts the record in place, if neither the hold nor the record that was
// read changed since.
func (f *follower) write(ctx context.Context, l *look, o *records.Observed) error {
	index := uint64(0)
	if l.record != nil {
		index = l.record.ModifyIndex
	}
	_, err := consulkv.Retry(ctx, f.w.cfg.Consul, "write "+f.seen, func(ctx context.Context) (consulkv.Results, error) {
		return f.w.cfg.Consul.Txn(ctx, consulkv.CheckIndex(f.key, l.pair.ModifyIndex), consulkv.CAS(f.seen, records.Encode(o), index))
	})
	if _, refused := errors.AsType[*consulkv.Refused](err); refused {
		f.poke() // read anew
		return nil
	}
	return err
}

// tidy takes away the record of a hold that is over. What fails is left to the
// next hold on this node, which writes over it.
func (f *follower) tidy(ctx context.Context, l *look) {
	if !l.over {
		return
	}
	_, err := consulkv.Retry(ctx, f.w.cfg.Consul, "delete "+f.seen, func(ctx context.Context) (bool, error) {
		ok, _, err := f.w.cfg.Consul.API().KV().DeleteCAS(&api.KVPair{Key: f.seen, ModifyIndex: l.record.ModifyIndex}, (&api.WriteOptions{}).WithContext(ctx))
		return ok, err
	})
	if err != nil && ctx.Err() == nil {
		f.w.cfg.Log.Debug("a record is left", "key", f.seen, "error", err)
	}
}
