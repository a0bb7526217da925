package policies

import (
	"embed"
	"fmt"
	"strings"
)

// The sets that are shipped in the program.
const (
	BuiltinDefault  = "default"
	BuiltinCautious = "cautious"
	BuiltinForeign  = "foreign-locks"
)

// BuiltinPrefix before a name stands for a shipped set where a path could be.
const BuiltinPrefix = "builtin:"

//go:embed default.hcl cautious.hcl foreign-locks.hcl
var builtins embed.FS

// BuiltinNames are the names that Builtin takes.
func BuiltinNames() []string { return []string{BuiltinDefault, BuiltinCautious, BuiltinForeign} }

// Builtin returns a shipped set.
func Builtin(name string) (*Set, error) {
	set, diags := Load([]string{BuiltinPrefix + name})
	if diags.HasErrors() {
		return nil, fmt.Errorf("shipped policy %q: %w", name, diags)
	}
	return set, nil
}

// BuiltinSource returns the text of a shipped set.
func BuiltinSource(name string) ([]byte, error) {
	src, err := builtinSource(name)
	return src.bytes, err
}

func builtinSource(name string) (source, error) {
	b, err := builtins.ReadFile(name + ".hcl")
	if err != nil {
		return source{}, fmt.Errorf("there is no shipped policy %q.%s", name,
			didYouMean(name, BuiltinNames(), "There are "+strings.Join(BuiltinNames(), ", ")))
	}
	return source{name: BuiltinPrefix + name, bytes: b}, nil
}
