package orchestrator

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"
)

// smallPlan is a plan of a few nodes, for what is read beside a plan.
func smallPlan(tb testing.TB) *Plan {
	tb.Helper()
	var fleet []Node
	for _, n := range []string{"n1", "n2", "n3", "n4", "n5", "n6"} {
		fleet = append(fleet, Node{Name: n})
	}
	p, err := NewPlan("r1", Spec{
		Name: "r", Hash: "h", Configs: []Config{{Name: "a.conf", Revision: "0123456789ab"}, {Name: "b.conf", Revision: "ba9876543210"}},
		Stages: []Stage{{Name: "one", Nodes: 1}, {Name: "all", Percent: 100}}, NodeDeadline: time.Minute,
	}, fleet, time.Unix(1e9, 0).UTC())
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// FuzzHeader: whatever stands at rollouts/<id>, and whatever orders and answers
// stand beside it, a state is made of them or an error: it never panics, counts
// every node once, and goes on from there.
func FuzzHeader(f *testing.F) {
	plan := smallPlan(f)
	h := NewHeader(plan.ID, plan.Spec, plan.CreatedAt)
	for i := range h.Stages {
		h.Stages[i].From, h.Stages[i].End = plan.Stage(i)
	}
	h.Total, h.PlanChunks = len(plan.Nodes), 1
	for _, st := range []Status{Waiting, Running, Baking, Paused, RollingBack, Succeeded, Failed} {
		h.State, h.Failed, h.Unreachable, h.Epoch, h.Token = st, IndexSet{1}, IndexSet{4}, 1, 7
		if st == Paused {
			h.Paused = &PauseInfo{}
		}
		b, err := json.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte{0, 0, 7, 0, 1, 7, 1, 0, 8}, byte(1))
	}
	f.Add([]byte(`{"version":2,"id":"r1","hash":"h"}`), []byte(nil), byte(0))
	f.Add([]byte(`{"version":1,"id":"r1","hash":"h","state":"baking","stage_index":1,"baked":-5,"failed":"bitmap:/w==","bake_marks":{"x":1e308}}`), []byte{1, 1, 1}, byte(3))
	f.Fuzz(func(t *testing.T, b, orders []byte, kind byte) {
		if len(b) > 1<<16 {
			return
		}
		var h Header
		if json.Unmarshal(b, &h) != nil {
			return
		}
		var given []Given
		var reports []Report
		for o := range slices.Chunk(orders, 3) {
			if len(o) < 3 || len(given) == 2*len(plan.Nodes) {
				break
			}
			order := Order{Epoch: h.Epoch, Token: uint64(o[2] & 7), Seq: uint64(o[2] >> 3)}
			given = append(given, Given{Node: int(int8(o[0])), Config: int(o[1] & 3), Order: order, Restore: kind&1 != 0, Attempt: int(int8(o[1]))})
			reports = append(reports, Report{Node: int(o[0]) % len(plan.Nodes), Config: int(o[1] & 1), Order: order})
		}
		s, err := Recover(plan, h, given, reports)
		if err != nil {
			return
		}
		for _, ev := range []Event{Acquired{Order: Order{Epoch: h.Epoch, Token: h.Token + 1}}, Tick{}} {
			s, _ = Step(s, ev, time.Unix(2e9, 0))
		}
		again := s.Header()
		if n := again.Counts.Total(); n != len(plan.Nodes) {
			t.Fatalf("%d nodes of %d are counted: %+v", n, len(plan.Nodes), again.Counts)
		}
		raw, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) > len(b)+1<<14 {
			t.Fatalf("a header of %d bytes became one of %d", len(b), len(raw))
		}
	})
}

// FuzzPlan: chunks are one whole plan, or none; and what is read is written again.
func FuzzPlan(f *testing.F) {
	chunks, err := smallPlan(f).Encode(10)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Join(chunks, []byte("\n")))
	f.Add(bytes.Join(chunks[:2], []byte("\n")))
	f.Add([]byte(`{"version":1,"chunks":1,"total":0,"ends":[0],"spec":{"Stages":[{}],"Configs":[{}]},"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`))
	f.Add([]byte(`{"version":2,"chunks":2,"unchanged":"0-99","before":1}` + "\n" + `{"rendered":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePlan(bytes.Split(b, []byte("\n")))
		if err != nil {
			return
		}
		for i := range p.Ends {
			if from, to := p.Stage(i); from > to || to > len(p.Nodes) {
				t.Fatalf("stage %d is %d to %d of %d", i, from, to, len(p.Nodes))
			}
		}
		again, err := p.Encode(1 << 10)
		if err != nil {
			t.Fatal(err)
		}
		q, err := DecodePlan(again)
		if err != nil {
			t.Fatalf("its own encoding: %v", err)
		}
		if !slices.Equal(p.Nodes, q.Nodes) || !slices.Equal(p.Ends, q.Ends) || !slices.Equal(p.Unchanged, q.Unchanged) {
			t.Fatalf("%+v became %+v", p, q)
		}
		NewState(p)
	})
}

// FuzzIndexSet: it is sorted and bounded, and written as it was read.
func FuzzIndexSet(f *testing.F) {
	for _, s := range []string{`"0-4,17"`, `"bitmap:/w=="`, `""`, `"0-99999999"`, `"5,4"`, `"-1"`, `"1--2"`, `"bitmap:"`, `7`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s IndexSet
		if json.Unmarshal(b, &s) != nil {
			return
		}
		if !slices.IsSorted(s) || len(s) > maxIndex || len(s) > 0 && (s[0] < 0 || s[len(s)-1] >= maxIndex) {
			t.Fatalf("%d indexes", len(s))
		}
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var again IndexSet
		if err := json.Unmarshal(raw, &again); err != nil || !slices.Equal(s, again) {
			t.Fatalf("%q became %q: %v", b, raw, err)
		}
	})
}
