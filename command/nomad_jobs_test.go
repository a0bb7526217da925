package command

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/scaffold"
	"github.com/aim-control/aimlock/orchestrator/spec"
)

const nomadExamples = "../examples/nomad"

// The keys of a driver's config block that the examples use, by the drivers'
// documentation; Nomad's own reader of jobs does not know them either.
func driverKeys(driver string) []string {
	switch driver {
	case "raw_exec":
		return []string{"command", "args"}
	case "docker":
		return []string{"image", "args", "network_mode", "volumes"}
	}
	return nil
}

// Every job in examples/nomad is read strictly: no block and no key that Nomad
// does not have, and values of its types. What Nomad has is what the tags of its
// API's own types say, those that its reader of jobs goes by.
func TestNomadJobs(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(nomadExamples + "/*.nomad.hcl")
	// That one is of the device plugin, and read with it.
	files = slices.DeleteFunc(files, func(f string) bool { return filepath.Base(f) == "placed-by-config.nomad.hcl" })
	if err != nil || len(files) != 8 {
		t.Fatalf("jobs %v, %v", files, err)
	}
	types := map[string]string{}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f := readJob(t, path)
			types[strings.TrimSuffix(filepath.Base(path), ".nomad.hcl")] = f.got["job/type"]
			for key, want := range map[string]string{
				"job/group/task/kill_timeout": "30s", "job/group/task/kill_signal": "SIGTERM", "job/constraint/attribute": "<kernel>",
			} {
				if f.got[key] != want {
					t.Errorf("%s is %q, want %q", key, f.got[key], want)
				}
			}
			if driver := f.got["job/group/task/driver"]; driver != "raw_exec" && driver != "docker" || (driver == "docker") != strings.Contains(path, "-docker") {
				t.Errorf("driver %q", driver)
			}
			if f.got["job/type"] == "batch" && (f.got["job/periodic/prohibit_overlap"] != "true" || f.got["job/group/restart/attempts"] != "0") {
				t.Errorf("a periodic job that overlaps or restarts: %v", f.got)
			}
		})
	}
	for name, want := range map[string]string{
		"tick": "batch", "locksmith-once": "batch", "locksmith": "service", "agent": "system",
		"tick-docker": "batch", "locksmith-once-docker": "batch", "locksmith-docker": "service", "agent-docker": "system",
	} {
		if types[name] != want {
			t.Errorf("%s is of type %q, want %q", name, types[name], want)
		}
	}
	if _, diags := spec.Load(nomadExamples + "/rollout/rollout.hcl"); len(diags) > 0 {
		t.Error(diags)
	}
}

// What is wrong in a job is found.
func TestNomadJobsAreReadStrictly(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(nomadExamples + "/tick.nomad.hcl")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ old, new, want string }{
		"a key":          {"prohibit_overlap", "prohibit_overlaps", "job/periodic has no key prohibit_overlaps"},
		"a block":        {"restart {", "restarts {", "job/group has no block restarts"},
		"in a dynamic":   {"aud  = ", "audience = ", "job/group/task/identity has no key audience"},
		"a driver's":     {"command = var.aimlock", "cmd = var.aimlock", "raw_exec has no key cmd"},
		"a duration":     {`"30s"`, `"30 parsecs"`, "job/group/task/kill_timeout"},
		"a type":         {"attempts = 0", `attempts = "none"`, "job/group/restart/attempts"},
		"a variable":     {"var.consul_addr", "var.consul_address", "consul_address"},
		"of the runtime": {"${NOMAD_TASK_DIR}", "${NOMAD_TSK_DIR}", "NOMAD_TSK_DIR"},
		"a file":         {`file("rollout/rollout.hcl")`, `file("rollout/rollouts.hcl")`, "rollouts.hcl"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(string(text), tc.old) {
				t.Fatalf("the example has no %s", tc.old)
			}
			j := parseJob([]byte(strings.Replace(string(text), tc.old, tc.new, 1)), "tick.nomad.hcl", nomadExamples)
			if !slices.ContainsFunc(j.wrong, func(s string) bool { return strings.Contains(s, tc.want) }) {
				t.Errorf("found %q, want %q", j.wrong, tc.want)
			}
		})
	}
}

func readJob(t *testing.T, path string) *jobFile {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	j := parseJob(b, path, filepath.Dir(path))
	for _, w := range j.wrong {
		t.Error(w)
	}
	return j
}

// jobFile is one file of a Nomad job.
type jobFile struct {
	eval *hcl.EvalContext
	// got are the values of attributes by their paths; the last counts.
	got   map[string]string
	wrong []string
}

func (j *jobFile) complain(rng hcl.Range, format string, args ...any) {
	j.wrong = append(j.wrong, fmt.Sprintf("%s: %s", rng, fmt.Sprintf(format, args...)))
}

func (j *jobFile) diagnostics(diags hcl.Diagnostics) {
	for _, d := range diags {
		j.wrong = append(j.wrong, d.Error())
	}
}

// parseJob reads a job whose file() functions are relative to dir.
func parseJob(text []byte, path, dir string) *jobFile {
	j := &jobFile{got: map[string]string{}}
	file, diags := hclparse.NewParser().ParseHCL(text, path)
	j.diagnostics(diags)
	if diags.HasErrors() {
		return j
	}
	body, _ := file.Body.(*hclsyntax.Body)
	vars := map[string]cty.Value{}
	for _, b := range body.Blocks {
		if b.Type != "variable" {
			continue
		}
		for name, a := range b.Body.Attributes {
			switch name {
			case "default":
				v, diags := a.Expr.Value(nil)
				j.diagnostics(diags)
				vars[b.Labels[0]] = v
			case "type", "description":
			default:
				j.complain(a.NameRange, "a variable has no key %s", name)
			}
		}
	}
	// What Nomad puts in on the client, of which the reader leaves the place.
	known := map[string]cty.Value{"var": cty.ObjectVal(vars)}
	for _, name := range []string{"NOMAD_TASK_DIR", "NOMAD_SECRETS_DIR", "NOMAD_ADDR_http"} {
		known[name] = cty.StringVal("<" + name + ">")
	}
	known["attr"] = cty.ObjectVal(map[string]cty.Value{"kernel": cty.ObjectVal(map[string]cty.Value{"name": cty.StringVal("<kernel>")})})
	known["node"] = cty.ObjectVal(map[string]cty.Value{"unique": cty.ObjectVal(map[string]cty.Value{"name": cty.StringVal("<node>")})})
	j.eval = &hcl.EvalContext{Variables: known, Functions: map[string]function.Function{"concat": stdlib.ConcatFunc, "file": fileFunc(dir)}}
	jobs := 0
	for _, b := range body.Blocks {
		if b.Type == "job" {
			jobs++
			j.block(b.Body, reflect.TypeFor[api.Job](), "job", j.eval)
		}
	}
	if jobs != 1 || len(body.Attributes) > 0 {
		j.complain(body.SrcRange, "want one job and variables, found %d jobs and keys %v", jobs, slices.Sorted(maps.Keys(body.Attributes)))
	}
	return j
}

func fileFunc(dir string) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}}, Type: function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			b, err := os.ReadFile(filepath.Join(dir, args[0].AsString()))
			return cty.StringVal(string(b)), err
		},
	})
}

// field finds what a key or block of a type is, by the tag of its field.
func field(t reflect.Type, name, kind string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		tag, of, _ := strings.Cut(t.Field(i).Tag.Get("hcl"), ",")
		if tag == name && (of == kind || kind == "optional" && of == "") {
			return t.Field(i), true
		}
	}
	return reflect.StructField{}, false
}

// element is what a pointer or a list is of.
func element(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t
}

func (j *jobFile) block(body *hclsyntax.Body, t reflect.Type, at string, eval *hcl.EvalContext) {
	for name, a := range body.Attributes {
		f, ok := field(t, name, "optional")
		if !ok {
			j.complain(a.NameRange, "%s has no key %s", at, name)
			continue
		}
		j.value(a, f.Type, at+"/"+name, eval)
	}
	for _, b := range body.Blocks {
		name, inner, eval := b.Type, b.Body, eval
		if name == "dynamic" {
			name, inner, eval = j.dynamic(b, at, eval)
			if inner == nil {
				continue
			}
		}
		f, ok := field(t, name, "block")
		if !ok {
			j.complain(b.TypeRange, "%s has no block %s", at, name)
			continue
		}
		if e := element(f.Type); e.Kind() == reflect.Struct {
			j.block(inner, e, at+"/"+name, eval)
			continue
		}
		for key, a := range inner.Attributes { // env, meta, or the driver's
			if name == "config" {
				driver, _ := body.Attributes["driver"].Expr.Value(nil)
				if !slices.Contains(driverKeys(driver.AsString()), key) {
					j.complain(a.NameRange, "%s has no key %s", driver.AsString(), key)
				}
			}
			j.value(a, reflect.TypeFor[any](), at+"/"+name+"/"+key, eval)
		}
		for _, b := range inner.Blocks {
			j.complain(b.TypeRange, "%s/%s has no block %s", at, name, b.Type)
		}
	}
}

// dynamic gives what is in a dynamic block: it is read whether or not the
// variables make one.
func (j *jobFile) dynamic(b *hclsyntax.Block, at string, eval *hcl.EvalContext) (string, *hclsyntax.Body, *hcl.EvalContext) {
	if len(b.Labels) != 1 || b.Body.Attributes["for_each"] == nil || len(b.Body.Attributes) != 1 || len(b.Body.Blocks) != 1 || b.Body.Blocks[0].Type != "content" {
		j.complain(b.TypeRange, "%s has a dynamic block that is none", at)
		return "", nil, nil
	}
	j.value(b.Body.Attributes["for_each"], reflect.TypeFor[any](), at+"/for_each", eval)
	inner := eval.NewChild()
	inner.Variables = map[string]cty.Value{b.Labels[0]: cty.ObjectVal(map[string]cty.Value{"value": cty.StringVal("each")})}
	return b.Labels[0], b.Body.Blocks[0].Body, inner
}

// value checks a value against the type of the field that it is for.
func (j *jobFile) value(a *hclsyntax.Attribute, t reflect.Type, at string, eval *hcl.EvalContext) {
	v, diags := a.Expr.Value(eval)
	j.diagnostics(diags)
	if diags.HasErrors() {
		return
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	is := v.Type()
	ok := true
	switch {
	case t == reflect.TypeFor[time.Duration]():
		if ok = is == cty.String; ok {
			_, err := time.ParseDuration(v.AsString())
			ok = err == nil
		}
	case t.Kind() == reflect.String:
		ok = is == cty.String
	case t.Kind() == reflect.Bool:
		ok = is == cty.Bool
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Float64:
		ok = is == cty.Number
	case t.Kind() == reflect.Slice:
		ok = is.IsTupleType() || is.IsListType()
	}
	if !ok {
		j.complain(a.SrcRange, "%s is a %s, and not a %s", at, is.FriendlyName(), t)
		return
	}
	j.got[at] = fmt.Sprintf("%#v", v)
	switch {
	case is == cty.String:
		j.got[at] = v.AsString()
	case is == cty.Bool:
		j.got[at] = fmt.Sprint(v.True())
	case is == cty.Number:
		j.got[at] = v.AsBigFloat().String()
	}
}

// What init writes for Nomad is a job that Nomad takes.
func TestInitJob(t *testing.T) {
	t.Parallel()
	files, err := scaffold.Files(scaffold.Params{Prefix: keys.DefaultPrefix, Config: "app.conf", Destination: "/etc/app/app.conf", Nomad: true})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := scaffold.Write(dir, files); err != nil {
		t.Fatal(err)
	}
	readJob(t, filepath.Join(dir, "tick.nomad.hcl"))
}
