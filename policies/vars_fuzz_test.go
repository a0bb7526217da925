package policies

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// FuzzVars: values given by -var and by files of values, to variables of every kind.
func FuzzVars(f *testing.F) {
	dir := f.TempDir()
	const src = `variable "s" {
  type    = string
  default = "x"
}
variable "n" {
  type    = number
  default = 1
}
variable "b" {
  type    = bool
  default = true
}
variable "l" {
  type    = list(string)
  default = []
}
variable "m" {
  type    = map(number)
  default = {}
}
policy "p" {
  locks = concat(["a"], var.l)
  warm "w" {
    when = progress.age > var.n && var.b && holder.host == var.s && contains(keys(var.m), node.name)
  }
}
`
	if _, diags := LoadWith([]string{"builtin:" + BuiltinDefault}, Options{}); diags.HasErrors() {
		f.Fatal(diags)
	}
	path := filepath.Join(dir, "p.hcl")
	if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
		f.Fatal(err)
	}
	for _, v := range []string{"x", "1", "1e9999", "true", `["a", "b"]`, `{a = 1}`, "[[[[", "null", "${", "\x1b[2J", "1e308", "-0", "[for a in [1] : a]"} {
		f.Add(v, "n = "+v)
	}
	f.Fuzz(func(t *testing.T, value, file string) {
		if len(value) > 1<<14 || len(file) > 1<<14 {
			return
		}
		start := time.Now()
		values := filepath.Join(t.TempDir(), "v.hcl")
		if err := os.WriteFile(values, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"s", "n", "b", "l", "m"} {
			set, diags := LoadWith([]string{path}, Options{Vars: map[string]string{name: value}})
			check(t, set, diags.HasErrors())
		}
		set, diags := LoadWith([]string{path}, Options{VarFiles: []string{values}})
		check(t, set, diags.HasErrors())
		if took := time.Since(start); took > 10*time.Second {
			t.Fatalf("it took %s", took)
		}
	})
}

func check(t *testing.T, set *Set, failed bool) {
	t.Helper()
	if failed != (len(set.Policies) == 0) {
		t.Fatalf("failed %v, and %d policies", failed, len(set.Policies))
	}
	for _, p := range set.Policies {
		p.Judge(nil, nil, "h", 0)
	}
}
