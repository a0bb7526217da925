package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/filelock"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/policies"
)

// Snapshot is what Consul says about one lock: each part was read
// consistently, one after the other. A break proves by the indexes in Deps
// that no part changed since.
type Snapshot struct {
	Name string // short name, or the whole key of another tool's lock
	Key  string
	Own  bool // stands under <prefix>locks/

	// Pair is the lock's key; nil if it does not exist.
	Pair *api.KVPair
	// Holder is the decoded record of whoever holds or held the lock; nil if
	// there is none or it is not aimlock's.
	Holder *records.Holder
	// HolderWhy says why a value that looks like a holder record is not taken
	// for one.
	HolderWhy string
	// Tool is what the holder is: aimlock, consul-lock, terraform, vault,
	// consul-template, unknown.
	Tool string

	// Info is what Terraform says of the holder; nil for other tools, and where
	// it is an earlier holder's.
	Info *LockInfo
	// Semaphore is set for the list of holders of a lock with several slots:
	// no session holds that key itself.
	Semaphore *Semaphore
	// Slot is set for the key of a contender for a semaphore.
	Slot *Slot

	// Session is nil if Consul did not answer with one: SessionWhy says why.
	Session    *api.SessionEntry
	SessionWhy string
	// Checks are those of the session's node; nil: ChecksWhy says why.
	Checks    api.HealthChecks
	ChecksWhy string

	// Progress is that of the hold or, of a free lock, of its last one; never
	// that of an earlier hold.
	Progress    *records.Progress
	ProgressWhy string
	Rollout     *RolloutHead
	RolloutWhy  string
	Fence       *records.Fence
	// FenceIndex is the ModifyIndex of that record.
	FenceIndex uint64
	// FenceErr: what quiesce is owed cannot be read, so that nobody may take
	// or break the lock.
	FenceErr error
	Request  *records.Request
	Approval *records.Approval
	// Silence is that of the lock, expired or not; it is read with the records
	// beside a lock, and left out where those are not read.
	Silence *records.Silence

	// Seen is what the agent of the holder's own host saw of this hold; nil:
	// SeenWhy says why. SeenKey is its key, empty where none was asked for.
	Seen    *records.Observed
	SeenWhy string
	SeenKey string
	// Remembered is what other observers wrote of the lock, of whatever hold.
	Remembered []Remembered

	// Alloc is the holder's Nomad allocation; nil: AllocWhy says why.
	Alloc    *Alloc
	AllocWhy string

	// Deps are the KV keys read, with their ModifyIndex; 0: did not exist.
	Deps map[string]uint64
	// ReadAt is when the reading was done: all that was read stood by then, so
	// that an age counted from it is never too much.
	ReadAt time.Time
}

// Held reports whether a session holds the lock.
func (s *Snapshot) Held() bool { return s.Pair != nil && s.Pair.Session != "" }

// ServesPause reports whether the holder still waits for what an earlier one may have
// running: it has done nothing under the lock yet. The end of the wait takes the record
// away. One that was written since the lock was taken is for the next holder.
func (s *Snapshot) ServesPause() bool {
	return s.Held() && s.Holder != nil && s.Holder.Session == s.SessionID() &&
		s.Fence != nil && s.Fence.Owed > 0 && s.Fence.Session != s.SessionID() && s.FenceIndex <= s.Index()
}

// SessionID is the holding session, or "".
func (s *Snapshot) SessionID() string {
	if s.Pair == nil {
		return ""
	}
	return s.Pair.Session
}

// Index is the lock key's ModifyIndex: while the lock is held, its fencing
// token. 0: the key does not exist.
func (s *Snapshot) Index() uint64 {
	if s.Pair == nil {
		return 0
	}
	return s.Pair.ModifyIndex
}

// Hold names the hold that was seen: it changes when the lock changes hands
// and when anybody rewrites its key.
func (s *Snapshot) Hold() string {
	return s.SessionID() + "@" + version(s.Index())
}

// Pause is for how long from its beginning the hold of the snapshot waits out what
// the last one left; 0 where it does not, or its record does not say.
func (s *Snapshot) Pause() time.Duration {
	if !s.Held() || s.Holder == nil {
		return 0
	}
	return time.Duration(min(max(0, s.Holder.Pause), policies.MaxQuiesce.Seconds()) * float64(time.Second))
}

// RolloutHead is the part of a rollout's record that evidence needs.
type RolloutHead struct {
	ID         string     `json:"id"`
	State      string     `json:"state"`
	FinishedAt *time.Time `json:"finished_at"`
}

// Reader reads snapshots and makes facts of them. It is safe for concurrent
// use.
type Reader struct {
	Consul *consulkv.Client
	Keys   keys.Prefix
	Self   hostproc.Identity
	// Nomad may be nil: then nothing is known of allocations.
	Nomad Nomad
	// Files looks at the files of this machine; nil: nobody does.
	Files *filelock.Scanner

	blanks blanks
}

// Read takes a snapshot of the lock called name. The error is about the lock's
// own keys; whatever else cannot be had is unknown, with a reason.
func (r *Reader) Read(ctx context.Context, name string) (*Snapshot, error) {
	key := r.Keys.Lock(name)
	s := r.blank(name, key)
	// In one transaction: for a lock that is free that is all.
	ops := []consulkv.Op{consulkv.GetOrEmpty(key)}
	for _, k := range r.ownKeys(s) {
		ops = append(ops, consulkv.GetOrEmpty(k))
	}
	res, err := consulkv.Retry(ctx, r.Consul, "read lock "+key, func(ctx context.Context) (consulkv.Results, error) {
		return r.Consul.Txn(ctx, ops...)
	})
	if err != nil {
		return nil, err
	}
	if p := res.Find(key); p != nil && p.ModifyIndex > 0 {
		s.Pair = p
	}
	if _, ok := semaphoreDir(s.Pair); ok {
		return r.readSemaphore(ctx, key)
	}
	return r.finish(ctx, s, res.Find)
}

// blank is a snapshot of which nothing was read.
func (r *Reader) blank(name, key string) *Snapshot {
	s := &Snapshot{Name: name, Key: key, Deps: map[string]uint64{}}
	if short, own := r.Keys.LockName(key); own {
		s.Name, s.Own = short, true
	}
	return s
}

// complete takes a snapshot of a lock whose key was just read.
func (r *Reader) complete(ctx context.Context, name, key string, pair *api.KVPair) (*Snapshot, error) {
	s := r.blank(name, key)
	s.Pair = pair
	return r.finish(ctx, s, nil)
}

// finish reads what stands around the pair of a snapshot. beside finds the keys of
// ownKeys where they were read with it.
func (r *Reader) finish(ctx context.Context, s *Snapshot, beside func(key string) *api.KVPair) (*Snapshot, error) {
	s.Deps[s.Key] = s.Index()
	s.decodeHolder()
	if beside != nil && s.ended() {
		s.takeOwn(r.ownKeys(s), beside)
	} else if err := r.readOwn(ctx, s); err != nil { // more is there to be read
		return nil, err
	}
	if s.Held() {
		if err := r.readHeld(ctx, s); err != nil {
			return nil, err
		}
	}
	s.ReadAt = time.Now()
	return s, nil
}

// readHeld reads what there is only while somebody holds the lock.
func (r *Reader) readHeld(ctx context.Context, s *Snapshot) error {
	if s.Holder == nil {
		if err := r.readInfo(ctx, s); err != nil {
			return err
		}
	}
	if err := r.readSession(ctx, s); err != nil {
		return err
	}
	s.nameTool()
	r.readChecks(ctx, s)
	r.readAlloc(ctx, s)
	return nil
}

// decodeHolder takes the value for a holder record only where it is the record
// of this very hold: people copy values, and other tools lock keys that have
// one. Whoever took a stale record for the holder's would prove a live holder
// dead.
func (s *Snapshot) decodeHolder() {
	s.Tool = ToolUnknown
	if s.Pair == nil {
		return
	}
	if s.Own || strings.Contains(string(s.Pair.Value), `"tool"`) {
		var h records.Holder
		err := records.Decode(s.Key, s.Pair.Value, &h)
		switch {
		case err != nil:
			s.HolderWhy = err.Error()
		case h.Tool != ToolAimlock:
		case h.Lock != s.Name:
			s.HolderWhy = "the holder record is a copy of that of another lock"
		case s.Held() && h.Session != s.Pair.Session:
			s.HolderWhy = "the holder record is that of an earlier session: whoever holds the lock did not write one"
		case s.Held() && h.Released:
			s.HolderWhy = "the holder record is that of a hold that was released: whoever holds the lock did not write one"
		default:
			s.Holder, s.Tool = &h, h.Tool
			return
		}
	}
	s.Tool = toolOf(s.Pair, false)
}

// ended: nobody holds the lock, nor was the end of its last hold any but clean.
func (s *Snapshot) ended() bool { return !s.Held() && (s.Holder == nil || s.Holder.Released) }

// ownKeys are the keys beside a lock. A rollout's comes last, if there is one.
func (r *Reader) ownKeys(s *Snapshot) []string {
	ks := []string{r.Keys.Progress(s.Name), r.Keys.Fence(s.Name), r.Keys.Request(s.Name), r.Keys.Approval(s.Name), r.Keys.Silence(s.Name)}
	if s.Held() && s.Holder != nil && s.Holder.RolloutID != "" {
		ks = append(ks, r.Keys.Rollout(s.Holder.RolloutID))
	}
	return ks
}

// readOwn reads the keys beside a lock of aimlock's own in one transaction, so
// that they belong together.
func (r *Reader) readOwn(ctx context.Context, s *Snapshot) error {
	ks := r.ownKeys(s)
	ops := make([]consulkv.Op, len(ks), len(ks)+1)
	for i, k := range ks {
		ops[i] = consulkv.GetOrEmpty(k)
	}
	if !s.ended() {
		ops = append(ops, consulkv.GetTree(r.Keys.ObservedAll(s.Name)))
	}
	res, err := consulkv.Retry(ctx, r.Consul, "read the records of lock "+s.Name, func(ctx context.Context) (consulkv.Results, error) {
		return r.Consul.Txn(ctx, ops...)
	})
	if err != nil {
		return err
	}
	s.takeOwn(ks, res.Find)
	var seen []*api.KVPair
	for _, p := range res {
		if strings.HasPrefix(p.Key, r.Keys.ObservedAll(s.Name)) {
			seen = append(seen, p)
		}
	}
	r.takeObserved(s, seen)
	return nil
}

// takeOwn decodes what stands beside a lock. find returns nil, or a pair with
// index 0, for a key that does not exist.
func (s *Snapshot) takeOwn(ks []string, find func(key string) *api.KVPair) {
	value := func(i int) []byte {
		p := find(ks[i])
		if p == nil || p.ModifyIndex == 0 {
			s.Deps[ks[i]] = 0
			return nil
		}
		s.Deps[ks[i]] = p.ModifyIndex
		return p.Value
	}
	if b := value(0); b != nil {
		s.decodeProgress(ks[0], b)
	}
	if b := value(1); b != nil {
		var f records.Fence
		if err := records.Decode(ks[1], b, &f); err != nil {
			s.FenceErr = fmt.Errorf("%w: it says what quiesce is owed; put it right or delete it by hand", err)
		} else {
			s.Fence, s.FenceIndex = &f, s.Deps[ks[1]]
		}
	}
	if b := value(2); b != nil {
		var q records.Request
		if records.Decode(ks[2], b, &q) == nil {
			s.Request = &q
		}
	}
	if b := value(3); b != nil {
		var a records.Approval
		if records.Decode(ks[3], b, &a) == nil {
			s.Approval = &a
		}
	}
	if b := value(4); b != nil {
		s.Silence = records.DecodeSilence(ks[4], s.Name, b)
	}
	if len(ks) > 5 {
		b := value(5)
		var h RolloutHead
		switch {
		case b == nil:
			s.RolloutWhy = "the rollout " + s.Holder.RolloutID + " has no record"
		case json.Unmarshal(b, &h) != nil:
			s.RolloutWhy = ks[5] + " is not a record of a rollout"
		default:
			s.Rollout = &h
		}
	}
}

// decodeProgress takes only the record of the hold that is, or that was last.
func (s *Snapshot) decodeProgress(key string, b []byte) {
	session := s.SessionID()
	if session == "" && s.Holder != nil {
		session = s.Holder.Session
	}
	var p records.Progress
	if err := records.Decode(key, b, &p); err != nil {
		s.ProgressWhy = err.Error()
	} else if session != "" && p.Session == session {
		s.Progress = &p
	}
}

var errSessionEmpty = errors.New("empty answer")

func (r *Reader) readSession(ctx context.Context, s *Snapshot) error {
	entry, err := consulkv.Retry(ctx, r.Consul, "read session "+s.SessionID(), func(ctx context.Context) (*api.SessionEntry, error) {
		e, _, err := r.Consul.API().Session().Info(s.SessionID(), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return e, err
	})
	if err == nil && entry == nil {
		err = errSessionEmpty
	}
	switch {
	case err == nil:
		s.Session = entry
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errSessionEmpty):
		// Consul answers with nothing, and not with an error, where the token
		// has no session:read: "gone" would be a guess.
		s.SessionWhy = noSuchSession
	default:
		s.SessionWhy = err.Error()
	}
	return nil
}

const (
	noSuchSession = "Consul shows no such session: it ended this moment, or the token lacks session:read"
	nodeNotKnown  = "the session's node is not known"
)

func noChecksOf(node string) string {
	return "Consul shows no checks of node " + node + ": it is gone, or the token lacks node:read"
}

// node is the Consul node that the session stands on; "" if it is not known.
func (s *Snapshot) node() string {
	switch {
	case s.Session != nil:
		return s.Session.Node
	case s.Holder != nil:
		return s.Holder.Node
	}
	return ""
}

func (r *Reader) readChecks(ctx context.Context, s *Snapshot) {
	node := s.node()
	if node == "" {
		s.ChecksWhy = nodeNotKnown
		return
	}
	checks, err := consulkv.Retry(ctx, r.Consul, "read the health of node "+node, func(ctx context.Context) (api.HealthChecks, error) {
		c, _, err := r.Consul.API().Health().Node(node, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return c, err
	})
	switch {
	case err != nil:
		s.ChecksWhy = err.Error()
	case len(checks) == 0:
		s.ChecksWhy = noChecksOf(node)
	default:
		s.Checks = checks
	}
}

// checkOf returns the check that the session is bound to beside serfHealth:
// the holder's own by its record, else the first of the session's.
func (s *Snapshot) checkOf() (id string, check *api.HealthCheck) {
	switch {
	case s.Holder != nil && s.Holder.Check != "":
		id = s.Holder.Check
	case s.Session != nil && len(s.Session.ServiceChecks) > 0:
		id = s.Session.ServiceChecks[0].ID
	}
	if id == "" {
		return "", nil
	}
	for _, c := range s.Checks {
		if c.CheckID == id {
			return id, c
		}
	}
	return id, nil
}

// Health are those checks of the session's node that facts of this hold are made of:
// a node may have hundreds of others, which change all the time. Who waits for the lock
// is woken by these only.
func (s *Snapshot) Health(node api.HealthChecks) api.HealthChecks {
	bound := map[string]bool{"serfHealth": true}
	if s.Holder != nil && s.Holder.Check != "" {
		bound[s.Holder.Check] = true
	}
	if e := s.Session; e != nil {
		for _, id := range slices.Concat(e.Checks, e.NodeChecks) {
			bound[id] = true
		}
		for _, c := range e.ServiceChecks {
			bound[c.ID] = true
		}
	}
	var out api.HealthChecks
	for _, c := range node {
		if bound[c.CheckID] || c.ServiceName == agentService {
			out = append(out, c)
		}
	}
	return out
}

// Checked reports whether the session is bound to a check beside serfHealth.
func (s *Snapshot) Checked() bool {
	id, _ := s.checkOf()
	return id != ""
}

func (s *Snapshot) serf() *api.HealthCheck {
	for _, c := range s.Checks {
		if c.CheckID == "serfHealth" {
			return c
		}
	}
	return nil
}
