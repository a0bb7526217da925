package plugin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
)

// everyWay runs a test on a plugin in this process and on one behind a socket: there
// is no difference.
func everyWay(t *testing.T, f func(t *testing.T, c *Client)) {
	t.Helper()
	t.Parallel()
	t.Run("in process", func(t *testing.T) {
		c, err := InProcess(everything(), nil)
		if err != nil {
			t.Fatal(err)
		}
		f(t, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("over a socket", func(t *testing.T) { f(t, overSocket(t, everything())) })
}

func gate(t *testing.T, c *Client, cfg string) Gate {
	t.Helper()
	g, err := c.Gate(t.Context(), Config(cfg))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestInfo(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		want := &Info{
			Name: "everything", Version: "1.2.3", Doc: "All kinds, for tests.", SDK: sdkName, Protocol: 1,
			Kinds: []KindInfo{
				{Kind: KindEvidence, Config: Schema{Attributes: []Attribute{{Name: "say", Type: "list(string)"}}}, Facts: (&testEvidence{}).Facts()},
				{Kind: KindBreaker},
				{Kind: KindGate, Config: Schema{
					Attributes: []Attribute{
						{Name: "answer", Type: String, Required: true, Doc: "What is answered."},
						{Name: "token", Type: String, Secret: true},
						{Name: "timeout", Type: Duration, Default: int64(5)},
					},
					Blocks: []Block{{Name: "server", Max: 3, Config: Schema{Attributes: []Attribute{
						{Name: "url", Type: String, Required: true, Doc: "Where it is."},
						{Name: "port", Type: Number},
					}}}},
				}},
				{Kind: KindTarget, Capabilities: []string{CapFencing}},
				{Kind: KindFleet, Config: Schema{Attributes: []Attribute{{Name: "count", Type: Number}}}},
			},
		}
		if d := cmp.Diff(want, c.Info()); d != "" {
			t.Error(d)
		}
	})
}

func TestGate(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		for said, want := range map[string]Answer{
			"pass": {Verdict: Pass}, "fail": {Verdict: Fail}, "pending": {Verdict: Pending}, "unknown": {Verdict: Undecided, Retry: true},
			"perhaps": {Verdict: Undecided, Why: `the plugin answered "perhaps", which is no verdict`},
			"nil":     {Verdict: Undecided, Why: "the plugin gave no answer"},
		} {
			got, err := gate(t, c, `{"answer":"`+said+`"}`).Ask(t.Context(), &Question{})
			if err != nil || *got != want {
				t.Errorf("%s: %+v, %v", said, got, err)
			}
		}
		got, err := gate(t, c, `{"answer": "echo", "timeout": "1m", "server": [{"url": "u", "port": 1}], "token": "hunter2"}`).
			Ask(t.Context(), &Question{Updated: []string{"a", "b"}, Epoch: 7, Token: 1<<63 + 1})
		if err != nil || got.Value != "1m0s 1 2 7 9223372036854775809" || got.Why != "(secret)" {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// TestSentinels: errors.Is holds on the host's side for what the plugin returned.
func TestSentinels(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		for _, s := range sentinels {
			_, err := gate(t, c, `{"answer":"`+s.reason+`"}`).Ask(t.Context(), &Question{Gate: "g"})
			if !errors.Is(err, s.err) {
				t.Errorf("%s: %v", s.reason, err)
			}
			for _, other := range sentinels {
				if other != s && errors.Is(err, other.err) {
					t.Errorf("%s is %s too", s.reason, other.reason)
				}
			}
		}
		_, err := gate(t, c, `{"answer":"stale"}`).Ask(t.Context(), &Question{Gate: "g"})
		var stale *StaleError
		if !errors.As(err, &stale) || stale.Highest != (Order{1, 2, 3}) || err.Error() != "gate g: the order is older than one already seen: the newest is 1-2-3" {
			t.Errorf("%v", err)
		}
	})
}

func TestContext(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		g := gate(t, c, `{"answer": "wait"}`)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := g.Ask(ctx, &Question{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after its deadline: %v", err)
		}
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if _, err := g.Ask(ctx, &Question{}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

func TestPanic(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		g := gate(t, c, `{"answer": "panic"}`)
		for range 2 { // the process lives on
			if _, err := g.Ask(t.Context(), &Question{}); !errors.Is(err, ErrPanic) || !strings.Contains(err.Error(), "the gate panics") {
				t.Error(err)
			}
		}
	})
}

func TestConfiguration(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		for cfg, want := range map[string][]string{
			`{"answer":"pass"}`:   nil,
			``:                    {"answer: it is required"},
			`[]`:                  {"it is no JSON object"},
			`{`:                   {"it is no JSON"},
			`{"answer":"pass"} 1`: {"something stands after the JSON"},
			`{"answer":1,"nobody":2,"timeout":"soon","token":["hunter2"]}`: {
				`there is no argument "nobody"`, "answer: a string is needed, and this is a number", "token: a string is needed",
				`timeout: a duration is needed, such as "10s" or "1h30m"`,
			},
			`{"answer":"pass","server":[{"url":"u"},{"url":"v","port":1},{"url":"v","port":0}],"token":"hunter2"}`: {
				"server[0].port: it must not be 0, says the plugin with (secret)", "server[2].port: it must not be 0, says the plugin with (secret)",
			},
			`{"answer":"pass","server":[{"url":"u","port":1.5}]}`: {"server[0].port: a whole number is needed"},
			`{"answer":"pass","server":[{"port":1}]}`:             {"server[0].url: it is required"},
			`{"answer":"pass","server":[{},{},{},{}]}`:            {"server: 0 to 3 may be there, and there are 4"},
			`{"answer":"pass","server":7}`:                        {"server: it is a block"},
			`{"answer":"pass","timeout":1e300}`:                   {"timeout: the duration is out of range"},
		} {
			for what, check := range map[string]func() error{
				"validate":  func() error { return c.Validate(t.Context(), KindGate, Config(cfg)) },
				"configure": func() error { _, err := c.Gate(t.Context(), Config(cfg)); return err },
			} {
				err := check()
				var problems Problems
				errors.As(err, &problems)
				var got []string
				for _, p := range problems {
					got = append(got, p.String())
				}
				if d := cmp.Diff(want, got); d != "" || (err != nil) != (want != nil) || err != nil && !errors.Is(err, ErrInvalidConfig) {
					t.Errorf("%s %s: %v\n%s", what, cfg, err, d)
				}
			}
		}
		if err := c.Validate(t.Context(), "toaster", nil); !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
	})
}

func TestSecrets(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		_, err := gate(t, c, `{"answer": "leak", "token": "hunter2"}`).Ask(t.Context(), &Question{})
		if !errors.Is(err, ErrDenied) || err.Error() != "GET with (secret): permission denied" {
			t.Error(err)
		}
	})
}

// leaky tells its secret wherever it can.
type leaky struct {
	Token string `config:"token,secret"`
}

func (l *leaky) Facts() []FactDef {
	return []FactDef{{Name: "text", Type: String}, {Name: "list", Type: List(Map(String))}, {Name: "dark", Type: Bool}}
}

func (l *leaky) Observe(context.Context, *ObserveRequest) ([]Fact, error) {
	in := "with " + l.Token
	return []Fact{Known("text", in), Known("list", []map[string]string{{l.Token: in}}), Unknown("dark", "%s", in)}, nil
}

func TestSecretFacts(t *testing.T) {
	t.Parallel()
	c := overSocket(t, Plugin{Name: "p", Evidence: func() Evidence { return &leaky{} }})
	e, err := c.Evidence(t.Context(), Config(`{"token": "hunter2"}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.Observe(t.Context(), &ObserveRequest{})
	if err != nil || len(got) != 3 || got[0].Value != "with (secret)" || strings.Contains(fmt.Sprint(got), "hunter2") || !strings.Contains(fmt.Sprint(got[1]), "(secret)") {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestEvidence(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		e, err := c.Evidence(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff((&testEvidence{}).Facts(), e.Facts()); d != "" {
			t.Error(d)
		}
		got, err := e.Observe(t.Context(), &ObserveRequest{Lock: Lock{Name: "l", Holder: Holder{Host: "h"}}})
		if err != nil {
			t.Fatal(err)
		}
		want := []Fact{
			{Name: "count", Value: int64(7)},
			{Name: "who", Value: "h", Age: 2 * time.Second},
			{Name: "since", Value: 1.5},
			{Name: "tags"},
			Unknown("wrong", "the plugin's answer is not as declared: a bool is needed, and this is a string"),
			Unknown("missing", "the plugin said nothing of it"),
			Unknown("twice", "the plugin said 2 different things of it"),
			Unknown("dark", "nobody knows"),
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		got, err = e.Observe(t.Context(), &ObserveRequest{Want: []string{"dark", "count"}})
		if err != nil || len(got) != 2 || got[0].Name != "count" || got[1].Name != "dark" {
			t.Errorf("of two that are wanted: %+v, %v", got, err)
		}
	})
}

// TestBreakOnce: what was done under an id is not done again.
func TestBreakOnce(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		b, err := c.Breaker(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				res, err := b.Break(t.Context(), &BreakRequest{ID: "one"})
				if err != nil || res.Outcome != Done || res.Detail != "call 1, dry false" {
					t.Errorf("%+v, %v", res, err)
				}
			})
		}
		wg.Wait()
		for i, q := range []BreakRequest{{ID: "one", DryRun: true}, {ID: "two"}, {ID: ""}, {ID: ""}} {
			res, err := b.Break(t.Context(), &q)
			if want := fmt.Sprintf("call %d, dry %t", i+2, q.DryRun); err != nil || res.Detail != want {
				t.Errorf("%+v, %v, want %s", res, err, want)
			}
		}
	})
}

// failing fails as often as it is told to.
type failing struct{ times int }

func (f *failing) Break(context.Context, *BreakRequest) (*BreakResult, error) {
	if f.times--; f.times >= 0 {
		return &BreakResult{Outcome: Outcome("who knows")}, nil
	}
	return &BreakResult{Outcome: NotApplicable}, nil
}

// TestBreakAgain: what failed may be tried again, and old answers are forgotten.
func TestBreakAgain(t *testing.T) {
	t.Parallel()
	c, err := InProcess(Plugin{Name: "p", Breaker: func() Breaker { return &failing{1} }}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Breaker(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Outcome{Failed, NotApplicable, NotApplicable} {
		if res, err := b.Break(t.Context(), &BreakRequest{ID: "x"}); err != nil || res.Outcome != want {
			t.Errorf("%+v, %v, want %s", res, err, want)
		}
	}
	for i := range 2 * maxBreaks {
		if _, err := b.Break(t.Context(), &BreakRequest{ID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	g := b.(*quietBreaker).Breaker.(*guardedBreaker)
	if len(g.calls) > maxBreaks || len(g.order) != len(g.calls) {
		t.Errorf("%d answers are remembered, in an order of %d", len(g.calls), len(g.order))
	}
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func TestTarget(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		tg, err := c.Target(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !tg.Fencing() {
			t.Error("it is fenced")
		}
		place := Place{Node: "n1", Config: "c", Destination: "/etc/c"}
		content := bytes.Repeat([]byte("0123456789"), 100_000)
		apply := func(o Order, content []byte) (*Applied, error) {
			return tg.Apply(t.Context(), &ApplyRequest{Place: place, Order: o, SHA256: sum(content), Content: content, Revision: "r"})
		}
		if s, err := tg.Read(t.Context(), &ReadRequest{Place: place, Content: true}); err != nil || s.Exists {
			t.Errorf("before: %+v, %v", s, err)
		}
		a, err := apply(Order{1, 5, 1}, content)
		if err != nil || a.Highest != (Order{1, 5, 1}) || a.Revision != "r" {
			t.Errorf("%+v, %v", a, err)
		}
		var stale *StaleError
		if _, err := apply(Order{1, 4, 9}, nil); !errors.Is(err, ErrStale) || !errors.As(err, &stale) || stale.Highest != (Order{1, 5, 1}) {
			t.Errorf("an older order: %v", err)
		}
		if _, err := apply(Order{1, 5, 2}, nil); err != nil {
			t.Errorf("an empty file: %v", err)
		}
		if _, err := tg.Restore(t.Context(), &RestoreRequest{Place: place, Order: Order{1, 5, 1}}); !errors.Is(err, ErrStale) {
			t.Errorf("an older restore: %v", err)
		}
		if _, err := tg.Restore(t.Context(), &RestoreRequest{Place: place, Order: Order{1, 5, 3}}); err != nil {
			t.Error(err)
		}
		if _, err := tg.Restore(t.Context(), &RestoreRequest{Place: place, Order: Order{1, 5, 4}}); !errors.Is(err, ErrNotFound) {
			t.Errorf("nothing to restore: %v", err)
		}
		s, err := tg.Read(t.Context(), &ReadRequest{Place: place, Content: true})
		if err != nil || !bytes.Equal(s.Content, content) || s.Size != int64(len(content)) || s.Highest != (Order{1, 5, 4}) {
			t.Errorf("%d bytes of %d, %v", len(s.Content), len(content), err)
		}
		_, err = tg.Apply(t.Context(), &ApplyRequest{Place: place, Order: Order{2, 0, 0}, SHA256: sum(nil), Content: []byte("other")})
		if err == nil || !strings.Contains(err.Error(), "has not the sha256") {
			t.Errorf("content that is another: %v", err)
		}
	})
}

func TestFleet(t *testing.T) {
	everyWay(t, func(t *testing.T, c *Client) {
		for _, n := range []int{0, 1, partNodes, partNodes + 1, 3*partNodes - 1} {
			f, err := c.Fleet(t.Context(), Config(fmt.Sprintf(`{"count": %d}`, n)))
			if err != nil {
				t.Fatal(err)
			}
			l, err := f.List(t.Context())
			if err != nil || len(l.Nodes) != n || !slices.Equal(l.Warnings, []string{"a warning"}) {
				t.Errorf("%d nodes of %d, %q, %v", len(l.Nodes), n, l.Warnings, err)
			}
			if n > 0 && !reflect.DeepEqual(l.Nodes[n-1], Node{Name: fmt.Sprintf("n%d", n-1), Meta: map[string]string{"zone": "a"}}) {
				t.Errorf("%+v", l.Nodes[n-1])
			}
		}
	})
}

// badFleet lists what nobody could roll out to.
type badFleet struct {
	Names []string `config:"names"`
}

func (f *badFleet) List(context.Context) (*Listing, error) {
	l := &Listing{}
	for _, n := range f.Names {
		l.Nodes = append(l.Nodes, Node{Name: n})
	}
	return l, nil
}

func TestBadFleet(t *testing.T) {
	t.Parallel()
	c := overSocket(t, Plugin{Name: "p", Fleet: func() Fleet { return &badFleet{} }})
	for cfg, want := range map[string]string{`{"names": ["a", "b", "a"]}`: `node "a" twice`, `{"names": [""]}`: "without a name"} {
		f, err := c.Fleet(t.Context(), Config(cfg))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.List(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", cfg, err)
		}
	}
}

// life tells what becomes of an instance.
type life struct {
	told *[]string
	Bad  string `config:"bad"`
}

func (l *life) tell(what string) error {
	*l.told = append(*l.told, what)
	if l.Bad == what {
		return fmt.Errorf("no %s: %w", what, ErrUnavailable)
	}
	return nil
}
func (l *life) Validate(context.Context) error { return l.tell("validate") }
func (l *life) Start(context.Context) error    { return l.tell("start") }
func (l *life) Close() error                   { return l.tell("close") }
func (l *life) Ask(context.Context, *Question) (*Answer, error) {
	return &Answer{Verdict: Pass}, l.tell("ask")
}

func TestLife(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		cfg  string
		err  error
		want []string
	}{
		{`{}`, nil, []string{"validate", "start", "ask", "close"}},
		{`{"bad": "validate"}`, ErrInvalidConfig, []string{"validate"}},
		{`{"bad": "start"}`, ErrUnavailable, []string{"validate", "start", "close"}},
	} {
		var told []string
		c, err := InProcess(Plugin{Name: "p", Gate: func() Gate { return &life{told: &told} }}, nil)
		if err != nil {
			t.Fatal(err)
		}
		g, err := c.Gate(t.Context(), Config(tc.cfg))
		if !errors.Is(err, tc.err) {
			t.Errorf("%s: %v", tc.cfg, err)
		}
		if err == nil {
			_, _ = g.Ask(t.Context(), &Question{})
			if err := errors.Join(Release(g), Release(g), c.Close()); err != nil {
				t.Error(err)
			}
		}
		if !slices.Equal(told, tc.want) {
			t.Errorf("%s: %q, want %q", tc.cfg, told, tc.want)
		}
		told = nil
		_ = c.Validate(t.Context(), KindGate, Config(tc.cfg))
		if !slices.Equal(told, []string{"validate", "close"}[:len(told)]) || slices.Contains(told, "start") {
			t.Errorf("to validate did %q", told)
		}
	}
}

// TestLog: what a plugin logs stands in the host's log, with its level and under the
// name that the host gave.
func TestLog(t *testing.T) {
	t.Parallel()
	var out syncBuffer
	log := hclog.New(&hclog.LoggerOptions{Name: "plugin.everything", Output: &out, Level: hclog.Trace})
	c, err := InProcess(everything(), log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gate(t, c, `{"answer": "pass"}`).Ask(t.Context(), &Question{Gate: "g"}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "[INFO]  plugin.everything: asked: gate=g") {
		t.Error(out.String())
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
