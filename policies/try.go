package policies

import (
	"errors"

	"github.com/hashicorp/hcl/v2/ext/customdecode"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// tryFunc and canFunc differ from HCL's in two things. What reads a fact that is
// not known may fail or not when it is known, so that it decides nothing. And an
// expression is evaluated once, not once for its type and once for its value: a
// nest of them would take twice as long at each level.
var (
	tryFunc = function.New(&function.Spec{
		Description: "The first of the expressions that can be evaluated.",
		VarParam:    &function.Parameter{Name: "expressions", Type: customdecode.ExpressionClosureType},
		Type:        function.StaticReturnType(cty.DynamicPseudoType),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			for _, a := range args {
				closure := customdecode.ExpressionClosureFromVal(a)
				if readsUnknown(closure) {
					return cty.DynamicVal, nil
				}
				if v, diags := closure.Value(); !diags.HasErrors() {
					return v, nil
				}
			}
			return cty.DynamicVal, errors.New("none of the expressions can be evaluated")
		},
	})
	canFunc = function.New(&function.Spec{
		Description: "The expression can be evaluated.",
		Params:      []function.Parameter{{Name: "expression", Type: customdecode.ExpressionClosureType}},
		Type:        function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			closure := customdecode.ExpressionClosureFromVal(args[0])
			if readsUnknown(closure) {
				return unknownBool, nil
			}
			_, diags := closure.Value()
			return cty.BoolVal(!diags.HasErrors()), nil
		},
	})
)

// readsUnknown reports whether the expression reads something that is not known.
func readsUnknown(closure *customdecode.ExpressionClosure) bool {
	e, ok := closure.Expression.(hclsyntax.Expression)
	if !ok {
		return true
	}
	for _, t := range hclsyntax.Variables(e) {
		if v, diags := t.TraverseAbs(closure.EvalContext); !diags.HasErrors() && !v.IsWhollyKnown() {
			return true
		}
	}
	return false
}
