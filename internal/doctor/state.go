package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/guard"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// named bounds the names in one finding.
const named = 5

// agents looks at the agents of nodes.
func (e *examination) agents(ctx context.Context) bool {
	list, _, err := e.Consul.API().Health().Service(agent.ServiceName, "", false, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return e.unread("agents", e.Consul.Classify("list the agents", err))
	}
	var down []string
	others := map[string]int{}
	for _, s := range list {
		// Who has none is no agent of a version: consul-template, whose service says that
		// orders are answered on that machine.
		if v := s.Service.Meta["version"]; v != e.Version && v != "" {
			others[v]++
		}
		if s.Checks.AggregatedStatus() != api.HealthPassing {
			node := s.Service.Meta["node"]
			if node == "" {
				node = s.Node.Node
			}
			down = append(down, node)
		}
	}
	slices.Sort(down)
	switch {
	case len(list) == 0:
		return e.note("agents", "start one on each machine, `aimlock agent -node NAME -state-dir DIR`, or let consul-template run `aimlock agent apply`", "no agent is registered, or the token may not see them (service:read): a rollout would reach no node")
	case len(down) > 0:
		e.warn("agents", "look at the machines and at their agents' logs; a rollout counts them as unreachable; docs/how-to/machine-leaves.md takes one out of the fleet", "%s, and of %d the check is not passing: %s", text.Count(len(list), "agent"), len(down), text.Some(down))
	default:
		e.ok("agents", "%s, all passing", text.Count(len(list), "agent"))
	}
	if len(others) > 0 {
		var parts []string
		for _, v := range slices.Sorted(maps.Keys(others)) {
			parts = append(parts, fmt.Sprintf("%d of %q", others[v], text.Clip(text.Printable(v), 40)))
		}
		e.note("versions", "put this version on those machines, when it suits: what an older agent does not know it refuses, and says so", "agents of other versions than this one (%s): %s", e.Version, strings.Join(parts[:min(len(parts), named)], ", "))
	}
	return true
}

// plugins tries those that are configured here.
func (e *examination) plugins(ctx context.Context) bool {
	if e.Plugins == nil {
		return true
	}
	for _, p := range e.Plugins(ctx) {
		if p.Err != nil {
			e.fail("plugins", "`aimlock plugin verify "+text.Printable(p.Name)+"` tells more", "%s: %s", text.Printable(p.Name), text.Printable(p.Err.Error()))
			continue
		}
		e.ok("plugins", "%s %s", text.Printable(p.Name), p.What)
	}
	return true
}

// locksmith looks at who guards the locks.
func (e *examination) locksmith(ctx context.Context) bool {
	v, err := e.Locks.NewObserver(guard.LeaderLock, nil).Observe(ctx)
	if err != nil {
		return e.unread("locksmith", err)
	}
	st := e.Locks.Status(v)
	switch {
	case st.Session == nil:
		return e.note("locksmith", "run `aimlock locksmith` as a service, or `aimlock locksmith -once` periodically", "none leads: a HOT lock waits for the next one who wants it")
	case st.State == locksmith.Hot || st.State == locksmith.Unknown:
		return e.warn("locksmith", "`aimlock lock explain "+guard.LeaderLock+"`", "its own lock is %s: %s", st.State, text.Printable(st.Reason))
	}
	who := "somebody"
	if h := st.Holder; h != nil && h.PID != nil && h.Host != nil {
		who = fmt.Sprintf("pid %d on %s", *h.PID, text.Printable(*h.Host))
	}
	return e.ok("locksmith", "%s leads", who)
}

// policies compares those of this process with those applied.
func (e *examination) policies(ctx context.Context) bool {
	if sus, err := e.Locks.Suspended(ctx); err != nil {
		return e.unread("policies", err)
	} else if sus != nil {
		e.warn("policies", "`aimlock policy resume`, when it is over", "all automatic breaking is suspended by %s: %s", text.Printable(sus.By), text.Printable(sus.Reason))
	}
	v, why, err := e.Locks.ActivePolicies(ctx)
	switch mine := e.Locks.Policies(); {
	case err != nil:
		return e.unread("policies", err)
	case v == nil:
		key := e.Keys.PolicyActive()
		if may, known := e.may(ctx, right{Resource: "key", Access: "write", Segment: key}); known && !may {
			return e.note("policies", "`aimlock policy apply PATH`, with a token of the role admin", "none are applied, and to check that, Consul asks for write on %s: this token breaks nothing until policies are applied", key)
		}
		return e.note("policies", "`aimlock policy apply PATH`", "none are applied: anybody may break aimlock's own locks by policies of his own, and nobody those of other tools")
	case why != "":
		return e.warn("policies", "`aimlock policy apply PATH` again", "%s", text.Printable(why))
	case v.Hash != mine.Hash:
		return e.warn("policies", "use the same files: `aimlock policy show -active` prints those applied", "those here (%.12s) are not those applied (%.12s, serial %d by %s): what is judged here breaks nothing", mine.Hash, text.Printable(v.Hash), v.Serial, text.Printable(v.By))
	}
	return e.ok("policies", "those here are the ones applied, serial %d", v.Serial)
}

// locks looks for those in trouble.
func (e *examination) locks(ctx context.Context) bool {
	counts, grave := map[string]int{}, []string{}
	total := 0
	hidden, err := e.Locks.EachLock(ctx, []string{""}, false, func(v *locksmith.Verdict) {
		total++
		counts[v.State]++
		if v.State == locksmith.Hot || v.State == locksmith.Unknown {
			grave = append(grave, v.Snapshot.Name+" "+v.State)
		}
	})
	if err != nil {
		return e.unread("locks", err)
	}
	if hidden {
		e.note("locks", "", "there may be more, which the token may not read")
	}
	if len(grave) > 0 {
		slices.Sort(grave)
		return e.warn("locks", "`aimlock lock explain NAME` tells why, and what happens next", "%s held, and in trouble: %s", text.Count(total, "lock"), text.Some(grave))
	}
	return e.ok("locks", "%s held, none HOT or UNKNOWN at a glance", text.Count(total, "lock"))
}

// mostLooked is of how many rollouts that are at work it is looked who drives them.
const mostLooked = 20

// rollouts looks for those that stand.
func (e *examination) rollouts(ctx context.Context) bool {
	// All headers are read in any case.
	list, err := e.Rollouts.List(ctx, runner.Filter{Ended: -1})
	if err != nil {
		return e.unread("rollouts", err)
	}
	var paused, open, still []string
	looked := 0
	for _, h := range list.Headers {
		if h.AtWork() && looked < mostLooked {
			looked++
			undriven, err := e.Rollouts.StandsStill(ctx, h)
			if err != nil {
				return e.unread("rollouts", err)
			}
			if undriven {
				still = append(still, h.ID)
				continue
			}
		}
		switch {
		case h.State == orchestrator.Paused:
			paused = append(paused, h.ID)
		case h.FinishedAt == nil:
			open = append(open, h.ID)
		}
	}
	if len(still) > 0 {
		e.warn("rollouts", "`"+e.Start+"`, with the spec that it was begun with; or roll it back or abort it", "%s: %s", text.Some(still), runner.Undriven(e.Start))
	}
	switch {
	case len(paused) > 0:
		return e.warn("rollouts", "`aimlock rollout status ID` says why; then resume, roll back or abort it", "paused: %s", text.Some(paused))
	case len(still) > 0:
		return true
	case len(open)+len(list.Waiting) > 0:
		return e.ok("rollouts", "unfinished: %s; %d waiting", text.Some(open), len(list.Waiting))
	}
	if left := leftOut(list.Headers); len(left) > 0 {
		return e.note("rollouts", "`aimlock rollout plan SPEC` shows which nodes lack it now, and `aimlock rollout start SPEC` serves them", "none is unfinished, but not all nodes got what succeeded: %s", text.Some(left))
	}
	return e.ok("rollouts", "none is unfinished")
}

// leftOut are the rollouts, the newest of each name, that succeeded within their budget
// without some of their nodes. Nodes that could not be reached do not count: their order
// waits for them, and they follow it when they return.
func leftOut(heads []*orchestrator.Header) []string {
	var out []string
	seen := map[string]bool{}
	for _, h := range heads {
		if seen[h.Name] {
			continue
		}
		seen[h.Name] = true
		if n := h.Counts[orchestrator.ClassFailed]; h.State == orchestrator.Succeeded && n > 0 {
			out = append(out, fmt.Sprintf("%s failed on %d of %s", h.ID, n, text.Count(h.Total, "node")))
		}
	}
	return out
}

// orders looks whether Consul has what it gave to the nodes: after a restore it has
// not, and a rollout begins nothing.
func (e *examination) orders(ctx context.Context) bool {
	o, err := e.Rollouts.Orders(ctx)
	if o.DriftedAll > 0 {
		var names []string
		for _, d := range o.Drifted[:min(len(o.Drifted), named)] {
			names = append(names, text.Clip(text.Printable(fmt.Sprintf("%s of %s %s", d.Config, d.Node, d.Text())), 200))
		}
		if n := o.DriftedAll - len(names); n > 0 {
			names = append(names, fmt.Sprintf("and %d more", n))
		}
		e.warn("drift", runner.PutBack(e.Start)+"; a rollout of another content writes over it, too", "%s", strings.Join(names, "; "))
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return e.note("orders", "`aimlock rollout plan SPEC` looks at those of one rollout", "what nodes answer was read of %d of %s within %s: whether Consul has lost orders is not known", o.Read, text.Count(o.Configs, "config"), patience)
	case err != nil:
		return e.unread("orders", err)
	case o.Lost != "":
		return e.fail("orders", "run `aimlock recover`: until then no rollout gives these nodes an order, and what locks and rollouts show is of the past", "Consul has lost orders, or was restored to an older state: %s", text.Printable(o.Lost))
	}
	return e.ok("orders", "no node has accepted one that Consul has lost")
}

func (e *examination) nomad(ctx context.Context) bool {
	if e.Nomad == nil {
		return e.note("nomad", "set NOMAD_ADDR where holders run in Nomad", "it is not asked: facts nomad.* are null")
	}
	// The nodes are what evidence and fleets read.
	q := e.Nomad.Options(ctx)
	if _, _, err := e.Nomad.API().Nodes().List(q); err != nil {
		return e.fail("nomad", "check NOMAD_ADDR, NOMAD_TOKEN and NOMAD_CACERT; see docs/nomad.md for the ACL policy", "%s", e.Nomad.Fail("list the nodes", err))
	}
	return e.ok("nomad", "%s answers, and shows its nodes", e.Nomad.Addr())
}

// tryLock is the lock that is tried.
const tryLock = "aimlock.doctor"

// try takes a lock and lets go of it.
func (e *examination) try(ctx context.Context) bool {
	if !e.TryLock {
		return true
	}
	begun := time.Now()
	h, err := e.Locks.Acquire(ctx, locksmith.Request{Names: []string{tryLock}, Operation: "doctor", Try: true, NoBreak: true})
	if ref, ok := errors.AsType[*locksmith.RefusedError](err); ok {
		return e.note("try", "", "%s is %s: another examination is under way", tryLock, ref.Status.State)
	}
	if err != nil {
		return e.fail("try", "see the findings above", "a lock could not be taken: %s", err)
	}
	checked, token := h.Checked(), h.Token()
	if err := h.Release(ctx); err != nil {
		return e.fail("try", "see the findings above", "a lock could not be let go: %s", err)
	}
	e.ok("try", "%s was taken and let go in %s, token %d", tryLock, time.Since(begun).Round(time.Millisecond), token)
	if !checked {
		return e.warn("checks", "ask a Consul agent on this machine (CONSUL_HTTP_ADDR=127.0.0.1:8500), and give the token service:write on aimlock-holder", "the Consul agent takes no check of this process: the session's TTL alone finds out that a holder died, which takes up to 30s instead of 10s")
	}
	return e.ok("checks", "the Consul agent takes the check by which a dead holder is found out within 10s")
}
