package policies

import (
	"fmt"
	"maps"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// Functions returns what an expression of a policy may call, for other
// expressions of the same language. The map is the caller's.
func Functions() map[string]function.Function { return maps.Clone(functions) }

// Bounded is a function whose arguments may each hold most bytes of text: for
// those whose result can be longer than what they are given, so that nested
// calls cannot grow without bound.
func Bounded(f function.Function, most int) function.Function {
	return checked(f, func(_ int, v cty.Value) error {
		if size(v) > most {
			return fmt.Errorf("the text is longer than %d bytes", most)
		}
		return nil
	})
}
