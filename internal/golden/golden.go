// Package golden holds what aimlock writes to what it wrote before: files of every
// record, made when the record was made, which every later version reads. It is for
// tests and imports only the standard library.
//
// Files stand in testdata/golden/v<version>/<name>.json; where a record got fields
// later, in <name>.2.json and so on. A file that stands there is never changed:
// somebody's Consul holds what it says.
package golden

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var write = flag.Bool("golden", false, "write a golden file for each record that has fields which stand in none") //nolint:gochecknoglobals // a flag

// Record is one kind of value that is written, and read by later versions.
type Record struct {
	// Name of its files.
	Name string
	// Version that it is written with now, and the name of the field that holds it:
	// "version" if empty.
	Version int
	Field   string
	// Type is a zero value, not a pointer.
	Type any
	// Sample is a pointer to a value that every version can read, for the golden
	// file; nil: one with every field set.
	Sample any
	// Decode reads as the program does; Encode writes so.
	Decode func([]byte) (any, error)
	Encode func(any) ([]byte, error)
	// JSON is the part of a file that is JSON; nil: all of it.
	JSON func([]byte) []byte
	// With puts JSON in the place of a file's; nil: it is the file.
	With func(file, js []byte) []byte
}

// Check reads all golden files of the record, holds that all fields stand in one of
// them, and that what a later version wrote is told by name where its version is
// higher, and read where it has only fields more.
func Check(t *testing.T, r Record) {
	t.Helper()
	if r.Field == "" {
		r.Field = "version"
	}
	if r.JSON == nil {
		r.JSON = func(b []byte) []byte { return b }
	}
	if r.With == nil {
		r.With = func(_, js []byte) []byte { return js }
	}
	files, err := filepath.Glob("testdata/golden/v*/" + r.Name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("testdata/golden/v*/" + r.Name + ".[0-9]*.json")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, more...)
	covered := map[string]bool{}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r.read(t, path, b)
		paths(covered, "", parse(t, r.JSON(b)))
	}
	full, err := r.Encode(Full(r.Type))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	paths(all, "", parse(t, r.JSON(full)))
	var missing []string
	for _, p := range slices.Sorted(maps.Keys(all)) {
		if !covered[p] && !slices.Contains(strings.Split(p, "."), mapKey) {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return
	}
	if !*write {
		t.Errorf("%s: no golden file has %s: go test -run '%s' . -golden writes one", r.Name, strings.Join(missing, ", "), t.Name())
		return
	}
	r.write(t, len(files))
}

func (r *Record) write(t *testing.T, there int) {
	t.Helper()
	sample := r.Sample
	if sample == nil {
		sample = Full(r.Type)
	}
	b, err := r.Encode(sample)
	if err != nil {
		t.Fatal(err)
	}
	name := r.Name + ".json"
	if there > 0 {
		name = fmt.Sprintf("%s.%d.json", r.Name, there+1)
	}
	path := filepath.Join("testdata", "golden", fmt.Sprintf("v%d", r.Version), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Logf("written: %s", path)
}

// read holds one golden file to the program as it is now.
func (r *Record) read(t *testing.T, path string, b []byte) {
	t.Helper()
	v, err := r.Decode(b)
	if err != nil {
		t.Errorf("%s cannot be read any more: %v", path, err)
		return
	}
	again, err := r.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	was, is := parse(t, r.JSON(b)), parse(t, r.JSON(again))
	if diff := kept(r.Name, was, is); diff != "" {
		t.Errorf("%s: what stands there is not what is read: %s", path, diff)
	}

	object, ok := was.(map[string]any)
	if !ok {
		t.Fatalf("%s is no object", path)
	}
	with := func(field string, value any) []byte {
		o := maps.Clone(object)
		o[field] = value
		js, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return r.With(b, js)
	}
	if unknown, err := r.Decode(with("of_a_later_version", map[string]any{"a": []any{1}})); err != nil {
		t.Errorf("%s with a field that is not known: %v", path, err)
	} else if b, err := r.Encode(unknown); err != nil || !reflect.DeepEqual(parse(t, r.JSON(b)), is) {
		t.Errorf("%s with a field that is not known is read as\n%s, and without as\n%s (%v)", path, b, again, err)
	}
	if _, err := r.Decode(with(r.Field, r.Version+1)); err == nil || !strings.Contains(err.Error(), "newer aimlock") || !strings.Contains(err.Error(), "upgrade this aimlock") {
		t.Errorf("%s of a later version: %v", path, err)
	}
}

func parse(t *testing.T, b []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %.200q", err, b)
	}
	return v
}

// kept says what of was is not in is, or stands there as something else; and what
// is in is alone and is not empty.
func kept(at string, was, is any) string {
	switch w := was.(type) {
	case map[string]any:
		i, ok := is.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s was %v and is %v", at, was, is)
		}
		for _, k := range slices.Sorted(maps.Keys(w)) {
			if diff := kept(at+"."+k, w[k], i[k]); diff != "" {
				return diff
			}
		}
		for _, k := range slices.Sorted(maps.Keys(i)) {
			if _, ok := w[k]; !ok && !empty(i[k]) {
				return fmt.Sprintf("%s.%s is new, and is %v", at, k, i[k])
			}
		}
		return ""
	case []any:
		i, ok := is.([]any)
		if !ok || len(i) != len(w) {
			return fmt.Sprintf("%s was %v and is %v", at, was, is)
		}
		for n := range w {
			if diff := kept(fmt.Sprintf("%s[%d]", at, n), w[n], i[n]); diff != "" {
				return diff
			}
		}
		return ""
	}
	if !reflect.DeepEqual(was, is) {
		return fmt.Sprintf("%s was %v and is %v", at, was, is)
	}
	return ""
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == "" || strings.HasPrefix(v, "0001-01-01")
	case json.Number:
		return v == "0"
	case []any:
		return len(v) == 0
	case map[string]any:
		for _, e := range v {
			if !empty(e) {
				return false
			}
		}
		return true
	}
	return false
}

// paths are the names of all fields that stand in a value.
func paths(to map[string]bool, at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			to[at+"."+k] = true
			paths(to, at+"."+k, e)
		}
	case []any:
		for _, e := range v {
			paths(to, at+"[]", e)
		}
	}
}

// mapKey is the key of what Full puts into maps: data, and no field.
const mapKey = "key"

// Full returns a pointer to a value of v's type in which every exported field is
// set: numbers count up, and texts say which field they are.
func Full(v any) any {
	out := reflect.New(reflect.TypeOf(v))
	n := int64(0)
	fill(out.Elem(), "", &n, 0)
	return out.Interface()
}

func fill(v reflect.Value, name string, n *int64, depth int) {
	if depth > 12 {
		return
	}
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*n++
		*x = time.Unix(1_700_000_000+*n, 500_000_000).UTC()
		return
	case *json.RawMessage:
		*x = json.RawMessage(`{"raw":1}`)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name, n, depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() || f.Anonymous {
				if v.Field(i).CanSet() {
					fill(v.Field(i), f.Name, n, depth+1)
				} else if f.Anonymous && f.Type.Kind() == reflect.Struct {
					// Its exported fields are promoted, and settable.
					fillPromoted(v.Field(i), n, depth+1)
				}
			}
		}
	case reflect.Slice:
		s := reflect.MakeSlice(v.Type(), 1, 1)
		fill(s.Index(0), name, n, depth+1)
		v.Set(s)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), name, n, depth+1)
		}
	case reflect.Map:
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(k, mapKey, n, depth+1)
		fill(e, name, n, depth+1)
		m := reflect.MakeMap(v.Type())
		m.SetMapIndex(k, e)
		v.Set(m)
	case reflect.String:
		v.SetString(strings.ToLower(name))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if *n++; name == "Version" {
			v.SetInt(1)
		} else {
			v.SetInt(*n % 100)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		*n++
		v.SetUint(uint64(*n % 100))
	case reflect.Float32, reflect.Float64:
		*n++
		v.SetFloat(float64(*n%100) + 0.5)
	case reflect.Interface, reflect.Func, reflect.Chan, reflect.Complex64, reflect.Complex128, reflect.Uintptr, reflect.UnsafePointer, reflect.Invalid:
	}
}

func fillPromoted(v reflect.Value, n *int64, depth int) {
	for i := range v.NumField() {
		if v.Field(i).CanSet() {
			fill(v.Field(i), v.Type().Field(i).Name, n, depth+1)
		}
	}
}
