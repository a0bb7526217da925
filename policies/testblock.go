package policies

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
)

// Test is one test block: given facts, and the verdict that is expected of the
// policies that it stands beside. It never judges a real lock, and does not
// count in Set.Hash.
type Test struct {
	Name  string
	Lock  LockID
	Facts Facts
	// Held is for how long the facts have stood as they are, for `for`.
	Held   time.Duration
	Expect Expect
	Range  hcl.Range
}

// Expect is what a test says of the verdict. What is nil is not looked at.
type Expect struct {
	Policy *string
	State  *string
	Rule   *string
	Reason *string
	File   *string // the path that the policy's file makes of the lock
	Frozen *string // "true", "false" or "unknown"
	// Steps are the kinds of the steps that would be run.
	Steps []string
	Range hcl.Range
}

// TestResult is how one test went. It passed if Problems is empty.
type TestResult struct {
	Test      *Test
	Judgement Judgement
	// Policy is the one that judges the lock; nil if none does.
	Policy   *Policy
	Problems []string
}

// Decisive are the results of the rules that the test is about: the one that
// decided and the one that it expects or, where there is neither, all.
func (r *TestResult) Decisive() []*RuleResult {
	var out []*RuleResult
	for i := range r.Judgement.Results {
		res := &r.Judgement.Results[i]
		if res.Rule == r.Judgement.Rule || r.Test.Expect.Rule != nil && res.Rule.Name == *r.Test.Expect.Rule {
			out = append(out, res)
		}
	}
	if len(out) == 0 || r.Judgement.Rule == nil {
		out = out[:0]
		for i := range r.Judgement.Results {
			out = append(out, &r.Judgement.Results[i])
		}
	}
	return out
}

// RunTests runs every test block of the set whose name match accepts.
func (s *Set) RunTests(match func(name string) bool) []TestResult {
	var out []TestResult
	for _, t := range s.Tests {
		if match == nil || match(t.Name) {
			out = append(out, s.runTest(t))
		}
	}
	return out
}

func (s *Set) runTest(t *Test) TestResult {
	p := s.For(t.Lock)
	var m Memory
	j := p.Judge(t.Facts, &m, "test", 0)
	if t.Held > 0 {
		j = p.Judge(t.Facts, &m, "test", t.Held)
	}
	res := TestResult{Test: t, Judgement: j, Policy: p}
	want := func(what string, want *string, got string) {
		if want != nil && *want != got {
			res.Problems = append(res.Problems, fmt.Sprintf("%s is %q, expected %q", what, got, *want))
		}
	}
	var policy, rule, reason, frozen string
	var steps []string
	if p != nil {
		policy = p.Name
		if p.Break != nil {
			f, _ := p.Break.Frozen(t.Facts)
			frozen = f.String()
			for _, st := range p.Break.Steps {
				if run, _, _ := st.Applies(t.Facts); run {
					steps = append(steps, st.Kind)
				}
			}
		}
	}
	if j.Rule != nil {
		rule, reason = j.Rule.Name, j.Result.Reason
	}
	want("the policy", t.Expect.Policy, policy)
	want("the state", t.Expect.State, j.State)
	want("the rule", t.Expect.Rule, rule)
	want("the reason", t.Expect.Reason, reason)
	if t.Expect.File != nil {
		want("the file", t.Expect.File, p.testFile(t))
	}
	want("frozen", t.Expect.Frozen, frozen)
	if t.Expect.Steps != nil && !slices.Equal(t.Expect.Steps, steps) {
		res.Problems = append(res.Problems, fmt.Sprintf("the steps are %q, expected %q", steps, t.Expect.Steps))
	}
	return res
}

var testSchema = &hcl.BodySchema{
	Attributes: []hcl.AttributeSchema{{Name: "lock"}, {Name: "facts", Required: true}, {Name: "held"}},
	Blocks:     []hcl.BlockHeaderSchema{{Type: "expect"}},
}

var expectSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{
	{Name: "state"}, {Name: "rule"}, {Name: "reason"}, {Name: "policy"}, {Name: "file"}, {Name: "frozen"}, {Name: "steps"},
}}

// testFunctions are for writing facts down, beside those of policies.
var testFunctions = func() map[string]function.Function {
	out := maps.Clone(functions)
	out["unknown"] = function.New(&function.Spec{
		Description: "A fact that could not be had.",
		Type:        function.StaticReturnType(cty.DynamicPseudoType),
		Impl:        func([]cty.Value, cty.Type) (cty.Value, error) { return cty.DynamicVal, nil },
	})
	out["atleast"] = function.New(&function.Spec{
		Description: "A number that is not known but is at least this.",
		Params:      []function.Parameter{{Name: "least", Type: cty.Number}},
		Type:        function.StaticReturnType(cty.Number),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			return cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(args[0], true).NewValue(), nil
		},
	})
	return out
}()

func (d *decoder) decodeTests(blocks hcl.Blocks) {
	if len(blocks) == 0 {
		return
	}
	c := *d.check
	c.functions = testFunctions
	d.check = &c
	seen := map[string]hcl.Range{}
	for _, b := range blocks {
		d.unique(seen, "test", b)
		d.tests = append(d.tests, d.test(b))
	}
}

func (d *decoder) test(b *hcl.Block) *Test {
	t := &Test{Name: b.Labels[0], Range: b.DefRange, Lock: LockID{Name: "test", Key: "aimlock/locks/test", Own: true}}
	content := d.content(b.Body, testSchema)
	if a := content.Attributes["lock"]; a != nil {
		if name, ok := d.stringAttr(a); ok {
			// As on the command line: with a slash it is a whole key.
			const locks = "aimlock/locks/"
			key := strings.TrimPrefix(name, "/")
			switch own, ok := strings.CutPrefix(key, locks); {
			case ok:
				t.Lock = LockID{Name: own, Key: key, Own: true}
			case strings.Contains(name, "/"):
				t.Lock = LockID{Name: key, Key: key}
			default:
				t.Lock = LockID{Name: name, Key: locks + name, Own: true}
			}
		}
	}
	if a := content.Attributes["held"]; a != nil {
		t.Held, _ = d.durationAttr(a)
	}
	if a := content.Attributes["facts"]; a != nil {
		t.Facts = d.facts(a.Expr.(hclsyntax.Expression))
	}
	expects := content.Blocks.OfType("expect")
	if len(expects) != 1 {
		d.fail(b.DefRange, "Nothing expected", "A test has one expect block, which says what the verdict shall be.")
		return t
	}
	d.expect(expects[0], &t.Expect)
	return t
}

func (d *decoder) expect(b *hcl.Block, out *Expect) {
	out.Range = b.DefRange
	content := d.content(b.Body, expectSchema)
	if len(content.Attributes) == 0 {
		d.fail(b.DefRange, "Nothing expected", "Say what the verdict shall be, such as state = \"HOT\".")
	}
	for name, a := range content.Attributes {
		switch name {
		case "state":
			if w, ok := d.wordAttr(a, StateHeld, StateWarm, StateHot, StateUnknown); ok {
				out.State = &w
			}
		case "frozen":
			if v, ok := d.constant(a); ok {
				if v.Type() == cty.Bool {
					w := triOf(v.True()).String()
					out.Frozen = &w
				} else if w, ok := d.wordAttr(a, "unknown"); ok {
					out.Frozen = &w
				}
			}
		case "steps":
			d.expectSteps(a, out)
		default:
			if s, ok := d.stringAttr(a); ok {
				*map[string]**string{"rule": &out.Rule, "reason": &out.Reason, "policy": &out.Policy, "file": &out.File}[name] = &s
			}
		}
	}
}

func (d *decoder) expectSteps(a *hcl.Attribute, out *Expect) {
	v, ok := d.constant(a)
	if !ok {
		return
	}
	list, err := convert.Convert(v, cty.List(cty.String))
	if err != nil {
		d.fail(a.Expr.Range(), "Invalid steps", `A list of steps is required here, such as ["request", "take"].`)
		return
	}
	out.Steps = []string{}
	for it := list.ElementIterator(); it.Next(); {
		_, e := it.Element()
		if !e.IsNull() {
			out.Steps = append(out.Steps, e.AsString())
		}
	}
}

// facts reads facts that are written down as an object of objects. An object
// that is null has only null facts; what is not there is unknown.
func (d *decoder) facts(e hclsyntax.Expression) Facts {
	v, diags := d.check.check(e, true)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return nil
	}
	out := Facts{}
	if !v.IsKnown() || v.IsNull() || !v.Type().IsObjectType() {
		d.fail(e.Range(), "Invalid facts", "Facts are written as { holder = { alive = false } }.")
		return nil
	}
	ranges := itemRanges(e)
	for object, attrs := range v.AsValueMap() {
		where, ok := ranges[object]
		if !ok {
			where = e.Range()
		}
		if object == pluginObject {
			if attrs.IsKnown() && !attrs.IsNull() && attrs.Type().IsObjectType() {
				for plugin, facts := range attrs.AsValueMap() {
					d.objectFacts(out, pluginObject+"."+plugin, facts, nil, where)
				}
			}
			continue
		}
		defs, ok := schema[object]
		if !ok {
			d.fail(where, "Unknown object", "There is no object %q.%s", object, didYouMean(object, objectNames(), "The objects are "+strings.Join(objectNames(), ", ")+"."))
			continue
		}
		d.objectFacts(out, object, attrs, defs, where)
	}
	return out
}

// objectFacts reads the facts of one object; defs is nil where anything goes.
func (d *decoder) objectFacts(out Facts, object string, v cty.Value, defs map[string]FactDef, where hcl.Range) {
	facts := map[string]Fact{}
	out[object] = facts
	switch {
	case !v.IsKnown():
		return
	case v.IsNull():
		for name, def := range defs {
			facts[name] = Fact{Value: cty.NullVal(def.Type), Source: "test"}
		}
		return
	case !v.Type().IsObjectType():
		d.fail(where, "Invalid facts", "The facts of %s are written as { %s = … }, or null.", object, strings.Join(sortedKeys(defs), " = …, "))
		return
	}
	for name, value := range v.AsValueMap() {
		if defs != nil {
			def, ok := defs[name]
			if !ok {
				d.fail(where, "Unknown fact", "%s has no fact %q.%s", object, name, didYouMean(name, sortedKeys(defs), "Its facts are "+strings.Join(sortedKeys(defs), ", ")+"."))
				continue
			}
			c, err := convert.Convert(value, def.Type)
			if err != nil || value.IsKnown() && !value.IsNull() && value.Type().IsPrimitiveType() && value.Type() != def.Type {
				d.fail(where, "Wrong type", "%s.%s is a %s.", object, name, def.Type.FriendlyName())
				continue
			}
			value = c
		}
		fact := Fact{Value: value, Source: "test"}
		if !value.IsKnown() {
			fact.Why = "unknown in this test"
		}
		facts[name] = fact
	}
}

// itemRanges are the ranges of the items of an object that is written out.
func itemRanges(e hclsyntax.Expression) map[string]hcl.Range {
	out := map[string]hcl.Range{}
	if obj, ok := e.(*hclsyntax.ObjectConsExpr); ok {
		for _, item := range obj.Items {
			if k := hcl.ExprAsKeyword(item.KeyExpr); k != "" {
				out[k] = hcl.RangeBetween(item.KeyExpr.Range(), item.ValueExpr.Range())
			}
		}
	}
	return out
}
