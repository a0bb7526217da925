package locksmith

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/policies"
)

// Plugins are what plugins do for locks. want has the facts that a policy reads, by
// plugin.
type Plugins interface {
	// Ask asks for facts of a hold, and waits for them within seconds.
	Ask(ctx context.Context, l *plugin.Lock, want map[string][]string)
	// AskAnew asks whatever was said before, waits for the answers within half a minute,
	// and returns when it began.
	AskAnew(ctx context.Context, l *plugin.Lock, want map[string][]string) (since time.Time)
	// Facts tells at once what is known, each plugin's under "plugin.NAME", and has
	// what is old asked for. What was asked before since is not known.
	Facts(l *plugin.Lock, want map[string][]string, since, now time.Time) policies.Facts
	// Break does a step. An error is a failed step.
	Break(ctx context.Context, name string, config json.RawMessage, r *plugin.BreakRequest) (detail string, err error)
}

// errNoPlugins: this program was started without them.
var errNoPlugins = errors.New("this aimlock was started without plugins")

// lockOf is a hold as plugins are told of it.
func lockOf(s *evidence.Snapshot) *plugin.Lock {
	l := &plugin.Lock{Key: s.Key, Session: s.SessionID(), Token: s.Index()}
	if s.Own {
		l.Name = s.Name
	}
	l.Holder.Tool = s.Tool
	h := s.Holder
	if h == nil {
		return l
	}
	l.Holder = plugin.Holder{
		Host: h.Host, Node: h.Node, PID: h.PID, BootID: h.BootID, PIDNS: h.PIDNS, StartTicks: h.StartTicks, User: h.User,
		Tool: h.Tool, Operation: h.Operation, Rollout: h.RolloutID, AllocID: h.AllocID, AllocRegion: h.AllocRegion,
	}
	return l
}

// askPlugins has the plugins asked that the lock's policy reads, and waits for them:
// for who looks at one lock.
func (o *Observer) askPlugins(ctx context.Context, s *evidence.Snapshot) {
	if o.c.plugins == nil || !s.Held() {
		return
	}
	p := o.c.set.For(policies.LockID{Name: s.Name, Key: s.Key, Own: s.Own})
	if want := p.PluginFacts(); len(want) > 0 {
		o.c.plugins.Ask(ctx, lockOf(s), want)
	}
}

// askAnew has the plugins asked that the lock's policy reads, for who is about to break
// it: one answer is one observation, and none that is kept counts from here on.
func (o *Observer) askAnew(ctx context.Context, s *evidence.Snapshot) {
	if o.c.plugins == nil || !s.Held() {
		return
	}
	p := o.c.set.For(policies.LockID{Name: s.Name, Key: s.Key, Own: s.Own})
	if want := p.PluginFacts(); len(want) > 0 {
		o.since = o.c.plugins.AskAnew(ctx, lockOf(s), want)
	}
}

// pluginFacts adds what plugins say of a hold to the facts of a verdict. It does not
// wait: a plugin that takes its time is in nobody's way.
func (o *Observer) pluginFacts(v *Verdict) {
	if o.c.plugins == nil || !v.Snapshot.Held() {
		return
	}
	if want := v.Policy.PluginFacts(); len(want) > 0 {
		maps.Copy(v.Facts, o.c.plugins.Facts(lockOf(v.Snapshot), want, o.since, v.At))
	}
}

// pluginStep does a step of a break by a plugin.
func (b *breaking) pluginStep(ctx context.Context, t *target, st *policies.Step) (string, error) {
	if b.c.plugins == nil {
		return "", fmt.Errorf("%w: breaker plugin %q: %w", errNotHere, st.Plugin, errNoPlugins)
	}
	lock := lockOf(t.v.Snapshot)
	lock.Epoch = t.rec.Epoch
	n := 1
	for i, other := range t.v.Policy.Break.Steps {
		if other == st {
			n = i + 1
		}
	}
	return b.c.plugins.Break(ctx, st.Plugin, st.PluginConfig, &plugin.BreakRequest{
		ID: fmt.Sprintf("%s#%d", t.key, n), Lock: *lock, Rule: t.rec.Rule, Reason: t.rec.Reason, Step: n,
	})
}
