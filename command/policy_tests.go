package command

import (
	"context"
	"flag"
	"fmt"
	"regexp"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// policyTestView is one test as `policy test -json` prints it.
type policyTestView struct {
	Name     string   `json:"name"`
	File     string   `json:"file"`
	Line     int      `json:"line"`
	Passed   bool     `json:"passed"`
	State    string   `json:"state"`
	Rule     *string  `json:"rule"`
	Problems []string `json:"problems"`
	// Rules are those that decided, or that the test expects to.
	Rules []testRuleView `json:"rules"`
}

// testRuleView is what one rule said, and on what.
type testRuleView struct {
	Rule     string   `json:"rule"`
	Kind     string   `json:"kind"`  // warm, hot
	Value    string   `json:"value"` // true, false, unknown
	When     string   `json:"when"`
	Pending  *float64 `json:"pending"` // seconds that are missing to its for
	Evidence []fact   `json:"evidence"`
}

func viewTest(r policies.TestResult) policyTestView {
	v := policyTestView{Name: r.Test.Name, File: r.Test.Range.Filename, Line: r.Test.Range.Start.Line,
		Passed: len(r.Problems) == 0, State: r.Judgement.State, Problems: append([]string{}, r.Problems...), Rules: []testRuleView{}}
	if r.Judgement.Rule != nil {
		v.Rule = &r.Judgement.Rule.Name
	}
	for _, res := range r.Decisive() {
		rule := testRuleView{Rule: res.Rule.Name, Kind: res.Rule.Kind(), Value: res.Value.String(), When: res.Rule.When,
			Evidence: facts(policies.EvidenceOf(r.Test.Facts, res.Used))}
		for _, p := range r.Judgement.Pending {
			if p.Rule == res.Rule {
				left := p.Left.Seconds()
				rule.Pending = &left
			}
		}
		v.Rules = append(v.Rules, rule)
	}
	return v
}

func newPolicyTest(m *Meta) *command {
	run, verbose := "", false
	return &command{
		Meta:     m,
		Synopsis: "Run the test blocks that stand beside policies",
		Usage:    "[options] [PATH…]",
		Description: `A test block gives facts and says what verdict it expects of the policies in the
same files. Facts that it does not give are unknown; an object that is null has
only null facts. It needs no Consul.

    test "a dead holder is HOT" {
      lock  = "app.conf"
      held  = "1m"        # for how long the facts have stood so
      facts = { holder = { alive = false, pid = 41 } }
      expect {
        state = "HOT"     # and rule, reason, policy, frozen, steps
      }
    }

Exit code 0 if all pass, 1 if one fails, 2 if a file is invalid.`,
		Examples: []example{
			{"All tests of a folder", "aimlock policy test policies/"},
			{"Some, with each verdict", "aimlock policy test -v -run stall policies/"},
		},
		Groups: groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&run, "run", "", "Run only the tests whose name matches the regular `EXPRESSION`.")
			fs.BoolVar(&verbose, "v", false, "Print the tests that pass as well.")
		},
		MaxArgs:  -1,
		Complete: completeFiles("*.hcl"),
		Run: func(_ context.Context, in *input) error {
			match, err := regexp.Compile(run)
			if err != nil {
				return usagef("-run is not a regular expression: %w", err)
			}
			set, diags := m.loadPolicySet(in.Args)
			if err := m.policyDiagnostics(set, diags); err != nil {
				return err
			}
			return m.reportTests(set.RunTests(match.MatchString), verbose)
		},
	}
}

func (m *Meta) reportTests(results []policies.TestResult, verbose bool) error {
	views := make([]policyTestView, 0, len(results))
	failed := 0
	for _, r := range results {
		v := viewTest(r)
		if !v.Passed {
			failed++
		}
		views = append(views, v)
	}
	if m.JSON {
		if err := m.PrintJSON(views); err != nil {
			return err
		}
	} else {
		m.printTests(views, failed, verbose)
	}
	if failed > 0 {
		return exit(ExitFailed)
	}
	return nil
}

// printTestRule shows what a rule said, and on what evidence.
func (m *Meta) printTestRule(r testRuleView) {
	pending := ""
	if r.Pending != nil {
		pending = fmt.Sprintf(", and counts in %s", showSeconds(*r.Pending))
	}
	m.Printf("    %s %s is %s%s: %s\n", r.Kind, r.Rule, r.Value, pending, r.When)
	for _, e := range r.Evidence {
		if e.Known {
			m.Printf("        %s = %s\n", e.Fact, text.Printable(string(e.Value)))
		} else {
			m.Printf("        %s is unknown: %s\n", e.Fact, text.Printable(e.Why))
		}
	}
}

func (m *Meta) printTests(views []policyTestView, failed int, verbose bool) {
	for _, v := range views {
		if verbose {
			m.Printf("=== RUN   %s\n", v.Name)
		}
		switch {
		case !v.Passed:
			m.Printf("--- FAIL: %s (%s:%d)\n", v.Name, v.File, v.Line)
			for _, p := range v.Problems {
				m.Printf("    %s\n", p)
			}
			for _, r := range v.Rules {
				m.printTestRule(r)
			}
		case verbose:
			rule := ""
			if v.Rule != nil {
				rule = " by " + *v.Rule
			}
			m.Printf("--- PASS: %s: %s%s\n", v.Name, v.State, rule)
		}
	}
	switch {
	case len(views) == 0:
		m.Printf("ok: no tests to run\n")
	case failed > 0:
		m.Printf("FAIL: %d of %s\n", failed, text.Count(len(views), "test"))
	default:
		m.Printf("ok: %s\n", text.Count(len(views), "test"))
	}
}
