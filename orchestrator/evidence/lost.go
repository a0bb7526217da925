package evidence

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// living is a session and when it was certainly not there yet; zero: it was
// there at the first look.
type living struct {
	entry *api.SessionEntry
	after time.Time
}

// lostSession is a session that is gone. Consul does not tell how it ended, so
// that it counts as lost unless all that could have ended it but its owner can be
// ruled out. Four things can:
//
//   - its node left the catalog or was registered anew, or a check of the node
//     failed: ruled out while that check passes and has not changed since before
//     the session was made;
//   - a check of a service failed: ruled out likewise, of aimlock's own by its
//     status alone, since a holder does not pass a check that has failed;
//   - aimlock's check was taken away: its owner does so after it ended the
//     session. A failed one stays for a minute before Consul reaps it;
//   - its TTL ran out: ruled out for a session that is younger than its TTL
//     (Consul waits for twice as long, which covers answers that were late), and
//     for one whose owner took its check away.
//
// What is left is that somebody destroyed it. A session without any of these,
// such as one of consul lock that outlived its TTL, counts: it errs towards
// freezing.
type lostSession struct {
	living
	at      time.Time
	excused bool
}

const (
	// excuseAtOnce bounds for how many sessions that are gone at once, and on
	// how many nodes, excuses are looked for. Beyond it they all count.
	excuseAtOnce = 64
	excuseNodes  = 16
	// excuseAfter gives an owner the time to take its check away, and the
	// servers that to learn of a check.
	excuseAfter = 500 * time.Millisecond
	// excuseFor bounds the looking.
	excuseFor = 5 * time.Second
)

// excuse looks for what rules out that the sessions which are gone were lost.
func (cl *Cluster) excuse(ctx context.Context, c *consulkv.Client, gone []*lostSession) {
	nodes := map[string]api.HealthChecks{}
	for _, l := range gone {
		nodes[l.entry.Node] = nil
	}
	if len(gone) == 0 || len(gone) > excuseAtOnce || len(nodes) > excuseNodes || !pause(ctx, excuseAfter) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, excuseFor)
	defer cancel()
	for node := range nodes {
		checks, err := consulkv.Retry(ctx, c, "read the health of node "+node, func(ctx context.Context) (api.HealthChecks, error) {
			list, _, err := c.API().Health().Node(node, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
			return list, err
		})
		if err != nil {
			return
		}
		nodes[node] = checks
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for _, l := range gone {
		l.excused = l.byOwner(nodes[l.entry.Node])
	}
}

// byOwner reports whether only the session's owner can have ended it, by the
// checks of its node after it was gone.
func (l *lostSession) byOwner(checks api.HealthChecks) bool {
	e := l.entry
	find := func(id string) *api.HealthCheck {
		for _, c := range checks {
			if c.CheckID == id {
				return c
			}
		}
		return nil
	}
	steady := func(c *api.HealthCheck) bool {
		return c != nil && c.Status == api.HealthPassing && c.ModifyIndex <= e.CreateIndex
	}
	// The node itself, also for a session that no check is bound to.
	if !steady(find("serfHealth")) {
		return false
	}
	for _, id := range append(append([]string{}, e.Checks...), e.NodeChecks...) {
		if !steady(find(id)) {
			return false
		}
	}
	takenAway := false
	for _, sc := range e.ServiceChecks {
		c, own := find(sc.ID), strings.HasPrefix(strings.TrimPrefix(sc.ID, "service:"), holderService+"-")
		switch {
		case own && c == nil:
			takenAway = true
		case own && c.Status != api.HealthCritical, steady(c):
		default:
			return false
		}
	}
	ttl, err := time.ParseDuration(e.TTL)
	return err != nil || ttl <= 0 || takenAway || !l.after.IsZero() && l.at.Sub(l.after) < ttl
}
