package runner_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// A machine that is set up anew under the same name has lost its files, though
// the report in Consul is still that of the former one. It gets the revision:
// by itself while its order stands, and as a late joiner where that is gone.
func TestMachineSetUpAnew(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	in := f.input("one", orchestrator.Stage{Name: "all", Percent: 100})
	if out, err := f.runner().Start(t.Context(), in); err != nil || !out.Converged {
		t.Fatalf("%+v, %v", out, err)
	}
	anew := func(node string) {
		f.stop[node]()
		<-f.done[node]
		if err := os.RemoveAll(filepath.Join(f.dir, node)); err != nil {
			t.Fatal(err)
		}
		f.startAgent(node)
	}
	before := f.instance("n01")
	anew("n01")
	f.until("the order that stands to be carried out again", func() bool { return f.file("n01") == "one" && f.instance("n01") != before })

	// The order is gone: nobody but the orchestrator can know.
	if _, err := f.kv.API().KV().Delete(keys.Prefix(keys.DefaultPrefix).Desired(config, "n02"), nil); err != nil {
		t.Fatal(err)
	}
	before = f.instance("n02")
	anew("n02")
	f.until("the new agent to be registered", func() bool {
		l, _, err := f.kv.API().Catalog().Service("aimlock-agent", "", nil)
		if err != nil {
			return false
		}
		for _, s := range l {
			if s.ServiceMeta["node"] == "n02" {
				return s.ServiceMeta["instance"] != before
			}
		}
		return false
	})
	out, err := f.runner().Tick(t.Context(), in)
	if err != nil || out.Header.Follows == "" || out.Header.Total != 1 {
		t.Fatalf("the tick did %+v, %v", out, err)
	}
	f.until("the late joiner to be served", func() bool {
		if _, err := f.runner().Tick(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		return f.file("n02") == "one" && f.instance("n02") != before
	})
	out, err = f.runner().Tick(t.Context(), in)
	if err != nil || !out.Converged {
		t.Fatalf("the last tick did %+v, %v", out, err)
	}
}

// instance is the state folder that a node's report comes from.
func (f *fleet) instance(node string) string {
	f.t.Helper()
	key := keys.Prefix(keys.DefaultPrefix).Actual(config, node)
	p, err := f.kv.Get(f.t.Context(), key)
	if err != nil || p == nil {
		f.t.Fatalf("no report of %s: %v", node, err)
	}
	var a records.Actual
	if err := records.Decode(key, p.Value, &a); err != nil || a.Instance == "" {
		f.t.Fatalf("the report of %s has no instance: %+v, %v", node, a, err)
	}
	return a.Instance
}
