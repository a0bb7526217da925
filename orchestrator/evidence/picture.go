package evidence

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// picture is what a sweep knows, and of which locks it has not told yet. It is
// used by one goroutine.
type picture struct {
	s *Sweep
	r *Reader

	// kv are the keys that are followed, locks and what is of use to them.
	kv map[string]kept
	// locks are those of kv that are locks.
	locks map[string]struct{}
	// hidden are the prefixes of which the token may read only a part.
	hidden map[string]bool

	sessions map[string]*api.SessionEntry
	// sessionsAt is when the sessions were asked for; sessionsWhy, why they are
	// not known.
	sessionsAt  time.Time
	sessionsWhy string
	checks      map[string]api.HealthChecks // by node
	checksWhy   string
	// extra are the checks that are asked for beside serfHealth and those of
	// aimlock's holders.
	extra []string

	// observed are the keys of what observers wrote, by the name of the lock.
	observed map[string]map[string]struct{}

	// sems are the keys of each semaphore, by its folder; semOf is the inverse.
	sems  map[string]map[string]struct{}
	semOf map[string]string

	allocs map[AllocRef]allocSeen
	// allocOf are the keys of the locks that each allocation holds, as told.
	allocOf map[AllocRef]map[string]struct{}
	// follower follows those allocations; nil: each is asked for again and again.
	follower *allocFollower
	// told is what the last snapshot of a lock rested on beside KV.
	told  map[string]rests
	dirty map[string]struct{}
	// started are snapshots that were begun to see whom Nomad is to be asked
	// about; compose goes on with them.
	started map[string]*Snapshot
	// at is when the newest part was read.
	at time.Time
}

// kept is a key and when it was read.
type kept struct {
	pair *api.KVPair
	at   time.Time
}

type allocSeen struct {
	alloc *Alloc
	why   string
	index uint64
}

type rests struct {
	node, rollout string
	alloc         AllocRef
}

const notRead = "it was not read yet"

func newPicture(s *Sweep) *picture {
	return &picture{
		s: s, r: s.r, kv: map[string]kept{}, locks: map[string]struct{}{}, hidden: map[string]bool{},
		sessionsWhy: notRead, checksWhy: notRead,
		sems: map[string]map[string]struct{}{}, semOf: map[string]string{},
		observed: map[string]map[string]struct{}{}, allocs: map[AllocRef]allocSeen{}, allocOf: map[AllocRef]map[string]struct{}{}, told: map[string]rests{}, dirty: map[string]struct{}{},
	}
}

func (p *picture) read(at time.Time) {
	if at.After(p.at) {
		p.at = at
	}
}

// tookKV takes in what a read of a prefix brought.
func (p *picture) tookKV(d delta) {
	p.read(d.at)
	p.hidden[d.prefix] = d.filtered
	rollouts := map[string]bool{}
	touch := func(key string) {
		if name, ok := p.r.Keys.BesideOf(key); ok {
			p.touch(p.r.Keys.Lock(name))
		} else if id, ok := p.r.Keys.RolloutID(key); ok {
			rollouts[id] = true
		} else if lock, ok := strings.CutSuffix(key, infoBase); ok {
			p.touch(lock + lockBase)
		}
		p.touch(key)
	}
	for _, pair := range d.changed {
		p.kv[pair.Key] = kept{pair, d.at}
		if p.isLock(pair) {
			p.locks[pair.Key] = struct{}{}
		}
		if dir, ok := semaphoreDir(pair); ok {
			if p.sems[dir] == nil {
				p.sems[dir] = map[string]struct{}{}
			}
			p.sems[dir][pair.Key] = struct{}{}
			p.semOf[pair.Key] = dir
		}
		p.noteObserved(pair.Key, true)
		touch(pair.Key)
	}
	for _, key := range d.gone {
		p.noteObserved(key, false)
		touch(key)
		delete(p.kv, key)
		if dir, ok := p.semOf[key]; ok {
			delete(p.sems[dir], key)
			delete(p.semOf, key)
			for other := range p.sems[dir] {
				p.touch(other)
			}
		}
	}
	if len(rollouts) > 0 {
		for key, on := range p.told {
			if rollouts[on.rollout] {
				p.touch(key)
			}
		}
	}
}

// noteObserved keeps the list of what observers wrote.
func (p *picture) noteObserved(key string, there bool) {
	name, ok := p.r.Keys.ObservedOf(key)
	switch {
	case !ok:
	case !there:
		delete(p.observed[name], key)
		if len(p.observed[name]) == 0 {
			delete(p.observed, name)
		}
	case p.observed[name] == nil:
		p.observed[name] = map[string]struct{}{key: {}}
	default:
		p.observed[name][key] = struct{}{}
	}
}

// observedOf are the records of observers of one lock.
func (p *picture) observedOf(name string) []*api.KVPair {
	keys := p.observed[name]
	if len(keys) == 0 {
		return nil
	}
	var out []*api.KVPair
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if pair := p.kv[key].pair; pair != nil {
			out = append(out, pair)
		}
	}
	return out
}

// touch marks a lock as changed, if it is one that was asked for.
func (p *picture) touch(key string) {
	if _, ok := p.locks[key]; ok {
		p.dirty[key] = struct{}{}
	}
}

// isLock tells whether a key is a lock that was asked for: one that a session
// holds, a semaphore, or one of aimlock's own.
func (p *picture) isLock(pair *api.KVPair) bool {
	if !p.s.covers(pair.Key) {
		return false
	}
	_, own := p.r.Keys.LockName(pair.Key)
	return own || pair.Session != "" || IsSemaphore(pair)
}

// tookSessions takes in a list of sessions, or why there is none.
func (p *picture) tookSessions(list sessionList, err error) {
	p.read(time.Now())
	old, oldWhy, oldAt := p.sessions, p.sessionsWhy, p.sessionsAt
	p.sessions, p.sessionsWhy, p.sessionsAt = map[string]*api.SessionEntry{}, "", list.start
	for _, e := range list.entries {
		p.sessions[e.ID] = e
	}
	switch {
	case err != nil:
		p.sessionsWhy = err.Error()
	case list.filtered:
		p.sessionsWhy = errSessionsHidden.Error()
	case len(list.entries) == 0:
		p.sessionsWhy = errNoSessions.Error()
	}
	for key := range p.locks {
		id := p.kv[key].session()
		if id == "" {
			continue
		}
		_, was := old[id]
		_, is := p.sessions[id]
		// A session that is missing is missing for another reason now.
		if was != is || !is && (oldWhy != p.sessionsWhy || oldAt.Before(p.kv[key].at)) {
			p.dirty[key] = struct{}{}
		}
	}
	p.extra = p.checksWanted()
}

func (k kept) session() string {
	if k.pair == nil {
		return ""
	}
	return k.pair.Session
}

// sessionsOlder reports whether a lock was read after the sessions, and its
// session is not among them.
func (p *picture) sessionsOlder() bool {
	for key := range p.locks {
		k := p.kv[key]
		if id := k.session(); id != "" && p.sessions[id] == nil && p.sessionsAt.Before(k.at) {
			return true
		}
	}
	return false
}

func (p *picture) tookChecks(list checkList) {
	p.read(time.Now())
	old, oldWhy := p.checks, p.checksWhy
	p.checks, p.checksWhy = map[string]api.HealthChecks{}, ""
	if list.err != nil {
		p.checksWhy = list.err.Error()
	}
	for _, c := range list.checks {
		p.checks[c.Node] = append(p.checks[c.Node], c)
	}
	if list.filtered && len(list.checks) == 0 {
		p.checksWhy = "the token may not read the health of nodes: it needs node:read"
	}
	differ := map[string]bool{}
	for node := range p.checks {
		differ[node] = !SameChecks(old[node], p.checks[node])
	}
	for node := range old {
		if _, ok := p.checks[node]; !ok {
			differ[node] = true
		}
	}
	for key, on := range p.told {
		if differ[on.node] || on.node != "" && oldWhy != p.checksWhy {
			p.touch(key)
		}
	}
}

// SameChecks compares what facts are made of: nothing else of a check is read.
func SameChecks(a, b api.HealthChecks) bool {
	return slices.EqualFunc(a, b, func(x, y *api.HealthCheck) bool {
		return x.CheckID == y.CheckID && x.Status == y.Status && x.Output == y.Output && x.ServiceID == y.ServiceID && x.ServiceName == y.ServiceName
	})
}

// maxExtra bounds how many checks are asked for by name.
const maxExtra = 32

// checksWanted are the checks that foreign sessions are bound to, sorted.
func (p *picture) checksWanted() []string {
	ids := map[string]bool{}
	for key := range p.locks {
		if e := p.sessions[p.kv[key].session()]; e != nil {
			for _, c := range e.ServiceChecks {
				ids[c.ID] = true
			}
		}
	}
	var out []string
	for id := range ids {
		if !strings.HasPrefix(id, "service:"+holderService+"-") && !strings.HasPrefix(id, holderService+"-") {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), maxExtra)]
}

// holderService is the service whose checks aimlock's own sessions are bound
// to: locksmith.HolderService.
const holderService = "aimlock-holder"

// filter is the expression that picks the checks which sessions are bound to.
func (p *picture) filter() string {
	f := `CheckID == "serfHealth" or ServiceName == "` + holderService + `"`
	if len(p.observed) > 0 {
		// Whether agents that said something are still at work.
		f += ` or ServiceName == "` + agentService + `"`
	}
	for _, id := range p.extra {
		f += " or CheckID == " + strconv.Quote(id)
	}
	return f
}

// readAllocs asks Nomad, a few at a time, about the allocations of holders of
// which something is to be told.
func (p *picture) readAllocs(ctx context.Context) {
	if p.r.Nomad == nil {
		return
	}
	ids := map[AllocRef]bool{}
	p.started = make(map[string]*Snapshot, len(p.dirty))
	for key := range p.dirty {
		s := p.start(key)
		p.started[key] = s
		if s.Held() && s.Holder != nil && s.Holder.AllocID != "" {
			if ref := allocOf(s.Holder); p.follower == nil || !p.gone(ref) && !p.follower.known(ref) {
				ids[ref] = true
			}
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	gate := make(chan struct{}, allocsAtOnce)
	for id := range ids {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			a, index, err := p.r.Nomad.Alloc(ctx, id, Since{})
			seen := allocSeen{alloc: a, index: index}
			if err != nil {
				seen = allocSeen{why: err.Error()}
			}
			mu.Lock()
			defer mu.Unlock()
			p.allocs[id] = seen
		})
	}
	wg.Wait()
	if len(ids) > 0 {
		p.read(time.Now())
	}
	if p.follower != nil && ctx.Err() == nil {
		for id := range ids {
			p.follower.follow(ctx, id, p.allocs[id])
		}
	}
}

func (p *picture) gone(ref AllocRef) bool {
	a := p.allocs[ref].alloc
	return a != nil && a.Gone
}

// tookAlloc takes in news of an allocation that is followed.
func (p *picture) tookAlloc(ref AllocRef, seen allocSeen) {
	if len(p.allocOf[ref]) == 0 {
		return
	}
	p.read(time.Now())
	p.allocs[ref] = seen
	for key := range p.allocOf[ref] {
		p.touch(key)
	}
}

// rest notes what the last snapshot of a lock rested on.
func (p *picture) rest(key string, on rests) {
	if old := p.told[key].alloc; old != on.alloc && old != (AllocRef{}) {
		delete(p.allocOf[old], key)
		if len(p.allocOf[old]) == 0 {
			delete(p.allocOf, old)
			delete(p.allocs, old)
			if p.follower != nil {
				p.follower.forget(old)
			}
		}
	}
	if on.alloc != (AllocRef{}) {
		if p.allocOf[on.alloc] == nil {
			p.allocOf[on.alloc] = map[string]struct{}{}
		}
		p.allocOf[on.alloc][key] = struct{}{}
	}
	p.told[key] = on
}

// allocsAtOnce bounds the requests to Nomad under way.
const allocsAtOnce = 8

// compose makes snapshots of the locks that changed, in the order of their
// keys, and forgets that they did.
func (p *picture) compose() []*Snapshot {
	for key := range p.dirty {
		// Whether a contender holds a slot stands in another key than its own.
		for other := range p.sems[p.semOf[key]] {
			p.touch(other)
		}
	}
	out := make([]*Snapshot, 0, len(p.dirty))
	for _, key := range slices.Sorted(maps.Keys(p.dirty)) {
		s := p.snapshot(key)
		if s.Pair == nil {
			delete(p.locks, key)
			p.rest(key, rests{})
			delete(p.told, key)
		}
		out = append(out, s)
	}
	clear(p.dirty)
	p.started = nil
	return out
}

// start is a snapshot with the lock's own key in it.
func (p *picture) start(key string) *Snapshot {
	if s, ok := p.started[key]; ok {
		delete(p.started, key) // each snapshot is handed out once
		s.ReadAt = p.at
		return s
	}
	name, own := p.r.Keys.LockName(key)
	s := &Snapshot{Name: name, Key: key, Own: own, Pair: p.kv[key].pair, Deps: make(map[string]uint64, 6), ReadAt: p.at}
	s.Deps[key] = s.Index()
	s.decodeHolder()
	return s
}

func (p *picture) snapshot(key string) *Snapshot {
	s := p.start(key)
	ks := p.r.ownKeys(s)
	s.takeOwn(ks, func(k string) *api.KVPair { return p.kv[k].pair })
	p.r.takeObserved(s, p.observedOf(s.Name))
	p.hide(s, ks)
	on := rests{}
	if s.Holder != nil {
		on.rollout = s.Holder.RolloutID
	}
	if s.Held() {
		p.held(s)
		on.node = s.node()
		if s.Holder != nil && s.Holder.AllocID != "" {
			on.alloc = allocOf(s.Holder)
		}
	}
	p.rest(key, on)
	if dir, ok := p.semOf[key]; ok {
		p.semaphore(s, dir)
	}
	return s
}

// semaphore adds what a semaphore's keys say of each other.
func (p *picture) semaphore(s *Snapshot, dir string) {
	all := make([]*api.KVPair, 0, len(p.sems[dir]))
	for key := range p.sems[dir] {
		all = append(all, p.kv[key].pair)
	}
	c := tellApart(dir, all, p.isHidden(dir))
	if !IsSemaphore(s.Pair) {
		s.Slot = &Slot{Of: dir + lockBase, Holds: slices.Contains(c.slots, s.Key)}
		return
	}
	s.Semaphore = &Semaphore{Limit: c.limit, Stale: c.stale, Why: c.why}
	for _, key := range c.slots {
		s.Semaphore.Slots = append(s.Semaphore.Slots, p.snapshot(key))
	}
	for _, key := range c.waiting {
		s.Semaphore.Waiting = append(s.Semaphore.Waiting, p.snapshot(key))
	}
}

// hide makes unknown what is missing because it may not be read.
func (p *picture) hide(s *Snapshot, ks []string) {
	if s.SeenKey != "" && s.Deps[s.SeenKey] == 0 && p.isHidden(s.SeenKey) {
		s.SeenWhy = "the token may not read all keys: it needs key:read on " + s.SeenKey
	}
	for i, k := range ks[:2] {
		if s.Deps[k] != 0 || !p.isHidden(k) {
			continue
		}
		why := fmt.Sprintf("the token may not read all keys: it needs key:read on %s", k)
		if i == 0 {
			s.ProgressWhy = why
		} else {
			s.FenceErr = errors.New(why)
		}
	}
}

func (p *picture) isHidden(key string) bool {
	for prefix, hidden := range p.hidden {
		if hidden && strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// held adds what there is only while somebody holds the lock.
func (p *picture) held(s *Snapshot) {
	if s.Holder == nil {
		if info, ok := InfoKey(s.Key); ok {
			s.beside(p.kv[info].pair)
		}
	}
	switch e := p.sessions[s.SessionID()]; {
	case e != nil:
		s.Session = e
	case p.sessionsWhy != "":
		s.SessionWhy = p.sessionsWhy
	case p.sessionsAt.Before(p.kv[s.Key].at):
		s.SessionWhy = "the list of sessions is of an earlier moment than the lock"
	default:
		s.SessionWhy = noSuchSession
	}
	s.nameTool()
	switch node := s.node(); {
	case node == "":
		s.ChecksWhy = nodeNotKnown
	case p.checksWhy != "":
		s.ChecksWhy = p.checksWhy
	case len(p.checks[node]) == 0:
		s.ChecksWhy = noChecksOf(node)
	default:
		s.Checks = p.checks[node]
	}
	if s.Holder == nil || s.Holder.AllocID == "" {
		return
	}
	if p.r.Nomad == nil {
		s.AllocWhy = nomadNotAsked
		return
	}
	seen := p.allocs[allocOf(s.Holder)]
	s.Alloc, s.AllocWhy = seen.alloc, seen.why
}
