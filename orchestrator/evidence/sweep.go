package evidence

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// Sweep follows every lock under some roots of KV. However many locks there
// are, it asks the same few questions: each root, the folders of the records
// beside aimlock's locks, all sessions, and the checks that sessions are bound
// to. Values that are known by their index are not decoded again, and what has
// not changed is not told again.
//
// Invariant: the parts of a snapshot of a sweep were read at different moments,
// each consistently. Such a snapshot finds candidates: who breaks a lock reads it
// again by [Reader.Read], and its transaction proves that nothing changed since.
// Where two parts do not fit together, a fact is unknown, with a reason.
type Sweep struct {
	// Failed is told of a part that cannot be read for now, and of nil when it
	// can again. While a part of KV cannot be read, nothing is told of any lock.
	// It is called from the goroutine of Run. May be nil.
	Failed func(part string, err error)
	// Every is the least time between two reads of one part: one change
	// returns all of it. 0: a second. A part that takes long to read is read
	// less often still, so that reading takes a tenth of the time at most.
	Every time.Duration
	// HeldOnly lets Read leave out what nobody holds, which can save it nearly
	// all of its work.
	HeldOnly bool
	// Hidden is set by Read where Consul left keys out that the token may not read:
	// there may be locks among them.
	Hidden bool

	r *Reader
	// roots are what was asked for, parts the prefixes of KV that are read.
	roots, parts []string
}

// sweepEvery is the default of Sweep.Every.
const sweepEvery = time.Second

// NewSweep makes a sweep of all locks whose keys begin with one of roots; "" is
// all of KV.
//
// Under a root that holds all of aimlock's keys, contents and reports of nodes
// are read over as well; roots that name the folders of locks are cheaper.
func (r *Reader) NewSweep(roots []string) *Sweep {
	s := &Sweep{Every: sweepEvery, r: r}
	var wanted []string
	for _, root := range roots {
		root = strings.TrimPrefix(root, "/")
		s.roots = append(s.roots, root)
		if strings.HasSuffix(root, "/"+lockBase) {
			// What makes a semaphore, or Terraform's lock, stands around it.
			root = strings.TrimSuffix(root, lockBase)
		}
		wanted = append(wanted, root)
	}
	wanted = append(wanted, r.Keys.Beside()...)
	wanted = append(wanted, r.Keys.Rollouts())
	for i, w := range wanted {
		if !coveredBefore(wanted, i) {
			s.parts = append(s.parts, w)
		}
	}
	return s
}

// coveredBefore reports whether another prefix reads all of prefix i.
func coveredBefore(list []string, i int) bool {
	for j, other := range list {
		if j != i && strings.HasPrefix(list[i], other) && (other != list[i] || j < i) {
			return true
		}
	}
	return false
}

// covers reports whether a key was asked for.
func (s *Sweep) covers(key string) bool {
	for _, root := range s.roots {
		if strings.HasPrefix(key, root) {
			return true
		}
	}
	return false
}

// Read reads all locks once: those that a session holds, and aimlock's own also
// while they are free. Of another tool's lock that nobody holds it knows
// nothing. It makes one request for each part, and one or two more.
func (s *Sweep) Read(ctx context.Context) ([]*Snapshot, error) {
	p := newPicture(s)
	if err := s.readSessions(ctx, p); err != nil {
		return nil, err
	}
	if s.HeldOnly && len(p.sessions) == 0 && s.r.noACLs(ctx) {
		// Then the empty answer is no lack of rights.
		return nil, nil
	}
	for _, prefix := range s.parts {
		d, err := newScan(s, prefix).read(ctx)
		if err != nil {
			return nil, err
		}
		p.tookKV(d)
	}
	if p.sessionsOlder() {
		if err := s.readSessions(ctx, p); err != nil {
			return nil, err
		}
	}
	p.tookChecks(s.readChecks(ctx, p.filter()))
	p.readAllocs(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	out := p.compose()
	s.Hidden = len(out) == 0 && s.hiddenWithoutToken(ctx)
	for prefix, hidden := range p.hidden {
		s.Hidden = s.Hidden || hidden && s.mayCover(prefix)
	}
	return out, nil
}

// mayCover reports whether keys that were asked for may stand under a prefix.
func (s *Sweep) mayCover(prefix string) bool {
	return slices.ContainsFunc(s.roots, func(root string) bool {
		return strings.HasPrefix(root, prefix) || strings.HasPrefix(prefix, root)
	})
}

// hiddenWithoutToken reports whether locks may be hidden from a client without a token.
// To such a one Consul does not say that it left something out of a list, but it
// refuses it the read of a key.
func (s *Sweep) hiddenWithoutToken(ctx context.Context) bool {
	if s.r.Consul.HasToken() {
		return false
	}
	return slices.ContainsFunc(s.roots, func(root string) bool {
		_, err := s.r.Consul.Get(ctx, root+lockBase)
		return consulkv.KindOf(err) == consulkv.Denied
	})
}

// readSessions fails only if ctx ends or Consul does not answer: without sessions,
// facts are unknown.
func (s *Sweep) readSessions(ctx context.Context, p *picture) error {
	list, err := consulkv.Retry(ctx, s.r.Consul, "list sessions", func(ctx context.Context) (sessionList, error) {
		list, _, _, err := s.querySessions(ctx, &api.QueryOptions{RequireConsistent: true})
		return list, err
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case consulkv.Silent(err):
		// Nothing else is to be had then, and a read of all of KV would be waited
		// for very much longer.
		return err
	}
	p.tookSessions(list, err)
	return nil
}

// querySessions makes one try.
func (s *Sweep) querySessions(ctx context.Context, q *api.QueryOptions) (sessionList, time.Duration, *api.QueryMeta, error) {
	start := time.Now()
	list, meta, err := s.r.Consul.Sessions(ctx, q)
	if err != nil {
		return sessionList{}, 0, nil, err
	}
	return sessionList{entries: list, filtered: meta.ResultsFilteredByACLs, start: start}, meta.RequestTime, meta, nil
}

// checkList is an answer of the health of all nodes.
type checkList struct {
	checks   api.HealthChecks
	filtered bool
	err      error
}

func (s *Sweep) readChecks(ctx context.Context, filter string) checkList {
	list, err := consulkv.Retry(ctx, s.r.Consul, "list health checks", func(ctx context.Context) (checkList, error) {
		list, _, _, err := s.queryChecks(ctx, filter, &api.QueryOptions{RequireConsistent: true})
		return list, err
	})
	list.err = err
	return list
}

func (s *Sweep) queryChecks(ctx context.Context, filter string, q *api.QueryOptions) (checkList, time.Duration, *api.QueryMeta, error) {
	list, meta, err := s.r.Consul.Checks(ctx, filter, q)
	if err != nil {
		return checkList{}, 0, nil, err
	}
	return checkList{checks: list, filtered: meta.ResultsFilteredByACLs}, meta.RequestTime, meta, nil
}

// noACLs reports whether this Consul asks for no tokens, so that what it does
// not show is not there.
func (r *Reader) noACLs(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, _, err := r.Consul.API().ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx))
	return err != nil && strings.Contains(err.Error(), "ACL support disabled")
}

// scan reads one prefix of KV again and again, and returns what is new.
type scan struct {
	s      *Sweep
	prefix string
	// known are the keys that were kept, by the index that they had.
	known map[string]*keyVersion
	gen   uint64
	// last is the index of the last answer.
	last uint64
}

// keyVersion is a key as a scan saw it last. A Consul that was restored may give
// an index a second time: then the other numbers hardly are the same.
type keyVersion struct {
	modify, create, lock uint64
	size                 int
	gen                  uint64
}

func newScan(s *Sweep, prefix string) *scan {
	return &scan{s: s, prefix: prefix, known: map[string]*keyVersion{}}
}

// delta is what a read of a prefix brought.
type delta struct {
	prefix string
	// changed are the keys that are new or have another index, gone those that
	// are no more.
	changed api.KVPairs
	gone    []string
	// filtered: the token may not read all of it.
	filtered bool
	at       time.Time
	// took is for how long it was arriving.
	took time.Duration
}

func (c *scan) read(ctx context.Context) (delta, error) {
	return consulkv.Retry(ctx, c.s.r.Consul.ForScan(), "list "+folderName(c.prefix), func(ctx context.Context) (delta, error) {
		d, _, err := c.query(ctx, &api.QueryOptions{RequireConsistent: true})
		return d, err
	})
}

func folderName(prefix string) string {
	if prefix == "" {
		return "all keys"
	}
	return prefix
}

// query makes one try. What it learned it keeps only if that succeeded.
func (c *scan) query(ctx context.Context, q *api.QueryOptions) (delta, *api.QueryMeta, error) {
	c.gen++
	found := map[string]*keyVersion{}
	pairs, meta, err := c.s.r.Consul.Scan(consulkv.Part(ctx), c.prefix, q, func(h *consulkv.Head) bool {
		if v, ok := c.known[string(h.Key)]; ok {
			if v.modify == h.ModifyIndex && v.create == h.CreateIndex && v.lock == h.LockIndex && v.size == h.Size {
				v.gen = c.gen
				return false
			}
			// Once followed, a lock is followed for as long as its key exists,
			// so that its release is seen.
		} else if !c.s.wants(h) {
			return false
		}
		found[string(h.Key)] = &keyVersion{h.ModifyIndex, h.CreateIndex, h.LockIndex, h.Size, c.gen}
		return true
	})
	if err != nil {
		return delta{}, nil, err
	}
	if len(c.known) == 0 {
		c.known = found
	} else {
		maps.Copy(c.known, found)
	}
	d := delta{prefix: c.prefix, changed: pairs, filtered: meta.ResultsFilteredByACLs, at: time.Now(), took: meta.RequestTime}
	back := meta.LastIndex < c.last
	c.last = meta.LastIndex
	for k, v := range c.known {
		switch {
		case v.gen != c.gen:
			delete(c.known, k)
			d.gone = append(d.gone, k)
		case back:
			// A restored Consul: nothing known by its index is known any more.
			v.modify = 0
		}
	}
	return d, meta, nil
}

// wants tells whether a key that is not known yet is a lock, or of use to one.
func (s *Sweep) wants(h *consulkv.Head) bool {
	if len(h.Session) > 0 || h.Flags == api.SemaphoreFlagValue {
		// A rollout that waits for its turn has a session, and is no lock.
		return !s.r.Keys.IsQueued(string(h.Key))
	}
	key := string(h.Key)
	if _, own := s.r.Keys.LockName(key); own {
		return true
	}
	if _, ok := s.r.Keys.BesideOf(key); ok {
		return true
	}
	if _, ok := s.r.Keys.RolloutID(key); ok {
		return true
	}
	return strings.HasSuffix(key, "/"+infoBase)
}
