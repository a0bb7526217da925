package command

import (
	"context"
	"flag"
	"os"
	"sync"
	"time"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/doctor"
	"github.com/aim-control/aimlock/internal/metrics"
	"github.com/aim-control/aimlock/internal/version"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// agentFlags are what every command on a node's files is given.
type agentFlags struct{ node, stateDir, root string }

func (f *agentFlags) register(fs *flag.FlagSet) {
	fs.StringVar(&f.node, "node", "", "`NAME` of this node in the fleet. Or set AIMLOCK_NODE. Default: this\nhost's name.")
	fs.StringVar(&f.root, "root", "", "`DIR` that stands before every destination; no symlink leads out of it.")
	f.registerState(fs)
}

func (f *agentFlags) registerState(fs *flag.FlagSet) {
	fs.StringVar(&f.stateDir, "state-dir", "", "`DIR` for marks, journals and last good files. It must survive restarts.\nOr set AIMLOCK_STATE_DIR.")
}

// stateFolder is the state folder given, which has no default: one that is
// not the agent's would have no marks.
func (m *Meta) stateFolder(f *agentFlags) (string, error) {
	if dir := first(f.stateDir, m.Env("AIMLOCK_STATE_DIR")); dir != "" {
		return dir, nil
	}
	return "", usagef("-state-dir is missing: name a folder that survives restarts, such as /var/lib/aimlock")
}

// nodeName is this node's name in the fleet: its host's unless another is given;
// "" where the host has none.
func (f *agentFlags) nodeName(m *Meta) string {
	host, _ := os.Hostname()
	return first(f.node, m.Env("AIMLOCK_NODE"), host)
}

// agent makes the agent of this node. tell may be nil.
func (m *Meta) agent(f *agentFlags, tell agent.Tell) (*agent.Agent, error) {
	dir, err := m.stateFolder(f)
	if err != nil {
		return nil, err
	}
	node := f.nodeName(m)
	if node == "" {
		return nil, usagef("-node is missing, and this host has no name")
	}
	client, err := m.Consul()
	if err != nil {
		return nil, err
	}
	a, err := agent.New(agent.Config{
		Node: node, StateDir: dir, Root: f.root, Consul: client, Prefix: m.Prefix,
		Log: m.Log.Named("agent"), Version: version.Get().Version, Tell: tell, Targets: m.Plugins(),
	})
	if err != nil {
		return nil, usagef("%w", err)
	}
	return a, nil
}

func newAgent(m *Meta) *command {
	var f agentFlags
	listen := ""
	return &command{
		Meta:     m,
		Synopsis: "Keep this node's files at what is desired",
		Usage:    "[options]",
		Description: `Follows this node's entries in Consul and brings its files to them: checks the
order against the highest that it ever accepted, fetches and checks the content,
runs validate on a staged copy, keeps the last good file, renames, reloads,
checks that all is healthy, puts the last good file back if not, and reports.

Without Consul the node keeps what it has, and nothing on it waits.

It also tells other hosts, through Consul, when the holder of a lock on this
host dies.

An order with a target is handed to the plugin of that name in -config, which
writes to a machine that runs no agent.

It registers the service aimlock-agent with a TTL check on the local Consul
agent, and runs until it is stopped. Several agents may run on one machine,
each with a -node, a -state-dir and a -root of its own.

Stopped, it leaves its service registered, so that a restart is no absence. The
check is critical 10s later, and rollouts count the node as unreachable from then
on. A machine that leaves the fleet for good takes its service out as well:
"consul services deregister -id aimlock-agent-NAME" on it.`,
		Examples: []example{
			{"On a machine of the fleet", "aimlock agent -node web-1 -state-dir /var/lib/aimlock"},
			{"Another one beside it, for trying", "aimlock agent -node web-2 -state-dir /tmp/web-2/state -root /tmp/web-2/root"},
		},
		Groups: groupConsul | groupDaemon | groupPlugin,
		Flags: func(fs *flag.FlagSet) {
			f.register(fs)
			fs.StringVar(&listen, "listen", "", "Serve /metrics (Prometheus) on `ADDRESS`, such as 127.0.0.1:9109. There is\nno TLS and no password: keep it off the world.")
		},
		Run: func(ctx context.Context, _ *input) error {
			a, err := m.agent(&f, nil)
			if err != nil {
				return err
			}
			stop, err := m.listen(listen, metrics.Handler(metrics.NewAgent(a.Standing).Registry))
			if err != nil {
				return err
			}
			defer stop()
			m.started()
			return m.resting(ctx, func(ctx context.Context) error {
				ctx, stop := context.WithCancel(ctx)
				var wg sync.WaitGroup
				defer wg.Wait()
				defer stop()
				wg.Go(func() { m.tellAgentLacks(ctx, &f) })
				return a.Run(ctx)
			})
		},
	}
}

// rightsPatience bounds the question what an agent's token may do.
const rightsPatience = 10 * time.Second

// tellAgentLacks asks once what the token lacks for this node's agent, and logs it:
// a token of another node is else first heard of when an order comes for this one.
func (m *Meta) tellAgentLacks(ctx context.Context, f *agentFlags) {
	ctx, cancel := context.WithTimeout(ctx, rightsPatience)
	defer cancel()
	client, err := m.Consul()
	if err != nil {
		return // the agent was told
	}
	p := acl.Params{Prefix: m.Prefix, Node: f.nodeName(m)}
	if dir, err := m.stateFolder(f); err == nil {
		// What cannot be read there the agent says itself.
		list, _ := agent.ReadStatus(dir)
		for _, s := range list {
			if s.State != agent.StateDamaged {
				p.Configs = append(p.Configs, s.Config)
			}
		}
	}
	lack := doctor.AgentLacks(ctx, client, p)
	if lack == nil {
		return
	}
	fields := []any{"node", p.Node}
	if lack.Key != "" {
		fields = append(fields, "key", lack.Key)
	}
	m.Log.Named("agent").Warn(lack.String(), fields...)
}
