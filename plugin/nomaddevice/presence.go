package nomaddevice

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

const (
	// presenceEvery is how often the Consul agent of this machine is asked for
	// the check of the aimlock agent. It answers by itself: Consul's servers are
	// not asked.
	presenceEvery = 3 * time.Second
	// presenceTimeout bounds one such question.
	presenceTimeout = 2500 * time.Millisecond
)

// presence is whether the aimlock agent of this machine runs.
type presence struct {
	Runs bool
	// Why not.
	Why string
	// Err says why it cannot be told.
	Err string
}

// askPresence asks the local Consul agent for the check of node's agent.
func askPresence(ctx context.Context, c *consulkv.Client, node string) presence {
	id := agent.ServiceID(node)
	ctx, cancel := context.WithTimeout(ctx, presenceTimeout)
	defer cancel()
	checks, err := c.API().Agent().ChecksWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return presence{Err: c.Classify("read check "+id, err).Error()}
	}
	check := checks[id]
	switch {
	case check == nil:
		return presence{Why: fmt.Sprintf("the Consul agent at %s has no check %s that this token may read", c.Addr(), id)}
	case check.Status != api.HealthPassing:
		return presence{Why: fmt.Sprintf("its check is %s", check.Status)}
	}
	return presence{Runs: true}
}

// followPresence tells whether node's agent runs, and again when that changes,
// until ctx ends.
func followPresence(ctx context.Context, c *consulkv.Client, node string, tell func(presence)) {
	t := time.NewTicker(presenceEvery)
	defer t.Stop()
	var last *presence
	for {
		now := askPresence(ctx, c, node)
		if ctx.Err() != nil {
			return
		}
		if last == nil || *last != now && (last.Err == "" || now.Err == "") {
			last = &now
			tell(now)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
