package e2e

import (
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// gatesOfNomad asks nomad_deployment of jobs whose deployments succeed, fail,
// run, wait for a person, are cancelled, were never made, and are of a version of
// before.
func gatesOfNomad(t *testing.T, c *nomadCluster, rec *recordings) {
	t.Helper()
	set := gates.New(gates.Config{Nomad: func() (*nomadapi.Client, error) { return rec.client, nil }})
	ask := func(q orchestrator.GateNomadDeployment) gates.Answer {
		return set.Ask(t.Context(), gates.Question{Gate: orchestrator.Gate{Name: "g", Kind: orchestrator.GateKindNomadDeploy, NomadDeployment: &q}})
	}
	job := func(name string) orchestrator.GateNomadDeployment { return orchestrator.GateNomadDeployment{Job: name} }
	// answers waits for an answer and keeps it.
	answers := func(name string, q orchestrator.GateNomadDeployment, want orchestrator.Answer, why string) {
		t.Helper()
		var a gates.Answer
		harness.Eventually(t, nomadLimit, name+" answers "+string(want)+": "+why, func() bool {
			rec.Drop()
			before := a
			if a = ask(q); a != before {
				t.Logf("%s: %s, %s: %s", name, a.Answer, a.Value, a.Why)
			}
			return a.Answer == want && strings.Contains(a.Why, why)
		})
		rec.keep(name)
	}
	// A deployment that has failed stays so: no deadline of it is one that a busy
	// machine can miss.
	quick := map[string]any{
		"MaxParallel": 1, "HealthCheck": "task_states", "MinHealthyTime": int64(100 * time.Millisecond),
		"HealthyDeadline": int64(20 * time.Minute), "ProgressDeadline": int64(30 * time.Minute),
	}
	with := func(key string, v any) map[string]any {
		m := maps.Clone(quick)
		m[key] = v
		return m
	}
	if err := c.call(http.MethodPut, "/v1/namespace/prod", map[string]any{"Name": "prod"}, nil); err != nil {
		t.Fatal(err)
	}
	prod := nomadJob("api", "service", quick, "sleep", "600")
	prod["Namespace"] = "prod"
	c.register(prod)
	c.register(nomadJob("web", "service", quick, "sleep", "600"))
	// A busy client tells of the end of a task long after it has told that it runs: to be
	// healthy takes more than that.
	c.register(nomadJob("bad", "service", with("MinHealthyTime", int64(10*time.Minute)), "false"))
	c.register(nomadJob("slow", "service", with("MinHealthyTime", int64(10*time.Minute)), "sleep", "600"))
	c.register(nomadJob("canary", "service", with("Canary", 1), "sleep", "600"))

	answers("deployment-none", job("ends"), orchestrator.Unknown, "has no deployment")
	answers("deployment-no-job", job("nope"), orchestrator.Unknown, "job not found")
	answers("deployment-region", orchestrator.GateNomadDeployment{Job: "web", Region: "mars"}, orchestrator.Unknown, "No path to region")
	answers("deployment-running", job("slow"), orchestrator.Pending, "is running")
	answers("deployment-failed", job("bad"), orchestrator.Fail, "is failed")
	answers("deployment-successful", job("web"), orchestrator.Pass, "is successful")
	answers("deployment-namespace", orchestrator.GateNomadDeployment{Job: "api", Namespace: "prod"}, orchestrator.Pass, `of namespace "prod"`)
	answers("deployment-other-namespace", job("api"), orchestrator.Unknown, "job not found")

	// A second version with a canary waits for somebody to promote it.
	answers("deployment-canary-before", job("canary"), orchestrator.Pass, "version 0, is successful")
	c.register(nomadJob("canary", "service", with("Canary", 1), "sleep", "601"))
	answers("deployment-promotion", job("canary"), orchestrator.Pending, "manual promotion")

	// A version of which nothing is deployed yet: the last deployment says nothing of
	// it. That does not last, so that it may be missed.
	next := nomadJob("web", "service", quick, "sleep", "600")
	next["Priority"] = 60
	c.register(next)
	rec.Drop()
	switch a := ask(job("web")); {
	case a.Answer == orchestrator.Pass && strings.Contains(a.Why, "version 0"):
		t.Errorf("of a version of before: %+v", a)
	case a.Answer == orchestrator.Pending && strings.Contains(a.Why, "version 0"):
		rec.keep("deployment-of-before")
	}
	answers("deployment-next", job("web"), orchestrator.Pass, "version 1, is successful")

	if err := c.call(http.MethodDelete, "/v1/job/slow", nil, nil); err != nil {
		t.Fatal(err)
	}
	answers("deployment-stopped", job("slow"), orchestrator.Unknown, "is stopped")
}
