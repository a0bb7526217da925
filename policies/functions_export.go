package policies

import (
	"maps"

	"github.com/zclconf/go-cty/cty/function"
)

// Functions returns what an expression of a policy may call, for other
// expressions of the same language. The map is the caller's.
func Functions() map[string]function.Function { return maps.Clone(functions) }
