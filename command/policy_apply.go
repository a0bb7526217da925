package command

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// policyApplyReport is what `policy apply -json` prints.
type policyApplyReport struct {
	// Applied is false for a dry run, and where nothing had to change.
	Applied   bool                     `json:"applied"`
	DryRun    bool                     `json:"dry_run"`
	Unchanged bool                     `json:"unchanged"`
	Active    records.PolicyActive     `json:"active"` // for a dry run: as it would be
	Before    *records.PolicyActive    `json:"before"`
	BeforeWhy string                   `json:"before_why,omitempty"`
	Changes   []locksmith.PolicyChange `json:"changes"`
	Reordered bool                     `json:"reordered"`
	Tests     int                      `json:"tests"`
}

func newPolicyApply(m *Meta) *command {
	var req locksmith.ApplyRequest
	skip := false
	return &command{
		Meta:     m,
		Synopsis: "Put policies in force, for everybody",
		Usage:    "[options] [PATH…]",
		Description: `Writes the hash of these policies to Consul. From then on only those who have the
same ones break locks; whoever has others judges and warns, and breaks nothing.
So two versions never both act. While nothing was ever applied, anybody's policies
may break the locks that aimlock took; the locks of other tools need applied ones.

It shows what was in force before and which policies and rules differ, keeps the
sources in Consul (see "policy show -active"), and refuses policies that are
invalid or whose test blocks fail. It warns of locks that are held now and that no
policy of these matches: nobody breaks them. Without a PATH it takes what -policy or
the config file name, or else the shipped default.`,
		Examples: []example{
			{"What would change?", "aimlock policy apply -dry-run policies/"},
			{"Put them in force", "aimlock policy apply -reason 'CHG-1234: longer stall' policies/"},
		},
		Groups: groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&req.DryRun, "dry-run", false, "Check, test and compare; change nothing.")
			fs.BoolVar(&skip, "skip-tests", false, "Apply though test blocks fail, or without waiting for them.")
			fs.StringVar(&req.Reason, "reason", "", "Why, in `WORDS`: it stands in the history.")
		},
		MaxArgs:  -1,
		Complete: completeFiles("*.hcl"),
		Run: func(ctx context.Context, in *input) error {
			if err := checkReason(req.Reason, false); err != nil {
				return err
			}
			set, diags := m.loadPolicySet(in.Args)
			if err := m.policyDiagnostics(set, diags); err != nil {
				return err
			}
			tests := 0
			if !skip {
				results := set.RunTests(nil)
				tests = len(results)
				if err := m.testsPassed(results); err != nil {
					return err
				}
			}
			if len(set.Given) > 0 {
				req.Values = set.Given
			}
			c, err := m.locksmithWith(set)
			if err != nil {
				return err
			}
			out, err := c.Apply(ctx, req)
			if err != nil {
				return err
			}
			if m.JSON {
				err = m.PrintJSON(applyReport(out, req.DryRun, tests))
			} else {
				m.applyText(out, set, req.DryRun, testedText(tests, skip))
				if out.Before == nil && !coversOwn(set) {
					m.Printf("  removed   the shipped policy default: it judged aimlock's own locks, and breaks none for anybody once these are applied; to keep it: %s\n", m.keepDefault(in.Args, set))
				}
			}
			m.unmatched(ctx, c)
			return err
		},
	}
}

// coversOwn: one of the policies is for all of aimlock's own locks, as the shipped
// default is.
func coversOwn(set *policies.Set) bool {
	return slices.ContainsFunc(set.Policies, func(p *policies.Policy) bool { return slices.Contains(p.Locks, "**") })
}

// keepDefault is how to apply the policies together with the shipped default. That
// comes last where one of them is for locks of aimlock's own, since the first that
// matches judges, and else first, since a pattern for keys may match all.
func (m *Meta) keepDefault(args []string, set *policies.Set) string {
	const name = policies.BuiltinPrefix + policies.BuiltinDefault
	last := slices.ContainsFunc(set.Policies, func(p *policies.Policy) bool {
		return slices.ContainsFunc(p.Locks, func(l string) bool { return !strings.HasPrefix(l, "/") })
	})
	with := func(list []string, add ...string) []string {
		if last {
			return slices.Concat(list, add)
		}
		return slices.Concat(add, list)
	}
	given := m.given
	switch {
	case len(args) > 0:
		args = with(args, name)
	case slices.Contains(given.Judge, "-policy"):
		given.Judge = with(given.Judge, "-policy", name)
	default:
		return fmt.Sprintf("name %s among the policies of the config file, and apply again", name)
	}
	return "`" + given.Judging("policy apply", args...) + "`"
}

// unmatchedPatience bounds the look at all locks once policies are applied.
const unmatchedPatience = 30 * time.Second

// unmatched warns of locks that are held and that no policy of the client's matches:
// policies for some locks take all others out of breaking.
func (m *Meta) unmatched(ctx context.Context, c *locksmith.Client) {
	ctx, cancel := context.WithTimeout(ctx, unmatchedPatience)
	defer cancel()
	var names []string
	hidden, err := c.EachLock(ctx, []string{""}, false, func(v *locksmith.Verdict) {
		if v.Policy == nil {
			names = append(names, v.Snapshot.Name)
		}
	})
	if err != nil {
		m.Notef("Warning: it is not known whether these policies match every lock that is held now: %s\n", text.Printable(err.Error()))
		return
	}
	if hidden {
		m.Log.Debug("the token may not read every lock: those that no policy matches may be more")
	}
	if len(names) > 0 {
		slices.Sort(names)
		m.Notef("Warning: no policy of these matches %s held now, and nobody breaks what none matches: %s\n", text.Count(len(names), "lock"), text.Some(names))
	}
}

// locksmithWith is Locksmith with policies that are loaded already.
func (m *Meta) locksmithWith(set *policies.Set) (*locksmith.Client, error) {
	consul, err := m.Consul()
	if err != nil {
		return nil, err
	}
	c, err := m.locksmithOver(consul, set, locksmith.Config{EndLater: true})
	if err == nil {
		m.locks = append(m.locks, c)
	}
	return c, err
}

// locksmithOver is locksmithWith by a client that is there, and as cfg says where
// it says anything.
func (m *Meta) locksmithOver(consul *consulkv.Client, set *policies.Set, cfg locksmith.Config) (*locksmith.Client, error) {
	nomad, err := m.nomadEvidence()
	if err != nil {
		return nil, err
	}
	cfg.Consul, cfg.Prefix, cfg.Log, cfg.Policies, cfg.OnBreak = consul, m.Prefix, m.Log.Named("locksmith"), set, m.onBreak
	cfg.Flags = m.given
	cfg.Nomad, cfg.Plugins, cfg.Alloc = nomad, m.Plugins(), m.allocation()
	return locksmith.New(cfg)
}

// closeLocks waits for the ends of sessions that are not needed any more.
func (m *Meta) closeLocks() {
	for _, c := range m.locks {
		if err := c.Close(context.WithoutCancel(m.ctx)); err != nil {
			m.Log.Debug("close the client of locks", "error", err)
		}
	}
	m.locks = nil
}

// testsPassed tells on stderr of the tests that fail, and ends the command then.
func (m *Meta) testsPassed(results []policies.TestResult) error {
	failed := 0
	for _, r := range results {
		if len(r.Problems) == 0 {
			continue
		}
		failed++
		m.Notef("--- FAIL: %s (%s:%d)\n", r.Test.Name, r.Test.Range.Filename, r.Test.Range.Start.Line)
		for _, p := range r.Problems {
			m.Notef("    %s\n", text.Printable(p))
		}
	}
	if failed > 0 {
		return exitf(ExitFailed, "%d of %s failed: nothing is applied. Put the policies or their tests right; -skip-tests applies them as they are", failed, text.Count(len(results), "test"))
	}
	return nil
}

func applyReport(out *locksmith.Applied, dryRun bool, tests int) policyApplyReport {
	r := policyApplyReport{
		Applied: !dryRun && !out.Unchanged, DryRun: dryRun, Unchanged: out.Unchanged, Active: out.After.PolicyActive,
		BeforeWhy: out.BeforeWhy, Changes: out.Changes, Reordered: out.Reordered, Tests: tests,
	}
	if out.Before != nil {
		r.Before = &out.Before.PolicyActive
	}
	if r.Changes == nil {
		r.Changes = []locksmith.PolicyChange{}
	}
	return r
}

func (m *Meta) applyText(out *locksmith.Applied, set *policies.Set, dryRun bool, tests string) {
	v := out.After
	if out.Unchanged {
		m.Printf("These policies are in force already: %s\n", versionText(v))
		return
	}
	rules := 0
	for _, p := range set.Policies {
		rules += len(p.Rules())
	}
	what := "Applied"
	if dryRun {
		what = "Would apply"
	}
	m.Printf("%s serial %d: hash %.12s, %s, %s; %s\n", what, v.Serial, v.Hash, text.Count(len(set.Policies), "policy"), text.Count(rules, "rule"), tests)
	if out.Before == nil {
		m.Printf("  before    nothing was applied: anybody's policies could break aimlock's own locks\n")
		return
	}
	m.Printf("  before    %s\n", versionText(out.Before))
	if out.BeforeWhy != "" {
		m.Printf("  changes   not known: %s\n", text.Printable(out.BeforeWhy))
		return
	}
	for _, c := range out.Changes {
		name := "policy " + c.Policy
		if c.Part != "" {
			name += ": " + c.Part
		}
		m.Printf("  %-9s %s%s\n", c.Change, text.Printable(name), hashesText(c))
	}
	if out.Reordered {
		m.Printf("  reordered policies are tried in another order: the first that matches a lock judges it\n")
	}
	if len(out.Changes) == 0 && !out.Reordered {
		m.Printf("  changes   none in what the policies say\n")
	}
}

func testedText(tests int, skipped bool) string {
	switch {
	case skipped:
		return "its tests were not run"
	case tests == 0:
		return "it has no tests"
	}
	return text.Count(tests, "test") + " passed"
}

func hashesText(c locksmith.PolicyChange) string {
	if c.Change != "changed" {
		return fmt.Sprintf(" (%.12s)", c.Before+c.After)
	}
	return fmt.Sprintf(" (%.12s → %.12s)", c.Before, c.After)
}

// versionText is one application of policies in a line.
func versionText(v *records.PolicyVersion) string {
	s := fmt.Sprintf("serial %d, hash %.12s", v.Serial, text.Printable(v.Hash))
	if v.By != "" {
		s += ", by " + whoText(v.By, v.Who)
	}
	if !v.At.IsZero() {
		s += " at " + text.Time(v.At)
	}
	if v.Reason != "" {
		s += ": " + text.Clip(text.Printable(v.Reason), 200)
	}
	return s
}

// whoText is who did something: by, and the accessor of the token where it is
// known. Host and user stand in by already, unless it was set to something else.
func whoText(by string, who records.Who) string {
	s := text.Clip(text.Printable(by), 100)
	if at := who.User + "@" + who.Host; at != "@" && !strings.HasSuffix(by, at) {
		s += " (" + text.Clip(text.Printable(at), 100) + ")"
	}
	if who.Accessor != "" {
		s += " with token accessor " + text.Clip(text.Printable(who.Accessor), 60)
	}
	return s
}

// checkReason refuses a -reason that no record takes.
func checkReason(reason string, required bool) error {
	switch {
	case required && strings.TrimSpace(reason) == "":
		return usagef("-reason is missing: say why, for those who find it")
	case len(reason) > locksmith.MaxReason:
		return usagef("-reason has %d bytes: %d at most", len(reason), locksmith.MaxReason)
	}
	return nil
}

func whenText(t time.Time) string {
	if t.IsZero() {
		return "no end"
	}
	return text.Time(t)
}
