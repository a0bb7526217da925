package metrics

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

func get(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	rec := httptest.NewRecorder()
	Handler(r).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

// check has promlint look at our metrics, and the documentation name each of them.
func check(t *testing.T, text string, want ...string) {
	t.Helper()
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, namespace) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^# HELP (aimlock_\S+)`).FindAllStringSubmatch(text, -1)
	if len(names) == 0 {
		t.Error("no metrics")
	}
	for _, n := range names {
		if !strings.Contains(string(doc), "`"+n[1]+"`") {
			t.Errorf("docs/metrics.md does not have %s", n[1])
		}
	}
	for _, w := range want {
		if !strings.Contains(text, "\n"+w+"\n") {
			t.Errorf("missing: %s\n%s", w, text)
		}
	}
}

func TestRollout(t *testing.T) {
	t.Parallel()
	r := NewRollout()
	if text := get(t, r.Registry); strings.Contains(text, "\naimlock_rollout_") {
		t.Error("a rollout is told of before there is one")
	}
	at := time.UnixMilli(1_700_000_000_500)
	h := &orchestrator.Header{Name: "aim\x1b", State: orchestrator.Paused, StageIndex: 1, Stages: make([]orchestrator.HeaderStage, 3), InFlight: 2, Token: 77, StartedAt: &at, UpdatedAt: at}
	h.Counts[orchestrator.ClassApplied], h.Counts[orchestrator.ClassFailed] = 5, 1
	r.Tell(h)
	check(t, get(t, r.Registry),
		`aimlock_rollout_state{name="aim?",state="paused"} 1`, `aimlock_rollout_state{name="aim?",state="running"} 0`,
		`aimlock_rollout_nodes{class="applied",name="aim?"} 5`, `aimlock_rollout_nodes{class="failed",name="aim?"} 1`, `aimlock_rollout_nodes{class="pending",name="aim?"} 0`,
		`aimlock_rollout_in_flight_nodes{name="aim?"} 2`, `aimlock_rollout_stage_index{name="aim?"} 1`, `aimlock_rollout_fencing_token{name="aim?"} 77`,
		`aimlock_rollout_start_timestamp_seconds{name="aim?"} 1.7000000005e+09`, `aimlock_rollout_end_timestamp_seconds{name="aim?"} 0`)
}

func TestAgent(t *testing.T) {
	t.Parallel()
	st := agent.Standing{
		Reports: map[string]*records.Actual{
			"a.conf": {Result: records.ResultApplied, Order: orchestrator.Order{Token: 5}},
			"b.conf": {Result: records.ResultFailed, Drift: &records.Drift{}, Waiting: "for a.conf"},
		},
		Answers: map[string]uint64{records.ResultApplied: 3}, Unsent: 1,
	}
	a := NewAgent(func() agent.Standing { return st })
	check(t, get(t, a.Registry),
		`aimlock_agent_answers_total{result="applied"} 3`, `aimlock_agent_answers_total{result="failed"} 0`,
		`aimlock_agent_config_applied{config="a.conf"} 1`, `aimlock_agent_config_applied{config="b.conf"} 0`,
		`aimlock_agent_config_drifted{config="b.conf"} 1`, `aimlock_agent_config_waiting{config="b.conf"} 1`,
		`aimlock_agent_config_fencing_token{config="a.conf"} 5`, `aimlock_agent_unsent_answers 1`, `aimlock_agent_consul_reachable 0`)
}
