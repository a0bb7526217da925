package witness

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

const (
	// blockFor is how long a query is held by the server without a change.
	blockFor = 5 * time.Minute
	// leastServices is the least time between two reads of the node's services:
	// other programs on it register and go, too.
	leastServices = 100 * time.Millisecond
)

// Config says what a witness watches and who it is.
type Config struct {
	Consul *consulkv.Client
	Prefix keys.Prefix
	Log    hclog.Logger
	// Self is this process: it sees what is of the same host, boot and pid
	// namespace.
	Self hostproc.Identity
	// Agent is the id of the service by whose check others know that this
	// witness is at work.
	Agent string
}

// Witness watches the holders of one host. Make it with New.
type Witness struct {
	cfg    Config
	reader *evidence.Reader

	mu sync.Mutex
	// node is the Consul node that this witness stands on.
	node string
	// locks are those that are followed, by name.
	locks map[string]*follower
	told  map[string]time.Time // what was logged, and when
}

// New makes a witness. It does not connect.
func New(cfg Config) *Witness {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	return &Witness{
		cfg: cfg, locks: map[string]*follower{}, told: map[string]time.Time{},
		reader: &evidence.Reader{Consul: cfg.Consul, Keys: cfg.Prefix, Self: cfg.Self},
	}
}

// Run watches until ctx ends.
func (w *Witness) Run(ctx context.Context) {
	if w.cfg.Self.BootID == "" || w.cfg.Self.PIDNS == "" {
		w.cfg.Log.Warn("other hosts learn nothing of the holders here", "why", cmp.Or(hostproc.NeedsLinux(), "the boot id or the pid namespace of this process cannot be read"))
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = time.Second, 30*time.Second
	lost := false
	good := func() {
		b.Reset()
		if lost {
			lost = false
			w.cfg.Log.Info("holders on this host are watched again")
		}
	}
	for ctx.Err() == nil {
		err := w.watch(ctx, &wg, good)
		if ctx.Err() != nil {
			return
		}
		// What was not told is not told to be over: a Consul that comes and goes fills no log.
		lost = w.say("services", "holders on this host are not watched now", err) || lost
		sleep(ctx, b.NextBackOff())
	}
}

// watch follows the services of the witness's node until something fails.
func (w *Witness) watch(ctx context.Context, wg *sync.WaitGroup, good func()) error {
	node, err := consulkv.Retry(ctx, w.cfg.Consul, "read the name of the Consul node", func(ctx context.Context) (string, error) {
		var self struct{ Config struct{ NodeName string } }
		_, err := w.cfg.Consul.API().Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx))
		return self.Config.NodeName, err
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.node = node
	w.mu.Unlock()
	services := consulkv.NewWatcher(w.cfg.Consul, consulkv.WatchOptions{Name: "services of node " + node, MinInterval: leastServices, Wait: blockFor},
		func(q *api.QueryOptions) (map[string]*api.AgentService, *api.QueryMeta, error) {
			// A node may run hundreds of other services, and each change to one answers.
			q.Filter = fmt.Sprintf("Service == %q and Meta[%q] == %q", records.HolderService, records.MetaPrefix, w.cfg.Prefix)
			n, meta, err := w.cfg.Consul.API().Catalog().Node(node, q)
			if err != nil || n == nil {
				return nil, meta, err
			}
			return n.Services, meta, nil
		})
	for {
		list, err := services.Next(ctx)
		if err != nil {
			return err
		}
		good()
		named := map[string]bool{}
		for _, s := range list {
			for _, lock := range records.LocksOf(s.Meta) {
				named[lock] = true
			}
		}
		w.follow(ctx, wg, named)
	}
}

// follow starts a follower for each lock that has none, and tells all of them
// whether a service names their lock.
func (w *Witness) follow(ctx context.Context, wg *sync.WaitGroup, named map[string]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name := range named {
		if w.locks[name] == nil {
			f := &follower{w: w, name: name, key: w.cfg.Prefix.Lock(name), seen: w.cfg.Prefix.Observed(name, w.node), wake: make(chan struct{}, 1)}
			w.locks[name] = f
			wg.Go(func() { f.run(ctx) })
		}
	}
	for name, f := range w.locks {
		f.named = named[name]
		f.poke()
	}
}

// leave ends a follower that has nothing to follow, and reports whether it did.
func (w *Witness) leave(f *follower) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.named {
		return false
	}
	delete(w.locks, f.name)
	return true
}

// quiet is the least time between two lines about the same trouble.
const quiet = time.Minute

// say logs trouble, and reports whether it did: the same was not said just now.
func (w *Witness) say(what, text string, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.told[what]) < quiet {
		return false
	}
	if len(w.told) > 100 {
		clear(w.told)
	}
	w.told[what] = time.Now()
	w.cfg.Log.Warn(text, "error", err)
	return true
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
