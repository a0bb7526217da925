package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/durable"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/securefile"
)

// defaultLockWait bounds the wait for another process that works on the same
// config: its commands may take their time-outs.
const defaultLockWait = 2 * time.Minute

// minLockWait is the least wait for each lock of several.
const minLockWait = 100 * time.Millisecond

// Config says what one agent does and where.
type Config struct {
	// Node is this node's name, as in desired/<config>/<node>.
	Node string
	// StateDir holds the marks, journals and copies. It must survive restarts
	// and belongs to one node.
	StateDir string
	// Root stands before every destination; "" for none.
	Root   string
	Consul *consulkv.Client
	Prefix keys.Prefix
	// Log is told what changes on the node, and at most once a minute that
	// Consul cannot be had. Contents, arguments and outputs never go there.
	Log hclog.Logger
	// Version of this program, for reports.
	Version string
	// LockWait bounds the wait for another aimlock that works on the same
	// config; 0 is two minutes.
	LockWait time.Duration
	// Tell, if not nil, has a part in what an order comes to.
	Tell Tell
	// Targets are the plugins that orders may name; nil: such an order fails.
	Targets Targets
	// Self is this process, which sees the holders of its host; the zero value
	// looks it up.
	Self hostproc.Identity
	// NoEvents has files looked at now and then, and no kernel asked to tell of
	// their changes.
	NoEvents bool
	// Step, if not nil, is called between any two writes to the disk, with what
	// was done or will be: a simulation ends the process there.
	Step func(what string)
}

// Agent is one node's endpoint. It is made by New; Run and Apply may be called
// in any process, and in several, on one state folder: Run by one at a time.
type Agent struct {
	cfg     Config
	fence   *fence
	trouble *trouble
	reports *reporter

	mu    sync.Mutex
	bells map[string]chan struct{} // by config: rung when a revision appears
	turns map[string]chan struct{} // by configs that belong together: full while one works
}

// New checks the settings and makes the state folder. It does not connect.
func New(cfg Config) (*Agent, error) {
	if cfg.Consul == nil {
		return nil, errors.New("no client for Consul")
	}
	instance, err := cfg.prepare()
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, bells: map[string]chan struct{}{}, turns: map[string]chan struct{}{}}
	a.trouble = &trouble{log: cfg.Log}
	a.reports = newReporter(a)
	a.fence = &fence{
		node: cfg.Node, stateDir: cfg.StateDir, root: cfg.Root, agent: cfg.Version, instance: instance, lockWait: cfg.LockWait,
		now: time.Now, log: cfg.Log, recover: a.lastReport, consul: cfg.Consul, settled: a.reports.set, tell: cfg.Tell, targets: cfg.Targets, step: cfg.Step,
	}
	return a, nil
}

// prepare checks the settings, puts the defaults in, and makes the state folder. It
// returns the folder's instance.
func (cfg *Config) prepare() (string, error) {
	if err := keys.CheckName("node", cfg.Node); err != nil {
		return "", err
	}
	if cfg.StateDir == "" {
		return "", errors.New("no state folder: name one with -state-dir that survives restarts, such as /var/lib/aimlock")
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	cfg.Log = cfg.Log.With("node", cfg.Node)
	if cfg.Prefix == "" {
		cfg.Prefix = keys.DefaultPrefix
	}
	if cfg.Step == nil {
		cfg.Step = func(string) {}
	}
	if cfg.LockWait == 0 {
		cfg.LockWait = defaultLockWait
	}
	var err error
	if cfg.StateDir, err = filepath.Abs(cfg.StateDir); err != nil {
		return "", fmt.Errorf("state folder: %w", err)
	}
	if cfg.Root != "" {
		if cfg.Root, err = filepath.Abs(cfg.Root); err != nil {
			return "", fmt.Errorf("root: %w", err)
		}
		// Made like every other missing folder on the way to a destination.
		if err := os.MkdirAll(cfg.Root, 0o755); err != nil {
			return "", fmt.Errorf("root %s is not a folder and cannot be made one: %w", cfg.Root, err)
		}
	}
	if err := folder(filepath.Join(cfg.StateDir, "configs")); err != nil {
		return "", fmt.Errorf("state folder: %w", err)
	}
	// Who can change the marks decides which orders pass, and the copies are
	// what a file is put back from. In a folder such as /tmp what is ours stays, but
	// others put beside it what this agent would wait for.
	for _, dir := range []string{cfg.StateDir, filepath.Join(cfg.StateDir, "configs")} {
		if why := securefile.Writable(dir); why != "" {
			return "", fmt.Errorf("state folder: %s", why)
		}
	}
	if err := claim(cfg.StateDir, cfg.Node); err != nil {
		return "", err
	}
	return instanceOf(cfg.StateDir)
}

// claim makes sure that a state folder serves one node: the marks of another
// one say nothing about this one's files.
func claim(stateDir, node string) error {
	path := filepath.Join(stateDir, "node")
	b, err := os.ReadFile(path)
	switch {
	case err == nil && string(b) == node+"\n":
		return nil
	case err == nil:
		return fmt.Errorf("state folder %s belongs to another node (%.200q): give each node its own -state-dir", stateDir, string(b))
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("state folder: %w", err)
	}
	if err := durable.WriteFile(path, []byte(node+"\n")); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	return nil
}

// ErrRunning: one agent at a time runs on a state folder.
var ErrRunning = errors.New("another agent runs")

// Run follows Consul until ctx ends, which is its clean end: nil. It leaves
// the files and the service registration as they are; the service's check
// tells within its TTL that the agent is gone, and a restart within it is not
// seen as an absence.
func (a *Agent) Run(ctx context.Context) error {
	l := flock.New(filepath.Join(a.cfg.StateDir, "agent.lock"), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	if !ok {
		return fmt.Errorf("%w on state folder %s: stop it, or give this one a folder of its own", ErrRunning, a.cfg.StateDir)
	}
	defer func() { _ = l.Close() }()

	var wg sync.WaitGroup
	defer wg.Wait()
	a.cfg.Log.Info("agent started", "state_dir", a.cfg.StateDir, "root", a.cfg.Root, "consul", a.cfg.Consul.Addr())
	for _, st := range states(a.cfg.StateDir) {
		if st.err != nil {
			// Its follower says so again, with what it needs to go on.
			a.cfg.Log.Error("state cannot be read", "error", st.err)
			continue
		}
		a.ensure(ctx, &wg, st.Config)
		if st.Report != nil {
			a.reports.again(st.Config, st.Report)
		}
	}
	wg.Go(func() { a.register(ctx) })
	wg.Go(func() { a.witness(ctx) })
	wg.Go(func() { a.watchDrift(ctx) })
	wg.Go(func() { a.reports.run(ctx) })
	wg.Go(func() { a.sweepDesired(ctx, &wg) })
	a.discover(ctx, &wg)
	a.cfg.Log.Info("agent stops: the files and the registration of its service stay, and its check is critical when its TTL has passed", "service", ServiceID(a.cfg.Node))
	return nil
}

// lastReport is what this node last reported of config, to recover a mark.
func (a *Agent) lastReport(ctx context.Context, config string) (*records.Actual, error) {
	key := a.cfg.Prefix.Actual(config, a.cfg.Node)
	kv, err := a.cfg.Consul.Get(ctx, key)
	if err != nil || kv == nil {
		return nil, err
	}
	var rep records.Actual
	if err := records.Decode(key, kv.Value, &rep); err != nil {
		return nil, err
	}
	return &rep, nil
}
