package spec

import (
	"testing"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/keys"
)

// FuzzFleet: a file is a fleet whose nodes have names that may stand in keys, each
// once, or it is told what is wrong and where.
func FuzzFleet(f *testing.F) {
	for _, s := range []string{
		`[{"node":"n1","meta":{"zone":"a"}},{"node":"n2"}]`, `node "n1" {` + "\n" + ` meta = { zone = "a" }` + "\n}\nnode \"n2\" {}\n",
		`[{"node":"n1"},{"node":"n1"}]`, `[{"node":5}]`, `[{"nod":"x"}]`, `[`, `{}`, `[{"node":"../x"}] x`, "node \"a\" {\n meta = { for k in [] : k => k }\n}\n", "\ufeff[\n\n{\n}]",
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, src []byte, named bool) {
		if len(src) > 1<<16 {
			return
		}
		path := "fleet.hcl"
		if named {
			path = "fleet.json"
		}
		d := &decoder{file: &File{Path: path, Files: map[string]*hcl.File{}}}
		nodes := d.fleetFile(nil, path, src)
		seen := map[string]bool{}
		for _, n := range nodes {
			if err := keys.CheckName("node", n.Name); err != nil || seen[n.Name] {
				t.Fatalf("node %q, seen %v: %v", n.Name, seen[n.Name], err)
			}
			seen[n.Name] = true
		}
		for _, diag := range d.diags {
			if diag.Subject == nil || diag.Subject.Start.Byte > len(src) || diag.Subject.End.Byte > len(src) {
				t.Fatalf("a diagnostic without its place: %v", diag)
			}
		}
		if len(d.diags) > len(src)+2 {
			t.Fatalf("%d diagnostics for %d bytes", len(d.diags), len(src))
		}
	})
}
