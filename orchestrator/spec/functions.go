package spec

import (
	"maps"
	"strings"

	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"

	"github.com/aim-control/aimlock/policies"
)

// maxText bounds what a function is given whose result can be longer than that.
const maxText = 64 << 10

// maxIndent is the most spaces that indent puts before a line.
const maxIndent = 256

// functions is what a template may call: what a policy may, but for what only
// policies need, and what writes text. All are pure: no clock, no file, no
// chance, so that a template always comes to the same. It is never written to.
var functions = map[string]function.Function{
	"coalesce": stdlib.CoalesceFunc,
	"try":      tryfunc.TryFunc,
	"can":      tryfunc.CanFunc,

	"startswith":  stringTest("prefix", strings.HasPrefix),
	"endswith":    stringTest("suffix", strings.HasSuffix),
	"strcontains": stringTest("substr", strings.Contains),

	"abs":      stdlib.AbsoluteFunc,
	"ceil":     stdlib.CeilFunc,
	"floor":    stdlib.FloorFunc,
	"max":      stdlib.MaxFunc,
	"min":      stdlib.MinFunc,
	"parseint": stdlib.ParseIntFunc,
	"signum":   stdlib.SignumFunc,

	"chomp":        stdlib.ChompFunc,
	"format":       policies.NarrowFormat(policies.Bounded(stdlib.FormatFunc, maxText)),
	"formatlist":   policies.NarrowFormat(policies.Bounded(stdlib.FormatListFunc, maxText)),
	"indent":       indentFunc,
	"join":         policies.Bounded(stdlib.JoinFunc, maxText),
	"lower":        stdlib.LowerFunc,
	"regex":        stdlib.RegexFunc,
	"regexall":     stdlib.RegexAllFunc,
	"regexreplace": policies.Bounded(stdlib.RegexReplaceFunc, maxText),
	"replace":      policies.Bounded(stdlib.ReplaceFunc, maxText),
	"split":        stdlib.SplitFunc,
	"strlen":       stdlib.StrlenFunc,
	"strrev":       stdlib.ReverseFunc,
	"substr":       stdlib.SubstrFunc,
	"title":        stdlib.TitleFunc,
	"trim":         stdlib.TrimFunc,
	"trimprefix":   stdlib.TrimPrefixFunc,
	"trimspace":    stdlib.TrimSpaceFunc,
	"trimsuffix":   stdlib.TrimSuffixFunc,
	"upper":        stdlib.UpperFunc,

	"chunklist":       stdlib.ChunklistFunc,
	"compact":         stdlib.CompactFunc,
	"concat":          stdlib.ConcatFunc,
	"contains":        stdlib.ContainsFunc,
	"distinct":        stdlib.DistinctFunc,
	"element":         stdlib.ElementFunc,
	"flatten":         stdlib.FlattenFunc,
	"index":           stdlib.IndexFunc,
	"keys":            stdlib.KeysFunc,
	"length":          stdlib.LengthFunc,
	"lookup":          stdlib.LookupFunc,
	"merge":           stdlib.MergeFunc,
	"range":           stdlib.RangeFunc,
	"reverse":         stdlib.ReverseListFunc,
	"setintersection": stdlib.SetIntersectionFunc,
	"setsubtract":     stdlib.SetSubtractFunc,
	"setunion":        stdlib.SetUnionFunc,
	"slice":           stdlib.SliceFunc,
	"sort":            stdlib.SortFunc,
	"values":          stdlib.ValuesFunc,
	"zipmap":          stdlib.ZipmapFunc,

	"csvdecode":  stdlib.CSVDecodeFunc,
	"jsondecode": stdlib.JSONDecodeFunc,
	"jsonencode": stdlib.JSONEncodeFunc,
	"tobool":     stdlib.MakeToFunc(cty.Bool),
	"tolist":     stdlib.MakeToFunc(cty.List(cty.DynamicPseudoType)),
	"tomap":      stdlib.MakeToFunc(cty.Map(cty.DynamicPseudoType)),
	"tonumber":   stdlib.MakeToFunc(cty.Number),
	"toset":      stdlib.MakeToFunc(cty.Set(cty.DynamicPseudoType)),
	"tostring":   stdlib.MakeToFunc(cty.String),
}

func stringTest(param string, test func(s, part string) bool) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "str", Type: cty.String}, {Name: param, Type: cty.String}},
		Type:   function.StaticReturnType(cty.Bool),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			return cty.BoolVal(test(args[0].AsString(), args[1].AsString())), nil
		},
	})
}

var indentFunc = function.New(&function.Spec{
	Params: stdlib.IndentFunc.Params(),
	Type:   function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		if n, _ := args[0].AsBigFloat().Float64(); n > maxIndent {
			return cty.NilVal, function.NewArgErrorf(0, "%d spaces are the most", maxIndent)
		}
		return policies.Bounded(stdlib.IndentFunc, maxText).Call(args)
	},
})

// Functions returns what a template may call. The map is the caller's.
func Functions() map[string]function.Function { return maps.Clone(functions) }
