package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	fleets "github.com/aim-control/aimlock/orchestrator/fleet"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// startNomadRegions starts two regions that know each other: east, which has a
// server alone and is the one that is asked, and west, where the work is done.
func startNomadRegions(t *testing.T) (east, west *nomadCluster, westServer *harness.Process) {
	t.Helper()
	bin, dir := nomadBin(t), t.TempDir()
	t.Cleanup(func() { cleanNomad(t, dir) })
	ports := harness.FreePorts(t, 9)
	at := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }
	east = &nomadCluster{t: t, dir: dir, region: "east", addr: at(ports[0])}
	west = &nomadCluster{t: t, dir: dir, region: "west", addr: at(ports[3])}
	nomadAgent(t, bin, dir, "server-east", "region = \"east\"\n"+nomadServer, ports[:3])
	westServer = nomadAgent(t, bin, dir, "server-west", "region = \"west\"\n"+nomadServer, ports[3:6])
	west.client = nomadAgent(t, bin, dir, "client", "region = \"west\"\n"+fmt.Sprintf(nomadClient, ports[4], nomadDenied), ports[6:])
	west.ready(1)
	harness.Eventually(t, nomadLimit, "west joins east", func() bool {
		var joined struct {
			Joined int `json:"num_joined"`
		}
		return west.call(http.MethodPut, fmt.Sprintf("/v1/agent/join?address=127.0.0.1:%d", ports[2]), nil, &joined) == nil && joined.Joined == 1
	})
	harness.Eventually(t, nomadLimit, "east asks west", func() bool { return east.get("/v1/nodes?region=west", nil) == nil })
	return east, west, westServer
}

// TestNomadRegions asks the Nomad of one region about what is in another, by the
// region that a holder records, a gate names and a fleet names; and asks on when the
// other region is gone.
func TestNomadRegions(t *testing.T) {
	t.Parallel()
	east, west, westServer := startNomadRegions(t)
	rec := east.recorder("two regions of one server each; that of east is asked about west, which has the one client", "")
	n := evidence.NewNomad(rec.client)
	// alloc reads an allocation until it is as it shall be, and keeps the last read.
	alloc := func(name string, ref evidence.AllocRef, want string) {
		t.Helper()
		last := ""
		harness.Eventually(t, nomadLimit, name+" is "+want, func() bool {
			rec.Drop()
			var is string
			if a, _, err := n.Alloc(t.Context(), ref, evidence.Since{}); err != nil {
				is = err.Error()
			} else if is = strings.Join([]string{a.ClientStatus, a.DesiredStatus, a.NodeStatus}, " "); a.Gone {
				is = "gone"
			}
			if is != last {
				t.Logf("%s: %s", name, is)
			}
			last = is
			return strings.Contains(is, want)
		})
		rec.keep(name)
	}
	set := gates.New(gates.Config{Nomad: func() (*nomadapi.Client, error) { return rec.client, nil }})
	gate := func(name, region string, want orchestrator.Answer, why string) {
		t.Helper()
		var a gates.Answer
		harness.Eventually(t, nomadLimit, name+" answers "+string(want)+": "+why, func() bool {
			rec.Drop()
			before := a
			if a = set.Ask(t.Context(), gates.Question{Gate: orchestrator.Gate{
				Name: "g", Kind: orchestrator.GateKindNomadDeploy, NomadDeployment: &orchestrator.GateNomadDeployment{Job: "web", Region: region},
			}}); a != before {
				t.Logf("%s: %s: %s", name, a.Answer, a.Why)
			}
			return a.Answer == want && strings.Contains(a.Why, why)
		})
		rec.keep(name)
	}
	survey := func(name, region string) (*fleets.Survey, error) {
		t.Helper()
		rec.Drop()
		f := &fleets.Fleet{
			Meta: true, Nomad: func() (*nomadapi.Client, error) { return rec.client, nil },
			Sources: []orchestrator.Source{{Nomad: &orchestrator.NomadSource{Region: region, Meta: map[string]string{"rack": "r1"}}}},
		}
		s, err := f.Survey(t.Context(), nil)
		rec.keep(name)
		return s, err
	}

	west.register(nomadJob("web", "service", map[string]any{
		"MaxParallel": 1, "HealthCheck": "task_states", "MinHealthyTime": int64(100 * time.Millisecond),
		"HealthyDeadline": int64(20 * time.Minute), "ProgressDeadline": int64(30 * time.Minute),
	}, "sleep", "3600"))
	gate("region-deployment", "west", orchestrator.Pass, `of job "web" in region "west", version 0, is successful`)
	gate("region-deployment-here", "", orchestrator.Unknown, "job not found")

	if s, err := survey("region-fleet", "west"); err != nil || len(s.Nodes) != 1 || s.Nodes[0].Name != "client" || s.Nodes[0].Meta["rack"] != "r1" {
		t.Errorf("the clients of west are %+v, %v", s, err)
	}
	if s, err := survey("region-fleet-here", ""); err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Errorf("the clients of east are %+v, %v", s, err)
	}

	victim := west.run("victim", "batch", "sleep", "3600")
	there := evidence.AllocRef{ID: victim, Region: "west"}
	alloc("region-alloc", there, "running run ready")
	// Where its region was not recorded, nobody knows whether it is gone; east, which
	// was asked, never had it.
	alloc("region-alloc-not-told", evidence.AllocRef{ID: victim}, "the holder did not record which")
	alloc("region-alloc-gone", evidence.AllocRef{ID: "00000000-0000-4000-8000-000000000000", Region: "west"}, "gone")
	rec.Drop()
	if err := n.Stop(t.Context(), there); err != nil {
		t.Error(err)
	}
	rec.keep("region-stop")
	alloc("region-alloc-stopped", there, "complete stop ready")

	// The whole way, by programs that are told of east alone.
	held := holdInNomad(t, west, east.addr, lostPolicy)
	west.client.Kill()
	held.isLost(n)
	if b := held.broken(); len(b.Steps) == 0 || b.Steps[0].Step != "nomad_stop" || b.Steps[0].Result != "done" {
		t.Errorf("the steps of the break are %+v", b.Steps)
	}
	alloc("region-alloc-lost", evidence.AllocRef{ID: held.alloc, Region: "west"}, "lost stop down")

	// A region that cannot be reached says nothing: nobody is gone by that.
	westServer.Kill()
	for _, ref := range []evidence.AllocRef{there, {ID: "00000000-0000-4000-8000-000000000000", Region: "west"}} {
		rec.Drop()
		if a, _, err := n.Alloc(t.Context(), ref, evidence.Since{}); err == nil {
			t.Errorf("of a region that is not there: %+v", a)
		} else if t.Logf("of a region that is not there: %v", err); ref == there && strings.Contains(err.Error(), "failed to get conn") {
			rec.keep("region-alloc-cut") // until east has forgotten the servers of west
		}
	}
	alloc("region-alloc-down", there, "No path to region")
	gate("region-deployment-down", "west", orchestrator.Unknown, "No path to region")
	if s, err := survey("region-fleet-down", "west"); err == nil || !strings.Contains(err.Error(), "No path to region") {
		t.Errorf("the clients of a region that is not there: %+v, %v", s, err)
	}
}
