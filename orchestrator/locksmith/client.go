package locksmith

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/filelock"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// Timings of the protocol. They are facts of the design, not settings, except
// where a test of the protocol itself needs them shorter.
const (
	// DefaultTTL is the session's TTL. Consul may take twice as long.
	DefaultTTL = 15 * time.Second
	// CheckTTL is the TTL of the holder's service check, the fast failure
	// detector: Consul marks it critical CheckTTL after the last pass.
	CheckTTL = 10 * time.Second
	// PassEvery is how often the check is passed.
	PassEvery = 3 * time.Second
	// LeaseMargin is how long before the lease's end work stops.
	LeaseMargin = 1 * time.Second
	// DefaultQuiesce is the pause owed after a holder whose participants
	// cannot check an order. It is Consul's default lock-delay.
	DefaultQuiesce = 15 * time.Second
	// MaxQuiesce bounds the pause that is owed, whatever a record asks for:
	// anybody with access to Consul may have written it.
	MaxQuiesce = policies.MaxQuiesce
	// fencedLockDelay is as good as none; 0 would mean the default 15 s.
	fencedLockDelay = time.Millisecond
)

// HolderService is the name of the service whose TTL check a holder's session
// is bound to.
const HolderService = records.HolderService

// Config makes a Client.
type Config struct {
	Consul *consulkv.Client
	Prefix keys.Prefix
	Log    hclog.Logger
	// Policies judge the locks; nil is the shipped default policy.
	Policies *policies.Set
	// Self is this process; the zero value looks it up.
	Self hostproc.Identity
	// By names the operator in records; empty is user@host, with As before it.
	By string
	// As tells in records what acts where no person does, such as "locksmith";
	// empty: a person does.
	As string
	// Flags stand in the commands that people are told to run.
	Flags Flags
	// Nomad is asked about the allocations of holders; nil connects where
	// NOMAD_ADDR is set.
	Nomad evidence.Nomad
	// Plugins give facts and do steps; nil: there are none.
	Plugins Plugins
	// Alloc is the Nomad allocation that this process runs in; zero: none.
	Alloc Allocation
	// OnBreak is told of each break by this client, with the key of its record:
	// when its intent stands, and how it came out. It must not block; nil tells
	// nobody.
	OnBreak func(key string, rec *records.Break)
	// Reuse is for who takes locks again and again. The service of this process,
	// to whose check its sessions are bound, stays for half a minute after the
	// last hold, so that the next acquisition need not register one, and Release
	// does not wait for the end of a session that holds nothing any more. Such a
	// client must be closed. The service names no hold, so that other hosts are
	// not told by this one's agent whether the holder lives.
	Reuse bool
	// EndLater is for who has something else to do once a lock is released: Release
	// does not wait for the end of a session that holds nothing any more. Such a
	// client must be closed. Reuse does the same.
	EndLater bool
	// LeaseClock is the clock, in seconds, by which a lease ends beside the
	// monotonic one: it goes on while the machine is suspended. nil is that of this
	// machine; who runs in another time gives that time's.
	LeaseClock func() float64
	// BootClock is what records say of the time since this machine booted, in
	// seconds; nil is that of this machine.
	BootClock func() float64
}

// Allocation says which allocation of Nomad a process runs in, by what Nomad tells
// its tasks.
type Allocation struct{ ID, Region, Namespace, Job string }

// Client takes, judges and breaks locks. It is safe for concurrent use.
type Client struct {
	consul *consulkv.Client
	keys   keys.Prefix
	log    hclog.Logger
	set    *policies.Set
	self   hostproc.Identity
	alloc  Allocation
	reader *evidence.Reader
	// plugins may be nil.
	plugins Plugins
	by      string
	flags   Flags
	// onBreak is never nil.
	onBreak func(key string, rec *records.Break)
	// boot is a clock in seconds that goes on while the machine is suspended.
	boot func() float64
	// lease is that clock as far as leases go, see Config.
	lease func() float64

	// later are the ends of sessions that hold nothing any more; nil: they are
	// not put off.
	later *errgroup.Group
	// reuse is whether checks are used again.
	reuse bool
	// checking is held by who makes a check to be used by others.
	checking chan struct{}

	mu    sync.Mutex
	node  string // see localNode
	check *check // the one that is used again

	epochSeen atomic.Bool // see readsEpoch
}

// New makes a client; it does not connect.
func New(cfg Config) (*Client, error) {
	if cfg.Self == (hostproc.Identity{}) {
		self, err := hostproc.Self()
		if err != nil {
			return nil, fmt.Errorf("find out what process this is: %w", err)
		}
		cfg.Self = self
	}
	if cfg.Policies == nil {
		set, err := policies.Builtin("default")
		if err != nil {
			return nil, err
		}
		cfg.Policies = set
	}
	if cfg.OnBreak == nil {
		cfg.OnBreak = func(string, *records.Break) {}
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Prefix == "" {
		cfg.Prefix = keys.DefaultPrefix
	}
	if cfg.By == "" {
		cfg.By = strings.TrimSpace(cfg.As + " " + cfg.Self.User + "@" + cfg.Self.Host)
	}
	if cfg.Nomad == nil {
		n, err := evidence.NomadFromEnv()
		if err != nil {
			return nil, err
		}
		cfg.Nomad = n
	}
	if cfg.LeaseClock == nil {
		cfg.LeaseClock = hostproc.BootSeconds
	}
	if cfg.BootClock == nil {
		cfg.BootClock = hostproc.BootSeconds
	}
	return &Client{
		consul: cfg.Consul, keys: cfg.Prefix, log: cfg.Log, set: cfg.Policies, self: cfg.Self, by: cfg.By, flags: cfg.Flags, alloc: cfg.Alloc, onBreak: cfg.OnBreak, boot: cfg.BootClock, lease: cfg.LeaseClock, plugins: cfg.Plugins,
		checking: make(chan struct{}, 1), later: later(cfg.Reuse || cfg.EndLater), reuse: cfg.Reuse,
		reader: &evidence.Reader{Consul: cfg.Consul, Keys: cfg.Prefix, Self: cfg.Self, Nomad: cfg.Nomad, Files: new(filelock.Scanner)},
	}, nil
}

// With is a client of the same process and connection that judges by other
// policies. It puts off no ends of sessions, so it needs no Close.
func (c *Client) With(set *policies.Set) *Client {
	out := &Client{
		consul: c.consul, keys: c.keys, log: c.log, set: set, self: c.self, by: c.by, flags: c.flags, alloc: c.alloc, onBreak: c.onBreak, boot: c.boot, lease: c.lease, reader: c.reader, plugins: c.plugins,
		checking: make(chan struct{}, 1),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out.node = c.node
	return out
}

// endingAtOnce is how many sessions are ended at the same time.
const endingAtOnce = 8

func later(wanted bool) *errgroup.Group {
	if !wanted {
		return nil
	}
	g := &errgroup.Group{}
	g.SetLimit(endingAtOnce)
	return g
}

// Reader reads evidence by this client's connection.
func (c *Client) Reader() *evidence.Reader { return c.reader }

// Policies are what this client judges by.
func (c *Client) Policies() *policies.Set { return c.set }

// localNode is the Consul node that a session stands on: that of the agent
// which this client talks to, "" if it does not say. It is asked once.
func (c *Client) localNode(ctx context.Context, session string) string {
	c.mu.Lock()
	node := c.node
	c.mu.Unlock()
	if node != "" {
		return node
	}
	entry, err := consulkv.Retry(ctx, c.consul, "read session "+session, func(ctx context.Context) (*api.SessionEntry, error) {
		e, _, err := c.consul.API().Session().Info(session, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return e, err
	})
	if err != nil || entry == nil {
		return ""
	}
	c.mu.Lock()
	c.node = entry.Node
	c.mu.Unlock()
	return entry.Node
}

// sleep waits for d or until ctx ends, whose cause it then returns.
func sleep(ctx context.Context, d time.Duration) error { return sleepAs(ctx, "slept", d) }

// sleepAs is sleep with a name, for what sleeps beside others for as long.
func sleepAs(ctx context.Context, what string, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		fate.Turn(ctx, what)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// outliving is ctx for what lives on when the call that began it has returned.
func outliving(ctx context.Context) context.Context {
	return consulkv.Unhurried(context.WithoutCancel(ctx))
}

// detached is a context for cleaning up after ctx ended, with a bound.
func detached(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}

func isRefused(err error) (*consulkv.Refused, bool) { return errors.AsType[*consulkv.Refused](err) }

// printable is foreign text as messages and audit records show it.
func printable(s string) string { return text.Clip(text.Printable(s), 400) }
