package command

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// policyVars are the values of -var.
type policyVars map[string]string

func (v policyVars) String() string { return "" }

func (v policyVars) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return fmt.Errorf("it is NAME=VALUE, such as limit=10m")
	}
	if _, twice := v[name]; twice {
		return fmt.Errorf("%s was given a value already", name)
	}
	v[name] = value
	return nil
}

// policyFlags registers what every command takes that judges.
func (m *Meta) policyFlags(fs *flag.FlagSet) {
	fs.Var((*stringList)(&m.PolicyPaths), "policy", "Judge by the policies in `PATH`, a file or a folder. May be repeated.\nWithout it, those of the config file judge, else the shipped default. Once\npolicies are applied, only these break a lock.")
	fs.Var(m.policyVars, "var", "Give a variable of the policies a value: `NAME=VALUE`. May be repeated.")
	fs.Var((*stringList)(&m.policyVarFiles), "var-file", "Read values of variables from `FILE`, lines of NAME = VALUE in HCL. May be\nrepeated: of two files the later decides, and -var before all files.")
}

// givenFlags are the flags of the command line that say where to look and by what to
// judge. The token's file is not among them: who follows a hint has a token of his own.
func (m *Meta) givenFlags() locksmith.Flags {
	var out locksmith.Flags
	add := func(to *[]string, flag string, values ...string) {
		for _, v := range values {
			if v != "" {
				*to = append(*to, flag, v)
			}
		}
	}
	add(&out.Where, "-config", m.configPath)
	add(&out.Where, "-http-addr", m.consul.httpAddr)
	add(&out.Where, "-prefix", m.prefix)
	add(&out.Judge, "-plugin-dir", m.pluginDir)
	add(&out.Judge, "-policy", m.PolicyPaths...)
	for _, name := range slices.Sorted(maps.Keys(m.policyVars)) {
		add(&out.Judge, "-var", name+"="+m.policyVars[name])
	}
	add(&out.Judge, "-var-file", m.policyVarFiles...)
	return out
}

// loadPolicySet reads the policies that positional paths, -policy, the config
// file or the shipped default name, in this order of weight, with the values
// of -var and -var-file.
func (m *Meta) loadPolicySet(paths []string) (*policies.Set, hcl.Diagnostics) {
	if len(paths) == 0 {
		paths = m.PolicyPaths
	}
	return policies.LoadWith(paths, policies.Options{Vars: m.policyVars, VarFiles: m.policyVarFiles})
}

// policyDiagnostics prints what is wrong with policies. Unlike Diagnostics it
// bounds how much, and lets nothing in a file control the terminal.
func (m *Meta) policyDiagnostics(set *policies.Set, diags hcl.Diagnostics) error {
	if len(diags) == 0 {
		return nil
	}
	width, ok := Terminal(m.Stderr)
	if !ok {
		width = 100
	}
	policies.WriteDiagnostics(m.Stderr, set.Files, diags, uint(width), m.Color(m.Stderr))
	if diags.HasErrors() {
		return exit(ExitUsage)
	}
	return nil
}
