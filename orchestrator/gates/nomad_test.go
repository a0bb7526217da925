package gates_test

import (
	"testing"

	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/nomadapi/nomadtest"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// What a real Nomad answered of jobs in every state.
func TestRecordedDeployments(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		recording, answer, why string
		gate                   orchestrator.GateNomadDeployment
	}{
		{"deployment-successful", "pass", `of job "web", version 0, is successful: Deployment completed successfully`, orchestrator.GateNomadDeployment{Job: "web"}},
		{"deployment-failed", "fail", `of job "bad", version 0, is failed: Failed due to unhealthy allocations`, orchestrator.GateNomadDeployment{Job: "bad"}},
		{"deployment-running", "pending", `of job "slow", version 0, is running`, orchestrator.GateNomadDeployment{Job: "slow"}},
		{"deployment-promotion", "pending", "version 1, is running: Deployment is running but requires manual promotion", orchestrator.GateNomadDeployment{Job: "canary"}},
		{"deployment-of-before", "pending", `job "web" has version 1, and its last deployment is of version 0`, orchestrator.GateNomadDeployment{Job: "web"}},
		{"deployment-next", "pass", `of job "web", version 1, is successful`, orchestrator.GateNomadDeployment{Job: "web"}},
		{"deployment-stopped", "unknown", `job "slow" is stopped`, orchestrator.GateNomadDeployment{Job: "slow"}},
		{"deployment-none", "unknown", `job "ends" has no deployment: has it an update block`, orchestrator.GateNomadDeployment{Job: "ends"}},
		{"deployment-namespace", "pass", `of job "api" of namespace "prod", version 0, is successful`, orchestrator.GateNomadDeployment{Job: "api", Namespace: "prod"}},
		{"deployment-other-namespace", "error", `read job "api"`, orchestrator.GateNomadDeployment{Job: "api"}},
		{"deployment-no-job", "error", "HTTP 404: job not found; check its name, NOMAD_NAMESPACE", orchestrator.GateNomadDeployment{Job: "nope"}},
		{"deployment-region", "error", `in region "mars": Nomad at`, orchestrator.GateNomadDeployment{Job: "web", Region: "mars"}},
		{"region-deployment", "pass", `of job "web" in region "west", version 0, is successful`, orchestrator.GateNomadDeployment{Job: "web", Region: "west"}},
		{"region-deployment-here", "error", "HTTP 404: job not found; check its name, NOMAD_NAMESPACE and NOMAD_REGION", orchestrator.GateNomadDeployment{Job: "web"}},
		{"region-deployment-down", "error", "No path to region", orchestrator.GateNomadDeployment{Job: "web", Region: "west"}},
	} {
		t.Run(tc.recording, func(t *testing.T) {
			t.Parallel()
			c := nomadtest.Replay(t, tc.recording)
			a := askContext(t, t.Context(), gates.Config{Nomad: func() (*nomadapi.Client, error) { return c, nil }}, gates.Question{
				Gate: orchestrator.Gate{Kind: orchestrator.GateKindNomadDeploy, NomadDeployment: &tc.gate},
			})
			want(t, a, tc.answer, tc.why)
		})
	}
}
