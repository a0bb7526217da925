package locksmith

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// sessionName begins the names of all sessions of aimlock.
const sessionName = "aimlock "

// NewNonce returns what tells one acquisition from every other.
func NewNonce(ctx context.Context) string { return fate.Text(ctx, "nonce") }

// accessorGrace is what an acquisition and a break wait for the accessor of their
// token beyond what they do meanwhile: a lock matters more than its record.
const accessorGrace = 100 * time.Millisecond

// attempt is one acquisition of the locks of a request under one session.
type attempt struct {
	c    *Client
	req  *Request
	sess *session
	// nonce and accessor stand in its holder records.
	nonce    string
	accessor string
	recs     map[string]records.Holder
	// owing are the locks under which its last transaction found something owed.
	owing map[string]bool
}

func (r *Request) sessionName() string {
	return sessionName + r.Operation + " " + strings.Join(r.Names, " ")
}

// nonce is the request's own, or a new one.
func (r *Request) nonce(ctx context.Context) string {
	if r.Nonce != "" {
		return r.Nonce
	}
	return NewNonce(ctx)
}

// begin makes the holder records that go with a fresh session. It may have been
// made ahead.
func (c *Client) begin(ctx context.Context, req *Request, ready *ahead) (_ *attempt, err error) {
	a := &attempt{c: c}
	if ready != nil {
		a.nonce = ready.nonce
		a.sess, err = ready.take()
	} else {
		a.nonce = req.nonce(ctx)
		a.sess, err = c.open(ctx, req, a.nonce)
	}
	if err != nil {
		return nil, err
	}
	a.accessor = c.consul.AccessorWithin(ctx, accessorGrace)
	a.aim(req)
	return a, nil
}

// open makes a fresh session for a request. Beside it, it asks for what else an
// acquisition needs to know once in the life of a process.
func (c *Client) open(ctx context.Context, req *Request, nonce string) (*session, error) {
	c.consul.AskAccessor()
	var wg sync.WaitGroup
	defer wg.Wait()
	ectx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { _ = c.readsEpoch(ectx) }) // take asks again, and says why not
	among := req.Names
	if req.among != nil {
		among = req.among
	}
	join := func() (*check, error) { return c.joinCheck(ctx, req.sessionName(), c.meta(nonce, among)) }
	// The lock-delay is the quiesce that this holder asks for.
	sess, err := c.openSession(ctx, req.TTL, req.Quiesce, req.sessionName(), join)
	if err != nil {
		return nil, err
	}
	sess.node = c.localNode(ctx, sess.id)
	return sess, nil
}

// aim makes the holder records of a request. An attempt may be aimed anew as long
// as none of its transactions may have committed.
func (a *attempt) aim(req *Request) {
	c := a.c
	a.req, a.recs = req, map[string]records.Holder{}
	for _, n := range req.Names {
		a.recs[n] = records.Holder{
			Version: records.Version, Lock: n, Locks: req.Names, Slots: len(req.among), Nonce: a.nonce, Session: a.sess.id, Tool: evidence.ToolAimlock,
			Operation: req.Operation, RolloutID: req.RolloutID, AllocID: c.alloc.ID, AllocRegion: c.alloc.Region, AllocJob: c.alloc.Job, AllocNamespace: c.alloc.Namespace,
			Host: c.self.Host, Node: a.sess.node, PID: c.self.PID, StartTicks: c.self.StartTicks, StartedAt: c.self.StartedAt.UTC(),
			Accessor: a.accessor,
			BootID:   c.self.BootID, PIDNS: c.self.PIDNS, CGroup: c.self.CGroup, User: c.self.User,
			Processes: req.Processes, Quiesce: req.Quiesce.Seconds(), TTL: req.TTL.Seconds(), Check: a.sess.service,
		}
	}
}

// meta says on the local Consul agent whose hold this will be, for the agent of
// this host that watches its holders. It is nil where that does not fit: then
// other hosts cannot tell whether this holder lives.
func (c *Client) meta(nonce string, locks []string) map[string]string {
	m, ok := records.HolderMeta(string(c.keys), locks, map[string]string{
		records.MetaNonce: nonce, records.MetaHost: c.self.Host, records.MetaBootID: c.self.BootID, records.MetaPIDNS: c.self.PIDNS,
		records.MetaPID: strconv.Itoa(c.self.PID), records.MetaTicks: strconv.FormatUint(c.self.StartTicks, 10),
	})
	if !ok {
		return nil
	}
	return m
}

// owed is the fence record that the end of the last hold of a free lock makes
// necessary, and how the proof went that nothing is owed. nil: nothing is.
func (c *Client) owed(s *evidence.Snapshot) (*records.Fence, string) {
	if s.Held() {
		if s.Fence != nil && s.Fence.Session == s.SessionID() {
			return nil, "" // what it will leave itself
		}
		return owing(s.Fence), ""
	}
	f := &records.Fence{Version: records.Version, UnsafeSince: time.Now().UTC(), Why: "the last holder did not release the lock", Token: s.Index()}
	proof := ""
	switch h := s.Holder; {
	case h != nil && !h.Released:
		f.Owed, f.Session = h.Quiesce, h.Session
		if f.Owed > 0 {
			var dead bool
			if dead, proof = c.reader.Dead(s); dead {
				f.Owed = 0
				if s.Fence != nil && s.Fence.Session == h.Session {
					return nil, proof
				}
			}
		}
	case s.Own && s.Pair != nil && len(s.Pair.Value) == 0:
		// An unlock without a value erases the record, and with it what its
		// holder asked for.
		f.Owed, f.Why = DefaultQuiesce.Seconds(), "the record of the last holder was erased"
	}
	if s.Fence != nil && s.Fence.Owed >= f.Owed {
		return owing(s.Fence), proof
	}
	return owing(f), proof
}

// leaving is the fence record that stands while a hold lasts and goes with its
// clean release: what it asks for must be known also where the record in the
// lock's key is not, as when a person deletes the key. nil: it asks for nothing.
func leaving(h *records.Holder, now time.Time) *records.Fence {
	return owing(&records.Fence{
		Version: records.Version, UnsafeSince: now.UTC(), Owed: h.Quiesce, Why: "the last holder did not release the lock", Session: h.Session,
	})
}

func owing(f *records.Fence) *records.Fence {
	if f == nil || f.Owed <= 0 {
		return nil
	}
	capped := *f
	capped.Owed = min(f.Owed, MaxQuiesce.Seconds())
	return &capped
}

// usable refuses a lock key that somebody uses for something else, since taking
// it would overwrite what stands there, and one of which it cannot be read what
// is owed.
func usable(s *evidence.Snapshot) error {
	switch {
	case s.FenceErr != nil:
		return fmt.Errorf("lock %s: %w", s.Name, s.FenceErr)
	case s.Pair == nil, len(s.Pair.Value) == 0, s.Holder != nil, s.Held():
		return nil
	}
	return fmt.Errorf("lock %s: %w: the key %s holds %d bytes of something else; choose another name or delete the key", s.Name, ErrPlainKey, s.Key, len(s.Pair.Value))
}

// flags are kept: tools built on consul/api refuse a key without theirs.
func flags(op consulkv.Op, s *evidence.Snapshot) consulkv.Op {
	if s.Pair != nil {
		op.Flags = s.Pair.Flags
	}
	return op
}

// take acquires all locks of the request in one transaction. snaps are what
// was just read of them, and the transaction fails if anything of it changed.
// ended are locks among them whose hold this transaction ends (a break). free is for
// how long all of them were seen to be free.
func (a *attempt) take(ctx context.Context, snaps map[string]*evidence.Snapshot, ended map[string]*ending, free time.Duration) (*Hold, time.Duration, error) {
	c := a.c
	if err := a.sess.dead(); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errNotOurs, err)
	}
	if err := c.readsEpoch(ctx); err != nil {
		return nil, 0, err
	}
	var guards, ops []consulkv.Op
	for _, n := range a.req.Names {
		s := snaps[n]
		if s.SessionID() == a.sess.id {
			return nil, 0, fmt.Errorf("lock %s: %w", n, ErrAlreadyHeld)
		}
		if e := ended[n]; e != nil {
			guards = append(guards, e.guards...)
			continue
		}
		if err := usable(s); err != nil {
			return nil, 0, err
		}
		guards = append(guards, consulkv.CheckIndex(s.Key, s.Index()), consulkv.CheckIndex(c.keys.Fence(n), s.Deps[c.keys.Fence(n)]))
		if s.SeenKey != "" {
			guards = append(guards, consulkv.CheckIndex(s.SeenKey, s.Deps[s.SeenKey]))
		}
	}
	epochKey, pen := c.keys.Epoch(), c.keys.Writes(a.req.Names[0])
	ops = append(ops, consulkv.GetOrEmpty(epochKey), consulkv.GetOrEmpty(pen))
	now, boot := time.Now().UTC(), c.boot()
	fences, owe := a.fences(snaps, ended)
	a.owing = map[string]bool{}
	for i, n := range a.req.Names {
		s, e, fence := snaps[n], ended[n], fences[i]
		if e != nil {
			ops = append(ops, e.end)
		}
		rec := a.recs[n]
		rec.AcquiredAt, rec.AcquiredBoot, rec.Pause = now, boot, max(0, owe-free).Seconds()
		a.recs[n] = rec
		ops = append(ops, flags(consulkv.Lock(s.Key, records.Encode(&rec), a.sess.id), s))
		if a.owing[n] = fence != nil; fence == nil {
			fence = leaving(&rec, now)
		}
		ops = append(ops, c.setFence(s, fence)...)
		ops = append(ops, consulkv.Delete(c.keys.Request(n)), consulkv.Delete(c.keys.Approval(n)))
		if e != nil {
			ops = append(ops, e.outcome)
		}
	}
	for _, n := range a.req.Names {
		if e := ended[n]; e != nil {
			if err := e.recent(); err != nil {
				return nil, 0, err
			}
		}
	}
	res, err := c.consul.Txn(ctx, append(once(guards), ops...)...)
	if err != nil {
		if !consulkv.Ambiguous(err) {
			return nil, 0, err
		}
		h, err := a.resolve(ctx, snaps, err)
		return h, owe, err
	}
	h, err := a.taken(ctx, snaps, res.Find(snaps[a.req.Names[0]].Key).ModifyIndex, res.Find(epochKey).Value, res.Find(pen).ModifyIndex)
	return h, owe, err
}

// fences are what the last holds of the locks, in the order of the request, leave to
// this one, nil where that is nothing; owe is the longest pause of them.
func (a *attempt) fences(snaps map[string]*evidence.Snapshot, ended map[string]*ending) (fences []*records.Fence, owe time.Duration) {
	fences = make([]*records.Fence, len(a.req.Names))
	for i, n := range a.req.Names {
		if e := ended[n]; e != nil {
			fences[i] = e.fence
		} else {
			fences[i], _ = a.c.owed(snaps[n])
		}
		if fences[i] != nil {
			owe = max(owe, seconds(fences[i].Owed))
		}
	}
	return fences, owe
}

// readsEpoch makes sure, once, that the epoch can be read: Consul takes a lock in a
// transaction whose reads it refuses, and its holder could not go on.
func (c *Client) readsEpoch(ctx context.Context) error {
	if c.epochSeen.Load() {
		return nil
	}
	_, err := c.consul.Get(ctx, c.keys.Epoch())
	c.epochSeen.Store(err == nil)
	return err
}

// setFence writes a fence record, or takes what stands there away.
func (c *Client) setFence(s *evidence.Snapshot, f *records.Fence) []consulkv.Op {
	switch key := c.keys.Fence(s.Name); {
	case f != nil:
		return []consulkv.Op{consulkv.Set(key, records.Encode(f))}
	case s.Deps[key] != 0:
		return []consulkv.Op{consulkv.Delete(key)}
	}
	return nil
}

// once leaves out guards that stand there already.
func once(guards []consulkv.Op) []consulkv.Op {
	type id struct {
		verb    string
		key     string
		index   uint64
		session string
	}
	seen := map[id]bool{}
	var out []consulkv.Op
	for _, g := range guards {
		k := id{string(g.Verb), g.Key, g.Index, g.Session}
		if !seen[k] {
			seen[k] = true
			out = append(out, g)
		}
	}
	return out
}

// taken makes the hold of an acquisition that stands.
func (a *attempt) taken(ctx context.Context, snaps map[string]*evidence.Snapshot, token uint64, epoch []byte, pen uint64) (*Hold, error) {
	h := &Hold{c: a.c, sess: a.sess, names: a.req.Names, record: a.recs, flags: map[string]uint64{}, token: token, pen: pen, owing: a.owing, span: a.req.span}
	for _, n := range h.names {
		if p := snaps[n].Pair; p != nil {
			h.flags[n] = p.Flags
		}
	}
	ep, err := parseEpoch(epoch, a.c.keys.Epoch())
	if err != nil {
		h.start(ctx)
		return nil, errors.Join(err, h.giveUp(ctx))
	}
	h.epoch = ep
	h.start(ctx)
	return h, nil
}

// errNotOurs: an acquisition does not stand, and its session must end before
// another one is tried.
var errNotOurs = errors.New("the acquisition did not stand")

// resolvePatience bounds the reading after an acquisition whose answer was lost.
const resolvePatience = 30 * time.Second

// resolve finds out whether an acquisition whose answer was lost stands: the
// session and the nonce of the record are ours, or they are not. It reads for
// as long as the lease lasts; the lock is never taken blindly again.
func (a *attempt) resolve(ctx context.Context, snaps map[string]*evidence.Snapshot, cause error) (*Hold, error) {
	c, key := a.c, snaps[a.req.Names[0]].Key
	epoch, pen := c.keys.Epoch(), c.keys.Writes(a.req.Names[0])
	c.log.Warn("the answer to an acquisition was lost; reading whether it stands", "lock", a.req.Names[0], "error", cause)
	patience := resolvePatience
	if left, ok := consulkv.Hurry(ctx); ok {
		patience = min(patience, left)
	}
	for deadline := time.Now().Add(patience); ; {
		if err := a.sess.dead(); err != nil {
			return nil, fmt.Errorf("%w: %w; and then: %w", errNotOurs, cause, err)
		}
		// One picture: the epoch is that of the acquisition, or the hold is lost
		// by the time that it writes, since who raises the epoch voids holders.
		res, err := c.consul.Txn(ctx, consulkv.GetOrEmpty(key), consulkv.GetOrEmpty(epoch), consulkv.GetOrEmpty(pen))
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if time.Now().After(deadline) || consulkv.KindOf(err) == consulkv.Denied {
				return nil, fmt.Errorf("whether an acquisition of lock %s stands cannot be read: %w", a.req.Names[0], err)
			}
			if serr := sleep(ctx, 200*time.Millisecond); serr != nil {
				return nil, serr
			}
			continue
		}
		p := res.Find(key)
		if p.Session != a.sess.id {
			return nil, fmt.Errorf("%w: %w", errNotOurs, cause)
		}
		var rec records.Holder
		if err := records.Decode(key, p.Value, &rec); err != nil || rec.Nonce != a.recs[a.req.Names[0]].Nonce {
			return nil, fmt.Errorf("%w: somebody wrote the key of lock %s meanwhile", errNotOurs, a.req.Names[0])
		}
		return a.taken(ctx, snaps, p.ModifyIndex, res.Find(epoch).Value, res.Find(pen).ModifyIndex)
	}
}

func parseEpoch(b []byte, key string) (uint64, error) {
	text := strings.TrimSpace(string(b))
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is not a number: orders cannot be given; `aimlock recover` writes one that is above every order", key)
	}
	return n, nil
}

// seconds makes a duration of a number of seconds out of a record, which may be
// any number: what is too large is the largest that there is.
func seconds(s float64) time.Duration {
	if s >= float64(math.MaxInt64)/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}
