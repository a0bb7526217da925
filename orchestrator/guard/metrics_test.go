package guard

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

func (s *smith) get(path string) (int, string) {
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
	return rec.Code, rec.Body.String()
}

// Every metric has the form that Prometheus asks for, is documented, and says
// what is so.
func TestMetrics(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.start(strings.Replace(always, `"auto"`, `"manual"`, 1))
		s.leads(10 * time.Second)
		c := w.client(asElsewhere)
		for i := range MaxNamedLocks + 5 {
			w.hold(c, fmt.Sprintf("job-%02d", i))
		}
		w.until(time.Minute, "all are HOT", func() bool { return s.board.count(locksmith.Hot) == MaxNamedLocks+5 })
		if _, err := s.client.Approve(t.Context(), "job-03", "go on", time.Hour); err != nil {
			t.Fatal(err)
		}
		w.freed("job-03", time.Minute)
		w.until(time.Minute, "it knows", func() bool { return s.board.count(locksmith.Hot) == MaxNamedLocks+4 })

		code, text := s.get("/metrics")
		if code != http.StatusOK {
			t.Fatalf("status %d: %s", code, text)
		}
		problems, err := promlint.New(strings.NewReader(text)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			if strings.HasPrefix(p.Metric, namespace) {
				t.Errorf("%s: %s", p.Metric, p.Text)
			}
		}
		if n, err := testutil.GatherAndCount(s.metrics.Registry, "aimlock_locksmith_hot_lock"); err != nil || n != MaxNamedLocks {
			t.Errorf("%d HOT locks are named: %v", n, err)
		}
		for _, want := range []string{
			`aimlock_locksmith_hot_locks_unnamed 4`,
			`aimlock_locksmith_locks{state="HOT"} 24`,
			`aimlock_locksmith_locks{state="FREE"} 1`,
			`aimlock_locksmith_leader 1`,
			`aimlock_locksmith_breaks_total{outcome="broken",policy="p"} 1`,
			`aimlock_locksmith_break_duration_seconds_count 1`,
			`aimlock_locksmith_policies_in_force 1`,
			`aimlock_locksmith_suspended 0`,
			`aimlock_locksmith_terms_total 1`,
			`aimlock_locksmith_last_reload_successful 1`,
		} {
			if !strings.Contains(text, "\n"+want+"\n") {
				t.Errorf("no line %s in\n%s", want, text)
			}
		}
		if m := regexp.MustCompile(`(?m)^aimlock_locksmith_refusals_total\{policy="p"\} (\d+)$`).FindStringSubmatch(text); m == nil || m[1] == "0" {
			t.Errorf("refusals are not counted: %v", m)
		}
		documented, err := os.ReadFile("../../docs/locksmith.md")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^# TYPE (aimlock_\S+)`).FindAllStringSubmatch(text, -1) {
			if !strings.Contains(string(documented), "`"+m[1]+"`") {
				t.Errorf("docs/locksmith.md does not have %s", m[1])
			}
		}
	})
}

// Health is JSON with reasons, and its status is what a load balancer reads.
func TestHealth(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.make("")
		code, text := s.get("/health")
		var h Health
		if err := json.Unmarshal([]byte(text), &h); err != nil {
			t.Fatal(err)
		}
		if code != http.StatusServiceUnavailable || h.OK() || len(h.Reasons) < 2 {
			t.Errorf("before it runs: %d %s", code, text)
		}
		s = w.start("")
		s.leads(10 * time.Second)
		code, text = s.get("/health")
		h = Health{}
		if err := json.Unmarshal([]byte(text), &h); err != nil {
			t.Fatal(err)
		}
		if code != http.StatusOK || !h.OK() || len(h.Reasons) != 0 || !strings.Contains(h.Leader, "pid ") || h.States["HOT"] != 0 {
			t.Errorf("%d %s", code, text)
		}
		if code, _ = s.get("/other"); code != http.StatusNotFound {
			t.Errorf("another path is answered by %d", code)
		}
	})
}

// Requests to Consul are counted by how they ended.
func TestCount(t *testing.T) {
	t.Parallel()
	m := NewMetrics()
	status := 200
	var fail error
	rt := m.Count(roundTrip(func(*http.Request) (*http.Response, error) {
		if fail != nil {
			return nil, fail
		}
		return &http.Response{StatusCode: status, Body: http.NoBody}, nil
	}))
	for _, tc := range []struct {
		status int
		err    error
	}{{200, nil}, {404, nil}, {403, nil}, {500, nil}, {0, fmt.Errorf("broke")}, {0, fmt.Errorf("gave up: %w", context.Canceled)}} {
		status, fail = tc.status, tc.err
		resp, err := rt.RoundTrip(httptest.NewRequest(http.MethodGet, "/", nil))
		if err == nil {
			_ = resp.Body.Close()
		}
	}
	for result, want := range map[string]float64{"ok": 2, "refused": 1, "failed": 1, "broken": 1} {
		if got := testutil.ToFloat64(m.requests.WithLabelValues(result)); got != want {
			t.Errorf("%s: %v, want %v", result, got, want)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
