package policies

import (
	"errors"
	"math/big"
	"regexp"
	"strings"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// functions is what a policy may call. All are pure and all but coalesce, try
// and can answer null where an argument is null. It is never written to.
var functions = map[string]function.Function{
	"duration": durationFunc,
	"between":  betweenFunc,
	inWindow:   inWindowFunc,

	"alltrue": truthOf("Each element is true; true where there is none.", and, cty.True),
	"anytrue": truthOf("At least one element is true; false where there is none.", or, cty.False),

	"contains":   containsFunc,
	"startswith": stringTest("The string begins with the prefix.", "prefix", strings.HasPrefix),
	"endswith":   stringTest("The string ends in the suffix.", "suffix", strings.HasSuffix),
	"strcontains": stringTest("The string holds the substring.", "substr",
		strings.Contains),

	"coalesce": stdlib.CoalesceFunc,
	"try":      tryFunc,
	"can":      canFunc,

	"abs":    nullable(stdlib.AbsoluteFunc),
	"ceil":   nullable(stdlib.CeilFunc),
	"floor":  nullable(stdlib.FloorFunc),
	"max":    nullable(stdlib.MaxFunc),
	"min":    nullable(stdlib.MinFunc),
	"signum": nullable(stdlib.SignumFunc),

	"format":       nullable(NarrowFormat(bounded(stdlib.FormatFunc))),
	"join":         nullable(bounded(stdlib.JoinFunc)),
	"lower":        nullable(stdlib.LowerFunc),
	"regex":        nullable(bounded(boundedRegex(stdlib.RegexFunc, 0))),
	"regexall":     nullable(bounded(boundedRegex(stdlib.RegexAllFunc, 0))),
	"regexreplace": nullable(bounded(boundedRegex(stdlib.RegexReplaceFunc, 1))),
	"replace":      nullable(bounded(stdlib.ReplaceFunc)),
	"split":        nullable(bounded(stdlib.SplitFunc)),
	"strlen":       nullable(stdlib.StrlenFunc),
	"substr":       nullable(stdlib.SubstrFunc),
	"trim":         nullable(stdlib.TrimFunc),
	"trimprefix":   nullable(stdlib.TrimPrefixFunc),
	"trimspace":    nullable(stdlib.TrimSpaceFunc),
	"trimsuffix":   nullable(stdlib.TrimSuffixFunc),
	"upper":        nullable(stdlib.UpperFunc),

	"compact":         nullable(stdlib.CompactFunc),
	"concat":          nullable(stdlib.ConcatFunc),
	"distinct":        nullable(stdlib.DistinctFunc),
	"element":         nullable(stdlib.ElementFunc),
	"flatten":         nullable(stdlib.FlattenFunc),
	"index":           nullable(stdlib.IndexFunc),
	"keys":            nullable(stdlib.KeysFunc),
	"length":          nullable(stdlib.LengthFunc),
	"lookup":          nullable(stdlib.LookupFunc),
	"merge":           nullable(stdlib.MergeFunc),
	"setintersection": nullable(stdlib.SetIntersectionFunc),
	"setsubtract":     nullable(stdlib.SetSubtractFunc),
	"setunion":        nullable(stdlib.SetUnionFunc),
	"slice":           nullable(stdlib.SliceFunc),
	"sort":            nullable(stdlib.SortFunc),
	"values":          nullable(stdlib.ValuesFunc),

	"jsondecode": nullable(bounded(stdlib.JSONDecodeFunc)),
	"tobool":     nullable(stdlib.MakeToFunc(cty.Bool)),
	"tolist":     nullable(stdlib.MakeToFunc(cty.List(cty.DynamicPseudoType))),
	"tonumber":   nullable(stdlib.MakeToFunc(cty.Number)),
	"toset":      nullable(stdlib.MakeToFunc(cty.Set(cty.DynamicPseudoType))),
	"tostring":   nullable(stdlib.MakeToFunc(cty.String)),
}

// maxText bounds the strings that a function may be given whose result can be
// longer than its arguments, so that nested calls cannot grow without bound.
const maxText = 8 << 10

var durationFunc = function.New(&function.Spec{
	Description: `A duration such as "90s", "10m", "1h30m" or "2d" as a number of seconds.`,
	Params:      []function.Parameter{{Name: "duration", Type: cty.String, AllowNull: true}},
	Type:        function.StaticReturnType(cty.Number),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		if args[0].IsNull() {
			return nullNumber, nil
		}
		d, err := ParseDuration(args[0].AsString())
		if err != nil {
			return cty.UnknownVal(cty.Number), function.NewArgError(0, err)
		}
		return cty.NumberVal(new(big.Float).Quo(big.NewFloat(float64(d)), big.NewFloat(1e9))), nil
	},
})

var betweenFunc = function.New(&function.Spec{
	Description: "The number is at least from and below to; where from is above to, the range goes over midnight: between(now.hour, 22, 6).",
	Params: []function.Parameter{
		{Name: "number", Type: cty.Number, AllowNull: true},
		{Name: "from", Type: cty.Number, AllowNull: true},
		{Name: "to", Type: cty.Number, AllowNull: true},
	},
	Type: function.StaticReturnType(cty.Bool),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		if args[0].IsNull() || args[1].IsNull() || args[2].IsNull() {
			return nullBool, nil
		}
		n, from, to := args[0].AsBigFloat(), args[1].AsBigFloat(), args[2].AsBigFloat()
		if from.Cmp(to) <= 0 {
			return cty.BoolVal(n.Cmp(from) >= 0 && n.Cmp(to) < 0), nil
		}
		return cty.BoolVal(n.Cmp(from) >= 0 || n.Cmp(to) < 0), nil
	},
})

var containsFunc = function.New(&function.Spec{
	Description: "The list, tuple or set holds the value.",
	Params: []function.Parameter{
		{Name: "list", Type: cty.DynamicPseudoType, AllowNull: true, AllowUnknown: true, AllowDynamicType: true},
		{Name: "value", Type: cty.DynamicPseudoType, AllowNull: true, AllowUnknown: true, AllowDynamicType: true},
	},
	Type: function.StaticReturnType(cty.Bool),
	Impl: contains,
})

func contains(args []cty.Value, _ cty.Type) (cty.Value, error) {
	list, value := args[0], args[1]
	t := list.Type()
	switch {
	case list.IsNull() || value.IsNull():
		return nullBool, nil
	case t == cty.DynamicPseudoType:
		return unknownBool, nil
	case !t.IsListType() && !t.IsTupleType() && !t.IsSetType():
		return unknownBool, function.NewArgErrorf(0, "a list, tuple or set is required")
	case !list.IsKnown() || !list.CanIterateElements():
		return unknownBool, nil
	}
	result := cty.False
	if mayBeNull(value) {
		result = unknownBool
	}
	for it := list.ElementIterator(); it.Next(); {
		_, v := it.Element()
		if v.IsNull() {
			continue
		}
		eq := v.Equals(value)
		if !eq.IsKnown() {
			result = unknownBool
		} else if eq.True() {
			return cty.True, nil
		}
	}
	return result, nil
}

// truthOf joins the elements of a list by && or ||.
func truthOf(doc string, join shortCircuit, empty cty.Value) function.Function {
	return function.New(&function.Spec{
		Description: doc,
		Params:      []function.Parameter{{Name: "list", Type: cty.List(cty.Bool), AllowNull: true, AllowUnknown: true}},
		Type:        function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			switch list := args[0]; {
			case list.IsNull():
				return nullBool, nil
			case !list.IsKnown():
				return unknownBool, nil
			}
			out := empty
			for it := args[0].ElementIterator(); it.Next(); {
				_, v := it.Element()
				out, _ = join(out, v, nil, nil)
			}
			return out, nil
		},
	})
}

func stringTest(doc, second string, test func(s, sub string) bool) function.Function {
	return function.New(&function.Spec{
		Description: doc,
		Params: []function.Parameter{
			{Name: "str", Type: cty.String, AllowNull: true},
			{Name: second, Type: cty.String, AllowNull: true},
		},
		Type: function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if args[0].IsNull() || args[1].IsNull() {
				return nullBool, nil
			}
			return cty.BoolVal(test(args[0].AsString(), args[1].AsString())), nil
		},
	})
}

// checked makes a function that refuses arguments which check refuses.
func checked(f function.Function, check func(i int, v cty.Value) error) function.Function {
	all := func(args []cty.Value) error {
		for i, a := range args {
			if a.IsWhollyKnown() && !a.IsNull() {
				if err := check(i, a); err != nil {
					return function.NewArgError(i, err)
				}
			}
		}
		return nil
	}
	return function.New(&function.Spec{
		Description: f.Description(),
		Params:      f.Params(),
		VarParam:    f.VarParam(),
		Type: func(args []cty.Value) (cty.Type, error) {
			if err := all(args); err != nil {
				return cty.NilType, err
			}
			return f.ReturnTypeForValues(args)
		},
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) { return f.Call(args) },
	})
}

func bounded(f function.Function) function.Function { return Bounded(f, maxText) }

// size is about how many bytes of text v holds; it stops soon after maxFact.
func size(v cty.Value) int {
	switch t := v.Type(); {
	case v.IsNull() || !v.IsKnown():
		return 0
	case t == cty.String:
		return len(v.AsString())
	case v.CanIterateElements():
		n := 0
		for it := v.ElementIterator(); it.Next() && n <= maxFact; {
			_, e := it.Element()
			n += 1 + size(e)
		}
		return n
	}
	return 1
}

var wideVerb = regexp.MustCompile(`%[^a-zA-Z%]*[1-9][0-9]{3}`)

// NarrowFormat is format, or what takes a format first, without fields so wide
// that they fill the memory.
func NarrowFormat(f function.Function) function.Function {
	return checked(f, func(i int, v cty.Value) error {
		if i == 0 && v.Type() == cty.String && wideVerb.MatchString(v.AsString()) {
			return errors.New("a width of 1000 and more is not allowed")
		}
		return nil
	})
}
