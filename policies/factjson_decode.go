package policies

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"

	"github.com/zclconf/go-cty/cty"
)

// decode makes the value of type t. depth bounds how deep it is nested.
func (n *node) decode(t cty.Type, depth int) (cty.Value, error) {
	switch {
	case depth > maxDepth:
		return cty.NilVal, fmt.Errorf("the value is nested more than %d deep", maxDepth)
	case n.Known != nil && !*n.Known:
		return n.Range.decode(t)
	case string(n.Value) == "null":
		return cty.NullVal(t), nil
	case n.Exact != nil:
		if t != cty.Number {
			return cty.NilVal, fmt.Errorf("a number where a %s belongs", t.FriendlyName())
		}
		return n.Exact.decode()
	case t.IsPrimitiveType():
		return n.primitive(t)
	case t.IsObjectType() || t.IsMapType():
		return n.mapping(t, depth)
	case t.IsTupleType() || t.IsListType() || t.IsSetType():
		return n.sequence(t, depth)
	}
	return cty.NilVal, fmt.Errorf("a value without a type")
}

func (n *node) primitive(t cty.Type) (cty.Value, error) {
	var err error
	switch t {
	case cty.Bool:
		var b bool
		if err = json.Unmarshal(n.Value, &b); err == nil {
			return cty.BoolVal(b), nil
		}
	case cty.Number:
		var x float64
		if x, err = strconv.ParseFloat(string(n.Value), 64); err == nil && x == x {
			return cty.NumberVal(new(big.Float).SetFloat64(x)), nil
		}
	default:
		var s string
		if err = json.Unmarshal(n.Value, &s); err == nil {
			return cty.StringVal(s), nil
		}
	}
	return cty.NilVal, fmt.Errorf("%s is no %s", clip(printable(string(n.Value)), 40), t.FriendlyName())
}

func (n *node) mapping(t cty.Type, depth int) (cty.Value, error) {
	if n.Map == nil && !n.Empty {
		return cty.NilVal, fmt.Errorf("a %s has no elements", t.FriendlyName())
	}
	out := make(map[string]cty.Value, len(n.Map))
	for k, e := range n.Map {
		var et cty.Type
		switch {
		case t.IsMapType():
			et = t.ElementType()
		case t.HasAttribute(k):
			et = t.AttributeType(k)
		default:
			return cty.NilVal, fmt.Errorf("the object has no attribute %q", clip(printable(k), 40))
		}
		v, err := e.decode(et, depth+1)
		if err != nil {
			return cty.NilVal, err
		}
		out[k] = v
	}
	switch {
	case t.IsObjectType() && len(out) != len(t.AttributeTypes()):
		return cty.NilVal, fmt.Errorf("the object lacks attributes")
	case t.IsObjectType():
		return cty.ObjectVal(out), nil
	case len(out) == 0:
		return cty.MapValEmpty(t.ElementType()), nil
	}
	return cty.MapVal(out), nil
}

func (n *node) sequence(t cty.Type, depth int) (cty.Value, error) {
	if n.List == nil && !n.Empty {
		return cty.NilVal, fmt.Errorf("a %s has no elements", t.FriendlyName())
	}
	if t.IsTupleType() && len(n.List) != t.Length() {
		return cty.NilVal, fmt.Errorf("the tuple has %d elements and not %d", len(n.List), t.Length())
	}
	out := make([]cty.Value, 0, len(n.List))
	for i := range n.List {
		var et cty.Type
		if t.IsTupleType() {
			et = t.TupleElementType(i)
		} else {
			et = t.ElementType()
		}
		v, err := n.List[i].decode(et, depth+1)
		if err != nil {
			return cty.NilVal, err
		}
		out = append(out, v)
	}
	switch {
	case t.IsTupleType():
		return cty.TupleVal(out), nil
	case t.IsListType() && len(out) == 0:
		return cty.ListValEmpty(t.ElementType()), nil
	case t.IsListType():
		return cty.ListVal(out), nil
	case len(out) == 0:
		return cty.SetValEmpty(t.ElementType()), nil
	}
	return cty.SetVal(out), nil
}
