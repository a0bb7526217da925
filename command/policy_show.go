package command

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// policyView is one policy as `policy show -json` prints it.
type policyView struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	File        string   `json:"file"`
	Line        int      `json:"line"`
	Locks       []string `json:"locks"`
	// LockFile is the template of the path of the lock's file, or null.
	LockFile *string `json:"lock_file"`
	// PluginFacts are the facts of evidence plugins that it reads.
	PluginFacts []pluginFactView `json:"plugin_facts,omitempty"`
	Rules       []ruleView       `json:"rules"`
	Break       *breakRulesView  `json:"break"`
}

type ruleView struct {
	Kind  string   `json:"kind"` // warm, hot
	Name  string   `json:"name"`
	When  string   `json:"when"`
	For   float64  `json:"for"`
	Proof bool     `json:"proof"`
	Facts []string `json:"facts"`
}

type breakRulesView struct {
	Approval string          `json:"approval"`
	Confirm  confirmView     `json:"confirm"`
	Steps    []breakStepView `json:"steps"`
	Budget   *budgetView     `json:"budget"`
	Freeze   *string         `json:"freeze"`
	Quiesce  *float64        `json:"quiesce"`
}

type confirmView struct {
	Observations int     `json:"observations"`
	Every        float64 `json:"every"`
}

type budgetView struct {
	Max int     `json:"max"`
	Per float64 `json:"per"`
}

type breakStepView struct {
	Kind    string  `json:"kind"`
	When    string  `json:"when,omitempty"`
	Wait    float64 `json:"wait"`
	OnError string  `json:"on_error"`
}

// policyShowReport is what `policy show -json` prints.
type policyShowReport struct {
	Hash    string `json:"hash"`
	Builtin bool   `json:"builtin"`
	// Lock and the rest of this group are null without a NAME.
	Lock    *string `json:"lock"`
	Key     *string `json:"key"`
	Policy  *string `json:"policy"`
	Pattern *string `json:"pattern"`
	// Tried are the policies before it, none of whose patterns match.
	Tried []triedView `json:"tried"`
	// Policies are all of them, or the one that is in force for Lock.
	Policies []policyView `json:"policies"`
}

type triedView struct {
	Policy string   `json:"policy"`
	Locks  []string `json:"locks"`
}

// tried are the policies of which none matches the lock and that are asked
// before the one that does.
func tried(set *policies.Set, id policies.LockID) []triedView {
	out := []triedView{}
	for _, p := range set.Policies {
		if p.Matches(id) {
			break
		}
		out = append(out, triedView{p.Name, p.Locks})
	}
	return out
}

func newPolicyShow(m *Meta) *command {
	active, history, serial := false, false, uint64(0)
	return &command{
		Meta:     m,
		Synopsis: "Print the policies in force, or those of one lock",
		Usage:    "[options] [NAME]",
		Description: `Without a NAME it prints every policy in the order in which they are tried.
With the NAME of a lock (one with a slash is a whole key) it prints the policy
that judges this lock and says why it was chosen: the first whose locks match,
and which were asked before. What is not written in it is added in comments, and so
is what plugins say of the facts of theirs that it reads.

What it prints on stdout is HCL: the shipped default is a good start for one's
own policies.

-active asks Consul what was applied by "policy apply", and prints its sources and
who applied it; -history lists all applications on record, and -serial prints one
of them. Without these it needs no Consul.`,
		Examples: []example{
			{"Start from the shipped default", "aimlock policy show > policies/own.hcl"},
			{"Which rules are there for a lock?", "aimlock policy show -policy policies/ aim_lock_config.conf"},
			{"The shipped policies for other tools' locks", "aimlock policy show -policy builtin:foreign-locks"},
			{"What may break locks now, and who said so?", "aimlock policy show -active"},
		},
		Groups: groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&active, "active", false, "Print what was applied last, from Consul.")
			fs.BoolVar(&history, "history", false, "List what was applied and by whom, the last first.")
			fs.Uint64Var(&serial, "serial", 0, "Print the application of serial `N`.")
		},
		MaxArgs:  1,
		Complete: completeLocks,
		Run: func(ctx context.Context, in *input) error {
			if n := countTrue(active, history, in.Set("serial")); n > 1 || n == 1 && (len(in.Args) > 0 || in.Set("policy") || in.Set("var") || in.Set("var-file")) {
				return usagef("-active, -history and -serial each stand alone: they print what is in Consul, whatever the files say")
			}
			switch {
			case active:
				return m.showActive(ctx)
			case history:
				return m.showHistory(ctx)
			case in.Set("serial"):
				return m.showSerial(ctx, serial)
			}
			set, diags := m.loadPolicySet(nil)
			if err := m.policyDiagnostics(set, diags); err != nil {
				return err
			}
			name := ""
			if len(in.Args) > 0 {
				name = in.Args[0]
				if slices.Contains(policies.BuiltinNames(), strings.TrimPrefix(name, policies.BuiltinPrefix)) && !in.Set("policy") {
					shipped := policies.BuiltinPrefix + strings.TrimPrefix(name, policies.BuiltinPrefix)
					m.Notef("Hint: %s is taken for the name of a lock; `aimlock policy show -policy %s` prints the shipped policy.\n", name, shipped)
				}
			}
			if m.JSON {
				return m.PrintJSON(m.policyShowReport(set, name))
			}
			m.policyShowText(set, name)
			return nil
		},
	}
}

// lockID is a lock as people name it: a name without a slash is one of
// aimlock's own.
func (m *Meta) lockID(name string) policies.LockID {
	key := m.Prefix.Lock(name)
	short, own := m.Prefix.LockName(key)
	return policies.LockID{Name: short, Key: key, Own: own}
}

func (m *Meta) policyShowText(set *policies.Set, name string) {
	m.Printf("# hash %s\n", set.Hash)
	if name == "" {
		for _, p := range set.Policies {
			m.Printf("\n# %s line %d\n", p.Range.Filename, p.Range.Start.Line)
			m.policySource(set, p)
		}
		return
	}
	id := m.lockID(name)
	p := set.For(id)
	if p == nil {
		m.Printf("# %s: no policy has a pattern for this lock: it has no rules, and is never broken.\n", id.Name)
		m.policiesTried(set, id)
		if !id.Own {
			m.Notef("%s is a key of another tool: only patterns with a leading slash match it, such as %q.\n", id.Key, "/"+id.Key)
		}
		return
	}
	pattern, _ := p.Pattern(id)
	what := "name " + id.Name
	if strings.HasPrefix(pattern, "/") {
		what = "key " + id.Key
	}
	m.Printf("# %s: policy %q, because %q is the first pattern that matches the %s.\n", id.Name, p.Name, pattern, what)
	m.policiesTried(set, id)
	m.Printf("# %s line %d\n", p.Range.Filename, p.Range.Start.Line)
	m.policySource(set, p)
	m.policyInEffect(p)
}

// policiesTried says which policies were asked first, and do not match.
func (m *Meta) policiesTried(set *policies.Set, id policies.LockID) {
	for _, t := range tried(set, id) {
		patterns := make([]string, 0, len(t.Locks))
		for _, l := range t.Locks {
			patterns = append(patterns, fmt.Sprintf("%q", l))
		}
		m.Printf("# asked before: policy %q, for %s: no match\n", t.Policy, strings.Join(patterns, ", "))
	}
}

// policyInEffect says in comments what counts where the file says nothing.
func (m *Meta) policyInEffect(p *policies.Policy) {
	b := p.Break
	if b == nil {
		m.Printf("\n# In effect: never broken, as there is no break block.\n")
		return
	}
	budget, freeze, quiesce := "no budget", "no freeze", "as the holder's record asks"
	if b.Budget != nil {
		budget = fmt.Sprintf("at most %d in %s", b.Budget.Max, text.Duration(b.Budget.Per))
	}
	if b.Freeze != nil {
		freeze = "frozen while " + b.Freeze.When
	}
	if b.Quiesce != nil {
		quiesce = fmt.Sprintf("%s, or more as the holder's record asks", text.Duration(*b.Quiesce))
	}
	m.Printf("\n# In effect, with what is not written:\n")
	m.Printf("#   approval  %s\n#   confirm   %s, one every %s\n#   budget    %s\n#   freeze    %s\n#   quiesce   %s\n",
		b.Approval, text.Count(b.Confirm.Observations, "observation"), text.Duration(b.Confirm.Every), budget, freeze, quiesce)
	for _, s := range b.Steps {
		when := ""
		if s.When != "" {
			when = ", when " + s.When
		}
		m.Printf("#   step      %s: wait %s, on_error %s%s\n", s.Kind, text.Duration(s.Wait), s.OnError, when)
	}
}

// policySource prints one policy, and in comments the values that it names.
func (m *Meta) policySource(set *policies.Set, p *policies.Policy) {
	for _, name := range slices.Sorted(maps.Keys(set.Values)) {
		if strings.Contains(p.Source, name) {
			m.Printf("# with %s = %s\n", name, policies.ValueJSON(set.Values[name]))
		}
	}
	for _, f := range m.pluginFacts(p) {
		if f.Why != "" {
			m.Printf("# %s is not known: %s\n", f.Fact, f.Why)
			continue
		}
		m.Printf("# %s is a %s: %s\n", f.Fact, f.Type, first(f.Doc, "its plugin does not say of what"))
	}
	text, diags := policies.Format(p.Range.Filename, []byte(p.Source))
	if diags.HasErrors() {
		text = []byte(p.Source + "\n") // it was parsed before: cannot happen
	}
	m.Printf("%s", text)
}

func (m *Meta) policyShowReport(set *policies.Set, name string) policyShowReport {
	r := policyShowReport{Hash: set.Hash, Builtin: set.Builtin, Policies: []policyView{}}
	shown := set.Policies
	if name != "" {
		id := m.lockID(name)
		r.Lock, r.Key, shown, r.Tried = &id.Name, &id.Key, nil, tried(set, id)
		if p := set.For(id); p != nil {
			pattern, _ := p.Pattern(id)
			r.Policy, r.Pattern, shown = &p.Name, &pattern, []*policies.Policy{p}
		}
	}
	for _, p := range shown {
		v := viewPolicy(p)
		v.PluginFacts = m.pluginFacts(p)
		r.Policies = append(r.Policies, v)
	}
	return r
}

func viewPolicy(p *policies.Policy) policyView {
	v := policyView{Name: p.Name, Description: p.Description, File: p.Range.Filename, Line: p.Range.Start.Line, Locks: p.Locks, Rules: []ruleView{}}
	if p.File != "" {
		v.LockFile = &p.File
	}
	for _, r := range p.Rules() {
		v.Rules = append(v.Rules, ruleView{Kind: r.Kind(), Name: r.Name, When: r.When, For: r.For.Seconds(), Proof: r.Proof, Facts: append([]string{}, r.Used()...)})
	}
	b := p.Break
	if b == nil {
		return v
	}
	v.Break = &breakRulesView{Approval: b.Approval, Confirm: confirmView{b.Confirm.Observations, b.Confirm.Every.Seconds()}}
	for _, s := range b.Steps {
		v.Break.Steps = append(v.Break.Steps, breakStepView{s.Kind, s.When, s.Wait.Seconds(), s.OnError})
	}
	if b.Budget != nil {
		v.Break.Budget = &budgetView{b.Budget.Max, b.Budget.Per.Seconds()}
	}
	if b.Freeze != nil {
		v.Break.Freeze = &b.Freeze.When
	}
	if b.Quiesce != nil {
		q := b.Quiesce.Seconds()
		v.Break.Quiesce = &q
	}
	return v
}

func countTrue(list ...bool) int {
	n := 0
	for _, b := range list {
		if b {
			n++
		}
	}
	return n
}
