package orchestrator

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/golden"
)

// Headers and plans that stand in somebody's Consul are read by every later version.
func TestGolden(t *testing.T) {
	t.Parallel()
	golden.Check(t, golden.Record{
		Name: "header", Version: HeaderVersion, Type: Header{},
		Decode: func(b []byte) (any, error) {
			var h Header
			if err := json.Unmarshal(b, &h); err != nil {
				return nil, err
			}
			if h.Version > HeaderVersion { // as whoever resumes a rollout finds out
				return nil, h.fits(&Plan{})
			}
			return &h, nil
		},
		Encode: json.Marshal,
	})
	head, ok := golden.Full(planHead{}).(*planHead)
	if !ok {
		t.Fatal("no head")
	}
	head.Version = PlanVersion
	golden.Check(t, golden.Record{
		Name: "plan_head", Version: PlanVersion, Type: planHead{}, Sample: head,
		Decode: func(b []byte) (any, error) {
			var h planHead
			if err := json.Unmarshal(b, &h); err != nil {
				return nil, err
			}
			if h.Version > PlanVersion {
				_, err := DecodePlan([][]byte{b})
				return nil, err
			}
			return &h, nil
		},
		Encode: json.Marshal,
	})
}

// TestGoldenPlan: whole plans, in chunks.
func TestGoldenPlan(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("testdata", "golden", "v1", "plan.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	chunks := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	p, err := DecodePlan(chunks)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Nodes, []string{"n1", "n2", "n3", "n4"}) || !slices.Equal(p.Ends, []int{1, 4}) || p.Follows != "app-20250101-000000-aaaa" || p.Root != "app-20240101-000000-aaaa" ||
		p.Spec.Hash != "hash" || p.Spec.Gates[0].Prometheus.Query != "query" || !p.CreatedAt.Equal(time.Unix(1_700_000_000, 0)) {
		t.Errorf("%+v", p)
	}
	again, err := p.Encode(10)
	if err != nil {
		t.Fatal(err)
	}
	q, err := DecodePlan(again)
	if err != nil || !reflect.DeepEqual(p, q) {
		t.Errorf("%v: it is read as\n%+v\nand then as\n%+v", err, p, q)
	}
}
