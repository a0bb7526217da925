package selector

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/orchestrator"
)

func TestMatch(t *testing.T) {
	node := &orchestrator.Node{Name: "web-7", Meta: map[string]string{"zone": "a", "rack.row": "3", "gpu": ""}}
	for expr, want := range map[string]bool{
		`meta.zone == "a"`:                     true,
		`meta.zone == a`:                       true,
		`meta.zone != "a"`:                     false,
		`node == "web-7"`:                      true,
		`node matches "^web-[0-9]+$"`:          true,
		`node matches "^db"`:                   false,
		`meta["rack.row"] == "3"`:              true,
		`"/meta/rack.row" == "3"`:              true,
		`meta.gpu is empty`:                    true,
		`zone in meta`:                         true,
		`disk in meta`:                         false,
		`meta.zone == "a" and node != "web-7"`: false,
		`meta.zone == "b" or node == "web-7"`:  true,
		`not (meta.zone == "b")`:               true,
		`any meta as k, v { v == "3" }`:        true,
		// Metadata that is not there is equal to nothing, and no error.
		`meta.disk == "ssd"`:                            false,
		`meta.disk matches "s"`:                         false,
		`meta.disk != "ssd"`:                            true,
		`meta.disk is empty`:                            true,
		`meta.disk is not empty and meta.disk != "ssd"`: false,
		`meta.disk == "ssd" or meta.zone == "a"`:        true,
	} {
		s, err := Parse(expr)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if got, err := s.Match(node); err != nil || got != want {
			t.Errorf("%s is %t (%v)", expr, got, err)
		}
		if _, err := s.Match(&orchestrator.Node{Name: "bare"}); err != nil {
			t.Errorf("%s on a node without metadata: %v", expr, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for expr, want := range map[string]string{
		``:                "cannot be read",
		`meta.zone = "a"`: "cannot be read",
		`zone == "a"`:     `there is no "zone" here`,
		`meta.zone == "a" or datacenter == "dc1"`: `there is no "datacenter" here`,
		`node.name == "a"`:                        "node is the node's name",
		`meta.rack.row == "3"`:                    `written meta["rack.row"]`,
		`meta == "a"`:                             "compare one key",
		`node matches "("`:                        "no regular expression",
		`any node as n { n == "a" }`:              "goes over meta",
		`any meta as k, v { x == "a" }`:           `there is no "x" here`,
	} {
		if _, err := Parse(expr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", expr, err)
		}
	}
}

// FuzzSelector: what Parse takes matches or does not, and fails on no node.
func FuzzSelector(f *testing.F) {
	for _, s := range []string{`meta.a == "b" and not (node matches "x")`, `any meta as k, v { k == "a" or v == "b" }`, `a in meta`, `meta is empty`, `"/meta/a" != 1`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, expr string) {
		if len(expr) > 200 {
			return
		}
		s, err := Parse(expr)
		if err != nil {
			return
		}
		for _, n := range []orchestrator.Node{{}, {Name: "a"}, {Name: "b", Meta: map[string]string{"a": "b", "": "x"}}} {
			if _, err := s.Match(&n); err != nil {
				t.Errorf("%q on %v: %v", expr, n, err)
			}
		}
	})
}
