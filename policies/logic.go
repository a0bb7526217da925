package policies

import (
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// Tri is the answer of a rule.
type Tri int

// The three answers. The zero value is False: what was not evaluated does not
// hold.
const (
	False Tri = iota
	True
	Unknown
)

func (t Tri) String() string {
	switch t {
	case True:
		return "true"
	case Unknown:
		return "unknown"
	}
	return "false"
}

// The operators below replace HCL's own in compiled expressions. They differ
// in one thing: a null operand makes the result null instead of an error or,
// for == and !=, an answer. So `rollout.state != "running"` does not hold
// where there is no rollout, `!x` does not hold where x is null, and the result
// does not depend on the order of operands. Otherwise they are Kleene's logic:
//
//	&&  | T F U N      ||  | T F U N      !x
//	T   | T F U N      T   | T T T T      T  F
//	F   | F F F F      F   | T F U N      F  T
//	U   | U F U N      U   | T U U U      U  U
//	N   | N F N N      N   | T N U N      N  N
//
// At the top N (null) is false. U && N is N: whatever the unknown turns out to
// be, the conjunction does not hold. U || N is U, because it may yet hold.
//
// Invariant: a rule that holds goes on holding whatever the unknown facts turn
// out to be. (One that does not hold may come to hold only where a null stands
// beside an unknown under a negation: !(N && U).)
//
// They do their work in ShortCircuit, which HCL calls with both operands
// converted; Impl only declares the operands' types. An operand that is an
// error arrives as unknown with diagnostics, and ShortCircuit passes these on
// unless the other operand decides.
var (
	opAnd = &hclsyntax.Operation{Impl: stdlib.AndFunc, Type: cty.Bool, ShortCircuit: and}
	opOr  = &hclsyntax.Operation{Impl: stdlib.OrFunc, Type: cty.Bool, ShortCircuit: or}
	opNot = &hclsyntax.Operation{Impl: notFunc, Type: cty.Bool}

	opEqual    = &hclsyntax.Operation{Impl: stdlib.EqualFunc, Type: cty.Bool, ShortCircuit: equal(false)}
	opNotEqual = &hclsyntax.Operation{Impl: stdlib.NotEqualFunc, Type: cty.Bool, ShortCircuit: equal(true)}
	// Where one operand is the word null: the only operators that see it.
	opIsNull  = &hclsyntax.Operation{Impl: stdlib.EqualFunc, Type: cty.Bool, ShortCircuit: isNull(false)}
	opNotNull = &hclsyntax.Operation{Impl: stdlib.NotEqualFunc, Type: cty.Bool, ShortCircuit: isNull(true)}

	opLess      = &hclsyntax.Operation{Impl: stdlib.LessThanFunc, Type: cty.Bool, ShortCircuit: compare(less)}
	opLessEq    = &hclsyntax.Operation{Impl: stdlib.LessThanOrEqualToFunc, Type: cty.Bool, ShortCircuit: compare(lessEq)}
	opGreater   = &hclsyntax.Operation{Impl: stdlib.GreaterThanFunc, Type: cty.Bool, ShortCircuit: compare(func(l, r cty.Value) Tri { return less(r, l) })}
	opGreaterEq = &hclsyntax.Operation{Impl: stdlib.GreaterThanOrEqualToFunc, Type: cty.Bool, ShortCircuit: compare(func(l, r cty.Value) Tri { return lessEq(r, l) })}

	opAdd      = &hclsyntax.Operation{Impl: stdlib.AddFunc, Type: cty.Number, ShortCircuit: arithmetic}
	opSubtract = &hclsyntax.Operation{Impl: stdlib.SubtractFunc, Type: cty.Number, ShortCircuit: arithmetic}
	opMultiply = &hclsyntax.Operation{Impl: stdlib.MultiplyFunc, Type: cty.Number, ShortCircuit: arithmetic}
	opDivide   = &hclsyntax.Operation{Impl: stdlib.DivideFunc, Type: cty.Number, ShortCircuit: divide}
	opModulo   = &hclsyntax.Operation{Impl: stdlib.ModuloFunc, Type: cty.Number, ShortCircuit: divide}
	opNegate   = &hclsyntax.Operation{Impl: nullable(stdlib.NegateFunc), Type: cty.Number}
)

// compiledOp is the operator that stands for one of HCL's in a compiled
// expression.
func compiledOp(op *hclsyntax.Operation, nullTest bool) *hclsyntax.Operation {
	switch op {
	case hclsyntax.OpLogicalAnd:
		return opAnd
	case hclsyntax.OpLogicalOr:
		return opOr
	case hclsyntax.OpLogicalNot:
		return opNot
	case hclsyntax.OpEqual:
		if nullTest {
			return opIsNull
		}
		return opEqual
	case hclsyntax.OpNotEqual:
		if nullTest {
			return opNotNull
		}
		return opNotEqual
	case hclsyntax.OpLessThan:
		return opLess
	case hclsyntax.OpLessThanOrEqual:
		return opLessEq
	case hclsyntax.OpGreaterThan:
		return opGreater
	case hclsyntax.OpGreaterThanOrEqual:
		return opGreaterEq
	case hclsyntax.OpAdd:
		return opAdd
	case hclsyntax.OpSubtract:
		return opSubtract
	case hclsyntax.OpMultiply:
		return opMultiply
	case hclsyntax.OpDivide:
		return opDivide
	case hclsyntax.OpModulo:
		return opModulo
	case hclsyntax.OpNegate:
		return opNegate
	}
	return op
}

var (
	unknownBool = cty.UnknownVal(cty.Bool)
	nullBool    = cty.NullVal(cty.Bool)
	nullNumber  = cty.NullVal(cty.Number)
)

type answer int

const (
	isFalse answer = iota
	isTrue
	isUnknown
	isNone // null
)

func answerOf(v cty.Value) answer {
	switch {
	case !v.IsKnown():
		return isUnknown
	case v.IsNull():
		return isNone
	case v.True():
		return isTrue
	}
	return isFalse
}

func and(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
	a, b := answerOf(l), answerOf(r)
	switch {
	case a == isFalse && !ld.HasErrors():
		return cty.False, ld
	case b == isFalse && !rd.HasErrors():
		return cty.False, rd
	case ld.HasErrors() || rd.HasErrors():
		return unknownBool, append(ld, rd...)
	case a == isNone || b == isNone:
		return nullBool, nil
	case a == isUnknown || b == isUnknown:
		return unknownBool, nil
	}
	return cty.True, nil
}

func or(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
	a, b := answerOf(l), answerOf(r)
	switch {
	case a == isTrue && !ld.HasErrors():
		return cty.True, ld
	case b == isTrue && !rd.HasErrors():
		return cty.True, rd
	case ld.HasErrors() || rd.HasErrors():
		return unknownBool, append(ld, rd...)
	case a == isUnknown || b == isUnknown:
		return unknownBool, nil
	case a == isNone || b == isNone:
		return nullBool, nil
	}
	return cty.False, nil
}

var notFunc = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "val", Type: cty.Bool, AllowNull: true, AllowUnknown: true, AllowDynamicType: true}},
	Type:   function.StaticReturnType(cty.Bool),
	Impl:   func(args []cty.Value, _ cty.Type) (cty.Value, error) { return not(args[0]), nil },
})

func not(v cty.Value) cty.Value {
	switch answerOf(v) {
	case isTrue:
		return cty.False
	case isFalse:
		return cty.True
	case isNone:
		return nullBool
	}
	return unknownBool
}

type shortCircuit = func(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics)

func equal(negate bool) shortCircuit {
	return func(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
		if ld.HasErrors() || rd.HasErrors() {
			return unknownBool, append(ld, rd...)
		}
		if l.IsNull() || r.IsNull() {
			return nullBool, nil
		}
		v := l.Equals(r)
		if !v.IsKnown() || mayBeNull(l) || mayBeNull(r) {
			return unknownBool, nil
		}
		return cty.BoolVal(v.True() != negate), nil
	}
}

func isNull(negate bool) shortCircuit {
	return func(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
		if ld.HasErrors() || rd.HasErrors() {
			return unknownBool, append(ld, rd...)
		}
		// One side is the literal; the question is about the other one.
		v := l
		if l.IsNull() {
			v = r
		}
		switch {
		case v.IsNull():
			return cty.BoolVal(!negate), nil
		case v.IsKnown() || v.Range().DefinitelyNotNull():
			return cty.BoolVal(negate), nil
		}
		return unknownBool, nil
	}
}

func compare(holds func(l, r cty.Value) Tri) shortCircuit {
	return func(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
		if ld.HasErrors() || rd.HasErrors() {
			return unknownBool, append(ld, rd...)
		}
		if l.IsNull() || r.IsNull() {
			return nullBool, nil
		}
		if mayBeNull(l) || mayBeNull(r) {
			return unknownBool, nil
		}
		switch holds(l, r) {
		case True:
			return cty.True, nil
		case False:
			return cty.False, nil
		}
		return unknownBool, nil
	}
}

// less tells whether l < r for every, for no, or only for some of the values
// that l and r may have.
func less(l, r cty.Value) Tri {
	if l.IsKnown() && r.IsKnown() {
		return triOf(l.AsBigFloat().Cmp(r.AsBigFloat()) < 0)
	}
	lMin, lMax, rMin, rMax := lower(l), upper(l), lower(r), upper(r)
	if c, ok := lMax.cmp(rMin); ok && (c < 0 || c == 0 && !(lMax.inclusive && rMin.inclusive)) {
		return True
	}
	if c, ok := lMin.cmp(rMax); ok && c >= 0 {
		return False
	}
	return Unknown
}

// lessEq is less with equality.
func lessEq(l, r cty.Value) Tri {
	switch less(r, l) {
	case True:
		return False
	case False:
		return True
	}
	return Unknown
}

func triOf(b bool) Tri {
	if b {
		return True
	}
	return False
}

// bound is one end of what a number may be.
type bound struct {
	v         cty.Value
	inclusive bool
}

func lower(v cty.Value) bound {
	if v.IsKnown() {
		return bound{v, true}
	}
	b, inc := v.Range().NumberLowerBound()
	return bound{b, inc}
}

func upper(v cty.Value) bound {
	if v.IsKnown() {
		return bound{v, true}
	}
	b, inc := v.Range().NumberUpperBound()
	return bound{b, inc}
}

// cmp compares two ends; not ok where one of them is open.
func (b bound) cmp(c bound) (int, bool) {
	if !b.v.IsKnown() || !c.v.IsKnown() || b.v.IsNull() || c.v.IsNull() {
		return 0, false
	}
	x, y := b.v.AsBigFloat(), c.v.AsBigFloat()
	if x.IsInf() || y.IsInf() {
		return 0, false
	}
	return x.Cmp(y), true
}

// arithmetic makes the result null where an operand is; else HCL goes on.
func arithmetic(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
	if ld.HasErrors() || rd.HasErrors() {
		return cty.NilVal, nil
	}
	if l.IsNull() || r.IsNull() {
		return nullNumber, nil
	}
	if mayBeNull(l) || mayBeNull(r) {
		return cty.UnknownVal(cty.Number), nil
	}
	return cty.NilVal, nil
}

// mayBeNull reports whether v is an unknown that may turn out to be null: then
// so may what is made of it, whatever bounds it has.
func mayBeNull(v cty.Value) bool {
	return !v.IsKnown() && !v.Range().DefinitelyNotNull()
}

// divide is arithmetic that refuses to divide by zero: to cty that is infinite,
// and every limit would be passed.
func divide(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
	if !ld.HasErrors() && !rd.HasErrors() && !l.IsNull() && r.IsKnown() && !r.IsNull() && r.AsBigFloat().Sign() == 0 {
		return cty.UnknownVal(cty.Number), hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Division by zero", Detail: "The right side is zero."}}
	}
	return arithmetic(l, r, ld, rd)
}

// condExpr is a conditional that is null where its condition is, as operators
// are, and no error.
type condExpr struct{ *hclsyntax.ConditionalExpr }

func (e *condExpr) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	c, diags := e.Condition.Value(ctx)
	switch {
	case diags.HasErrors():
		return cty.DynamicVal, diags
	case c.IsNull():
		return cty.NullVal(cty.DynamicPseudoType), nil
	}
	// The condition is evaluated once, or a nest of them would take ever longer.
	once := *e.ConditionalExpr
	once.Condition = &hclsyntax.LiteralValueExpr{Val: c, SrcRange: e.Condition.Range()}
	v, diags := once.Value(ctx)
	if !diags.HasErrors() && mayBeNull(c) {
		v = cty.UnknownVal(v.Type())
	}
	return v, diags
}

// nullable makes a function answer null where it would refuse a null argument.
func nullable(f function.Function) function.Function {
	params, varParam := slices.Clone(f.Params()), f.VarParam()
	for i := range params {
		params[i].AllowNull, params[i].AllowUnknown, params[i].AllowDynamicType = true, true, true
	}
	if varParam != nil {
		p := *varParam
		p.AllowNull, p.AllowUnknown, p.AllowDynamicType = true, true, true
		varParam = &p
	}
	return function.New(&function.Spec{
		Description: f.Description(),
		Params:      params,
		VarParam:    varParam,
		Type: func(args []cty.Value) (cty.Type, error) {
			return f.ReturnTypeForValues(withoutNulls(args))
		},
		Impl: func(args []cty.Value, t cty.Type) (cty.Value, error) {
			for _, a := range args {
				if a.IsNull() {
					return cty.NullVal(t), nil
				}
			}
			v, err := f.Call(args)
			if err == nil && slices.ContainsFunc(args, mayBeNull) {
				v = cty.UnknownVal(v.Type())
			}
			return v, err
		},
	})
}

// withoutNulls returns args with every null made an unknown of its type.
func withoutNulls(args []cty.Value) []cty.Value {
	for i, a := range args {
		if a.IsNull() {
			out := slices.Clone(args)
			for j := i; j < len(out); j++ {
				if out[j].IsNull() {
					out[j] = cty.UnknownVal(out[j].Type())
				}
			}
			return out
		}
	}
	return args
}
