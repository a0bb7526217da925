package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Normalize turns a Go value into what the other side of the wire sees of it: nil,
// string, bool, int64 (a whole number), float64, []any or map[string]any. A
// duration, or a text such as "10s" where one is declared, becomes seconds; lists
// take slices, maps and objects take maps with string keys. A value of another type is an error, which does not hold it.
func (s *Shape) Normalize(v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case json.Number:
		return s.number(v)
	case time.Duration:
		if s.Type != Duration {
			return nil, s.mismatch("duration")
		}
		return seconds(v), nil
	}
	r := reflect.ValueOf(v)
	if r.Kind() == reflect.Pointer {
		if r.IsNil() {
			return nil, nil
		}
		return s.Normalize(r.Elem().Interface())
	}
	switch s.Type {
	case String:
		if r.Kind() == reflect.String {
			if !utf8.ValidString(r.String()) {
				return nil, errors.New("the text is not UTF-8")
			}
			return r.String(), nil
		}
	case Bool:
		if r.Kind() == reflect.Bool {
			return r.Bool(), nil
		}
	case Number, Duration:
		switch {
		case r.Kind() == reflect.String && s.Type == Duration:
			d, err := time.ParseDuration(r.String())
			if err != nil {
				return nil, errors.New("a duration is needed, such as \"10s\" or \"1h30m\"")
			}
			return seconds(d), nil
		case r.CanInt():
			return r.Int(), nil
		case r.CanUint() && r.Uint() <= math.MaxInt64:
			return int64(r.Uint()), nil
		case r.CanUint():
			return float64(r.Uint()), nil
		case r.CanFloat():
			return finite(r.Float())
		}
	case "list":
		if r.Kind() == reflect.Slice || r.Kind() == reflect.Array {
			return s.list(r)
		}
	case "map", "object":
		if r.Kind() == reflect.Map && r.Type().Key().Kind() == reflect.String {
			return s.keyed(r)
		}
	}
	return nil, s.mismatch(typeName(r))
}

func (s *Shape) list(r reflect.Value) (any, error) {
	out := make([]any, r.Len())
	for i := range out {
		v, err := s.Elem.Normalize(r.Index(i).Interface())
		if err == nil && v == nil {
			err = errors.New("null cannot stand in a list")
		}
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		out[i] = v
	}
	return out, nil
}

func (s *Shape) keyed(r reflect.Value) (any, error) {
	out := make(map[string]any, r.Len())
	keys := r.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return bytes.Compare([]byte(a.String()), []byte(b.String())) })
	for _, k := range keys {
		elem := s.Elem
		if s.Type == "object" {
			if elem = s.Fields[k.String()]; elem == nil {
				return nil, fmt.Errorf("there is no field %q", clip(k.String(), 80))
			}
		}
		v, err := elem.Normalize(r.MapIndex(k).Interface())
		if err == nil && v == nil && s.Type == "map" {
			err = errors.New("null cannot stand in a map")
		}
		if err != nil {
			return nil, fmt.Errorf("[%q]: %w", clip(k.String(), 80), err)
		}
		out[k.String()] = v
	}
	for name := range s.Fields {
		if _, ok := out[name]; !ok {
			out[name] = nil
		}
	}
	return out, nil
}

func (s *Shape) number(n json.Number) (any, error) {
	if s.Type != Number && s.Type != Duration {
		return nil, s.mismatch("number")
	}
	if i, err := strconv.ParseInt(string(n), 10, 64); err == nil {
		return i, nil
	}
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil {
		return nil, errors.New("the number is out of range")
	}
	return finite(f)
}

func finite(f float64) (any, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, errors.New("the number is not finite")
	}
	if f == math.Trunc(f) && f >= -1<<63 && f < 1<<63 {
		return int64(f), nil
	}
	return f, nil
}

// seconds is a whole number where it is one.
func seconds(d time.Duration) any {
	v, _ := finite(d.Seconds())
	return v
}

func (s *Shape) mismatch(got string) error {
	return fmt.Errorf("a %s is needed, and this is a %s", s, got)
}

func (s *Shape) String() string {
	switch s.Type {
	case "list", "map":
		return string(s.Type) + "(" + s.Elem.String() + ")"
	case "object":
		fields := map[string]Type{}
		for name, f := range s.Fields {
			fields[name] = Type(f.String())
		}
		return string(Object(fields))
	}
	return string(s.Type)
}

func typeName(r reflect.Value) string {
	switch r.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Slice, reflect.Array:
		return "list"
	case reflect.Map:
		return "map"
	case reflect.Struct:
		return "struct, where a map[string]any is needed"
	}
	if r.CanInt() || r.CanUint() || r.CanFloat() {
		return "number"
	}
	return r.Kind().String()
}

// Encode is the value as JSON. It is checked first.
func (s *Shape) Encode(v any) ([]byte, error) {
	n, err := s.Normalize(v)
	if err != nil {
		return nil, err
	}
	return json.Marshal(n)
}

// Decode reads JSON. Empty is nil.
func (s *Shape) Decode(raw []byte) (any, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	v, err := decodeJSON(raw)
	if err != nil {
		return nil, err
	}
	return s.Normalize(v)
}

// maxJSONDepth bounds what is read of the other side: encoding/json itself allows
// 10,000, and what walks a value recurs.
const maxJSONDepth = 32

func decodeJSON(raw []byte) (any, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("it is not UTF-8")
	}
	if err := jsonDepth(raw); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, errors.New("it is no JSON")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something stands after the JSON")
	}
	return v, nil
}

func jsonDepth(raw []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			if depth++; depth > maxJSONDepth {
				return fmt.Errorf("it is nested more than %d deep", maxJSONDepth)
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return nil
}

// CheckFacts holds what a plugin says of facts to what it declared. It returns one
// fact for each declared one that is wanted (want nil: all), in the order of the
// declarations; values are normalized. What is missing, said twice, of another type
// or of a negative age is unknown, and why says so. Facts that were not declared
// are left out.
func CheckFacts(defs []FactDef, want []string, facts []Fact) []Fact {
	said := make(map[string][]Fact, len(facts))
	for _, f := range facts {
		said[f.Name] = append(said[f.Name], f)
	}
	out := make([]Fact, 0, len(defs))
	for _, def := range defs {
		if len(want) > 0 && !slices.Contains(want, def.Name) {
			continue
		}
		out = append(out, checkFact(def, said[def.Name]))
	}
	return out
}

func checkFact(def FactDef, said []Fact) Fact {
	switch {
	case len(said) == 0:
		return Unknown(def.Name, "the plugin said nothing of it")
	case len(said) > 1:
		return Unknown(def.Name, "the plugin said %d different things of it", len(said))
	}
	f := said[0]
	if f.Age < 0 {
		return Unknown(def.Name, "the plugin says that it was observed in the future")
	}
	if f.Unknown {
		f.Value = nil
		f.Why = clip(f.Why, maxMessage)
		if f.Why == "" {
			f.Why = "the plugin does not say why"
		}
		return f
	}
	shape, err := def.Type.Parse()
	if err != nil {
		return Unknown(def.Name, "%v", err)
	}
	v, err := shape.Normalize(f.Value)
	if err != nil {
		return Unknown(def.Name, "the plugin's answer is not as declared: %v", err)
	}
	f.Value = v
	return f
}

// sortedKeys are the keys of a configuration's object.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
