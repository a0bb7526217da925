package policies

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// parseFacts reads facts as test blocks write them.
func parseFacts(t testing.TB, text string) Facts {
	t.Helper()
	e, diags := hclsyntax.ParseExpression([]byte("{\n"+text+"\n}"), "facts", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	c := newChecker(nil)
	c.functions = testFunctions
	d := &decoder{check: c}
	f := d.facts(e)
	if d.diags.HasErrors() {
		t.Fatal(d.diags)
	}
	return f
}

// TestJudge runs the scripts of testdata/judge. Commands:
//
//	policy            the policies in force from here on (forgets the facts)
//	facts             the facts from here on: object = { fact = value }
//	judge [lock=NAME] [at=DUR] [hold=ID] [nomemory]
//	break             what the policy's break block says of the facts
//	forget            a new Memory
func TestJudge(t *testing.T) {
	datadriven.Walk(t, "testdata/judge", func(t *testing.T, path string) {
		var (
			set   *Set
			facts Facts
			m     = new(Memory)
		)
		lock := func(d *datadriven.TestData) *Policy {
			name := "cfg"
			d.MaybeScanArgs(t, "lock", &name)
			id := LockID{Name: name, Key: "aimlock/locks/" + name, Own: true}
			if key, ok := strings.CutPrefix(name, "/"); ok {
				id = LockID{Name: key, Key: key}
			}
			return set.For(id)
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "policy":
				var diags hcl.Diagnostics
				set, diags = Parse("p.hcl", []byte(d.Input))
				facts, m = nil, new(Memory)
				return "ok\n" + diagLines(diags)
			case "facts":
				facts = parseFacts(t, d.Input)
				return ""
			case "forget":
				m = new(Memory)
				return ""
			case "judge":
				var at, hold = "0s", "h1"
				d.MaybeScanArgs(t, "at", &at)
				d.MaybeScanArgs(t, "hold", &hold)
				now, err := time.ParseDuration(at)
				if err != nil {
					t.Fatal(err)
				}
				mem := m
				if d.HasArg("nomemory") {
					mem = nil
				}
				p := lock(d)
				j := p.Judge(facts, mem, hold, now)
				return formatJudgement(p, j)
			case "break":
				return formatBreak(lock(d), facts)
			}
			t.Fatalf("unknown command %q", d.Cmd)
			return ""
		})
	})
}

func formatJudgement(p *Policy, j Judgement) string {
	var b strings.Builder
	b.WriteString(j.State)
	if p == nil {
		b.WriteString(" (no policy)")
	}
	if j.Rule != nil {
		fmt.Fprintf(&b, " by %s %q", j.Rule.Kind(), j.Rule.Name)
		if j.Result.Reason != "" {
			fmt.Fprintf(&b, ": %s", j.Result.Reason)
		}
		if j.Result.Why != "" {
			fmt.Fprintf(&b, ": %s", j.Result.Why)
		}
	}
	b.WriteString("\n")
	for _, r := range j.Results {
		fmt.Fprintf(&b, "  %s %s: %s\n", r.Rule.Kind(), r.Rule.Name, r.Value)
	}
	for _, p := range j.Pending {
		fmt.Fprintf(&b, "  pending %s: since %s, %s left\n", p.Rule.Name, p.Since, p.Left)
	}
	return b.String()
}

func formatBreak(p *Policy, facts Facts) string {
	if p == nil || p.Break == nil {
		return "never broken"
	}
	var b strings.Builder
	k := p.Break
	fmt.Fprintf(&b, "approval %s, confirm %d every %s\n", k.Approval, k.Confirm.Observations, k.Confirm.Every)
	if k.Budget != nil {
		fmt.Fprintf(&b, "budget %d in %s\n", k.Budget.Max, k.Budget.Per)
	}
	if k.Quiesce != nil {
		fmt.Fprintf(&b, "quiesce %s\n", *k.Quiesce)
	}
	if k.Freeze != nil {
		tri, why := k.Frozen(facts)
		fmt.Fprintf(&b, "frozen %s %s\n", tri, why)
	}
	for _, s := range k.Steps {
		run, tri, why := s.Applies(facts)
		verb := "skip"
		if run {
			verb = "run"
		}
		fmt.Fprintf(&b, "%s %s (%s) wait %s on_error %s", verb, s.Kind, tri, s.Wait, s.OnError)
		if s.Signal != "" {
			fmt.Fprintf(&b, " signal %s", s.Signal)
		}
		if s.Kind == StepExec {
			argv, err := s.Command(facts)
			fmt.Fprintf(&b, " command %q", argv)
			if err != nil {
				fmt.Fprintf(&b, " error %q", err)
			}
		}
		if why != "" {
			fmt.Fprintf(&b, ": %s", why)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// TestCheck runs the scripts of testdata/check: policies, and everything that
// is wrong with them, with exact ranges.
func TestCheck(t *testing.T) {
	datadriven.Walk(t, "testdata/check", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			opts := Options{}
			for _, a := range d.CmdArgs {
				if opts.Vars == nil {
					opts.Vars = map[string]string{}
				}
				opts.Vars[a.Key] = a.Vals[0]
			}
			src := d.Input
			if d.Cmd == "body" {
				src = "policy \"p\" {\n" + src + "\n}"
			}
			if d.Cmd == "when" {
				src = "policy \"p\" {\n  locks = [\"**\"]\n  hot \"r\" {\n    when = " + src + "\n  }\n}"
			}
			set, diags := ParseWith("p.hcl", []byte(src), opts)
			if diags.HasErrors() && (len(set.Policies) > 0 || set.Hash != "") {
				t.Fatalf("%s: an invalid set has policies", d.Pos)
			}
			if len(diags) == 0 {
				return "ok"
			}
			return diagLines(diags)
		})
	})
}

func diagLines(diags hcl.Diagnostics) string {
	var b strings.Builder
	for _, d := range diags {
		sev := "error"
		if d.Severity == hcl.DiagWarning {
			sev = "warning"
		}
		where := "-"
		if d.Subject != nil {
			where = strings.TrimPrefix(d.Subject.String(), "p.hcl:")
		}
		fmt.Fprintf(&b, "%s %s: %s: %s\n", sev, where, d.Summary, d.Detail)
	}
	return b.String()
}
