package orchestrator_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/orchestrator"
)

func renderedPlan(t interface{ Fatal(...any) }, n, distinct int) (*orchestrator.Plan, []orchestrator.Rendering) {
	spec := orchestrator.Spec{
		Name: "r", Hash: "h", Stages: []orchestrator.Stage{{Name: "all", Percent: 100}},
		Configs: []orchestrator.Config{{Name: "plain", SHA256: strings.Repeat("f", 64)}, {Name: "tpl", Template: true}},
	}
	var fleet []orchestrator.Node
	for i := range n {
		fleet = append(fleet, orchestrator.Node{Name: fmt.Sprintf("n%06d", i)})
	}
	p, err := orchestrator.NewPlan("id", spec, fleet, time.Unix(1, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	list := make([]orchestrator.Rendering, n)
	for i := range list {
		list[i] = orchestrator.Rendering{SHA256: fmt.Sprintf("%064x", i%distinct), Size: int64(i % distinct)}
	}
	if err := p.SetRendered(1, list); err != nil {
		t.Fatal(err)
	}
	return p, list
}

func TestRenderedPlan(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 120).Draw(t, "nodes")
		p, list := renderedPlan(t, n, rapid.IntRange(1, n).Draw(t, "distinct"))
		chunks, err := p.Encode(rapid.IntRange(200, 5000).Draw(t, "chunk"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := orchestrator.DecodePlan(chunks)
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("%+v, %v, want %+v", got, err, p)
		}
		for i := range list {
			if got.Content(i, 1) != list[i] || got.Content(i, 0).SHA256 != strings.Repeat("f", 64) {
				t.Fatalf("node %d gets %v, want %v", i, got.Content(i, 1), list[i])
			}
		}
		// Without any of its chunks, or with one changed, it is no plan.
		lost := rapid.IntRange(0, len(chunks)-1).Draw(t, "lost")
		if _, err := orchestrator.DecodePlan(append(chunks[:lost:lost], chunks[lost+1:]...)); err == nil {
			t.Fatalf("without chunk %d of %d it is a plan", lost, len(chunks))
		}
		last := chunks[len(chunks)-1]
		chunks[len(chunks)-1] = []byte(strings.Replace(string(last), "0", "1", 1))
		if string(chunks[len(chunks)-1]) != string(last) {
			if _, err := orchestrator.DecodePlan(chunks); !errors.Is(err, orchestrator.ErrPlanDamaged) {
				t.Fatalf("changed, it is a plan: %v", err)
			}
		}
	})
}

// An aimlock that knows no renderings must not take this plan for one without;
// a plan without is what it always was.
func TestRenderedPlanVersion(t *testing.T) {
	version := func(p *orchestrator.Plan) int {
		chunks, err := p.Encode(1 << 10)
		if err != nil {
			t.Fatal(err)
		}
		var head struct {
			Version int `json:"version"`
		}
		if err := json.Unmarshal(chunks[0], &head); err != nil {
			t.Fatal(err)
		}
		return head.Version
	}
	p, _ := renderedPlan(t, 3, 2)
	if got := version(p); got != 2 {
		t.Errorf("with renderings: version %d", got)
	}
	p.Rendered = nil
	if got := version(p); got != 1 {
		t.Errorf("without: version %d", got)
	}
}

// One revision for each node: every chunk fits into a value of Consul.
func TestRenderedPlanOfManyNodes(t *testing.T) {
	t.Parallel()
	p, _ := renderedPlan(t, 10_000, 10_000)
	chunks, err := p.Encode(128 << 10)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for i, c := range chunks {
		if len(c) > 256<<10 {
			t.Errorf("chunk %d has %d bytes", i, len(c))
		}
		total += len(c)
	}
	if total > 2<<20 {
		t.Errorf("the plan has %d bytes", total)
	}
}
