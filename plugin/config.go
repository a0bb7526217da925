package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is a configuration: a JSON object. It may hold secrets, so that printing
// it shows nothing.
type Config []byte

// NewConfig makes one of its values.
func NewConfig(values map[string]any) (Config, error) {
	raw, err := json.Marshal(values)
	return Config(raw), err
}

func (c Config) String() string { return fmt.Sprintf("(configuration of %d bytes)", len(c)) }

// GoString is String.
func (c Config) GoString() string { return c.String() }

// MarshalJSON makes it what it is. Who writes it somewhere has chosen to.
func (c Config) MarshalJSON() ([]byte, error) {
	if len(c) == 0 {
		return []byte("{}"), nil
	}
	return c, nil
}

// maxConfig bounds a configuration.
const maxConfig = 1 << 20

// Apply checks a configuration against the schema and returns it with its defaults,
// normalized (see [Shape.Normalize]). The error is [Problems]: all of them, and none
// holds a value.
func (s *Schema) Apply(c Config) (map[string]any, error) {
	if len(c) > maxConfig {
		return nil, Invalid("", "a configuration of %d bytes: %d at most", len(c), maxConfig)
	}
	in := map[string]any{}
	if len(c) > 0 {
		v, err := decodeJSON(c)
		if err != nil {
			return nil, Invalid("", "%v", err)
		}
		obj, ok := v.(map[string]any)
		if !ok && v != nil {
			return nil, Invalid("", "it is no JSON object")
		}
		in = obj
	}
	var problems Problems
	out := s.apply(in, "", &problems)
	if len(problems) > 0 {
		return nil, problems
	}
	return out, nil
}

func (s *Schema) apply(in map[string]any, at string, problems *Problems) map[string]any {
	out := make(map[string]any, len(s.Attributes)+len(s.Blocks))
	for _, name := range sortedKeys(in) {
		if s.Attribute(name) == nil && s.Block(name) == nil {
			problems.Add(at, "there is no argument %q", clip(name, 80))
		}
	}
	for i := range s.Attributes {
		a := &s.Attributes[i]
		shape, err := a.Type.Parse()
		if err != nil {
			problems.Add(at+a.Name, "%v", err)
			continue
		}
		v := in[a.Name]
		if v == nil {
			v = a.Default
		}
		if v == nil && a.Required {
			problems.Add(at+a.Name, "it is required")
			continue
		}
		n, err := shape.Normalize(v)
		switch {
		case err != nil && a.Secret: // a key of a map may be one
			problems.Add(at+a.Name, "a %s is needed", shape)
		case err != nil:
			problems.Add(at+a.Name, "%v", err)
		default:
			out[a.Name] = n
		}
	}
	for i := range s.Blocks {
		s.Blocks[i].apply(in[s.Blocks[i].Name], out, at, problems)
	}
	return out
}

func (b *Block) apply(v any, out map[string]any, at string, problems *Problems) {
	var list []any
	switch v := v.(type) {
	case nil:
	case map[string]any:
		list = []any{v}
	case []any:
		list = v
	default:
		problems.Add(at+b.Name, "it is a block")
		return
	}
	if len(list) < b.Min || b.Max > 0 && len(list) > b.Max {
		problems.Add(at+b.Name, "%s", b.Count(len(list)))
		return
	}
	blocks := make([]any, 0, len(list))
	for i, e := range list {
		obj, ok := e.(map[string]any)
		path := at + b.Name + "."
		if b.Max != 1 {
			path = fmt.Sprintf("%s%s[%d].", at, b.Name, i)
		}
		if !ok {
			problems.Add(strings.TrimSuffix(path, "."), "it is a block")
			continue
		}
		blocks = append(blocks, b.Config.apply(obj, path, problems))
	}
	switch {
	case b.Max != 1:
		out[b.Name] = blocks
	case len(blocks) == 1:
		out[b.Name] = blocks[0]
	}
}

// Count says what is wrong with having n of the block.
func (b *Block) Count(n int) string {
	switch {
	case b.Max == 0:
		return fmt.Sprintf("at least %d are needed, and there are %d", b.Min, n)
	case b.Min == b.Max:
		return fmt.Sprintf("exactly %d must be there, and there are %d", b.Min, n)
	}
	return fmt.Sprintf("%d to %d may be there, and there are %d", b.Min, b.Max, n)
}

// Secrets are the texts of a configuration that are shown nowhere. Those of less
// than four bytes are left out: to hide them would hide half of any text.
func (s *Schema) Secrets(c Config) []string {
	values, err := s.Apply(c)
	if err != nil {
		return nil
	}
	var out []string
	s.secrets(values, &out)
	slices.Sort(out)
	out = slices.Compact(out)
	// The longest first: one may hold another.
	slices.SortStableFunc(out, func(a, b string) int { return len(b) - len(a) })
	return out
}

func (s *Schema) secrets(values map[string]any, out *[]string) {
	for i := range s.Attributes {
		if s.Attributes[i].Secret {
			texts(values[s.Attributes[i].Name], out)
		}
	}
	for i := range s.Blocks {
		b := &s.Blocks[i]
		switch v := values[b.Name].(type) {
		case map[string]any:
			b.Config.secrets(v, out)
		case []any:
			for _, e := range v {
				if m, ok := e.(map[string]any); ok {
					b.Config.secrets(m, out)
				}
			}
		}
	}
}

func texts(v any, out *[]string) {
	switch v := v.(type) {
	case string:
		if len(v) >= 4 {
			*out = append(*out, v)
		}
	case []any:
		for _, e := range v {
			texts(e, out)
		}
	case map[string]any:
		for _, e := range v {
			texts(e, out)
		}
	}
}

// SchemaOf is the schema of the struct that v points to: its fields with a tag
//
//	config:"NAME[,required][,secret][,block][,min=N][,max=N]"
//
// with a doc tag beside it. string, bool, numbers, time.Duration, slices, maps with
// string keys, structs and pointers to these are attributes; with block, a struct, a
// pointer to one or a slice of them is a nested block. What a field holds is its
// default. Embedded structs count as their fields. What is no pointer to a struct
// has no configuration.
func SchemaOf(v any) (*Schema, error) {
	r := reflect.ValueOf(v)
	if !r.IsValid() {
		return nil, errors.New("the factory made nil")
	}
	if r.Kind() != reflect.Pointer || r.Elem().Kind() != reflect.Struct {
		return &Schema{}, nil
	}
	return schemaOf(r.Elem(), 0)
}

// tag is a parsed config tag.
type tag struct {
	name                    string
	required, secret, block bool
	min, max                int
}

func parseTag(f *reflect.StructField) (*tag, error) {
	text, ok := f.Tag.Lookup("config")
	if !ok {
		return nil, nil
	}
	parts := strings.Split(text, ",")
	t := &tag{name: parts[0]}
	for _, p := range parts[1:] {
		key, value, _ := strings.Cut(p, "=")
		var err error
		switch key {
		case "required":
			t.required = true
		case "secret":
			t.secret = true
		case "block":
			t.block = true
		case "min":
			t.min, err = strconv.Atoi(value)
		case "max":
			t.max, err = strconv.Atoi(value)
		default:
			err = errors.New("it is not known")
		}
		if err != nil {
			return nil, fmt.Errorf("field %s: option %q of its config tag: %w", f.Name, p, err)
		}
	}
	if !f.IsExported() {
		return nil, fmt.Errorf("field %s has a config tag and is not exported", f.Name)
	}
	return t, nil
}

func schemaOf(r reflect.Value, depth int) (*Schema, error) {
	s := &Schema{}
	if depth > maxBlockDepth {
		return nil, fmt.Errorf("%s is nested more than %d deep", r.Type(), maxBlockDepth)
	}
	for i := range r.NumField() {
		f, v := r.Type().Field(i), r.Field(i)
		t, err := parseTag(&f)
		switch {
		case err != nil:
			return nil, err
		case t == nil && f.Anonymous && v.Kind() == reflect.Struct:
			inner, err := schemaOf(v, depth)
			if err != nil {
				return nil, err
			}
			s.Attributes = append(s.Attributes, inner.Attributes...)
			s.Blocks = append(s.Blocks, inner.Blocks...)
		case t == nil:
		case t.block:
			b, err := blockOf(t, &f, v, depth)
			if err != nil {
				return nil, err
			}
			s.Blocks = append(s.Blocks, *b)
		default:
			a := Attribute{Name: t.name, Required: t.required, Secret: t.secret, Doc: f.Tag.Get("doc")}
			if a.Type, err = typeOf(f.Type, 0); err != nil {
				return nil, fmt.Errorf("field %s: %w", f.Name, err)
			}
			if !v.IsZero() && !t.required {
				shape, err := a.Type.Parse()
				if err != nil {
					return nil, err
				}
				if a.Default, err = shape.Normalize(plain(v)); err != nil {
					return nil, fmt.Errorf("default of field %s: %w", f.Name, err)
				}
			}
			s.Attributes = append(s.Attributes, a)
		}
	}
	return s, nil
}

func blockOf(t *tag, f *reflect.StructField, v reflect.Value, depth int) (*Block, error) {
	b := &Block{Name: t.name, Min: t.min, Max: t.max, Doc: f.Tag.Get("doc")}
	of := f.Type
	if of.Kind() == reflect.Slice {
		of = of.Elem()
		if b.Max == 1 {
			return nil, fmt.Errorf("field %s: a block of which there is one is a struct, or a pointer to one", f.Name)
		}
	} else {
		b.Max = 1
	}
	if t.required {
		b.Min = max(b.Min, 1)
	}
	if of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct {
		return nil, fmt.Errorf("field %s: a block is a struct, a pointer to one or a slice of them, and not %s", f.Name, f.Type)
	}
	fresh := reflect.New(of).Elem()
	if v.Kind() == reflect.Struct {
		fresh = v
	}
	inner, err := schemaOf(fresh, depth+1)
	if err != nil {
		return nil, fmt.Errorf("field %s: %w", f.Name, err)
	}
	b.Config = *inner
	return b, nil
}

var durationType = reflect.TypeFor[time.Duration]() //nolint:gochecknoglobals // a constant

func typeOf(t reflect.Type, depth int) (Type, error) {
	if depth > maxTypeDepth {
		return "", fmt.Errorf("%s is nested more than %d deep", t, maxTypeDepth)
	}
	switch {
	case t == durationType:
		return Duration, nil
	case t.Kind() == reflect.Pointer:
		return typeOf(t.Elem(), depth+1)
	case t.Kind() == reflect.String:
		return String, nil
	case t.Kind() == reflect.Bool:
		return Bool, nil
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Float64 && t.Kind() != reflect.Uintptr:
		return Number, nil
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		elem, err := typeOf(t.Elem(), depth+1)
		return List(elem), err
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
		elem, err := typeOf(t.Elem(), depth+1)
		return Map(elem), err
	case t.Kind() == reflect.Struct:
		fields := map[string]Type{}
		for i := range t.NumField() {
			f := t.Field(i)
			tag, err := parseTag(&f)
			if err != nil {
				return "", err
			}
			if tag == nil {
				continue
			}
			if fields[tag.name], err = typeOf(f.Type, depth+1); err != nil {
				return "", err
			}
		}
		if len(fields) > 0 {
			return Object(fields), nil
		}
	}
	return "", fmt.Errorf("a configuration cannot hold a %s", t)
}

// plain is a Go value with its structs as maps.
func plain(v reflect.Value) any {
	switch {
	case v.Type() == durationType:
		return v.Interface()
	case v.Kind() == reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return plain(v.Elem())
	case v.Kind() == reflect.Struct:
		out := map[string]any{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if t, err := parseTag(&f); err == nil && t != nil {
				out[t.name] = plain(v.Field(i))
			}
		}
		return out
	case v.Kind() == reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = plain(v.Index(i))
		}
		return out
	case v.Kind() == reflect.Map:
		out := map[string]any{}
		for _, k := range v.MapKeys() {
			out[k.String()] = plain(v.MapIndex(k))
		}
		return out
	}
	return v.Interface()
}
