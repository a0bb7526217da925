package builtin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/version"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/plugin"
)

func targetPlugins() []plugin.Plugin {
	p := named("file_target", "Writes files of this machine, behind the same fence as an agent.")
	p.Target = func() plugin.Target { return &fileTarget{} }
	return []plugin.Plugin{p}
}

// fileTarget writes files by the fence of an agent. What it remembers of each node
// stands in a folder of its own.
type fileTarget struct {
	StateDir string   `config:"state_dir,required" doc:"a folder that survives restarts, such as /var/lib/aimlock-target"`
	Node     string   `config:"node" doc:"the node that this machine is; left out: a folder of root is each node's"`
	Root     string   `config:"root" doc:"stands before every destination; without a node, root and the node's name do"`
	Checks   []string `config:"validate" doc:"a command that checks the staged copy, whose path is \\${staged}"`
	Reload   []string `config:"reload" doc:"a command that makes the new file count"`
	Healthy  []string `config:"healthy" doc:"a command that fails where the new file does harm"`

	mu    sync.Mutex
	nodes map[string]*agent.Local
}

func (t *fileTarget) Validate(context.Context) error {
	var problems plugin.Problems
	switch {
	case t.Node == "" && t.Root == "":
		problems.Add("root", "name the node that this machine is, or a root in which each node has a folder")
	case t.Node != "":
		if err := keys.CheckName("node", t.Node); err != nil {
			problems.Add("node", "%v", err)
		}
	}
	for path, dir := range map[string]string{"state_dir": t.StateDir, "root": t.Root} {
		if dir != "" && !filepath.IsAbs(dir) {
			problems.Add(path, "it must be an absolute path")
		}
	}
	return problems.Err()
}

func (t *fileTarget) Fencing() bool { return true }

// at is the fence of one node.
func (t *fileTarget) at(ctx context.Context, node string) (*agent.Local, error) {
	if t.Node != "" && node != t.Node {
		return nil, fmt.Errorf("node %q is not this machine, which is %q: %w", node, t.Node, plugin.ErrNotFound)
	}
	if err := keys.CheckName("node", node); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.nodes[node]; l != nil {
		return l, nil
	}
	root := t.Root
	if t.Node == "" {
		root = filepath.Join(t.Root, keys.Escape(node))
	}
	l, err := agent.NewLocal(agent.Config{
		Node: node, StateDir: filepath.Join(t.StateDir, keys.Escape(node)), Root: root, Log: hclog.FromContext(ctx), Version: version.Get().Version,
	})
	if err != nil {
		return nil, err
	}
	if t.nodes == nil {
		t.nodes = map[string]*agent.Local{}
	}
	t.nodes[node] = l
	return l, nil
}

func command(argv []string) *records.Command {
	if len(argv) == 0 {
		return nil
	}
	return &records.Command{Argv: argv}
}

func (t *fileTarget) Apply(ctx context.Context, r *plugin.ApplyRequest) (*plugin.Applied, error) {
	return t.carryOut(ctx, &r.Place, &records.Desired{
		Version: records.Version, Order: orchestrator.Order(r.Order), Rollout: r.Rollout, Revision: r.Revision, Size: int64(len(r.Content)),
		SHA256: r.SHA256, Destination: r.Destination, Mode: r.Mode, Owner: r.Owner, Group: r.Group,
	}, r.Content)
}

func (t *fileTarget) Restore(ctx context.Context, r *plugin.RestoreRequest) (*plugin.Applied, error) {
	return t.carryOut(ctx, &r.Place, &records.Desired{
		Version: records.Version, Order: orchestrator.Order(r.Order), Rollout: r.Rollout, Destination: r.Destination, Action: records.ActionRestore,
	}, nil)
}

func (t *fileTarget) carryOut(ctx context.Context, p *plugin.Place, d *records.Desired, content []byte) (*plugin.Applied, error) {
	l, err := t.at(ctx, p.Node)
	if err != nil {
		return nil, err
	}
	d.Validate, d.Reload, d.Healthy = command(t.Checks), command(t.Reload), command(t.Healthy)
	res, err := l.Apply(ctx, p.Config, d, content)
	var older *agent.OlderError
	switch {
	case errors.As(err, &older):
		return nil, fmt.Errorf("%s: %w", p.Config, &plugin.StaleError{Highest: plugin.Order(older.Highest)})
	case errors.Is(err, fs.ErrPermission):
		return nil, errors.Join(plugin.ErrDenied, err)
	case err != nil:
		return nil, err
	case res.Report == nil:
		return nil, fmt.Errorf("%s: the order has no answer yet", p.Config)
	}
	rep := res.Report
	if rep.Result == records.ResultFailed || rep.Result == records.ResultRefused {
		return nil, fmt.Errorf("%s: %s", p.Config, rep.Error)
	}
	return &plugin.Applied{
		Unchanged: !res.Changed, Highest: plugin.Order(rep.Order), SHA256: rep.SHA256, Revision: rep.Revision, Detail: rep.Result,
	}, nil
}

func (t *fileTarget) Read(ctx context.Context, r *plugin.ReadRequest) (*plugin.State, error) {
	l, err := t.at(ctx, r.Node)
	if err != nil {
		return nil, err
	}
	s, err := l.Read(r.Config, r.Destination)
	if err != nil {
		return nil, err
	}
	out := &plugin.State{Exists: s.Exists, SHA256: s.SHA256, Revision: s.Revision, Size: int64(len(s.Content)), Highest: plugin.Order(s.Mark)}
	if r.Content {
		out.Content = s.Content
	}
	return out, nil
}

var _ plugin.Target = (*fileTarget)(nil)
