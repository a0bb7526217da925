package policies

import (
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/schedule"
)

const (
	inWindow = "in_window"
	// unixFact is the fact that in_window reads.
	unixFact = "now.unix"
)

// inWindowFunc declares in_window. Compiling replaces each call, with the fact
// now.unix beside its arguments: a function itself sees no facts.
var inWindowFunc = function.New(&function.Spec{
	Description: `A window that opens by a cron expression and stays open for a duration is open: in_window("0 2 * * 1-5", "4h", "Europe/Berlin").`,
	Params: []function.Parameter{
		{Name: "schedule", Type: cty.String},
		{Name: "duration", Type: cty.DynamicPseudoType},
	},
	VarParam: &function.Parameter{Name: "timezone", Type: cty.String},
	Type: func(args []cty.Value) (cty.Type, error) {
		if len(args) > 3 {
			return cty.NilType, errors.New("it takes a schedule, a duration and a time zone")
		}
		return cty.Bool, nil
	},
	Impl: func([]cty.Value, cty.Type) (cty.Value, error) { return unknownBool, nil },
})

// parseWindow reads the arguments of in_window. The error names the argument,
// counted from 0; -1 is the call.
func parseWindow(args []cty.Value) (*schedule.Schedule, int, error) {
	if len(args) < 2 || len(args) > 3 {
		return nil, -1, errors.New("it takes a schedule, a duration and a time zone")
	}
	for i, a := range args {
		if !a.IsWhollyKnown() || a.IsNull() {
			return nil, i, errors.New("a window is made of constants, so that it can be checked before it is needed")
		}
		if a.Type() != cty.String && (i != 1 || a.Type() != cty.Number) {
			return nil, i, fmt.Errorf("a text is required here, not a %s", a.Type().FriendlyName())
		}
	}
	w := orchestrator.Window{Schedule: args[0].AsString()}
	var err error
	if w.Duration, err = durationValue(args[1]); err != nil {
		return nil, 1, err
	}
	if w.Duration > schedule.MaxDuration {
		return nil, 1, errors.New("a window is open for a week at most")
	}
	if len(args) == 3 {
		w.Timezone = args[2].AsString()
	}
	s, err := schedule.Parse(w)
	if err == nil {
		return s, 0, nil
	}
	at := -1
	if fe, ok := errors.AsType[*schedule.FieldError](err); ok {
		at, err = map[string]int{"schedule": 0, "duration": 1, "timezone": 2}[fe.Field], fe.Err
	}
	return nil, at, err
}

// durationValue is a duration that is written as text or as a number of seconds.
func durationValue(v cty.Value) (time.Duration, error) {
	if v.Type() == cty.String {
		return ParseDuration(v.AsString())
	}
	secs, _ := v.AsBigFloat().Float64()
	if secs < 0 || secs > maxDuration.Seconds() {
		return 0, errors.New("a duration is not negative and at most ten years")
	}
	return time.Duration(secs * float64(time.Second)), nil
}

// checkWindow reports what is wrong with a call of in_window.
func (c *checker) checkWindow(call *hclsyntax.FunctionCallExpr, constant bool) hcl.Diagnostics {
	fail := func(subject hcl.Range, summary, detail string) hcl.Diagnostics {
		return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: summary, Detail: detail, Subject: &subject, Context: call.Range().Ptr()}}
	}
	if constant {
		return fail(call.NameRange, "Fact not allowed here", "in_window reads now.unix, and facts are read only in rules. Write a constant here.")
	}
	args := make([]cty.Value, 0, len(call.Args))
	for _, a := range call.Args {
		v, diags := c.evaluate(a, c.base)
		if diags.HasErrors() {
			return nil // reported with the whole expression
		}
		args = append(args, v)
	}
	_, at, err := parseWindow(args)
	switch {
	case err == nil:
		return nil
	case at < 0 || at >= len(call.Args):
		return fail(call.Range(), "Invalid window", upperFirst(err.Error())+`: in_window("0 2 * * 1-5", "4h", "Europe/Berlin").`)
	}
	return fail(call.Args[at].Range(), "Invalid window", upperFirst(err.Error())+".")
}

// windowExpr is a compiled call of in_window. The call is embedded for what an
// expression is beside its value.
type windowExpr struct {
	*hclsyntax.FunctionCallExpr
	window *schedule.Schedule
}

// window compiles a checked call; nil if its arguments are not constant.
func (c *compiler) window(call *hclsyntax.FunctionCallExpr) *windowExpr {
	args := make([]cty.Value, 0, len(call.Args))
	for _, a := range call.Args {
		lit, ok := a.(*hclsyntax.LiteralValueExpr)
		if !ok {
			return nil
		}
		args = append(args, lit.Val)
	}
	s, _, err := parseWindow(args)
	if err != nil {
		return nil
	}
	c.ref(hcl.Traversal{hcl.TraverseRoot{Name: "now"}, hcl.TraverseAttr{Name: "unix"}})
	return &windowExpr{call, s}
}

func (w *windowExpr) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	now, ok := lookup(ctx, unixFact)
	switch {
	case !ok || !now.IsKnown():
		return unknownBool, nil
	case now.IsNull():
		return nullBool, nil
	}
	t, ok := unixTime(now.AsBigFloat())
	if !ok {
		return unknownBool, nil
	}
	open, _ := w.window.At(t)
	return cty.BoolVal(open), nil
}

// lookup finds a variable of ctx or, within a for expression, of what is around
// it.
func lookup(ctx *hcl.EvalContext, name string) (cty.Value, bool) {
	for ; ctx != nil; ctx = ctx.Parent() {
		if v, ok := ctx.Variables[name]; ok {
			return v, true
		}
	}
	return cty.NilVal, false
}

// unixTime is a number of seconds since 1970 as a time; not ok beyond the years
// that a calendar is sensible for.
func unixTime(f *big.Float) (time.Time, bool) {
	secs, _ := f.Int64()
	if secs < -1<<37 || secs > 1<<37 {
		return time.Time{}, false
	}
	rest, _ := new(big.Float).Sub(f, new(big.Float).SetInt64(secs)).Float64()
	return time.Unix(secs, int64(rest*1e9)), true
}

func hasWindow(e hclsyntax.Expression) bool {
	found := false
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		_, ok := n.(*windowExpr)
		found = found || ok
		return nil
	})
	return found
}
