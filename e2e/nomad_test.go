package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	fleets "github.com/aim-control/aimlock/orchestrator/fleet"
)

// TestNomad asks a real Nomad about allocations that run, complete, fail, are
// stopped, are lost with their client, and are collected.
func TestNomad(t *testing.T) {
	t.Parallel()
	c := startNomad(t)
	cl, err := nomadapi.New(nomadapi.Config{Address: c.addr})
	if err != nil {
		t.Fatal(err)
	}
	n := evidence.NewNomad(cl)
	rec := c.recorder("one server and one client without ACLs; the client is killed at last, and then all is collected", "")
	ref := func(id string) evidence.AllocRef { return evidence.AllocRef{ID: id, Region: "global"} }
	becomes := func(id, what string) {
		t.Helper()
		last := ""
		index := uint64(0)
		harness.Eventually(t, nomadLimit, "allocation is "+what, func() bool {
			a, next, err := n.Alloc(t.Context(), ref(id), evidence.Since{Index: index, Wait: 5 * time.Second})
			if err != nil {
				last = err.Error()
				return false
			}
			index = next
			last = strings.Join([]string{a.ClientStatus, a.DesiredStatus, a.NodeStatus}, " ")
			if a.Gone {
				last = "gone"
			}
			t.Logf("%s is %s", id, last)
			return last == what
		})
	}
	stays := c.run("stays", "service", "sleep", "3600")
	stopped := c.run("stopped", "batch", "sleep", "3600")
	ended, failed := c.run("ends", "batch", "true"), c.run("fails", "batch", "false")
	becomes(stays, "running run ready")
	becomes(stopped, "running run ready")
	becomes(ended, "complete run ready")
	becomes(failed, "failed run ready")
	// keeps records what is read of an allocation now.
	keeps := func(name, id string) {
		t.Helper()
		if _, _, err := evidence.NewNomad(rec.client).Alloc(t.Context(), ref(id), evidence.Since{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		rec.keep(name)
	}
	keeps("alloc-running", stays)
	keeps("alloc-complete", ended)
	keeps("alloc-failed", failed)
	if err := evidence.NewNomad(rec.client).Stop(t.Context(), ref(stopped)); err != nil {
		t.Fatal(err)
	}
	rec.keep("stop")
	becomes(stopped, "complete stop ready")
	keeps("alloc-stopped", stopped)

	gatesOfNomad(t, c, rec)

	// Another region, and an id that this one never had.
	if a, _, err := n.Alloc(t.Context(), evidence.AllocRef{ID: stays, Region: "mars"}, evidence.Since{}); err == nil || !strings.Contains(err.Error(), "No path to region") {
		t.Errorf("of another region: %+v, %v", a, err)
	}
	if a, _, err := n.Alloc(t.Context(), evidence.AllocRef{ID: strings.Repeat("0", 8) + stays[8:]}, evidence.Since{}); err == nil {
		t.Errorf("of no region: %+v", a)
	}

	// The fleet of its clients, by all that it filters.
	f := &fleets.Fleet{Meta: true, Nomad: func() (*nomadapi.Client, error) { return rec.client, nil }, Sources: []orchestrator.Source{{Nomad: &orchestrator.NomadSource{
		Region: "global", NodePool: "default", NodeClass: "small", Datacenter: "dc1", Meta: map[string]string{"rack": "r1"}, Filter: `SchedulingEligibility == "eligible"`,
	}}}}
	s, err := f.Survey(t.Context(), nil)
	if err != nil || len(s.Nodes) != 1 || s.Nodes[0].Name != "client" || s.Nodes[0].Meta["rack"] != "r1" || s.Nodes[0].Meta["node_class"] != "small" {
		t.Errorf("fleet %+v, %v", s, err)
	}
	rec.keep("fleet")
	f.Sources[0].Nomad.Meta["rack"] = "r2"
	if s, err := f.Survey(t.Context(), nil); err == nil {
		t.Errorf("fleet of another rack: %+v", s)
	}
	rec.keep("fleet-empty")
	f.Sources[0].Nomad.Filter = `Nope == "x"`
	if _, err := f.Survey(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "Nope") {
		t.Errorf("fleet by no field: %v", err)
	}
	rec.keep("fleet-bad-filter")

	held := holdInNomad(t, c, c.addr, lostPolicy)
	c.client.Kill()
	held.isLost(n)
	becomes(stays, "lost stop down")
	keeps("alloc-lost", stays)
	// A client that is down is still of the fleet.
	f.Sources[0].Nomad = &orchestrator.NomadSource{}
	if s, err := f.Survey(t.Context(), nil); err != nil || len(s.Nodes) != 1 {
		t.Errorf("fleet of a client that is down: %+v, %v", s, err)
	}
	rec.keep("fleet-down")
	for _, job := range []string{"stays", "stopped", "ends", "fails", "web", "bad", "slow", "canary", "holder"} {
		if err := c.call(http.MethodDelete, "/v1/job/"+job+"?purge=true", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, nomadLimit, "the allocation is collected", func() bool {
		if err := c.call(http.MethodPut, "/v1/system/gc", nil, nil); err != nil {
			return false
		}
		a, _, err := n.Alloc(t.Context(), ref(ended), evidence.Since{})
		return err == nil && a.Gone
	})
	keeps("alloc-gone", ended)
}
