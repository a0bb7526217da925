package policies

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// decoder makes policies of parsed files. It goes on after an error, so that
// all of them come at once.
type decoder struct {
	diags hcl.Diagnostics
	// partial says that a file could not be parsed: what it may have declared is
	// not missed.
	partial bool
	src     map[string][]byte

	consts   map[string]cty.Value // var.x, local.x
	vars     map[string]cty.Value
	given    map[string]string    // as -var would give it
	declared map[string]hcl.Range // where each of consts is
	used     map[string]bool      // which of consts something names
	check    *checker
	policies []*Policy
	tests    []*Test
	rules    int
	cases    int // what the search for impossible conditions has cost
}

var fileSchema = &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{
	{Type: "policy", LabelNames: []string{"name"}},
	{Type: "variable", LabelNames: []string{"name"}},
	{Type: "locals"},
	{Type: "test", LabelNames: []string{"name"}},
}}

var policySchema = &hcl.BodySchema{
	Attributes: []hcl.AttributeSchema{{Name: "locks", Required: true}, {Name: "description"}, {Name: "file"}},
	Blocks: []hcl.BlockHeaderSchema{
		{Type: "warm", LabelNames: []string{"name"}},
		{Type: "hot", LabelNames: []string{"name"}},
		{Type: "break"},
	},
}

var ruleSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{
	{Name: "when", Required: true}, {Name: "for"}, {Name: "proof"}, {Name: "reason"},
}}

func (d *decoder) report(severity hcl.DiagnosticSeverity, subject hcl.Range, summary, detail string, args ...any) {
	d.diags = append(d.diags, &hcl.Diagnostic{Severity: severity, Summary: summary, Detail: fmt.Sprintf(detail, args...), Subject: &subject})
}

func (d *decoder) fail(subject hcl.Range, summary, detail string, args ...any) {
	d.report(hcl.DiagError, subject, summary, detail, args...)
}

func (d *decoder) warn(subject hcl.Range, summary, detail string, args ...any) {
	d.report(hcl.DiagWarning, subject, summary, detail, args...)
}

// content decodes a body against its schema. A "name" label that is missing or
// too many is reported by HCL.
func (d *decoder) content(body hcl.Body, schema *hcl.BodySchema) *hcl.BodyContent {
	content, diags := body.Content(schema)
	for _, diag := range diags {
		if kind, ok := strings.CutPrefix(diag.Summary, "Missing name for "); ok {
			diag.Detail = fmt.Sprintf("A %s block has a name in quotes: %s \"…\" {", kind, kind)
		}
		if kind, ok := strings.CutPrefix(diag.Summary, "Extraneous label for "); ok && strings.HasPrefix(diag.Detail, "Only 1 ") {
			diag.Detail = fmt.Sprintf("A %s block has one name in quotes: %s \"…\" {", kind, kind)
		}
	}
	d.diags = append(d.diags, diags...)
	return content
}

func (d *decoder) decode(files []parsedFile, opts Options, given map[string]given) {
	var policies, tests, variables, locals hcl.Blocks
	for _, f := range files {
		for _, b := range d.content(f.body, fileSchema).Blocks {
			switch b.Type {
			case "policy":
				policies = append(policies, b)
			case "test":
				tests = append(tests, b)
			case "variable":
				variables = append(variables, b)
			case "locals":
				locals = append(locals, b)
			}
		}
	}
	d.decodeConsts(variables, locals, opts, given)
	d.setChecker()

	first := map[string]hcl.Range{}
	for _, b := range policies {
		if d.rules > maxRules {
			d.fail(b.DefRange, "Too many rules", "The policies have more than %d rules in all.", maxRules)
			return
		}
		d.unique(first, "policy", b)
		d.policies = append(d.policies, d.policy(b))
	}
	if len(policies) == 0 && !d.partial && !d.diags.HasErrors() {
		d.diags = append(d.diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "No policies",
			Detail:   "There is no policy block in these files, so that no lock would have rules. Write one, or leave -policy away for the shipped default.",
		})
	}
	d.unreachable()
	d.decodeTests(tests)
	d.unused()
}

// unique reports a label that was used before, and one that cannot be a name.
func (d *decoder) unique(seen map[string]hcl.Range, kind string, b *hcl.Block) {
	name := b.Labels[0]
	if prev, ok := seen[name]; ok {
		d.fail(b.LabelRanges[0], "Duplicate "+kind, "The %s %q was declared at %s already. Give each a name of its own.", kind, clip(name, 100), prev)
		return
	}
	seen[name] = b.LabelRanges[0]
	if name == "" || len(name) > 100 || printable(name) != name {
		d.fail(b.LabelRanges[0], "Invalid name", "The name of a %s has 1 to 100 bytes and no control characters.", kind)
	}
}

// unreachable warns of policies that an earlier one leaves no lock to.
func (d *decoder) unreachable() {
	var before []*glob
	owner := map[*glob]*Policy{}
	for _, p := range d.policies {
		var by *Policy
		covered := len(p.globs) > 0
		for _, g := range p.globs {
			i := slices.IndexFunc(before, func(b *glob) bool { return b.covers(g) })
			if i < 0 {
				covered = false
				break
			}
			by = owner[before[i]]
		}
		if covered {
			d.warn(p.Range, "Policy never used", "Every lock of policy %q is taken by policy %q before it: the first policy whose locks match wins. Put the narrower one first.", p.Name, by.Name)
		}
		// Only patterns that can cover others are worth comparing with.
		for _, g := range p.globs {
			if len(before) < 1000 || g.text == "**" || g.text == "/**" {
				before = append(before, g)
				owner[g] = p
			}
		}
	}
}

func (d *decoder) policy(b *hcl.Block) *Policy {
	p := &Policy{Name: b.Labels[0], Range: b.DefRange}
	if body, ok := b.Body.(*hclsyntax.Body); ok {
		p.Source = d.text(hcl.RangeBetween(b.DefRange, body.SrcRange))
	}
	content := d.content(b.Body, policySchema)
	if a := content.Attributes["description"]; a != nil {
		p.Description, _ = d.stringAttr(a)
	}
	if a := content.Attributes["locks"]; a != nil {
		d.locks(p, a)
	}
	compile := &compiler{consts: d.consts, refs: map[string]*factRef{}, src: d.src}
	if a := content.Attributes["file"]; a != nil {
		d.file(p, a, compile)
	}
	seen := map[string]hcl.Range{}
	for _, rb := range content.Blocks.OfType("break") {
		if p.Break != nil {
			d.fail(rb.DefRange, "Duplicate break block", "A policy has one break block. The first is at %s.", p.Break.Range)
			continue
		}
		p.Break = d.breaking(rb, compile)
	}
	reads := map[*factRef]bool{}
	for _, rb := range content.Blocks {
		if rb.Type == "break" {
			continue
		}
		d.unique(seen, "rule", rb)
		r := d.rule(p, rb, compile)
		if r.when == nil {
			continue
		}
		if content.Attributes["file"] == nil {
			d.unnamedFile(p, r.when)
		}
		for _, e := range []*expr{r.when, r.reason} {
			if e == nil {
				continue
			}
			for _, ref := range e.reads {
				if !reads[ref] {
					reads[ref] = true
					p.reads = append(p.reads, ref)
				}
			}
		}
		p.rules = append(p.rules, r)
		if r.Hot {
			p.Hot = append(p.Hot, r)
		} else {
			p.Warm = append(p.Warm, r)
		}
	}
	p.names = &Names{objects: map[string]map[string]bool{}}
	p.names.add(p.reads)
	if p.file != nil {
		p.names.add(p.file.reads)
	}
	if p.Break != nil && len(content.Blocks.OfType("hot")) == 0 {
		d.warn(p.Break.Range, "Nothing to break", "Policy %q has a break block and no hot rule, so that none of its locks is ever broken.", p.Name)
	}
	d.tooYoung(p)
	return p
}

func (d *decoder) locks(p *Policy, a *hcl.Attribute) {
	v, ok := d.constant(a)
	if !ok {
		return
	}
	if !v.CanIterateElements() || v.Type().IsMapType() || v.Type().IsObjectType() || v.LengthInt() == 0 {
		d.fail(a.Expr.Range(), "Invalid lock patterns", `A list of at least one pattern is required here, such as ["**"].`)
		return
	}
	ranges := elementRanges(a.Expr, v.LengthInt())
	i := 0
	for it := v.ElementIterator(); it.Next(); i++ {
		_, e := it.Element()
		if e.IsNull() || e.Type() != cty.String {
			d.fail(ranges[i], "Invalid lock pattern", "A pattern is a string.")
			continue
		}
		g, err := parseGlob(e.AsString())
		if err != nil {
			d.fail(ranges[i], "Invalid lock pattern", "%s.", upperFirst(err.Error()))
			continue
		}
		p.Locks = append(p.Locks, g.text)
		p.globs = append(p.globs, g)
	}
}

// elementRanges are the ranges of the n elements of a list, as far as it is
// written out.
func elementRanges(e hcl.Expression, n int) []hcl.Range {
	out := make([]hcl.Range, n)
	for i := range out {
		out[i] = e.Range()
	}
	if list, ok := e.(*hclsyntax.TupleConsExpr); ok && len(list.Exprs) == n {
		for i, x := range list.Exprs {
			out[i] = x.Range()
		}
	}
	return out
}

func (d *decoder) rule(p *Policy, b *hcl.Block, compile *compiler) *Rule {
	d.rules++
	r := &Rule{Name: b.Labels[0], Hot: b.Type == "hot", Range: b.DefRange}
	content := d.content(b.Body, ruleSchema)
	if a := content.Attributes["for"]; a != nil {
		r.For, _ = d.durationAttr(a)
	}
	if a := content.Attributes["proof"]; a != nil {
		r.Proof, _ = d.boolAttr(a)
	}
	if a := content.Attributes["reason"]; a != nil {
		r.reason = d.template(a, compile)
	}
	a := content.Attributes["when"]
	if a == nil {
		return r
	}
	r.When = d.source(a.Expr.Range())
	r.when = d.condition(a, compile, fmt.Sprintf("Rule %q", r.Name))
	if r.when == nil {
		return r
	}
	fact, ages := r.when.ages()
	r.ages = ages || r.when.horizon.clock
	proof := content.Attributes["proof"]
	switch {
	case r.Proof && !r.Hot:
		d.fail(proof.Range, "Proof on a warm rule", "Only a hot rule can rest on proof: a warm one is never acted on. Remove this line.")
	case r.Proof && ages:
		d.fail(proof.Range, "No proof", "Rule %q reads %s, an age, and silence is no proof. Remove proof = true, so that confirm and freeze apply, or rest the rule on a fact such as holder.alive.", r.Name, fact)
	case r.Proof && r.For > 0:
		d.warn(content.Attributes["for"].Range, "Proof that must wait", "Rule %q rests on proof, which needs no time: with a `for`, a process that sees the lock for the first time cannot act on it.", r.Name)
	}
	sum := sha256.Sum256([]byte(p.Name + "\x00" + r.Kind() + "\x00" + r.Name + "\x00" + r.When))
	r.key = r.Kind() + "/" + r.Name + "/" + hex.EncodeToString(sum[:6])
	return r
}

// condition compiles an expression that must be true or false; nil if it is
// wrong. who begins the sentence about a condition that is constant.
func (d *decoder) condition(a *hcl.Attribute, compile *compiler, who string) *expr {
	e := a.Expr.(hclsyntax.Expression)
	v, diags := d.check.check(e, false)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return nil
	}
	if t := v.Type(); t != cty.Bool && t != cty.DynamicPseudoType {
		d.fail(e.Range(), "Condition required", "This is a %s. A condition is true or false, such as holder.alive == false.", t.FriendlyName())
		return nil
	}
	out := compile.compile(e)
	if out.typed != nil {
		out.typed.who = who
	}
	if len(diags) == 0 {
		d.reachable(out, who, e.Range())
	}
	return out
}

// template compiles a string that is made when it is needed.
func (d *decoder) template(a *hcl.Attribute, compile *compiler) *expr {
	e := a.Expr.(hclsyntax.Expression)
	v, diags := d.check.check(e, false)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return nil
	}
	if t := v.Type(); !t.IsPrimitiveType() && t != cty.DynamicPseudoType {
		d.fail(e.Range(), "Text required", "This is a %s. A reason is a text, such as \"process ${holder.pid} is gone\".", t.FriendlyName())
		return nil
	}
	return compile.compile(e)
}

// constant evaluates an argument that may not read facts.
func (d *decoder) constant(a *hcl.Attribute) (cty.Value, bool) {
	v, diags := d.check.check(a.Expr.(hclsyntax.Expression), true)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return cty.NilVal, false
	}
	if !v.IsWhollyKnown() && d.diags.HasErrors() {
		return cty.NilVal, false // it rests on a value that is wrong
	}
	if v.IsNull() || !v.IsWhollyKnown() {
		d.fail(a.Expr.Range(), "Value required", "%q needs a value that is known and not null.", a.Name)
		return cty.NilVal, false
	}
	return v, true
}

func (d *decoder) stringAttr(a *hcl.Attribute) (string, bool) {
	v, ok := d.constant(a)
	if !ok {
		return "", false
	}
	if v.Type() != cty.String {
		d.fail(a.Expr.Range(), "Text required", "%q is a text in quotes, not a %s.", a.Name, v.Type().FriendlyName())
		return "", false
	}
	return v.AsString(), true
}

func (d *decoder) boolAttr(a *hcl.Attribute) (bool, bool) {
	v, ok := d.constant(a)
	if !ok {
		return false, false
	}
	if v.Type() != cty.Bool {
		d.fail(a.Expr.Range(), "True or false required", "%q is true or false, not a %s.", a.Name, v.Type().FriendlyName())
		return false, false
	}
	return v.True(), true
}

// durationAttr reads "10m", or a number of seconds such as duration() gives.
func (d *decoder) durationAttr(a *hcl.Attribute) (time.Duration, bool) {
	v, ok := d.constant(a)
	if !ok {
		return 0, false
	}
	switch v.Type() {
	case cty.String:
		dur, err := ParseDuration(v.AsString())
		if err != nil {
			d.fail(a.Expr.Range(), "Invalid duration", "%s.", upperFirst(err.Error()))
			return 0, false
		}
		return dur, true
	case cty.Number:
		secs, _ := v.AsBigFloat().Float64()
		if secs < 0 || secs > maxDuration.Seconds() {
			d.fail(a.Expr.Range(), "Invalid duration", "A duration is not negative and at most ten years.")
			return 0, false
		}
		return time.Duration(secs * float64(time.Second)), true
	}
	d.fail(a.Expr.Range(), "Invalid duration", `%q is a duration such as "10m", not a %s.`, a.Name, v.Type().FriendlyName())
	return 0, false
}

// intAttr reads a whole number from 1 to most.
func (d *decoder) intAttr(a *hcl.Attribute, most int64) (int, bool) {
	v, ok := d.constant(a)
	if !ok {
		return 0, false
	}
	if v.Type() == cty.Number {
		if n, acc := v.AsBigFloat().Int64(); acc == big.Exact && n >= 1 && n <= most {
			return int(n), true
		}
	}
	d.fail(a.Expr.Range(), "Invalid number", "%q is a whole number from 1 to %d.", a.Name, most)
	return 0, false
}

// wordAttr reads one of a few words.
func (d *decoder) wordAttr(a *hcl.Attribute, words ...string) (string, bool) {
	s, ok := d.stringAttr(a)
	if !ok {
		return "", false
	}
	if !slices.Contains(words, s) {
		d.fail(a.Expr.Range(), "Invalid "+a.Name, "%q is not known here.%s", clip(s, 40), didYouMean(s, words, "It is one of "+strings.Join(words, ", ")+"."))
		return "", false
	}
	return s, true
}

// source is the text of a range, on one line.
func (d *decoder) source(r hcl.Range) string { return strings.Join(strings.Fields(d.text(r)), " ") }

func (d *decoder) text(r hcl.Range) string {
	src := d.src[r.Filename]
	if !r.CanSliceBytes(src) {
		return ""
	}
	return string(r.SliceBytes(src))
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
