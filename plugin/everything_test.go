package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// everything is a plugin of all kinds. Its gate does what its configuration says.
func everything() Plugin {
	return Plugin{
		Name: "everything", Version: "1.2.3", Doc: "All kinds, for tests.",
		Evidence: func() Evidence { return &testEvidence{} },
		Breaker:  func() Breaker { return &testBreaker{} },
		Gate:     func() Gate { return &testGate{Timeout: 5 * time.Second} },
		Target:   func() Target { return &testTarget{files: map[string]*testFile{}} },
		Fleet:    func() Fleet { return &testFleet{} },
	}
}

type testServer struct {
	URL  string `config:"url,required" doc:"Where it is."`
	Port int    `config:"port"`
}

type testGate struct {
	Answer  string        `config:"answer,required" doc:"What is answered."`
	Token   string        `config:"token,secret"`
	Timeout time.Duration `config:"timeout"`
	Servers []testServer  `config:"server,block,max=3"`
}

func (g *testGate) Validate(context.Context) error {
	var problems Problems
	for i, s := range g.Servers {
		if s.Port == 0 {
			problems.Add(fmt.Sprintf("server[%d].port", i), "it must not be 0, says the plugin with %s", g.Token)
		}
	}
	return problems.Err()
}

func (g *testGate) Ask(ctx context.Context, q *Question) (*Answer, error) {
	if g.Answer == "quiet" {
		return &Answer{Verdict: Pass, Value: "1", Why: "for benchmarks"}, nil
	}
	hclog.FromContext(ctx).Info("asked", "gate", q.Gate)
	fmt.Fprintln(os.Stdout, "a line on stdout")
	switch g.Answer {
	case "nil":
		return nil, nil
	case "panic":
		panic("the gate panics")
	case "wait":
		<-ctx.Done()
		hclog.FromContext(ctx).Info("waited until", "error", ctx.Err())
		return nil, context.Cause(ctx)
	case "stale":
		return nil, fmt.Errorf("gate %s: %w", q.Gate, &StaleError{Order{1, 2, 3}})
	case "leak":
		return nil, fmt.Errorf("GET with %s: %w", g.Token, ErrDenied)
	case "echo":
		return &Answer{Verdict: Pass, Value: fmt.Sprint(g.Timeout, len(g.Servers), len(q.Updated), q.Epoch, q.Token), Why: g.Token}, nil
	}
	for _, s := range sentinels {
		if s.reason == g.Answer {
			return nil, fmt.Errorf("gate %s: %w", q.Gate, s.err)
		}
	}
	return &Answer{Verdict: Verdict(g.Answer), Retry: true}, nil
}

type testEvidence struct {
	Say []string `config:"say"`
}

func (e *testEvidence) Facts() []FactDef {
	return []FactDef{
		{Name: "count", Type: Number}, {Name: "who", Type: String}, {Name: "since", Type: Duration}, {Name: "tags", Type: List(String)},
		{Name: "wrong", Type: Bool}, {Name: "missing", Type: Bool}, {Name: "twice", Type: Bool}, {Name: "dark", Type: Object(map[string]Type{"a": Number})},
	}
}

func (e *testEvidence) Observe(_ context.Context, r *ObserveRequest) ([]Fact, error) {
	return []Fact{
		Known("count", uint8(7)), {Name: "who", Value: r.Lock.Holder.Host, Age: 2 * time.Second}, Known("since", 1500*time.Millisecond),
		Null("tags"), Known("wrong", "yes"), Known("twice", true), Known("twice", false), Unknown("dark", "nobody knows"), Known("undeclared", 1),
	}, nil
}

type testBreaker struct{ calls atomic.Int64 }

func (b *testBreaker) Break(_ context.Context, r *BreakRequest) (*BreakResult, error) {
	return &BreakResult{Outcome: Done, Detail: fmt.Sprintf("call %d, dry %t", b.calls.Add(1), r.DryRun)}, nil
}

// testTarget keeps files in memory, and is fenced.
type testTarget struct {
	mu    sync.Mutex
	files map[string]*testFile
}

type testFile struct {
	highest   Order
	now, last []byte
}

func (t *testTarget) Fencing() bool { return true }

func (t *testTarget) fence(p *Place, o Order) (*testFile, error) {
	f := t.files[p.Node+p.Config]
	if f == nil {
		f = &testFile{}
		t.files[p.Node+p.Config] = f
	}
	if o.Compare(f.highest) < 0 {
		return nil, &StaleError{f.highest}
	}
	f.highest = o
	return f, nil
}

func (t *testTarget) Apply(_ context.Context, r *ApplyRequest) (*Applied, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.fence(&r.Place, r.Order)
	if err != nil {
		return nil, err
	}
	f.last, f.now = f.now, r.Content
	return &Applied{Highest: f.highest, SHA256: r.SHA256, Revision: r.Revision}, nil
}

func (t *testTarget) Read(_ context.Context, r *ReadRequest) (*State, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[r.Node+r.Config]
	if f == nil {
		return &State{}, nil
	}
	sum := sha256.Sum256(f.now)
	return &State{Exists: true, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(f.now)), Highest: f.highest, Content: f.now}, nil
}

func (t *testTarget) Restore(_ context.Context, r *RestoreRequest) (*Applied, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.fence(&r.Place, r.Order)
	if err != nil {
		return nil, err
	}
	if f.last == nil {
		return nil, ErrNotFound
	}
	f.now, f.last = f.last, nil
	return &Applied{Highest: f.highest}, nil
}

// testFleet lists as many nodes as it is told to.
type testFleet struct {
	Count int `config:"count"`
}

func (f *testFleet) List(context.Context) (*Listing, error) {
	l := &Listing{Warnings: []string{"a warning"}}
	for i := range f.Count {
		l.Nodes = append(l.Nodes, Node{Name: fmt.Sprintf("n%d", i), Meta: map[string]string{"zone": "a"}})
	}
	return l, nil
}
