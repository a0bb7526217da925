// Package importcheck holds the rules about which package may import which, and
// its test applies them to this module. Imports point one way: main, command,
// orchestrator and its parts, internal; the core and the plugin SDK stand at
// the bottom and know nothing of the rest. It imports only the standard library.
package importcheck

import (
	"fmt"
	"slices"
	"strings"
)

// Module is the path that all packages of this module begin with.
const Module = "github.com/aim-control/aimlock"

// Package is what a rule sees of a package: its path and what it imports,
// tests left out.
type Package struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

// rule refuses some imports to some packages.
type rule struct {
	why  string
	from func(pkg string) bool
	// deny says whether an import is refused.
	deny func(imp string, standard bool) bool
	// deep extends the rule to what the imports import themselves.
	deep bool
}

func rules() []rule {
	return []rule{
		{
			why:  "the core imports only the standard library: time, files and Consul reach it as events",
			from: is("orchestrator"),
			deny: func(_ string, standard bool) bool { return !standard },
		},
		{
			why:  "the core reads no clock, network, file or random source",
			from: is("orchestrator"),
			deny: func(imp string, _ bool) bool {
				return within(imp, "net", "os", "io/fs", "io/ioutil", "syscall", "math/rand", "crypto/rand", "log", "context")
			},
		},
		{
			why:  "policies are judged without Consul or Nomad: facts are handed in",
			from: under("policies"),
			deny: func(imp string, _ bool) bool {
				return within(imp, "github.com/hashicorp/consul", "github.com/hashicorp/nomad", own("internal/consulkv"), own("internal/devconsul"))
			},
			deep: true,
		},
		{
			why:  "a journal is read and judged without Consul",
			from: under("internal/journal", "internal/replay"),
			deny: func(imp string, _ bool) bool {
				return within(imp, "github.com/hashicorp/consul", "github.com/hashicorp/nomad", own("internal/consulkv"), own("orchestrator/locksmith"))
			},
			deep: true,
		},
		{
			why:  "the plugin SDK imports nothing of the rest, so that a plugin needs nothing of aimlock but it",
			from: isSDK,
			deny: func(imp string, _ bool) bool { return within(imp, Module) && !isSDK(imp) },
			deep: true,
		},
		{
			why:  "only main imports command",
			from: func(pkg string) bool { return pkg != Module && !within(pkg, own("command")) },
			deny: func(imp string, _ bool) bool { return within(imp, own("command")) },
		},
		{
			why:  "the simulation stands above all that it runs: nothing imports it",
			from: func(pkg string) bool { return !within(pkg, own("internal/sim")) },
			deny: func(imp string, _ bool) bool { return within(imp, own("internal/sim")) },
		},
		{
			why:  "what is left to chance in what is simulated comes from internal/fate, or a seed has two histories",
			from: under("orchestrator/agent", "orchestrator/guard", "orchestrator/locksmith", "orchestrator/runner", "orchestrator/evidence", "internal/consulkv"),
			deny: func(imp string, _ bool) bool { return within(imp, "math/rand") },
		},
		{
			why:  "chance and durability are below everything",
			from: under("internal/fate", "internal/durable"),
			deny: func(imp string, _ bool) bool { return within(imp, Module) },
		},
		{
			why:  "text and the alerts of TLS are below everything",
			from: under("internal/text", "internal/tlsalert"),
			deny: func(imp string, _ bool) bool { return within(imp, Module) },
		},
		{
			why:  "keys and records are shared with agents and scripts: of this module they import only the core",
			from: under("internal/keys", "internal/records"),
			deny: func(imp string, _ bool) bool { return within(imp, Module) && imp != own("orchestrator") },
		},
		{
			why:  "hooks are handed their events and know nothing of who makes them",
			from: under("internal/hooks"),
			deny: func(imp string, _ bool) bool {
				return within(imp, Module) && !within(imp, own("internal/records"), own("internal/text"), own("internal/version"))
			},
		},
		{
			why:  "the way to Consul knows nothing of locks and rollouts",
			from: under("internal/consulkv"),
			deny: func(imp string, _ bool) bool {
				return within(imp, Module) && !within(imp, own("internal/consulkv"), own("internal/fate"), own("internal/text"), own("internal/tlsalert"))
			},
		},
		{
			why:  "the way to Nomad knows nothing of locks and rollouts",
			from: under("internal/nomadapi"),
			deny: func(imp string, _ bool) bool {
				return within(imp, Module) && !within(imp, own("internal/nomadapi"), own("internal/text"), own("internal/tlsalert"))
			},
		},
		{
			why:  "the embedded Consul stands in for the real one, so it knows nothing of who uses it",
			from: under("internal/devconsul"),
			deny: func(imp string, _ bool) bool { return within(imp, Module) && !within(imp, own("internal/devconsul")) },
		},
		{
			why:  "a gate asks and decides nothing: it knows neither locks nor who drives a rollout",
			from: under("orchestrator/gates"),
			deny: func(imp string, _ bool) bool {
				return within(imp, own("orchestrator/locksmith"), own("orchestrator/runner"), own("orchestrator/spec"), own("orchestrator/evidence"))
			},
			deep: true,
		},
		{
			why:  "HCL is read at the edges: what runs a rollout or holds a lock gets checked values",
			from: under("orchestrator/runner", "orchestrator/agent", "orchestrator/guard"),
			deny: func(imp string, _ bool) bool { return within(imp, "github.com/hashicorp/hcl") },
		},
	}
}

// isSDK is true for plugin/ without the parts that are aimlock's own side of it.
func isSDK(pkg string) bool {
	return within(pkg, own("plugin")) &&
		!within(pkg, own("plugin/host"), own("plugin/builtin"), own("plugin/nomaddevice"))
}

// Check returns one line for each import that breaks a rule. all holds the
// packages of the module with everything that they depend on.
func Check(all []Package) []string {
	byPath := make(map[string]Package, len(all))
	for _, p := range all {
		byPath[p.ImportPath] = p
	}
	var broken []string
	for _, p := range all {
		if !within(p.ImportPath, Module) {
			continue
		}
		for _, r := range rules() {
			if !r.from(p.ImportPath) {
				continue
			}
			for _, chain := range chains(byPath, p, r.deep) {
				imp := chain[len(chain)-1]
				if r.deny(imp, byPath[imp].Standard) {
					broken = append(broken, fmt.Sprintf("%s: %s", strings.Join(append([]string{p.ImportPath}, chain...), " imports "), r.why))
				}
			}
		}
	}
	slices.Sort(broken)
	return broken
}

// chains returns the imports of p, each as the shortest path that leads to it
// through this module's packages.
func chains(byPath map[string]Package, p Package, deep bool) [][]string {
	seen := map[string]bool{p.ImportPath: true}
	var out [][]string
	queue := [][]string{nil}
	for len(queue) > 0 {
		chain := queue[0]
		queue = queue[1:]
		at := p
		if len(chain) > 0 {
			out = append(out, chain)
			at = byPath[chain[len(chain)-1]]
			// What a library imports is its own affair, but for the libraries
			// that a rule names: those are seen at the first step into them.
			if !deep || !within(at.ImportPath, Module) {
				continue
			}
		}
		for _, imp := range at.Imports {
			if !seen[imp] {
				seen[imp] = true
				queue = append(queue, append(slices.Clone(chain), imp))
			}
		}
	}
	return out
}

func own(path string) string { return Module + "/" + path }

func is(path string) func(string) bool {
	return func(pkg string) bool { return pkg == own(path) }
}

func under(paths ...string) func(string) bool {
	for i, p := range paths {
		paths[i] = own(p)
	}
	return func(pkg string) bool { return within(pkg, paths...) }
}

// within tells whether path is one of roots or stands below one.
func within(path string, roots ...string) bool {
	for _, r := range roots {
		if path == r || strings.HasPrefix(path, r+"/") {
			return true
		}
	}
	return false
}
