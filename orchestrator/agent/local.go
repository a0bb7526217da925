package agent

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Local is an agent's fence by itself: it carries out on this machine the orders
// that somebody hands over, and neither follows Consul nor reports to it. Any number
// of them may work on one state folder, which is the only memory: where it is lost,
// the next order counts as the first.
type Local struct{ fence *fence }

// NewLocal checks the settings, of which Consul, Prefix, Tell and Targets are not used, and
// makes the state folder.
func NewLocal(cfg Config) (*Local, error) {
	instance, err := cfg.prepare()
	if err != nil {
		return nil, err
	}
	return &Local{&fence{
		node: cfg.Node, stateDir: cfg.StateDir, root: cfg.Root, agent: cfg.Version, instance: instance, lockWait: cfg.LockWait,
		now: time.Now, log: cfg.Log, behindAnother: true, step: func(string) {},
		recover: func(context.Context, string) (*records.Actual, error) { return nil, nil },
	}}, nil
}

// Apply brings the node to d, of which content is the content. The error is an
// *OlderError for an order that is older than one accepted before. A result of
// "failed" is no error: the report says so.
//
// The order at the mark is looked at anew each time it comes: with what it brought
// before, since somebody may have changed the file meanwhile, and with another entry of
// the same rollout, which is the last good one that comes back.
func (l *Local) Apply(ctx context.Context, config string, d *records.Desired, content []byte) (Result, error) {
	e := *d
	// It is handed over whole; this is what it would be in Consul.
	e.Chunks = (len(content) + chunkSize - 1) / chunkSize
	out, err := l.fence.apply(ctx, config, &e, func(context.Context) ([]byte, error) { return content, nil })
	switch {
	case err != nil:
		return Result{}, err
	case out.Refused != nil:
		return Result{}, out.Refused
	}
	res := Result{Config: config, Report: out.Report, Changed: out.Changed}
	if res.Report == nil {
		res.Report = out.Standing
	}
	return res, nil
}

// Stands is what stands on the node for one config.
type Stands struct {
	Exists           bool
	SHA256, Revision string
	Content          []byte
	// Mark is the highest order ever accepted.
	Mark orchestrator.Order
}

// Read looks at a config and its destination, and changes nothing.
func (l *Local) Read(config, destination string) (*Stands, error) {
	if err := keys.CheckName("config", config); err != nil {
		return nil, err
	}
	out := &Stands{}
	switch st, err := loadState(configDir(l.fence.stateDir, config), config); {
	case err == nil:
		out.Mark = st.Mark
	case !errors.Is(err, errNoState):
		return nil, err
	}
	t, err := openTarget(l.fence.root, destination, l.fence.stateDir+"\x00"+config, false)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	defer t.close()
	f, content, err := t.stat()
	if err != nil || !f.Exists {
		return out, err
	}
	out.Exists, out.SHA256, out.Revision, out.Content = true, f.SHA256, f.revision(), content
	return out, nil
}
