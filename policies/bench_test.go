package policies

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// fiveRules are the hot rules of the shipped default.
var fiveRules = []string{
	`holder.alive == false`,
	`contains(["complete", "failed"], nomad.client_status) || nomad.gone`,
	`check.status == "critical" && !holder.local`,
	`progress.age > duration("10m")`,
	`rollout.finished && rollout.finished_ago > duration("30m")`,
}

func fiveRulesFacts() Facts {
	return Facts{
		"holder":   {"alive": {Value: cty.True}, "local": {Value: cty.False}},
		"nomad":    {"client_status": {Value: cty.StringVal("running")}, "gone": {Value: cty.False}},
		"check":    {"status": {Value: cty.StringVal("passing")}},
		"progress": {"age": {Value: cty.NumberIntVal(3)}},
		"rollout":  {"finished": {Value: cty.False}, "finished_ago": {Value: cty.NullVal(cty.Number)}},
	}
}

// BenchmarkJudgeFiveRules against BenchmarkBareEvaluation is what a verdict
// costs over HCL's own evaluation of its five expressions: aim at 1.2 or less.
func BenchmarkJudgeFiveRules(b *testing.B) {
	var src strings.Builder
	src.WriteString("policy \"p\" {\n  locks = [\"**\"]\n")
	for i, r := range fiveRules {
		fmt.Fprintf(&src, "  hot \"r%d\" {\n    when = %s\n  }\n", i, r)
	}
	src.WriteString("}\n")
	set, diags := Parse("p.hcl", []byte(src.String()))
	if diags.HasErrors() {
		b.Fatal(diags)
	}
	p, facts := set.Policies[0], fiveRulesFacts()
	var m Memory
	b.ReportAllocs()
	for b.Loop() {
		if j := p.Judge(facts, &m, "h", time.Second); j.State != StateHeld {
			b.Fatalf("%+v", j)
		}
	}
}

// BenchmarkBareEvaluation evaluates the same five expressions with HCL alone, in
// a context of plain objects that is made anew for each set of facts.
func BenchmarkBareEvaluation(b *testing.B) {
	var exprs []hclsyntax.Expression
	for _, r := range fiveRules {
		e, diags := hclsyntax.ParseExpression([]byte(r), "bare", hcl.InitialPos)
		if diags.HasErrors() {
			b.Fatal(diags)
		}
		exprs = append(exprs, e)
	}
	facts := fiveRulesFacts()
	funcs := map[string]function.Function{"contains": stdlib.ContainsFunc, "duration": durationFunc}
	b.ReportAllocs()
	for b.Loop() {
		ctx := &hcl.EvalContext{Variables: map[string]cty.Value{}, Functions: funcs}
		for object, attrs := range facts {
			values := make(map[string]cty.Value, len(attrs))
			for name, f := range attrs {
				values[name] = f.Value
			}
			ctx.Variables[object] = cty.ObjectVal(values)
		}
		for _, e := range exprs {
			if v, _ := e.Value(ctx); v.IsKnown() && v.True() {
				b.Fatal("a rule holds")
			}
		}
	}
}

// BenchmarkBareEvaluationOnly leaves the making of the context out: the lowest
// that any judge built on HCL could cost.
func BenchmarkBareEvaluationOnly(b *testing.B) {
	var exprs []hclsyntax.Expression
	for _, r := range fiveRules {
		e, diags := hclsyntax.ParseExpression([]byte(r), "bare", hcl.InitialPos)
		if diags.HasErrors() {
			b.Fatal(diags)
		}
		exprs = append(exprs, e)
	}
	ctx := &hcl.EvalContext{Variables: map[string]cty.Value{}, Functions: map[string]function.Function{"contains": stdlib.ContainsFunc, "duration": durationFunc}}
	for object, attrs := range fiveRulesFacts() {
		values := make(map[string]cty.Value, len(attrs))
		for name, f := range attrs {
			values[name] = f.Value
		}
		ctx.Variables[object] = cty.ObjectVal(values)
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, e := range exprs {
			_, _ = e.Value(ctx)
		}
	}
}

func BenchmarkJudgeDefault(b *testing.B) {
	set, err := Builtin(BuiltinDefault)
	if err != nil {
		b.Fatal(err)
	}
	p, facts := set.Policies[0], fiveRulesFacts()
	var m Memory
	b.ReportAllocs()
	for b.Loop() {
		p.Judge(facts, &m, "h", time.Second)
	}
}

func BenchmarkLoad10000Rules(b *testing.B) {
	var src strings.Builder
	for i := range 10000 {
		if i%100 == 0 {
			fmt.Fprintf(&src, "policy \"p%d\" {\nlocks = [\"l%d\"]\n", i, i)
		}
		fmt.Fprintf(&src, "hot \"r%d\" {\nwhen = progress.age > %d && holder.alive\n}\n", i, i)
		if i%100 == 99 {
			src.WriteString("}\n")
		}
	}
	text := []byte(src.String())
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, diags := Parse("p.hcl", text); diags.HasErrors() {
			b.Fatal(diags)
		}
	}
}
