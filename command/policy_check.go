package command

import (
	"context"
	"slices"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// policyCheckReport is what `policy check -json` prints: what
// `terraform validate -json` does, and the policies.
type policyCheckReport struct {
	FormatVersion string `json:"format_version"`
	Valid         bool   `json:"valid"`
	ErrorCount    int    `json:"error_count"`
	WarningCount  int    `json:"warning_count"`
	Hash          string `json:"hash,omitempty"`
	// Policies in the order in which they are tried.
	Policies    []string                  `json:"policies"`
	Diagnostics []policies.DiagnosticJSON `json:"diagnostics"`
}

func newPolicyCheck(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Check policy files, and say all that is wrong",
		Usage:    "[options] [PATH…]",
		Description: `Reads policies from files and folders (their *.hcl) and reports every mistake
with its place and the way out: unknown facts, functions and arguments, wrong
types, rules that can never hold, policies that can never match. Plugins whose
facts are read or whose steps are taken are started, and asked.

Without a PATH it checks what -policy or the config file name, or else the
shipped default. Exit code 0 with warnings only, 2 with an error. On stderr it also
notes which policies never break a HOT lock, or only with a person's approval.`,
		Examples: []example{
			{"Before a merge", "aimlock policy check policies/"},
			{"For a machine", "aimlock policy check -json policies/"},
		},
		Groups:   groupJSON | groupPolicy,
		MaxArgs:  -1,
		Complete: completeFiles("*.hcl"),
		Run: func(_ context.Context, in *input) error {
			set, diags := m.loadPolicySet(in.Args)
			if !diags.HasErrors() {
				diags = append(diags, m.checkPolicyPlugins(set)...)
			}
			if m.JSON {
				return m.policyCheckJSON(set, diags)
			}
			if err := m.policyDiagnostics(set, diags); err != nil {
				return err
			}
			rules := 0
			for _, p := range set.Policies {
				rules += len(p.Rules())
			}
			m.Printf("OK: %s, %s, %s (hash %.12s)\n", text.Count(len(set.Policies), "policy"), text.Count(rules, "rule"), text.Count(len(set.Tests), "test"), set.Hash)
			m.unbroken(set)
			return nil
		},
	}
}

// unbroken notes the policies that call a lock HOT and do not break it by themselves:
// it may be meant, and it may be a block or a line that was left out.
func (m *Meta) unbroken(set *policies.Set) {
	var never, asked []string
	for _, p := range set.Policies {
		switch {
		case !slices.ContainsFunc(p.Rules(), func(r *policies.Rule) bool { return r.Hot }):
		case p.Break == nil:
			never = append(never, p.Name)
		case p.Break.Approval == policies.ApprovalManual:
			asked = append(asked, p.Name)
		}
	}
	if len(never) > 0 {
		m.Notef("Note: without a break block a HOT lock is never broken: %s\n", policyNames(never))
	}
	if len(asked) > 0 {
		m.Notef("Note: without approval = \"auto\" each break waits for a person (aimlock lock approve): %s\n", policyNames(asked))
	}
}

func policyNames(names []string) string {
	if len(names) == 1 {
		return "policy " + text.Some(names)
	}
	return "policies " + text.Some(names)
}

func (m *Meta) policyCheckJSON(set *policies.Set, diags hcl.Diagnostics) error {
	r := policyCheckReport{
		FormatVersion: "1.0",

		Valid:       !diags.HasErrors(),
		Hash:        set.Hash,
		Policies:    []string{},
		Diagnostics: policies.DiagnosticsJSON(set.Files, diags),
	}
	for _, p := range set.Policies {
		r.Policies = append(r.Policies, p.Name)
	}
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			r.ErrorCount++
		} else {
			r.WarningCount++
		}
	}
	if err := m.PrintJSON(r); err != nil {
		return err
	}
	if !r.Valid {
		return exit(ExitUsage)
	}
	return nil
}
