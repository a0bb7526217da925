package sim

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul/state"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// ordered looks at an order for a node.
func (c *checker) ordered(k state.KVChange, now time.Time) {
	var d records.Desired
	if k.After == nil || json.Unmarshal(k.After.Value, &d) != nil {
		return
	}
	rest := strings.TrimPrefix(k.Key(), c.w.keys.DesiredRoot())
	config, node, _ := strings.Cut(rest, "/")
	c.underLock(config, "", d.Token, k.Key())
	c.use(config, now)
	sub(c.desired, config)[node] = d
	c.given[config+"/"+node], c.freed[config+"/"+node] = now, !c.up[node]
	if d.Action != "" && d.Action != records.ActionApply {
		return
	}
	sub(c.nodes, d.Rollout)[node] = true
	c.mu.Lock()
	passed := c.gates[d.Rollout]
	c.mu.Unlock()
	if c.w.plan.Gate && !passed && len(c.nodes[d.Rollout]) > 1 {
		c.w.fail(InvGate, "rollout %s goes on to node %s after its first stage, whose gate has not passed", d.Rollout, node)
	}
	flying := 0
	for n, o := range c.desired[config] {
		if id := config + "/" + n; o.Rollout == d.Rollout && o.Action != records.ActionRestore && now.Sub(c.given[id]) < nodeDeadline && !c.freed[id] && !c.answeredOrder(config, n, o.Order) {
			flying++
		}
	}
	if flying > maxParallel {
		c.w.fail(InvParallel, "rollout %s has %d nodes in flight: %d are allowed", d.Rollout, flying, maxParallel)
	}
}

func (c *checker) answeredOrder(config, node string, o orchestrator.Order) bool {
	a, ok := c.actual[config][node]
	return ok && (!a.Order.Less(o) || a.Refused != nil && *a.Refused == o)
}

// together: of the configs of one rollout a node answers one order in one way.
func (c *checker) together(a records.Actual) {
	for _, config := range c.w.plan.configs() {
		o, ok := c.actual[config][a.Node]
		if ok && o.Order == a.Order && o.Refused == nil && a.Refused == nil && o.Waiting == "" && a.Waiting == "" && o.Result != a.Result {
			c.w.fail(InvTogether, "node %s answers order %s with %q for %s, and with %q for %s", a.Node, a.Order, o.Result, config, a.Result, a.Config)
		}
	}
}

// passed notes that the gate of a rollout says so.
func (c *checker) passed(rollout string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gates[rollout] = true
}

// forgive notes that an operator is about to resume a rollout.
func (c *checker) forgive(rollout string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgiven[rollout] = true
}

// header looks at the state of a rollout.
func (c *checker) header(k state.KVChange) {
	var h orchestrator.Header
	if k.After == nil || json.Unmarshal(k.After.Value, &h) != nil {
		return
	}
	if h.Counts.Total() != h.Total {
		c.w.fail(InvClass, "rollout %s has %d nodes, and %d in its classes: %v", h.ID, h.Total, h.Counts.Total(), h.Counts)
	}
	if h.FinishedAt != nil && h.State != orchestrator.Superseded && h.Counts[orchestrator.ClassPending] != 0 {
		c.w.fail(InvClass, "rollout %s is %s, and %d of its nodes are in no class", h.ID, h.State, h.Counts[orchestrator.ClassPending])
	}
	c.mu.Lock()
	resumed := c.forgiven[h.ID]
	c.mu.Unlock()
	allowed := maxFailed
	if resumed {
		allowed += h.Budget.ForgivenFailed
	}
	if h.State == orchestrator.Succeeded && h.Counts[orchestrator.ClassFailed] > allowed {
		c.w.fail(InvFailures, "rollout %s succeeded with %d failed nodes: %d are allowed", h.ID, h.Counts[orchestrator.ClassFailed], allowed)
	}
}

// raised: after a recovery every order is above all that were given before.
func (c *checker) raised(k state.KVChange) {
	n, ok := atou(string(k.After.Value))
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for node, o := range c.accepted {
		if n <= o.Epoch {
			c.w.fail(InvEpoch, "the epoch was raised to %d, and node %s has accepted an order of epoch %d", n, node, o.Epoch)
		}
	}
}
