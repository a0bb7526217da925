package orchestrator

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestJoin(t *testing.T) {
	n := func(name string, kv ...string) Node {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return Node{Name: name, Meta: m}
	}
	first := []Node{n("b", "zone", "1"), n("a", "zone", "1", "rack", "r1")}
	j := Join([]Listed{
		{"one", first},
		{"two", []Node{n("a", "zone", "2", "class", "x"), n("c")}},
		{"three", []Node{n("a", "class", "y", "zone", "1"), {Name: "b"}}},
	})
	if got := fmt.Sprint(j.Nodes); got != "[{a map[class:x rack:r1 zone:1]} {b map[zone:1]} {c map[]}]" {
		t.Errorf("nodes %s", got)
	}
	if j.Shared != 2 {
		t.Errorf("%d are shared", j.Shared)
	}
	want := []Conflict{{"a", "class", "two", "x", "three", "y"}, {"a", "zone", "one", "1", "two", "2"}}
	if !slices.Equal(j.Conflicts, want) {
		t.Errorf("conflicts %v", j.Conflicts)
	}
	if first[1].Meta["class"] != "" {
		t.Error("what a source listed was changed")
	}
}

// Joining loses no node and no key, invents none, and does not depend on the
// order in which a source lists its nodes.
func TestJoinProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		lists := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Listed {
			names := rapid.SliceOfNDistinct(rapid.StringMatching(`n[0-9]`), 0, 6, rapid.ID[string]).Draw(t, "names")
			l := Listed{Source: rapid.StringMatching(`s[a-z]`).Draw(t, "source")}
			for _, name := range names {
				l.Nodes = append(l.Nodes, Node{name, rapid.MapOfN(rapid.SampledFrom([]string{"x", "y", "z"}), rapid.SampledFrom([]string{"1", "2"}), 0, 3).Draw(t, "meta")})
			}
			return l
		}), 1, 4).Draw(t, "lists")
		j := Join(lists)
		have := map[string]map[string]string{}
		conflicts := 0
		for _, l := range lists {
			for _, n := range l.Nodes {
				if have[n.Name] == nil {
					have[n.Name] = map[string]string{}
				}
				for k, v := range n.Meta {
					if old, ok := have[n.Name][k]; !ok {
						have[n.Name][k] = v
					} else if old != v {
						conflicts++
					}
				}
			}
		}
		if len(j.Nodes) != len(have) || len(j.Conflicts) != conflicts {
			t.Fatalf("%d nodes of %d, %d conflicts of %d", len(j.Nodes), len(have), len(j.Conflicts), conflicts)
		}
		for i, n := range j.Nodes {
			if !maps.Equal(n.Meta, have[n.Name]) {
				t.Fatalf("node %s has %v, want %v", n.Name, n.Meta, have[n.Name])
			}
			if i > 0 && j.Nodes[i-1].Name >= n.Name {
				t.Fatal("not sorted")
			}
		}
		for i := range lists {
			slices.Reverse(lists[i].Nodes)
		}
		again := Join(lists)
		if fmt.Sprint(again.Nodes) != fmt.Sprint(j.Nodes) || !slices.Equal(again.Conflicts, j.Conflicts) {
			t.Fatal("the order within a source counts")
		}
	})
}
