package orchestrator

import (
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestPlanChoice: the choice of nodes is a function of the set of nodes, each
// stage holds what its percent says to the node, and zones take turns.
func TestPlanChoice(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		spec := drawSpec(rt)
		spec.Spread = rapid.SampledFrom([]string{"", "zone"}).Draw(rt, "spread")
		nodes := fleet(rapid.IntRange(1, 200).Draw(rt, "fleet"), "a", "b", "c")
		for i := range nodes { // zones of unequal size, some without a zone
			if rapid.IntRange(0, 3).Draw(rt, "zone") == 0 {
				nodes[i].Meta = nil
			}
		}
		p, err := NewPlan("r", spec, nodes, t0, Selecting(inZone(&spec)))
		if err != nil {
			rt.Fatal(err)
		}
		shuffled := slices.Clone(nodes)
		rand.New(rand.NewSource(int64(len(nodes)))).Shuffle(len(nodes), func(i, j int) {
			shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
		})
		q, err := NewPlan("r", spec, shuffled, t0, Selecting(inZone(&spec)))
		if err != nil {
			rt.Fatal(err)
		}
		if !slices.Equal(p.Nodes, q.Nodes) || !slices.Equal(p.Ends, q.Ends) {
			rt.Fatal("the order in which the fleet is listed changes the plan")
		}
		for i, st := range spec.Stages {
			from, end := p.Stage(i)
			switch {
			case st.Percent > 0 && end*100 < st.Percent*len(nodes):
				rt.Fatalf("stage %d ends at %d of %d, which is less than %d percent", i, end, len(nodes), st.Percent)
			case st.Percent > 0 && end > from && (end-1)*100 >= st.Percent*len(nodes):
				rt.Fatalf("stage %d ends at %d of %d, which is more than %d percent asks for", i, end, len(nodes), st.Percent)
			case st.Nodes > 0 && end != min(from+st.Nodes, len(nodes)):
				rt.Fatalf("stage %d is %d to %d and should add %d", i, from, end, st.Nodes)
			}
			for n := from; n < end; n++ {
				if p.StageOf(n) != i {
					rt.Fatalf("node %d is in stage %d, not %d", n, i, p.StageOf(n))
				}
			}
		}
		if spec.Spread != "" && !slices.ContainsFunc(spec.Stages, func(st Stage) bool { return st.Select != "" }) {
			verifySpread(rt, p, nodes)
		}
	})
}

func verifySpread(t *rapid.T, p *Plan, nodes []Node) {
	zone, left := map[string]string{}, map[string]int{}
	for _, n := range nodes {
		zone[n.Name] = n.Meta["zone"]
		left[n.Meta["zone"]]++
	}
	seen := map[string]int{}
	for at, n := range p.Nodes {
		seen[zone[n]]++
		left[zone[n]]--
		for z, k := range left {
			if k > 0 && seen[z] < seen[zone[n]]-1 {
				t.Fatalf("after %d nodes zone %q has %d and zone %q has %d", at+1, zone[n], seen[zone[n]], z, seen[z])
			}
		}
	}
}

func TestPlanEncoding(t *testing.T) {
	spec := testSpec(Stage{Name: "one", Nodes: 1}, Stage{Name: "rest", Percent: 100})
	p, err := NewPlan("r-1", spec, fleet(1000), t0)
	if err != nil {
		t.Fatal(err)
	}
	p.Follows = "r-0"
	chunks, err := p.Encode(1000)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range chunks[1:] {
		if len(c) > 1100 {
			t.Errorf("chunk %d has %d bytes", i+1, len(c))
		}
	}
	got, err := DecodePlan(chunks)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Nodes, p.Nodes) || !slices.Equal(got.Ends, p.Ends) || got.ID != p.ID || got.Follows != "r-0" || !got.CreatedAt.Equal(t0) {
		t.Error("the plan changed on its way")
	}
	swapped := slices.Clone(chunks)
	swapped[1], swapped[2] = swapped[2], swapped[1]
	for name, bad := range map[string][][]byte{
		"none": nil, "short": chunks[:3], "swapped": swapped, "no JSON": {[]byte("x")},
	} {
		if _, err := DecodePlan(bad); !errors.Is(err, ErrPlanDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A typo in spread would do nothing and say nothing.
func TestSpreadOverMetadataThatNobodyHas(t *testing.T) {
	spec := testSpec(Stage{Name: "all", Percent: 100})
	for spread, warned := range map[string]bool{"": false, "zone": false, "zoen": true} {
		spec.Spread = spread
		nodes := []Node{{Name: "n1", Meta: map[string]string{"zone": "a"}}, {Name: "n2"}}
		p, err := NewPlan("r", spec, nodes, t0)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(strings.Join(p.Warnings, "\n"), `the metadata "zoen"`); got != warned {
			t.Errorf("spread %q: warnings %q", spread, p.Warnings)
		}
	}
}

func TestFollowUp(t *testing.T) {
	spec := testSpec(Stage{Name: "one", Nodes: 1, Bake: 1}, Stage{Name: "rest", Percent: 50}, Stage{Name: "all", Percent: 100})
	p, err := NewFollowUp("r-2", "r-1", spec, fleet(3), t0)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(p.Ends) != "[0 0 3]" {
		t.Errorf("stages end at %v: late joiners belong to the last stage", p.Ends)
	}
}

func TestTwins(t *testing.T) {
	spec := testSpec(Stage{Name: "all", Percent: 100})
	for _, spread := range []string{"", "zone"} {
		spec.Spread = spread
		if _, err := NewPlan("r", spec, append(fleet(3), Node{Name: "n2", Meta: map[string]string{"zone": "x"}}), t0); err == nil {
			t.Errorf("spread %q: a node that is in the fleet twice was planned", spread)
		}
	}
}

// TestRecoverRefuses: never from a gap.
func TestRecoverRefuses(t *testing.T) {
	spec := testSpec(Stage{Name: "all", Percent: 100})
	spec.Configs = append(spec.Configs, Config{Name: "b.conf"})
	p, err := NewPlan("r-1", spec, fleet(3), t0)
	if err != nil {
		t.Fatal(err)
	}
	h := NewHeader(p.ID, spec, t0)
	h.State = Running
	o := Order{1, 5, 1}
	both := []Given{{Config: 0, Order: o}, {Config: 1, Order: o}}
	if _, err := Recover(p, h, both, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(p, h, both[:1], nil); !errors.Is(err, ErrDataLost) {
		t.Errorf("half of a node's orders: %v", err)
	}
	lost := h
	lost.Confirmed = 2
	if _, err := Recover(p, lost, both, nil); !errors.Is(err, ErrDataLost) {
		t.Errorf("an order that was confirmed is gone: %v", err)
	}
	for name, change := range map[string]func(*Header){
		"another rollout": func(h *Header) { h.ID = "r-2" },
		"another spec":    func(h *Header) { h.Hash = "x" },
		"stage":           func(h *Header) { h.StageIndex = 1 },
		"nodes":           func(h *Header) { h.Failed = IndexSet{3} },
		"pause":           func(h *Header) { h.State = Paused },
	} {
		bad := h
		change(&bad)
		if _, err := Recover(p, bad, both, nil); !errors.Is(err, ErrPlanDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	newer := h
	newer.Version++
	if _, err := Recover(p, newer, both, nil); err == nil {
		t.Error("a newer header was taken")
	}
}

// TestPlanStable: a node that joins or leaves moves no more others than it
// must. Stages that take the next nodes by name are nested sets, so at most one
// other node crosses the end of each. Where a stage must keep values of spread
// even, or take only nodes that it selects, it may give one up and take one
// more; and every node that an order names may change places with one.
func TestPlanStable(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		spec := drawSpec(rt)
		spec.Spread = rapid.SampledFrom([]string{"", "zone"}).Draw(rt, "spread")
		nodes := fleet(rapid.IntRange(2, 60).Draw(rt, "fleet"), "a", "b", "c", "a", "a")
		gone := rapid.IntRange(0, len(nodes)-1).Draw(rt, "who")
		name := nodes[gone].Name
		if rapid.Bool().Draw(rt, "ordered") {
			i := rapid.IntRange(0, len(spec.Stages)-1).Draw(rt, "stage")
			if o := nodes[rapid.IntRange(0, len(nodes)-1).Draw(rt, "first")].Name; o != name {
				spec.Stages[i].Order = []string{o}
			}
		}
		with, err := NewPlan("r", spec, nodes, t0, Selecting(inZone(&spec)))
		if err != nil {
			rt.Fatal(err)
		}
		without, err := NewPlan("r", spec, slices.Delete(slices.Clone(nodes), gone, gone+1), t0, Selecting(inZone(&spec)))
		if err != nil {
			rt.Fatal(err)
		}
		plain, most := spec.Spread == "", 1
		for i := range spec.Stages {
			most += len(spec.Stages[i].Order)
		}
		for i := range spec.Stages {
			plain = plain && spec.Stages[i].Select == "" && spec.Stages[i].Order == nil
			a, b := with.Nodes[:with.Ends[i]], without.Nodes[:without.Ends[i]]
			var in, out int
			for _, n := range a {
				if n != name && !slices.Contains(b, n) {
					out++
				}
			}
			for _, n := range b {
				if !slices.Contains(a, n) {
					in++
				}
			}
			if in > most || out > most || plain && in+out > 1 {
				rt.Fatalf("without %s, %d other nodes come before the end of stage %d and %d do not any more:\n%v %v\n%v %v", name, in, i, out, with.Nodes, with.Ends, without.Nodes, without.Ends)
			}
		}
	})
}

// TestSortByName: as strings sort, whatever the names have in common.
func TestSortByName(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		names := rapid.SliceOfN(rapid.StringMatching(`(web-eu-|web-|)[0-9a\x00]{0,12}`), 1, 30).Draw(rt, "names")
		var nodes []Node
		for _, n := range names {
			nodes = append(nodes, Node{Name: n})
		}
		var got []string
		for _, i := range sortByName(nodes) {
			got = append(got, names[i])
		}
		if slices.Sort(names); !slices.Equal(got, names) {
			rt.Fatalf("%q", got)
		}
	})
}
