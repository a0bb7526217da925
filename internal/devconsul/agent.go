package devconsul

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

// maxCheckOutput is Consul's default bound of a check's output.
const maxCheckOutput = 4 * 1024

// agent is the local agent of the only node: the services and TTL checks that it
// was given, and what of them the catalog has been told.
//
// A change of status reaches the catalog at once, a change of output alone after
// half to one and a half CheckUpdateInterval. Lock order: agent.mu, then the store's.
type agent struct {
	cfg    Config
	store  *state.Store
	timers *timers
	node   *state.Node
	self   *state.Service

	mu       sync.Mutex
	services map[string]*state.Service
	checks   map[string]*localCheck
}

type localCheck struct {
	check      *state.Check // replaced, never changed in place
	ttl        time.Duration
	reapAfter  time.Duration // 0: never
	lastOutput string
	// round counts what set the TTL anew, so that an expiry which was overtaken
	// by a pass does nothing.
	round         int
	criticalSince time.Time // zero: not critical by an update
}

// checkSpec is a check as a client defines it.
type checkSpec struct {
	id, name, notes, status string
	ttl, deregisterAfter    time.Duration
}

func newAgent(cfg Config, store *state.Store, ts *timers) (*agent, error) {
	addr := map[string]string{"lan": "127.0.0.1", "lan_ipv4": "127.0.0.1", "wan": "127.0.0.1", "wan_ipv4": "127.0.0.1"}
	a := &agent{
		cfg: cfg, store: store, timers: ts,
		node: &state.Node{
			ID: cfg.UUID(), Node: cfg.NodeName, Address: "127.0.0.1", Datacenter: cfg.Datacenter,
			TaggedAddresses: addr, Meta: map[string]string{"consul-network-segment": ""},
		},
		self: &state.Service{
			ID: "consul", Service: "consul", Port: 8300, Weights: state.Weights{Passing: 1, Warning: 1},
			Meta: map[string]string{"version": Version, "raft_version": "3", "non_voter": "false", "read_replica": "false"},
		},
		services: map[string]*state.Service{},
		checks:   map[string]*localCheck{},
	}
	return a, a.registerSelf()
}

// registerSelf puts the node, its server and serfHealth into the catalog.
func (a *agent) registerSelf() error {
	node, self := *a.node, *a.self
	err := a.store.Register(state.Registration{Node: &node, Service: &self, Checks: []*state.Check{{
		Node: a.node.Node, CheckID: state.SerfHealth, Name: "Serf Health Status",
		Status: state.Passing, Output: "Agent alive and reachable",
	}}})
	if err != nil {
		return fmt.Errorf("register node %s: %w", a.node.Node, err)
	}
	return nil
}

func ttlTimer(id string) string    { return "ttl " + id }
func outputTimer(id string) string { return "output " + id }

// registerService adds a service and its checks, or updates them: a check that
// exists keeps its status and output.
func (a *agent) registerService(svc *state.Service, specs []checkSpec, replaceChecks bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	svc.Node = a.node.Node
	a.services[svc.ID] = svc
	keep := map[string]bool{}
	var checks []*state.Check
	for i, spec := range specs {
		if spec.id == "" {
			spec.id = "service:" + svc.ID
			if len(specs) > 1 {
				spec.id = fmt.Sprintf("%s:%d", spec.id, i+1)
			}
		}
		if spec.name == "" {
			spec.name = fmt.Sprintf("Service '%s' check", svc.Service)
		}
		c := a.putCheck(spec, svc)
		keep[c.CheckID] = true
		checks = append(checks, c.Clone())
	}
	if replaceChecks {
		for id, lc := range a.checks {
			if lc.check.ServiceID == svc.ID && !keep[id] {
				if err := a.dropCheck(id); err != nil {
					return err
				}
			}
		}
	}
	return a.push(svc, checks)
}

// registerCheck adds a check, of a service if svc is given.
func (a *agent) registerCheck(spec checkSpec, serviceID string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var svc *state.Service
	if serviceID != "" {
		if svc = a.services[serviceID]; svc == nil {
			return httpError{http.StatusNotFound, fmt.Sprintf("ServiceID %q does not exist", serviceID)}
		}
	}
	return a.push(svc, []*state.Check{a.putCheck(spec, svc).Clone()})
}

// putCheck makes the check known here and starts its TTL.
func (a *agent) putCheck(spec checkSpec, svc *state.Service) *state.Check {
	c := &state.Check{
		Node: a.node.Node, CheckID: spec.id, Name: spec.name, Notes: spec.notes, Type: "ttl", Status: spec.status,
	}
	if c.Status == "" {
		c.Status = state.Critical
	}
	if svc != nil {
		c.ServiceID, c.ServiceName, c.ServiceTags = svc.ID, svc.Service, svc.Tags
	}
	lc := &localCheck{check: c, ttl: spec.ttl}
	if old := a.checks[spec.id]; old != nil {
		c.Status, c.Output = old.check.Status, old.check.Output
		lc.round = old.round
	}
	if spec.deregisterAfter > 0 {
		lc.reapAfter = max(spec.deregisterAfter, a.cfg.CheckDeregisterMin)
	}
	a.checks[spec.id] = lc
	a.timers.Stop(outputTimer(spec.id))
	a.startTTL(spec.id, lc)
	return c
}

func (a *agent) startTTL(id string, lc *localCheck) {
	lc.round++
	round := lc.round
	a.timers.Set(ttlTimer(id), lc.ttl, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.checks[id] != lc || lc.round != round {
			return
		}
		output := "TTL expired"
		if lc.lastOutput != "" {
			output = fmt.Sprintf("TTL expired (last output before timeout follows): %s", lc.lastOutput)
		}
		a.cfg.Log.Debug("check missed its TTL", "check", id)
		if err := a.update(id, lc, state.Critical, output); err != nil {
			a.cfg.Log.Error("check not updated", "check", id, "error", err)
		}
	})
}

// report takes what a client says about its TTL check.
func (a *agent) report(id, status, output string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	lc := a.checks[id]
	if lc == nil {
		return errUnknownCheck(id)
	}
	if n := len(output); n > maxCheckOutput {
		output = fmt.Sprintf("%s ... (captured %d of %d bytes)", output[:maxCheckOutput], maxCheckOutput, n)
	}
	err := a.update(id, lc, status, output)
	lc.lastOutput = output
	a.startTTL(id, lc)
	return err
}

func errUnknownCheck(id string) error {
	return httpError{http.StatusNotFound, fmt.Sprintf("Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)}
}

func (a *agent) update(id string, lc *localCheck, status, output string) error {
	if status != state.Critical {
		lc.criticalSince = time.Time{}
	} else if lc.criticalSince.IsZero() {
		lc.criticalSince = time.Now()
	}
	old := lc.check
	if old.Status == status && old.Output == output {
		return nil
	}
	lc.check = old.Clone()
	lc.check.Status, lc.check.Output = status, output
	if old.Status == status {
		if !a.timers.Pending(outputTimer(id)) {
			d := a.cfg.CheckUpdateInterval
			a.timers.Set(outputTimer(id), d/2+a.cfg.Spread(d), func() { a.pushOutput(id) })
		}
		return nil
	}
	return a.push(a.services[lc.check.ServiceID], []*state.Check{lc.check.Clone()})
}

func (a *agent) pushOutput(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lc := a.checks[id]
	if lc == nil {
		return
	}
	if err := a.push(a.services[lc.check.ServiceID], []*state.Check{lc.check.Clone()}); err != nil {
		a.cfg.Log.Error("check output not updated", "check", id, "error", err)
	}
}

// push tells the catalog. The store keeps what it is given: checks must be copies.
func (a *agent) push(svc *state.Service, checks []*state.Check) error {
	node := *a.node
	r := state.Registration{Node: &node, SkipNodeUpdate: true, Checks: checks}
	if svc != nil {
		c := *svc
		r.Service = &c
	}
	return a.store.Register(r)
}

func (a *agent) deregisterService(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dropService(id)
}

func (a *agent) dropService(id string) error {
	if a.services[id] == nil {
		return httpError{http.StatusNotFound, fmt.Sprintf("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)}
	}
	delete(a.services, id)
	for cid, lc := range a.checks {
		if lc.check.ServiceID == id {
			a.forget(cid)
		}
	}
	return a.store.Deregister(a.node.Node, id, "")
}

func (a *agent) deregisterCheck(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.checks[id] == nil {
		return errUnknownCheck(id)
	}
	return a.dropCheck(id)
}

func (a *agent) dropCheck(id string) error {
	a.forget(id)
	return a.store.Deregister(a.node.Node, "", id)
}

func (a *agent) forget(checkID string) {
	delete(a.checks, checkID)
	a.timers.Stop(ttlTimer(checkID))
	a.timers.Stop(outputTimer(checkID))
}

// reapServices deregisters services with a check that is critical for longer
// than it allows.
func (a *agent) reapServices() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(a.checks)) {
		lc := a.checks[id]
		if lc == nil || lc.check.ServiceID == "" || lc.reapAfter == 0 || lc.criticalSince.IsZero() ||
			time.Since(lc.criticalSince) <= lc.reapAfter {
			continue
		}
		a.cfg.Log.Info("deregistered a service with a critical check", "service", lc.check.ServiceID, "check", id)
		errs = append(errs, a.dropService(lc.check.ServiceID))
	}
	return errors.Join(errs...)
}

// syncAll makes the catalog's view of this node equal to the agent's, whatever
// somebody registered or deregistered there by hand. serfHealth is not the
// agent's, and stays as it is.
func (a *agent) syncAll() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, node, services, err := a.store.NodeServices(nil, a.node.Node)
	if err != nil {
		return err
	}
	if node == nil {
		if err := a.registerSelf(); err != nil {
			return err
		}
	}
	remote := map[string]*state.Service{}
	for _, svc := range services {
		if svc.ID != a.self.ID && a.services[svc.ID] == nil {
			if err := a.store.Deregister(a.node.Node, svc.ID, ""); err != nil {
				return err
			}
		}
		remote[svc.ID] = svc
	}
	for id, svc := range a.services {
		if r := remote[id]; r == nil || !r.SameAs(svc) {
			if err := a.push(svc, nil); err != nil {
				return err
			}
		}
	}
	_, checks, err := a.store.NodeChecks(nil, a.node.Node)
	if err != nil {
		return err
	}
	known := map[string]*state.Check{}
	for _, c := range checks {
		if c.CheckID != state.SerfHealth && a.checks[c.CheckID] == nil {
			if err := a.store.Deregister(a.node.Node, "", c.CheckID); err != nil {
				return err
			}
		}
		known[c.CheckID] = c
	}
	for id, lc := range a.checks {
		r, want := known[id], lc.check.Clone()
		if r != nil && r.Status == want.Status {
			// New output waits for its own timer.
			want.Output = r.Output
		}
		if r == nil || !r.SameAs(want) {
			if err := a.push(a.services[want.ServiceID], []*state.Check{want}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *agent) listServices() map[string]*state.Service {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.services)
}

func (a *agent) listChecks() map[string]*state.Check {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[string]*state.Check, len(a.checks))
	for id, lc := range a.checks {
		out[id] = lc.check
	}
	return out
}
