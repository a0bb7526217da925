package plugin

import (
	"context"
	"errors"
	"io"
	"strings"
)

// redactor takes the secrets of a configuration out of texts. The zero value knows
// of none.
type redactor struct{ r *strings.Replacer }

func newRedactor(secrets []string) redactor {
	if len(secrets) == 0 {
		return redactor{}
	}
	pairs := make([]string, 0, 2*len(secrets))
	for _, s := range secrets {
		pairs = append(pairs, s, "(secret)")
	}
	return redactor{strings.NewReplacer(pairs...)}
}

func (r redactor) text(s string) string {
	if r.r == nil {
		return s
	}
	return r.r.Replace(s)
}

// value cleans the texts of a value that was normalized; what it is given stays.
func (r redactor) value(v any) any {
	switch v := v.(type) {
	case string:
		return r.text(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = r.value(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k := range v {
			out[r.text(k)] = r.value(v[k])
		}
		return out
	}
	return v
}

// err keeps the identity of an error.
func (r redactor) err(err error) error {
	if err == nil || r.r == nil {
		return err
	}
	clean := r.text(err.Error())
	if clean == err.Error() {
		return err
	}
	out := &remoteError{message: clean}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			out.is = s.err
			break
		}
	}
	var stale *StaleError
	if errors.As(err, &stale) {
		out.is = stale
	}
	var problems Problems
	if errors.As(err, &problems) {
		cleaned := make(Problems, len(problems))
		for i, p := range problems {
			cleaned[i] = Problem{Path: r.text(p.Path), Message: r.text(p.Message)}
		}
		out.is = cleaned
	}
	return out
}

// The quiet kinds are instances that say no secret of their configuration.

type quietEvidence struct {
	Evidence
	red redactor
}

func (q *quietEvidence) Observe(ctx context.Context, r *ObserveRequest) ([]Fact, error) {
	facts, err := q.Evidence.Observe(ctx, r)
	if q.red.r != nil {
		for i := range facts {
			facts[i].Why = q.red.text(facts[i].Why)
			facts[i].Value = q.red.value(facts[i].Value)
		}
	}
	return facts, q.red.err(err)
}

func (q *quietEvidence) Close() error { return q.red.err(closeOf(q.Evidence)) }

type quietBreaker struct {
	Breaker
	red redactor
}

func (q *quietBreaker) Break(ctx context.Context, r *BreakRequest) (*BreakResult, error) {
	res, err := q.Breaker.Break(ctx, r)
	if err != nil {
		return nil, q.red.err(err)
	}
	return &BreakResult{Outcome: res.Outcome, Detail: q.red.text(res.Detail)}, nil
}

func (q *quietBreaker) Close() error { return q.red.err(closeOf(q.Breaker)) }

type quietGate struct {
	Gate
	red redactor
}

func (q *quietGate) Ask(ctx context.Context, question *Question) (*Answer, error) {
	a, err := q.Gate.Ask(ctx, question)
	if err != nil {
		return nil, q.red.err(err)
	}
	a.Value, a.Why = q.red.text(a.Value), q.red.text(a.Why)
	return a, nil
}

func (q *quietGate) Close() error { return q.red.err(closeOf(q.Gate)) }

type quietTarget struct {
	Target
	red redactor
}

func (q *quietTarget) Apply(ctx context.Context, r *ApplyRequest) (*Applied, error) {
	return q.applied(q.Target.Apply(ctx, r))
}

func (q *quietTarget) Restore(ctx context.Context, r *RestoreRequest) (*Applied, error) {
	return q.applied(q.Target.Restore(ctx, r))
}

func (q *quietTarget) Read(ctx context.Context, r *ReadRequest) (*State, error) {
	s, err := q.Target.Read(ctx, r)
	return s, q.red.err(err)
}

func (q *quietTarget) applied(a *Applied, err error) (*Applied, error) {
	if err != nil {
		return nil, q.red.err(err)
	}
	out := *a
	out.Detail = q.red.text(out.Detail)
	return &out, nil
}

func (q *quietTarget) Close() error { return q.red.err(closeOf(q.Target)) }

type quietFleet struct {
	Fleet
	red redactor
}

func (q *quietFleet) List(ctx context.Context) (*Listing, error) {
	l, err := q.Fleet.List(ctx)
	if err != nil {
		return nil, q.red.err(err)
	}
	return q.listing(l), nil
}

func (q *quietFleet) listing(l *Listing) *Listing {
	if q.red.r == nil || len(l.Warnings) == 0 {
		return l
	}
	out := &Listing{Nodes: l.Nodes}
	for _, w := range l.Warnings {
		out.Warnings = append(out.Warnings, q.red.text(w))
	}
	return out
}

func (q *quietFleet) Close() error { return q.red.err(closeOf(q.Fleet)) }

func closeOf(v any) error {
	if c, ok := v.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

var (
	_ Evidence = (*quietEvidence)(nil)
	_ Breaker  = (*quietBreaker)(nil)
	_ Gate     = (*quietGate)(nil)
	_ Target   = (*quietTarget)(nil)
	_ Fleet    = (*quietFleet)(nil)
)
