package gates

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// Question is what a gate is asked.
type Question struct {
	// Gate is the definition; the part of its kind is set.
	Gate orchestrator.Gate
	// Rollout and Stage say what it is asked for.
	Rollout, Stage string
	// Epoch and Token are those of the hold that asks.
	Epoch, Token uint64
	// Updated are the names of the nodes that have the rollout's revision, and
	// Rest those of the nodes that were not given it yet, both in the plan's order.
	Updated, Rest []string
	// Dir is the folder of the spec's file; empty where it is not known.
	Dir string
}

// Answer is what a gate says. The zero value is unknown.
type Answer struct {
	orchestrator.Answer
	// Error: it is unknown because the question could not be put, or the answer
	// not be read. Another try may do better.
	Error bool
	// Value is what was measured and Why what the answer rests on: one line each,
	// fit to be shown.
	Value, Why string
}

// Kind is one kind of gate. Built-in kinds and those of plugins are the same.
type Kind interface {
	// Ask puts the question and returns when the answer is there or ctx has
	// ended, whichever is first. It may be called from several goroutines at
	// once. Whatever goes wrong is an Answer: unknown, and why.
	Ask(ctx context.Context, q Question) Answer
}

// Config makes a Set.
type Config struct {
	Consul *consulkv.Client
	// Nomad connects to Nomad, when a gate first needs it; nil: there is none.
	Nomad func() (*nomadapi.Client, error)
	// Plugin finds the gate of a plugin; nil: no plugins are there.
	Plugin func(name string) (Kind, error)
	// LookupEnv reads a variable of the environment; nil: that of this process.
	LookupEnv func(string) (string, bool)
	Log       hclog.Logger
}

// Set is all kinds of gates. It is safe for concurrent use.
type Set struct {
	kinds  map[string]Kind
	plugin func(string) (Kind, error)
	log    hclog.Logger
}

// New makes a set of the kinds that are built in and of plugins. It does not
// connect.
func New(cfg Config) *Set {
	env := environment{cfg.LookupEnv}
	if env.lookup == nil {
		env.lookup = os.LookupEnv
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	return &Set{plugin: cfg.Plugin, log: cfg.Log, kinds: map[string]Kind{
		orchestrator.GateConsulChecks:    &consulChecks{cfg.Consul},
		orchestrator.GateKindHTTP:        &httpGate{env},
		orchestrator.GateKindPrometheus:  &prometheusGate{env},
		orchestrator.GateKindExec:        &execGate{env},
		orchestrator.GateKindNomadDeploy: &nomadDeployment{cfg.Nomad},
	}}
}

// Ask puts a question, bounded by the gate's time-out. What cannot be asked is
// unknown, never pass.
func (s *Set) Ask(ctx context.Context, q Question) Answer {
	kind, err := s.kind(&q.Gate)
	if err != nil {
		return unknown("%v", err)
	}
	limit := q.Gate.Deadline()
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a := kind.Ask(tctx, q)
	if a.Answer != orchestrator.Pass && a.Answer != orchestrator.Fail && tctx.Err() != nil && ctx.Err() == nil {
		a = failed("no answer within %s", limit)
	}
	if a.Answer != orchestrator.Pass && a.Answer != orchestrator.Fail && a.Answer != orchestrator.Pending {
		a.Answer = orchestrator.Unknown // that of a plugin may be anything
	}
	a.Value, a.Why = text.Clip(text.Printable(a.Value), maxValue), text.Clip(text.Printable(a.Why), maxWhy)
	s.log.Debug("asked a gate", "rollout", q.Rollout, "gate", q.Gate.Name, "kind", q.Gate.Kind, "stage", q.Stage, "answer", a.Answer, "value", a.Value, "why", a.Why)
	return a
}

// Bounds of what an answer says.
const (
	maxValue = 90
	maxWhy   = 280
)

// Check reports whether all gates can be asked, as far as that is known before:
// their kinds are there.
func (s *Set) Check(list []orchestrator.Gate) error {
	var all []error
	for i := range list {
		if _, err := s.kind(&list[i]); err != nil {
			all = append(all, fmt.Errorf("gate %q: %w", list[i].Name, err))
		}
	}
	return errors.Join(all...)
}

func (s *Set) kind(g *orchestrator.Gate) (Kind, error) {
	if g.Kind == orchestrator.GateKindPlugin {
		switch {
		case g.Plugin == nil:
			return nil, errors.New("the gate names no plugin")
		case s.plugin == nil:
			return nil, fmt.Errorf("plugin %q is not there: this aimlock was started without plugins", g.Plugin.Name)
		}
		return s.plugin(g.Plugin.Name)
	}
	if k := s.kinds[g.Kind]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("this version knows no gate of kind %q", g.Kind)
}

func answer(a orchestrator.Answer, value, format string, args ...any) Answer {
	return Answer{Answer: a, Value: value, Why: fmt.Sprintf(format, args...)}
}

// unknown: it was asked, and what came back does not decide.
func unknown(format string, args ...any) Answer {
	return answer(orchestrator.Unknown, "", format, args...)
}

// failed: it could not be asked.
func failed(format string, args ...any) Answer {
	a := unknown(format, args...)
	a.Error = true
	return a
}

// environment is where secrets come from: a spec, which is kept in Consul, names
// a variable as ${env.NAME}, and its value is put in when a gate is asked.
type environment struct{ lookup func(string) (string, bool) }

var envRef = regexp.MustCompile(`\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}`)

// expand puts the values in. what names the text in the error, which holds no
// value.
func (e environment) expand(what, s string) (string, error) {
	var err error
	out := envRef.ReplaceAllStringFunc(s, func(ref string) string {
		name := envRef.FindStringSubmatch(ref)[1]
		v, ok := e.lookup(name)
		if !ok && err == nil {
			err = fmt.Errorf("%s needs the environment variable %s, and the orchestrator's environment does not have it", what, name)
		}
		return v
	})
	return out, err
}
