package policies

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// Break says how a HOT lock may be broken, and what brakes there are.
type Break struct {
	// Approval is auto, manual (the default) or never.
	Approval string
	Confirm  Confirm
	// Steps in the order of the file. A block without steps means take alone.
	// A policy whose steps do not end in take only asks, and never takes.
	Steps  []*Step
	Budget *Budget
	Freeze *Freeze
	// Quiesce can only raise the pause that the holder's record asks for.
	Quiesce *time.Duration
	Range   hcl.Range
}

// Confirm says how many observations, one after the other, must be HOT by the
// same rule. It does not apply to a rule that rests on proof.
type Confirm struct {
	Observations int
	Every        time.Duration
}

// Budget bounds how many breaks there may be in any time of length Per.
type Budget struct {
	Max int
	Per time.Duration
}

// Freeze is a condition under which nothing is broken but on proof.
type Freeze struct {
	// When is the condition as it is written, on one line.
	When string
	when *expr
}

// Used names the facts that the condition reads.
func (f *Freeze) Used() []string { return f.when.used }

// Frozen reports whether breaking is frozen and, if that is so or cannot be
// told, why. An unknown freeze blocks breaking. Without a freeze block nothing
// is ever frozen.
func (b *Break) Frozen(f Facts) (Tri, string) {
	if b == nil || b.Freeze == nil {
		return False, ""
	}
	s := b.Freeze.when.scope(f)
	t, why := b.Freeze.when.eval(s)
	if t == True {
		why = b.Freeze.when.describe(s)
	}
	return t, why
}

// Step is one thing that is done to break a lock.
type Step struct {
	// Kind is request, signal, nomad_stop, exec, plugin, destroy_session or
	// take.
	Kind string
	// Wait is how long the lock is given to be let go after the step.
	Wait time.Duration
	// OnError is abort or continue.
	OnError string
	// Signal is the name of the signal of a signal step, such as TERM.
	Signal string
	// Plugin is the name of the plugin of a plugin step, and PluginConfig its config
	// block as JSON (package hclblock). PluginBody is that block, nil where there is
	// none, and PluginContext what its expressions may use: for who knows what the
	// plugin takes.
	Plugin        string
	PluginConfig  json.RawMessage
	PluginBody    hcl.Body
	PluginContext *hcl.EvalContext
	// Argv is the command of an exec step where it reads no facts; see Command.
	Argv []string
	// When is the condition as it is written, or empty.
	When  string
	Range hcl.Range

	when *expr
	argv *expr
}

// Destroys reports whether the step can end something: all but request.
func (s *Step) Destroys() bool { return s.Kind != StepRequest }

// Used names the facts that the step's condition and command read.
func (s *Step) Used() []string {
	var out []string
	for _, e := range []*expr{s.when, s.argv} {
		if e != nil {
			out = append(out, e.used...)
		}
	}
	return out
}

// Applies reports whether the step is to be run: where its condition holds or
// there is none, and where it cannot be told and the step only asks.
func (s *Step) Applies(f Facts) (run bool, t Tri, why string) {
	if s.when == nil {
		return true, True, ""
	}
	t, why = s.when.eval(s.when.scope(f))
	switch t {
	case True:
		return true, t, ""
	case Unknown:
		return !s.Destroys(), t, why
	}
	return false, t, "its condition does not hold: " + s.When
}

// Command returns the command of an exec step over the facts. A fact in it
// that is null or unknown is an error: what would run is not what was meant.
func (s *Step) Command(f Facts) ([]string, error) {
	if s.argv == nil {
		return nil, fmt.Errorf("step %q has no command", s.Kind)
	}
	sc := s.argv.scope(f)
	for _, name := range s.argv.used {
		switch v := sc.ctx.Variables[name]; {
		case !v.IsKnown():
			return nil, fmt.Errorf("the command needs %s, which is unknown: %s", name, sc.why[name])
		case v.IsNull():
			return nil, fmt.Errorf("the command needs %s, and there is none", name)
		}
	}
	v, diags := s.argv.value(sc.ctx)
	if diags.HasErrors() {
		return nil, fmt.Errorf("the command cannot be made: %s", diagText(diags))
	}
	return argvOf(v)
}

func argvOf(v cty.Value) ([]string, error) {
	v, err := convert.Convert(v, cty.List(cty.String))
	if err != nil {
		return nil, fmt.Errorf("a list of strings is required: %w", err)
	}
	if !v.IsWhollyKnown() || v.IsNull() || v.LengthInt() == 0 {
		return nil, fmt.Errorf("a list of at least one string is required")
	}
	argv := make([]string, 0, v.LengthInt())
	for it := v.ElementIterator(); it.Next(); {
		_, e := it.Element()
		if e.IsNull() {
			return nil, fmt.Errorf("an element of the command is null")
		}
		argv = append(argv, e.AsString())
	}
	if argv[0] == "" {
		return nil, fmt.Errorf("the program's name is empty")
	}
	return argv, nil
}
