package plugin

import (
	"fmt"
	"math"
	"reflect"
	"time"
)

// Fill checks a configuration against v's own schema and puts it into the struct
// that v points to. The error is [Problems].
func Fill(v any, c Config) error {
	schema, err := SchemaOf(v)
	if err != nil {
		return err
	}
	values, err := schema.Apply(c)
	if err != nil {
		return err
	}
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Pointer || r.Elem().Kind() != reflect.Struct {
		return nil
	}
	var problems Problems
	fill(r.Elem(), values, "", &problems)
	return problems.Err()
}

// fill puts values, which were checked against the struct's schema, into it.
func fill(r reflect.Value, values map[string]any, at string, problems *Problems) {
	for i := range r.NumField() {
		f, field := r.Type().Field(i), r.Field(i)
		t, err := parseTag(&f)
		if err != nil {
			problems.Add(at, "%v", err)
			continue
		}
		if t == nil {
			if f.Anonymous && field.Kind() == reflect.Struct {
				fill(field, values, at, problems)
			}
			continue
		}
		if v := values[t.name]; v != nil {
			set(field, v, at+t.name, problems)
		}
	}
}

func set(field reflect.Value, v any, at string, problems *Problems) {
	if field.Kind() == reflect.Pointer {
		if field.IsNil() {
			field.Set(reflect.New(field.Type().Elem()))
		}
		set(field.Elem(), v, at, problems)
		return
	}
	switch v := v.(type) {
	case string:
		field.SetString(v)
	case bool:
		field.SetBool(v)
	case int64:
		setNumber(field, float64(v), v, true, at, problems)
	case float64:
		setNumber(field, v, 0, false, at, problems)
	case []any:
		list := reflect.MakeSlice(field.Type(), len(v), len(v))
		for i := range v {
			set(list.Index(i), v[i], fmt.Sprintf("%s[%d]", at, i), problems)
		}
		field.Set(list)
	case map[string]any:
		if field.Kind() == reflect.Struct {
			fill(field, v, at+".", problems)
			return
		}
		m := reflect.MakeMapWithSize(field.Type(), len(v))
		for _, k := range sortedKeys(v) {
			e := reflect.New(field.Type().Elem()).Elem()
			set(e, v[k], fmt.Sprintf("%s[%q]", at, clip(k, 80)), problems)
			m.SetMapIndex(reflect.ValueOf(k).Convert(field.Type().Key()), e)
		}
		field.Set(m)
	}
}

func setNumber(field reflect.Value, f float64, i int64, whole bool, at string, problems *Problems) {
	switch {
	case field.Type() == durationType:
		ns := f * float64(time.Second)
		if math.Abs(ns) >= math.MaxInt64 {
			problems.Add(at, "the duration is out of range")
			return
		}
		if whole {
			field.SetInt(i * int64(time.Second))
			return
		}
		field.SetInt(int64(math.Round(ns)))
	case field.CanFloat():
		field.SetFloat(f)
	case !whole:
		problems.Add(at, "a whole number is needed")
	case field.CanInt() && !field.OverflowInt(i):
		field.SetInt(i)
	case field.CanUint() && i >= 0 && !field.OverflowUint(uint64(i)):
		field.SetUint(uint64(i))
	default:
		problems.Add(at, "the number is out of range")
	}
}
