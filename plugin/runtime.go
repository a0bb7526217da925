package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// DefaultTimeout bounds a call whose context has no deadline. A watch has none.
const DefaultTimeout = 30 * time.Second

// MaxContent bounds the content of one config, in bytes.
const MaxContent = 64 << 20

// maxInstances bounds the instances of one process: who makes more does not
// release them.
const maxInstances = 4096

// runtime is a plugin where it runs: in its own process or in the host's.
type runtime struct {
	p    Plugin
	info *Info
	log  hclog.Logger

	mu   sync.Mutex
	last uint64
	made map[uint64]any
}

func newRuntime(p Plugin, log hclog.Logger) (*runtime, error) {
	info, err := p.describe()
	if err != nil {
		return nil, err
	}
	return &runtime{p: p, info: info, log: log, made: map[uint64]any{}}, nil
}

// guard runs the plugin's code: with a deadline, the log, and no panic.
func (r *runtime) guard(ctx context.Context, what string, f func(ctx context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	return r.caught(ctx, what, f)
}

func (r *runtime) caught(ctx context.Context, what string, f func(ctx context.Context) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			r.log.Error("panic", "what", what, "value", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = fmt.Errorf("%s: %w: %v", what, ErrPanic, v)
		}
	}()
	return f(hclog.WithContext(ctx, r.log))
}

// make makes a value of a kind with its configuration in it, validated.
func (r *runtime) make(ctx context.Context, k Kind, c Config) (any, error) {
	factory := r.p.factory(k)
	if factory == nil {
		return nil, fmt.Errorf("plugin %s is no %s: %w", r.p.Name, k, ErrUnsupported)
	}
	var v any
	err := r.guard(ctx, "validate", func(ctx context.Context) error {
		v = factory()
		if err := Fill(v, c); err != nil {
			return err
		}
		val, ok := v.(Validator)
		if !ok {
			return nil
		}
		err := val.Validate(ctx)
		if err != nil && !errors.Is(err, ErrInvalidConfig) {
			return Invalid("", "%v", err)
		}
		return err
	})
	return v, err
}

func (r *runtime) validate(ctx context.Context, k Kind, c Config) error {
	v, err := r.make(ctx, k, c)
	if err != nil {
		return err
	}
	// What Validate made, nobody else will end.
	return r.end(v)
}

// configure makes an instance.
func (r *runtime) configure(ctx context.Context, k Kind, c Config) (uint64, error) {
	v, err := r.make(ctx, k, c)
	if err != nil {
		return 0, err
	}
	if s, ok := v.(Starter); ok {
		if err := r.guard(ctx, "start", s.Start); err != nil {
			return 0, errors.Join(err, r.end(v))
		}
	}
	r.mu.Lock()
	full := len(r.made) >= maxInstances
	if !full {
		r.last++
		r.made[r.last] = r.guarded(k, v, r.last)
	}
	id := r.last
	r.mu.Unlock()
	if full {
		return 0, errors.Join(fmt.Errorf("%d instances are there already: %w", maxInstances, ErrUnavailable), r.end(v))
	}
	return id, nil
}

func (r *runtime) release(id uint64) error {
	r.mu.Lock()
	v := r.made[id]
	r.mu.Unlock()
	return Release(v)
}

// close ends all instances.
func (r *runtime) close() error {
	r.mu.Lock()
	made := slices.Collect(maps.Values(r.made))
	r.mu.Unlock()
	var all []error
	for _, v := range made {
		all = append(all, Release(v))
	}
	return errors.Join(all...)
}

func (r *runtime) end(v any) error {
	c, ok := v.(io.Closer)
	if !ok {
		return nil
	}
	return r.caught(context.Background(), "close", func(context.Context) error { return c.Close() })
}

func (r *runtime) instance(id uint64) any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.made[id]
}

// instanceOf finds an instance of a kind.
func instanceOf[T any](r *runtime, id uint64) (T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.made[id].(T)
	if !ok {
		var none T
		return none, fmt.Errorf("instance %d: %w", id, ErrNoInstance)
	}
	return v, nil
}

func (r *runtime) guarded(k Kind, v any, id uint64) any {
	switch k {
	case KindEvidence:
		return &guardedEvidence{guarded: guarded{r: r, v: v, id: id}, inner: v.(Evidence)}
	case KindBreaker:
		return &guardedBreaker{guarded: guarded{r: r, v: v, id: id}, inner: v.(Breaker), calls: map[string]*breakCall{}}
	case KindGate:
		return &guardedGate{guarded: guarded{r: r, v: v, id: id}, inner: v.(Gate)}
	case KindTarget:
		return &guardedTarget{guarded: guarded{r: r, v: v, id: id}, inner: v.(Target)}
	default:
		return &guardedFleet{guarded: guarded{r: r, v: v, id: id}, inner: v.(Fleet)}
	}
}

// guarded is what every instance has: its own code is behind the guard.
type guarded struct {
	r      *runtime
	v      any
	id     uint64
	closed sync.Once
}

// Close ends the instance, once.
func (g *guarded) Close() (err error) {
	g.closed.Do(func() {
		g.r.mu.Lock()
		delete(g.r.made, g.id)
		g.r.mu.Unlock()
		err = g.r.end(g.v)
	})
	return err
}

type guardedEvidence struct {
	guarded
	inner Evidence
}

func (g *guardedEvidence) Facts() []FactDef { return g.r.info.Kind(KindEvidence).Facts }

func (g *guardedEvidence) Observe(ctx context.Context, q *ObserveRequest) (facts []Fact, err error) {
	err = g.r.guard(ctx, "observe", func(ctx context.Context) error {
		facts, err = g.inner.Observe(ctx, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	return CheckFacts(g.Facts(), q.Want, facts), nil
}

type guardedGate struct {
	guarded
	inner Gate
}

func (g *guardedGate) Ask(ctx context.Context, q *Question) (a *Answer, err error) {
	err = g.r.guard(ctx, "ask", func(ctx context.Context) error {
		a, err = g.inner.Ask(ctx, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	return checkAnswer(a), nil
}

// checkAnswer makes unknown of what is no answer.
func checkAnswer(a *Answer) *Answer {
	if a == nil {
		return &Answer{Verdict: Undecided, Why: "the plugin gave no answer"}
	}
	out := *a
	switch out.Verdict {
	case Pass, Fail, Pending, Undecided:
	case "":
		out.Verdict = Undecided
	default:
		out = Answer{Verdict: Undecided, Value: a.Value, Why: fmt.Sprintf("the plugin answered %q, which is no verdict", clip(string(a.Verdict), 40))}
	}
	if out.Verdict != Undecided {
		out.Retry = false
	}
	return &out
}

type guardedFleet struct {
	guarded
	inner Fleet
}

func (g *guardedFleet) List(ctx context.Context) (l *Listing, err error) {
	err = g.r.guard(ctx, "list", func(ctx context.Context) error {
		l, err = g.inner.List(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return checkListing(l)
}

// maxNodes bounds a fleet.
const maxNodes = 1_000_000

// checkListing refuses a list that would be rolled out to wrongly.
func checkListing(l *Listing) (*Listing, error) {
	switch {
	case l == nil:
		return nil, errors.New("the plugin gave no list")
	case len(l.Nodes) > maxNodes:
		return nil, fmt.Errorf("the plugin lists more than %d nodes", maxNodes)
	}
	seen := make(map[string]bool, len(l.Nodes))
	for _, n := range l.Nodes {
		switch {
		case n.Name == "":
			return nil, errors.New("the plugin lists a node without a name")
		case seen[n.Name]:
			return nil, fmt.Errorf("the plugin lists node %q twice", clip(n.Name, 80))
		}
		seen[n.Name] = true
	}
	return l, nil
}

type guardedTarget struct {
	guarded
	inner Target
}

func (g *guardedTarget) Fencing() bool { return g.r.info.Kind(KindTarget).Has(CapFencing) }

func (g *guardedTarget) Apply(ctx context.Context, q *ApplyRequest) (a *Applied, err error) {
	if err := checkContent(q.Content, q.SHA256); err != nil {
		return nil, err
	}
	err = g.r.guard(ctx, "apply", func(ctx context.Context) error {
		a, err = g.inner.Apply(ctx, q)
		return err
	})
	return orNothing(a, err)
}

func (g *guardedTarget) Read(ctx context.Context, q *ReadRequest) (s *State, err error) {
	err = g.r.guard(ctx, "read", func(ctx context.Context) error {
		s, err = g.inner.Read(ctx, q)
		return err
	})
	return orNothing(s, err)
}

func (g *guardedTarget) Restore(ctx context.Context, q *RestoreRequest) (a *Applied, err error) {
	err = g.r.guard(ctx, "restore", func(ctx context.Context) error {
		a, err = g.inner.Restore(ctx, q)
		return err
	})
	return orNothing(a, err)
}

func orNothing[T any](v *T, err error) (*T, error) {
	if err == nil && v == nil {
		err = errors.New("the plugin gave no answer")
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// checkContent refuses content that is not what its sum names.
func checkContent(content []byte, sum string) error {
	if len(content) > MaxContent {
		return fmt.Errorf("content of %d bytes: %d at most", len(content), MaxContent)
	}
	if got := sha256.Sum256(content); !strings.EqualFold(hex.EncodeToString(got[:]), sum) {
		return fmt.Errorf("the content has not the sha256 %s that it was sent with", clip(sum, 64))
	}
	return nil
}
