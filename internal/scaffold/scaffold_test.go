package scaffold

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/hcl/v2/hclwrite"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator/spec"
	"github.com/aim-control/aimlock/policies"
)

func TestZone(t *testing.T) {
	t.Parallel()
	entry := func(node, service map[string]string) *api.ServiceEntry {
		return &api.ServiceEntry{Node: &api.Node{Meta: node}, Service: &api.AgentService{Meta: service}}
	}
	m := func(kv ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			out[kv[i]] = kv[i+1]
		}
		return out
	}
	for _, tc := range []struct {
		name    string
		entries []*api.ServiceEntry
		want    string
	}{
		{"none", nil, ""},
		{"one zone", []*api.ServiceEntry{entry(m("zone", "a"), nil), entry(m("zone", "a"), nil)}, ""},
		{"two zones", []*api.ServiceEntry{entry(m("zone", "a"), nil), entry(m("zone", "b"), nil)}, "zone"},
		{"not all", []*api.ServiceEntry{entry(m("zone", "a"), nil), entry(m("zone", "b"), nil), entry(nil, nil)}, ""},
		{"the service's", []*api.ServiceEntry{entry(nil, m("rack", "1")), entry(m("rack", "2"), nil)}, "rack"},
	} {
		if got := zoneOf(tc.entries); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// Whatever the cluster, the files pass the checks that their user would run, and
// stand as `policy fmt` and HCL's own formatter would write them.
func TestFilesAreValid(t *testing.T) {
	t.Parallel()
	names := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprintf("n%d", i)
		}
		return out
	}
	for name, p := range map[string]Params{
		"nothing known": {},
		"no agents":     {Cluster: &Cluster{Nodes: 3}, Address: "consul:8500", Nomad: true},
		"one":           {Cluster: &Cluster{Agents: names(1), Service: "web"}},
		"few":           {Cluster: &Cluster{Agents: names(3), Service: `we"b${x}`, Zone: "zone"}, Source: "a file.conf"},
		"many":          {Cluster: &Cluster{Agents: names(1000), Service: "web", Zone: "rack"}, Address: "http://[::1]:8500", Nomad: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p.Prefix, p.Config, p.Destination = keys.DefaultPrefix, "app.conf", "/etc/app/app.conf"
			dir := t.TempDir()
			files, err := Files(p)
			if err != nil {
				t.Fatal(err)
			}
			if p.Source != "" {
				if err := os.WriteFile(filepath.Join(dir, p.Source), []byte("x\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := Write(dir, files); err != nil {
				t.Fatal(err)
			}
			loaded, diags := spec.Load(filepath.Join(dir, "rollout.hcl"))
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			last := loaded.Spec.Stages[len(loaded.Spec.Stages)-1]
			if last.Percent != 100 {
				t.Errorf("the last stage is not the whole fleet: %+v", last)
			}
			var bakes time.Duration
			for _, st := range loaded.Spec.Stages {
				bakes += st.Bake
			}
			if p.Bakes() != bakes {
				t.Errorf("the stages are said to bake %s, and do so for %s", p.Bakes(), bakes)
			}
			if _, diags := policies.Load([]string{filepath.Join(dir, "policy.hcl")}); len(diags) > 0 {
				t.Error(diags)
			}
			for _, f := range files {
				if strings.HasSuffix(f.Name, ".hcl") && string(hclwrite.Format(f.data)) != string(f.data) {
					t.Errorf("%s is not formatted:\n%s", f.Name, f.data)
				}
			}
			if err := Write(dir, files); err == nil || !strings.Contains(err.Error(), "exists already") {
				t.Errorf("written over: %v", err)
			}
		})
	}
}

// Each config has a job of its own, under a name that Nomad takes for an ACL policy as
// well.
func TestJobNames(t *testing.T) {
	t.Parallel()
	of := map[string]string{}
	long := strings.Repeat("x", 199)
	for _, name := range []string{"app.conf", "other.conf", "a b", "a/b", "конфиг", "конвой", `"${x}"`, long + "1", long + "2"} {
		p := Params{Prefix: keys.DefaultPrefix, Config: name}
		job := p.jobName()
		if !regexp.MustCompile(`^aimlock-[A-Za-z0-9-]+-tick$`).MatchString(job) || len(job) > 128 {
			t.Errorf("the job of %q is called %q", name, job)
		}
		if of[job] != "" {
			t.Errorf("the jobs of %q and %q are both called %q", of[job], name, job)
		}
		of[job] = name
		if p.Source = name; name == "app.conf" {
			text, err := p.job()
			if err != nil || job != "aimlock-app-conf-tick" || strings.Count(string(text), `job "aimlock-app-conf-tick" {`) != 1 {
				t.Errorf("%q, %v, in %s", job, err, text)
			}
		}
	}
}
