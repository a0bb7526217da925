package orchestrator_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/orchestrator"
)

func targetSpec(target *orchestrator.Target) orchestrator.Spec {
	return orchestrator.Spec{
		Name: "r", Hash: "h", Stages: []orchestrator.Stage{{Name: "all", Percent: 100}},
		Configs: []orchestrator.Config{{Name: "app", SHA256: strings.Repeat("f", 64), Target: target}},
	}
}

// A plan through a target keeps what it was told of the nodes, whole or not at all.
func TestPlanWithTarget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fleet, want := []orchestrator.Node{}, map[string]map[string]string{}
		for i := range rapid.IntRange(1, 60).Draw(t, "nodes") {
			n := orchestrator.Node{Name: fmt.Sprintf("n%03d", i)}
			n.Meta = rapid.MapOfN(rapid.StringMatching(`[a-z]{1,8}`), rapid.StringMatching(`[a-z<"é.0-9]{0,30}`), 0, 3).Draw(t, "meta")
			fleet = append(fleet, n)
			if len(n.Meta) > 0 {
				want[n.Name] = n.Meta
			}
		}
		p, err := orchestrator.NewPlan("id", targetSpec(&orchestrator.Target{Name: "router"}), fleet, time.Unix(1, 0).UTC())
		if err != nil {
			t.Fatal(err)
		}
		chunks, err := p.Encode(rapid.IntRange(100, 5000).Draw(t, "chunk"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(chunks[0], []byte(`"version":3`)) {
			t.Fatalf("an aimlock that knows no targets would take this for a plan without: %s", chunks[0])
		}
		got, err := orchestrator.DecodePlan(chunks)
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("%+v, %v, want %+v", got, err, p)
		}
		for i, n := range got.Nodes {
			if !reflect.DeepEqual(got.Meta(i), want[n]) {
				t.Fatalf("node %s has %v, want %v", n, got.Meta(i), want[n])
			}
		}
		if len(want) == 0 {
			return
		}
		last := slices.Clone(chunks[len(chunks)-1])
		chunks[len(chunks)-1] = bytes.Replace(last, []byte(`":"`), []byte(`":"x`), 1)
		if _, err := orchestrator.DecodePlan(chunks); !bytes.Equal(last, chunks[len(chunks)-1]) && !errors.Is(err, orchestrator.ErrPlanDamaged) {
			t.Fatalf("changed, it is a plan: %v", err)
		}
		if _, err := orchestrator.DecodePlan(chunks[:len(chunks)-1]); err == nil {
			t.Fatal("without its last chunk it is a plan")
		}
	})
}

func TestPlanMetadata(t *testing.T) {
	t.Parallel()
	fleet := []orchestrator.Node{{Name: "n1", Meta: map[string]string{"address": strings.Repeat("1", orchestrator.MaxMeta)}}}
	_, err := orchestrator.NewPlan("id", targetSpec(&orchestrator.Target{Name: "router"}), fleet, time.Unix(1, 0))
	if err == nil || !strings.Contains(err.Error(), "node n1 has 4103 bytes of metadata, and a rollout through a target takes 4096") {
		t.Error(err)
	}
	if p, err := orchestrator.NewPlan("id", targetSpec(nil), fleet, time.Unix(1, 0)); err != nil || p.Metas != nil {
		t.Errorf("without a target: %v, %v", p, err)
	}
	p, err := orchestrator.NewFollowUp("id2", "id", targetSpec(&orchestrator.Target{Name: "router"}), []orchestrator.Node{{Name: "n2", Meta: map[string]string{"address": "a"}}}, time.Unix(1, 0))
	if err != nil || p.Meta(0)["address"] != "a" {
		t.Errorf("a late joiner: %v, %v", p, err)
	}
}
