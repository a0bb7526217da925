package runner

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Hold is what the runner needs of a held lock.
type Hold interface {
	// Context ends, with a cause, when work under the lock must stop.
	Context() context.Context
	Epoch() uint64
	Token() uint64
	// Txn writes under the guards of all locks of the hold.
	Txn(ctx context.Context, ops ...consulkv.Op) (consulkv.Results, error)
	// MaxOps is how many operations fit beside the guards.
	MaxOps() int
	Progress(ctx context.Context, done, total int64, unit, note string) error
	Release(ctx context.Context) error
}

var _ Hold = (*locksmith.Hold)(nil)

// Locker takes locks.
type Locker interface {
	Acquire(ctx context.Context, req locksmith.Request) (Hold, error)
}

// Locksmith makes a Locker of a locksmith client.
func Locksmith(c *locksmith.Client) Locker { return smith{c} }

type smith struct{ c *locksmith.Client }

func (s smith) Acquire(ctx context.Context, req locksmith.Request) (Hold, error) {
	h, err := s.c.Acquire(ctx, req)
	if err != nil {
		// Not `return h, err`: a nil *Hold is no nil Hold.
		return nil, err
	}
	return h, nil
}

// Config makes a Runner.
type Config struct {
	Consul *consulkv.Client
	Prefix keys.Prefix
	Locks  Locker
	// Gates asks gates; nil: those that need nothing but Consul.
	Gates *gates.Set
	Log   hclog.Logger
	// Tell is told what happens, from the caller's goroutine; it may be nil.
	Tell func(Progress)
	// Notify is told what happens while a lock is waited for; it may be nil.
	Notify func(locksmith.Notice)
	// By names the operator in records.
	By string
	// Who says more of By, for records; nil: nothing is known.
	Who func(context.Context) records.Who
	// Flags are repeated in the commands that people are told to run.
	Flags locksmith.Flags
	// Clock counts bakes over several holds; nil: this host's since boot.
	Clock Clock
	// Fenced tells whether the target of a name refuses older orders itself; nil: none
	// is known to. Agents hold their own plugin of that name to it.
	Fenced func(ctx context.Context, target string) (bool, error)
}

// Progress is how a rollout stands after something happened.
type Progress struct {
	// Text is what happened; empty for a mere change of the numbers.
	Text   string
	Kind   orchestrator.TellKind
	Node   string
	Header orchestrator.Header
}

// Runner runs rollouts. It is safe for concurrent use.
type Runner struct {
	consul *consulkv.Client
	keys   keys.Prefix
	locks  Locker
	gates  *gates.Set
	log    hclog.Logger
	tell   func(Progress)
	notify func(locksmith.Notice)
	by     string
	who    func(context.Context) records.Who
	clock  Clock
	flags  locksmith.Flags
	asks   func(ctx context.Context, target string) (bool, error)

	mu sync.Mutex
	// fenced are the targets that were asked, once: what a holder has promised by its
	// record, all its orders have to keep.
	fenced map[string]bool
}

// New makes a runner; it does not connect.
func New(cfg Config) *Runner {
	r := &Runner{
		consul: cfg.Consul, keys: cfg.Prefix, locks: cfg.Locks, log: cfg.Log,
		tell: cfg.Tell, notify: cfg.Notify, by: cfg.By, who: cfg.Who,
		clock: cfg.Clock, flags: cfg.Flags, asks: cfg.Fenced,
	}
	if r.clock == nil {
		r.clock = bootClock()
	}
	if r.gates = cfg.Gates; r.gates == nil {
		r.gates = gates.New(gates.Config{Consul: cfg.Consul, Log: cfg.Log})
	}
	if r.log == nil {
		r.log = hclog.NewNullLogger()
	}
	if r.who == nil {
		r.who = func(context.Context) records.Who { return records.Who{} }
	}
	if r.tell == nil {
		r.tell = func(Progress) {}
	}
	if r.keys == "" {
		r.keys = keys.DefaultPrefix
	}
	return r
}

// Input is a rollout as it is wanted.
type Input struct {
	Spec orchestrator.Spec
	// File is the spec's file, and Dir its folder: programs of gates run in it.
	File, Dir string
	// Contents are the configs' contents by name. They never reach a log.
	Contents map[string][]byte
	// Templates of the configs whose contents differ between nodes, by name.
	Templates map[string]Template
	Fleet     FleetSource

	// announced is the rollout that was told of last.
	announced string
}

// Outcome is how far a call has come.
type Outcome struct {
	ID     string
	Header orchestrator.Header
	// Converged: nothing is left to do.
	Converged bool
	// Finished: this call brought it to its end.
	Finished bool
	// Busy says who works on it already, where this call therefore did
	// nothing.
	Busy *locksmith.Status
	// Note is one sentence for people.
	Note string
	// answers are what was read in actual/ on the way, by config.
	answers map[string]api.KVPairs
}

// ErrNotFound: there is no such rollout.
var ErrNotFound = errors.New("no such rollout")

// releaseTimeout bounds the release of the locks, also while being stopped.
const releaseTimeout = 10 * time.Second

// release lets the locks go, also where ctx has ended.
func release(ctx context.Context, h Hold) error {
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	return h.Release(rctx)
}
