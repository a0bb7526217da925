package condition

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strconv"

	"github.com/zclconf/go-cty/cty"
)

// Bounds of a JSON document that a condition reads.
const (
	maxDepth  = 100
	maxValues = 50_000
)

// JSON makes a value of a document: objects, tuples, strings, numbers, bools
// and null. A number must be one that a float64 can hold, so that nothing that
// is done with it can grow without bound.
func JSON(doc []byte) (cty.Value, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return cty.DynamicVal, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return cty.DynamicVal, errors.New("something stands behind the document")
	}
	left := maxValues
	return value(v, 0, &left)
}

func value(v any, depth int, left *int) (cty.Value, error) {
	if *left--; *left < 0 {
		return cty.DynamicVal, fmt.Errorf("it has more than %d values", maxValues)
	}
	if depth > maxDepth {
		return cty.DynamicVal, fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	switch v := v.(type) {
	case nil:
		return cty.NullVal(cty.DynamicPseudoType), nil
	case bool:
		return cty.BoolVal(v), nil
	case string:
		return cty.StringVal(v), nil
	case json.Number:
		if f, err := strconv.ParseFloat(string(v), 64); err != nil {
			return cty.DynamicVal, errors.New("it holds a number that is out of range")
		} else if f == 0 {
			// Exactly what it is, and not a number with a huge negative exponent.
			return cty.Zero, nil
		}
		n, _, err := big.ParseFloat(string(v), 10, 512, big.ToNearestEven)
		if err != nil {
			return cty.DynamicVal, err
		}
		return cty.NumberVal(n), nil
	case []any:
		if len(v) == 0 {
			return cty.EmptyTupleVal, nil
		}
		list := make([]cty.Value, len(v))
		for i, e := range v {
			var err error
			if list[i], err = value(e, depth+1, left); err != nil {
				return cty.DynamicVal, err
			}
		}
		return cty.TupleVal(list), nil
	case map[string]any:
		if len(v) == 0 {
			return cty.EmptyObjectVal, nil
		}
		m := make(map[string]cty.Value, len(v))
		for k, e := range v {
			c, err := value(e, depth+1, left)
			if err != nil {
				return cty.DynamicVal, err
			}
			m[k] = c
		}
		return cty.ObjectVal(m), nil
	}
	return cty.DynamicVal, fmt.Errorf("a %T", v)
}
