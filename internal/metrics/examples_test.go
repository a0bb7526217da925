package metrics

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"github.com/aim-control/aimlock/orchestrator/guard"
)

const monitoring = "../../examples/monitoring/"

// known are the names of all metrics, as they are documented: a test of each
// registry holds those pages to the code.
func known(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, page := range []string{"../../docs/metrics.md", "../../docs/locksmith.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`(aimlock_[a-z_]+)").FindAllStringSubmatch(string(text), -1) {
			names[m[1]] = true
			names[m[1]+"_bucket"] = true
		}
	}
	return names
}

// asks checks that an expression asks for what there is.
func asks(t *testing.T, names map[string]bool, where, expr string) {
	t.Helper()
	found := regexp.MustCompile(`aimlock_[a-z_]+`).FindAllString(expr, -1)
	if len(found) == 0 {
		t.Errorf("%s asks for nothing of ours: %q", where, expr)
	}
	for _, name := range found {
		if !names[name] {
			t.Errorf("%s: there is no metric %s", where, name)
		}
	}
	if strings.Count(expr, "(") != strings.Count(expr, ")") || strings.Count(expr, "{") != strings.Count(expr, "}") {
		t.Errorf("%s: brackets do not match: %s", where, expr)
	}
	for _, m := range regexp.MustCompile(`aimlock_locksmith_locks\{state="([^"]*)"\}`).FindAllStringSubmatch(expr, -1) {
		if !guard.KnownState(m[1]) {
			t.Errorf("%s: a lock has no state %q", where, m[1])
		}
	}
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(monitoring + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		t.Fatal(err)
	}
	names, seen := known(t), map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			asks(t, names, r.Alert, r.Expr)
			if seen[r.Alert] || r.Alert == "" {
				t.Errorf("alert %q is there twice, or has no name", r.Alert)
			}
			seen[r.Alert] = true
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s says too little", r.Alert)
			}
		}
	}
	if len(seen) < 10 {
		t.Errorf("%d alerts", len(seen))
	}
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("NOT RUN: promtool check rules: there is no promtool on PATH; the rules were parsed")
		return
	}
	if out, err := exec.Command(tool, "check", "rules", monitoring+"alerts.yml").CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(monitoring + "dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title  string `json:"title"`
		Panels []struct {
			ID      int    `json:"id"`
			Title   string `json:"title"`
			GridPos struct{ X, Y, W, H int }
			Targets []struct {
				Expr string `json:"expr"`
			}
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	names := known(t)
	for i, p := range d.Panels {
		if len(p.Targets) == 0 || p.Title == "" || p.ID != i+1 {
			t.Errorf("panel %d %q is not whole", p.ID, p.Title)
		}
		for _, target := range p.Targets {
			asks(t, names, p.Title, target.Expr)
		}
		for _, q := range d.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%q stands on %q", p.Title, q.Title)
			}
		}
	}
	if len(d.Panels) < 10 {
		t.Errorf("%d panels", len(d.Panels))
	}
}
