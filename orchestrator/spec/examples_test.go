package spec

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// TestExamples reads and plans every rollout in examples.
func TestExamples(t *testing.T) {
	paths, err := filepath.Glob("../../examples/[rd]*/*.hcl")
	if err != nil {
		t.Fatal(err)
	}
	planned := 0
	for _, path := range paths {
		if filepath.Base(path) == "fleet.hcl" {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, diags := Load(path)
			if len(diags) > 0 {
				t.Fatal(diags)
			}
			nodes := f.Fleet.Nodes
			if len(nodes) == 0 {
				for i := range 100 {
					nodes = append(nodes, orchestrator.Node{Name: fmt.Sprintf("n%d", i), Meta: map[string]string{"zone": fmt.Sprint(i % 3)}})
				}
			}
			p, err := orchestrator.NewPlan("id", f.Spec, nodes, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			if p.Ends[len(p.Ends)-1] != len(nodes) {
				t.Errorf("its stages end after %d of %d nodes", p.Ends[len(p.Ends)-1], len(nodes))
			}
		})
		planned++
	}
	if planned < 4 {
		t.Errorf("only %d examples", planned)
	}
}
