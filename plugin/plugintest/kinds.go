package plugintest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aim-control/aimlock/plugin"
)

func evidenceChecks() []check {
	return []check{{"observe", observes}, {"wanted", wanted}, {"hostile holder", hostileEvidence}, {"cancelled", ended}}
}

// with makes an instance for the time of f.
func with[T any](ctx context.Context, r *run, c *plugin.Client, cs *Case, f func(v T) error) error {
	cctx, cancel := r.limit(ctx)
	defer cancel()
	v, err := instance(cctx, c, cs.Kind, cs.config())
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	err = f(v.(T))
	return errors.Join(err, plugin.Release(v))
}

func observe(ctx context.Context, r *run, e plugin.Evidence, q *plugin.ObserveRequest) (map[string]plugin.Fact, error) {
	cctx, cancel := r.limit(ctx)
	defer cancel()
	q.Host = "plugintest"
	facts, err := e.Observe(cctx, q)
	if err != nil {
		return nil, err
	}
	out := map[string]plugin.Fact{}
	for _, f := range facts {
		out[f.Name] = f
		if err := oneLine("why "+f.Name+" is unknown", f.Why); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// observes: the facts that the case expects are as it expects them.
func observes(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	declared := map[string]bool{}
	for _, f := range c.Info().Kind(plugin.KindEvidence).Facts {
		declared[f.Name] = true
	}
	return with(ctx, r, c, cs, func(e plugin.Evidence) error {
		facts, err := observe(ctx, r, e, &plugin.ObserveRequest{Lock: cs.Lock})
		if err != nil {
			return err
		}
		var errs []error
		for name, want := range cs.Facts {
			f := facts[name]
			switch {
			case !declared[name]:
				errs = append(errs, fmt.Errorf("fact %s is not declared", name))
			case want == Unknown:
				if !f.Unknown {
					errs = append(errs, fmt.Errorf("fact %s is %v, and cannot be known", name, f.Value))
				}
			case f.Unknown:
				errs = append(errs, fmt.Errorf("fact %s is unknown: %s", name, f.Why))
			case want == Any && f.Value != nil:
			case !same(f.Value, want):
				errs = append(errs, fmt.Errorf("fact %s is %v (%T), want %v (%T)", name, f.Value, f.Value, want, want))
			}
		}
		return errors.Join(errs...)
	})
}

// same compares values as JSON has them.
func same(a, b any) bool {
	x, errX := json.Marshal(inSeconds(a))
	y, errY := json.Marshal(inSeconds(b))
	var p, q any
	return errX == nil && errY == nil && json.Unmarshal(x, &p) == nil && json.Unmarshal(y, &q) == nil && reflect.DeepEqual(p, q)
}

func inSeconds(v any) any {
	if d, ok := v.(time.Duration); ok {
		return d.Seconds()
	}
	return v
}

// wanted: the plugin can be asked for one fact alone.
func wanted(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return with(ctx, r, c, cs, func(e plugin.Evidence) error {
		for _, def := range e.Facts() {
			facts, err := observe(ctx, r, e, &plugin.ObserveRequest{Lock: cs.Lock, Want: []string{def.Name}})
			if err != nil {
				return fmt.Errorf("asked for %s alone: %w", def.Name, err)
			}
			want, told := cs.Facts[def.Name]
			if f := facts[def.Name]; told && want != Unknown && f.Unknown {
				return fmt.Errorf("asked for %s alone, it is unknown: %s", def.Name, f.Why)
			}
		}
		return nil
	})
}

// untouched fails if a hostile text was run by a shell.
func untouched(mark string) error {
	if _, err := os.Stat(mark); err == nil {
		return errors.New("a command in the holder's record was run: never hand it to a shell")
	}
	return nil
}

// hostileEvidence: a holder's record is anybody's text.
func hostileEvidence(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	mark := filepath.Join(r.tb.TempDir(), "run")
	return with(ctx, r, c, cs, func(e plugin.Evidence) error {
		_, err := observe(ctx, r, e, &plugin.ObserveRequest{Lock: hostile(mark)})
		if errors.Is(err, plugin.ErrPanic) || errors.Is(err, plugin.ErrUnavailable) && r.died() {
			return err
		}
		if err := untouched(mark); err != nil {
			return err
		}
		if _, err := observe(ctx, r, e, &plugin.ObserveRequest{Lock: cs.Lock}); err != nil {
			return fmt.Errorf("after a hostile record: %w", err)
		}
		return nil
	})
}

func breakerChecks() []check {
	return []check{{"dry run", dryRun}, {"break", breaks}, {"break again", breaksOnce}, {"hostile holder", hostileBreak}, {"cancelled", ended}}
}

// requestID makes the names of requests.
var requestID atomic.Uint64 //nolint:gochecknoglobals // a counter

func breakWith(ctx context.Context, r *run, b plugin.Breaker, q *plugin.BreakRequest) (*plugin.BreakResult, error) {
	cctx, cancel := r.limit(ctx)
	defer cancel()
	q.Rule, q.Reason, q.Step = "stalled", "no progress for 10m0s", 1
	res, err := b.Break(cctx, q)
	if err == nil {
		err = oneLine("the detail", res.Detail)
	}
	return res, err
}

func newID() string { return fmt.Sprintf("plugintest-%d-%d", os.Getpid(), requestID.Add(1)) }

// dryRun: it says what would be done, and does nothing.
func dryRun(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return with(ctx, r, c, cs, func(b plugin.Breaker) error {
		before := effects(cs)
		res, err := breakWith(ctx, r, b, &plugin.BreakRequest{ID: newID(), Lock: cs.Lock, DryRun: true})
		if err != nil {
			return err
		}
		if after := effects(cs); after != before {
			return fmt.Errorf("a dry run has an effect: %q before it, %q after", before, after)
		}
		if res.Detail == "" {
			return errors.New("a dry run does not say what would be done")
		}
		return nil
	})
}

func effects(cs *Case) string {
	if cs.Effects == nil {
		return ""
	}
	return cs.Effects()
}

// breaks: it comes to what the case expects.
func breaks(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return with(ctx, r, c, cs, func(b plugin.Breaker) error {
		before := effects(cs)
		res, err := breakWith(ctx, r, b, &plugin.BreakRequest{ID: newID(), Lock: cs.Lock})
		switch {
		case err != nil:
			return err
		case cs.Outcome == "" && res.Outcome == plugin.Failed, cs.Outcome != "" && res.Outcome != cs.Outcome:
			return fmt.Errorf("it came to %s (%s)", res.Outcome, res.Detail)
		case cs.Effects != nil && res.Outcome == plugin.Done && effects(cs) == before:
			return errors.New("it says that it was done, and nothing changed")
		case cs.Effects != nil && res.Outcome == plugin.NotApplicable && effects(cs) != before:
			return errors.New("it says that it did not apply, and something changed")
		}
		return nil
	})
}

// breaksOnce: the same request, sent again, is not done again.
func breaksOnce(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	if cs.Effects == nil {
		return skip("the case does not tell its effects")
	}
	return with(ctx, r, c, cs, func(b plugin.Breaker) error {
		id := newID()
		first, err := breakWith(ctx, r, b, &plugin.BreakRequest{ID: id, Lock: cs.Lock})
		if err != nil {
			return err
		}
		if first.Outcome == plugin.Failed {
			return skip("the case is of a break that fails")
		}
		before := effects(cs)
		again, err := breakWith(ctx, r, b, &plugin.BreakRequest{ID: id, Lock: cs.Lock})
		switch {
		case err != nil:
			return fmt.Errorf("sent again: %w", err)
		case effects(cs) != before:
			return fmt.Errorf("the same request was done twice: %q, then %q", before, effects(cs))
		case again.Outcome != first.Outcome:
			return fmt.Errorf("sent again, the same request came to %s, and not to %s", again.Outcome, first.Outcome)
		}
		return nil
	})
}

// hostileBreak: nothing in a holder's record is a command.
func hostileBreak(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	mark := filepath.Join(r.tb.TempDir(), "run")
	return with(ctx, r, c, cs, func(b plugin.Breaker) error {
		for _, dry := range []bool{true, false} {
			_, err := breakWith(ctx, r, b, &plugin.BreakRequest{ID: newID(), Lock: hostile(mark), DryRun: dry})
			if errors.Is(err, plugin.ErrPanic) || r.died() {
				return fmt.Errorf("by a hostile record: %w", err)
			}
		}
		return untouched(mark)
	})
}

func gateChecks() []check {
	return []check{{"ask", asks}, {"any fleet", asksOfAny}, {"cancelled", ended}}
}

func ask(ctx context.Context, r *run, g plugin.Gate, q *plugin.Question) (*plugin.Answer, error) {
	cctx, cancel := r.limit(ctx)
	defer cancel()
	a, err := g.Ask(cctx, q)
	if err != nil {
		return nil, err
	}
	if a.Why == "" && a.Value == "" {
		return nil, fmt.Errorf("it answers %s and does not say on what", a.Verdict)
	}
	return a, errors.Join(oneLine("the value", a.Value), oneLine("why", a.Why))
}

// asks: the answer is what the case expects.
func asks(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return with(ctx, r, c, cs, func(g plugin.Gate) error {
		a, err := ask(ctx, r, g, &cs.Question)
		switch {
		case err != nil:
			return err
		case cs.Verdict != "" && a.Verdict != cs.Verdict:
			return fmt.Errorf("it answers %s (%s, %s), want %s", a.Verdict, a.Value, a.Why, cs.Verdict)
		}
		return nil
	})
}

// asksOfAny: no fleet is too small, too large or too strange. What cannot be told is
// an answer too.
func asksOfAny(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	mark := filepath.Join(r.tb.TempDir(), "run")
	many := make([]string, 10_000)
	for i := range many {
		many[i] = fmt.Sprintf("node-%d.example", i)
	}
	return with(ctx, r, c, cs, func(g plugin.Gate) error {
		for what, q := range map[string]plugin.Question{
			"no node":       {},
			"10,000 nodes":  {Updated: many[:1], Rest: many[1:]},
			"strange names": {Updated: []string{hostile(mark).Name}, Rest: []string{"--help", strings.Repeat("x", 10_000)}},
		} {
			q.Gate, q.Rollout, q.Stage, q.Dir = "g", "plugintest", "canary", r.tb.TempDir()
			if _, err := ask(ctx, r, g, &q); err != nil && (errors.Is(err, plugin.ErrPanic) || r.died() || errors.Is(err, context.DeadlineExceeded)) {
				return fmt.Errorf("%s: %w", what, err)
			}
		}
		if err := untouched(mark); err != nil {
			return err
		}
		if _, err := ask(ctx, r, g, &cs.Question); err != nil {
			return fmt.Errorf("after strange questions: %w", err)
		}
		return nil
	})
}

func fleetChecks() []check {
	return []check{{"list", lists}, {"cancelled", ended}}
}

// lists: the nodes are those expected, and come in the same order each time.
func lists(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return with(ctx, r, c, cs, func(f plugin.Fleet) error {
		var before []string
		for i := range 3 {
			cctx, cancel := r.limit(ctx)
			l, err := f.List(cctx)
			cancel()
			if err != nil {
				return err
			}
			names, err := namesOf(l)
			switch {
			case err != nil:
				return err
			case i > 0 && !slices.Equal(names, before):
				return errors.New("the same list comes in another order: sort it, so that plans do not differ")
			}
			before = names
		}
		if want := slices.Sorted(slices.Values(cs.Nodes)); cs.Nodes != nil && !slices.Equal(slices.Sorted(slices.Values(before)), want) {
			return fmt.Errorf("it lists %q, want %q", before, want)
		}
		return nil
	})
}

func namesOf(l *plugin.Listing) ([]string, error) {
	var names []string
	for _, n := range l.Nodes {
		if err := oneLine("the name of a node", n.Name); err != nil {
			return nil, err
		}
		names = append(names, n.Name)
		for k, v := range n.Meta {
			if k == "" {
				return nil, fmt.Errorf("node %s has metadata without a name", n.Name)
			}
			if err := oneLine("metadata "+k+" of "+n.Name, v); err != nil {
				return nil, err
			}
		}
	}
	for _, w := range l.Warnings {
		if err := oneLine("a warning", w); err != nil {
			return nil, err
		}
	}
	return names, nil
}
