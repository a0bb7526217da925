package gates

import (
	"context"
	"fmt"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// consulChecks asks Consul how many instances of a service pass all their
// checks.
type consulChecks struct{ consul *consulkv.Client }

var _ Kind = (*consulChecks)(nil)

// share is how many instances there are, and how many of them pass.
type share struct{ passing, all int }

func (s share) String() string { return fmt.Sprintf("%d of %d", s.passing, s.all) }

// reaches reports whether percent of the instances pass; integer-exact.
func (s share) reaches(percent int) bool { return s.passing*100 >= percent*s.all }

// below reports whether the share is less than that of o.
func (s share) below(o share) bool { return s.passing*o.all < o.passing*s.all }

func (s share) percent() string {
	if s.all == 0 {
		return ""
	}
	return fmt.Sprintf("%.4g%%", 100*float64(s.passing)/float64(s.all))
}

func (k *consulChecks) Ask(ctx context.Context, q Question) Answer {
	g := &q.Gate
	// One try: whoever asks counts what could not be asked, and asks again.
	opts := &api.QueryOptions{RequireConsistent: true, Filter: g.Filter}
	list, _, err := k.consul.API().Health().Service(g.Service, "", false, opts.WithContext(ctx))
	if err != nil {
		return failed("%v", k.consul.Classify("read the health of service "+g.Service, err))
	}
	of := ""
	if g.Filter != "" {
		of = " that the filter leaves"
	}
	if len(list) == 0 {
		// The same to a token without rights.
		return unknown("Consul shows no instance of service %q%s", g.Service, of)
	}
	if g.Compare {
		return compareChecks(g, list, q)
	}
	var all share
	for _, e := range list {
		all.add(e)
	}
	a := answer(orchestrator.Pass, all.percent(), "%s instances of %s%s pass, and %d percent must", all, g.Service, of, g.MinPassingPercent)
	if !all.reaches(g.MinPassingPercent) {
		a.Answer = orchestrator.Fail
	}
	return a
}

func (s *share) add(e *api.ServiceEntry) {
	s.all++
	if e.Checks.AggregatedStatus() == api.HealthPassing {
		s.passing++
	}
}

// compareChecks holds the instances of the nodes that have the revision against
// those of the nodes that do not have it yet: what is as bad there is not the
// revision's doing, and not a reason to go on either.
func compareChecks(g *orchestrator.Gate, list []*api.ServiceEntry, q Question) Answer {
	side := make(map[string]bool, len(q.Updated)+len(q.Rest)) // true: updated
	for _, n := range q.Rest {
		side[n] = false
	}
	for _, n := range q.Updated {
		side[n] = true
	}
	var updated, rest share
	for _, e := range list {
		is, ours := side[nodeOf(e)]
		switch {
		case !ours:
		case is:
			updated.add(e)
		default:
			rest.add(e)
		}
	}
	if updated.all == 0 {
		return unknown("none of the %s with the revision has an instance of %s", text.Count(len(q.Updated), "node"), g.Service)
	}
	why := fmt.Sprintf("%s instances of %s pass on the nodes that have the revision", updated, g.Service)
	against := fmt.Sprintf("%s on those that do not have it yet", rest)
	if rest.all == 0 {
		against = "no other node is left to compare with"
	}
	why = fmt.Sprintf("%s, and %s; %d percent must", why, against, g.MinPassingPercent)
	switch {
	case updated.reaches(g.MinPassingPercent):
		return answer(orchestrator.Pass, updated.percent(), "%s", why)
	case rest.all > 0 && !updated.below(rest):
		a := unknown("%s: it is no better where the revision is not", why)
		a.Value = updated.percent()
		return a
	}
	return answer(orchestrator.Fail, updated.percent(), "%s", why)
}

// nodeOf is the name by which a rollout knows the machine of an instance, as
// for a fleet from Consul.
func nodeOf(e *api.ServiceEntry) string {
	if n := e.Service.Meta["node"]; n != "" {
		return n
	}
	return e.Node.Node
}
