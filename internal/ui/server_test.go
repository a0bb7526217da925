package ui

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/policies"
)

// world is a page over an embedded Consul, in one bubble of virtual time.
type world struct {
	t     *testing.T
	net   *counted
	kv    *consulkv.Client
	locks *locksmith.Client
	page  *Server
	// holder takes locks by a network of its own.
	holder *locksmith.Client
	// tokens are those under which viewers acted.
	tokens []string
}

// counted counts the requests to Consul that were sent, those of them that ask at
// once, and those that wait for a change now.
type counted struct {
	next    http.RoundTripper
	sent    atomic.Int64
	asked   atomic.Int64
	waiting atomic.Int64
	down    atomic.Bool
}

func (c *counted) RoundTrip(req *http.Request) (*http.Response, error) {
	if c.down.Load() {
		return nil, fmt.Errorf("connection refused")
	}
	c.sent.Add(1)
	if req.URL.Query().Get("index") != "" {
		c.waiting.Add(1)
		defer c.waiting.Add(-1)
	} else {
		c.asked.Add(1)
	}
	return c.next.RoundTrip(req)
}

func newWorld(t *testing.T, mod ...func(*Config)) *world {
	t.Helper()
	srv, err := devconsul.New(devconsul.Config{NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	w := &world{t: t, net: &counted{next: consulkvtest.InProcess(srv.Handler())(nil)}}
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(http.RoundTripper) http.RoundTripper { return w.net }})
	if err != nil {
		t.Fatal(err)
	}
	w.kv = kv
	set, diags := policies.Parse("test.hcl", []byte(`policy "test" {
  locks = ["**"]
  hot "named" {
    when   = lock.name == "doomed"
    reason = "it is called so"
  }
  break {
    step "take" {}
  }
}`))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	bubble := func() float64 { return float64(time.Now().UnixNano()) / 1e9 }
	for client, rt := range map[**locksmith.Client]http.RoundTripper{&w.locks: w.net, &w.holder: w.net.next} {
		kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(http.RoundTripper) http.RoundTripper { return rt }})
		if err != nil {
			t.Fatal(err)
		}
		*client, err = locksmith.New(locksmith.Config{Consul: kv, Prefix: keys.DefaultPrefix, Policies: set, By: "tester", LeaseClock: bubble})
		if err != nil {
			t.Fatal(err)
		}
	}
	rollouts := runner.New(runner.Config{Consul: kv, Prefix: keys.DefaultPrefix, Locks: runner.Locksmith(w.locks), By: "tester"})
	cfg := Config{
		Locks: w.locks, Rollouts: rollouts, Policies: set,
		Rollout: func(h *orchestrator.Header) any { return map[string]any{"id": h.ID, "state": h.State} },
		Waiting: func(w *runner.Waiting) any { return w },
		Act: func(token string) (*Actor, error) {
			w.tokens = append(w.tokens, token)
			return &Actor{Locks: w.locks, Rollouts: rollouts}, nil
		},
	}
	for _, m := range mod {
		m(&cfg)
	}
	if w.page, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) hold(name string) *locksmith.Hold {
	w.t.Helper()
	h, err := w.holder.Acquire(w.t.Context(), locksmith.Request{Names: []string{name}, Operation: "<script>alert(1)</script>"})
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// viewer is one open page.
type viewer struct {
	mu     sync.Mutex
	header http.Header
	code   int
	text   bytes.Buffer
	stop   context.CancelFunc
	done   chan struct{}
	// stuck: it does not read.
	stuck atomic.Bool
}

func (v *viewer) Header() http.Header { return v.header }

func (v *viewer) WriteHeader(code int) { v.code = code }

func (v *viewer) Write(b []byte) (int, error) {
	if v.stuck.Load() {
		return 0, fmt.Errorf("i/o timeout")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.text.Write(b)
}

func (v *viewer) Flush() {}

// events are the data of all events of a name so far.
func (v *viewer) events(name string) []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []string
	for _, e := range strings.Split(v.text.String(), "\n\n") {
		if data, ok := strings.CutPrefix(e, "event: "+name+"\ndata: "); ok {
			out = append(out, data)
		}
	}
	return out
}

func (w *world) open(query string) *viewer {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	v := &viewer{header: http.Header{}, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(v.done)
		w.page.ServeHTTP(v, httptest.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/events?"+query, http.NoBody))
	}()
	w.t.Cleanup(func() { cancel(); <-v.done })
	return v
}

// pass lets time pass until all is at rest again.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// locksOf are the locks that a viewer shows, by key.
func locksOf(t *testing.T, v *viewer) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, e := range v.events("locks") {
		var ch struct {
			Set []struct {
				Name, Key, State string
			}
			Gone []string
		}
		if err := json.Unmarshal([]byte(e), &ch); err != nil {
			t.Fatalf("%v: %s", err, e)
		}
		for _, k := range ch.Gone {
			delete(out, k)
		}
		for _, l := range ch.Set {
			out[l.Key] = l.State
		}
	}
	return out
}

func TestLocksAreLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		v := w.open("view=locks")
		pass(10 * time.Second)
		if got := v.events("locks"); len(got) != 1 || !strings.Contains(got[0], `"set":[]`) {
			t.Fatalf("with no lock it says %q", got)
		}
		a, b := w.hold("doomed"), w.hold("other")
		pass(10 * time.Second)
		if got := fmt.Sprint(locksOf(t, v)); got != "map[aimlock/locks/doomed:HOT aimlock/locks/other:HELD]" {
			t.Errorf("it shows %s", got)
		}
		// Foreign text is no markup, even of a viewer that took it for a page.
		if text := strings.Join(v.events("locks"), ""); strings.Contains(text, "<script") || !strings.Contains(text, `\u003cscript\u003e`) {
			t.Errorf("the events say %q", text)
		}
		if err := a.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		if got := fmt.Sprint(locksOf(t, v)); got != "map[aimlock/locks/other:HELD]" {
			t.Errorf("after a release it shows %s", got)
		}
		quiet := len(v.events("locks")) + len(v.events("summary"))
		pass(10 * time.Minute)
		if n := len(v.events("locks")) + len(v.events("summary")); n != quiet {
			t.Errorf("%d events in ten minutes in which nothing changed", n-quiet)
		}
		if err := b.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// The first viewer costs what following costs, and each further one nothing; when
// the last has left, nothing is asked any more.
func TestViewersShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pass(time.Hour)
		if n := w.net.sent.Load(); n != 0 {
			t.Errorf("%d requests while nobody looks", n)
		}
		first := w.open("view=locks")
		pass(10 * time.Second)
		waiting, sent := w.net.waiting.Load(), w.net.sent.Load()
		if waiting == 0 {
			t.Fatal("nothing is followed")
		}
		viewers := []*viewer{first}
		for range 9 {
			viewers = append(viewers, w.open("view=locks"))
		}
		pass(5 * time.Second)
		if n := w.net.waiting.Load(); n != waiting {
			t.Errorf("ten viewers have %d blocking queries, and one has %d", n, waiting)
		}
		if n := w.net.sent.Load() - sent; n > 0 {
			t.Errorf("nine more viewers cost %d requests", n)
		}
		for _, v := range viewers {
			if len(v.events("locks")) != 1 {
				t.Error("a viewer was told nothing")
			}
			v.stop()
			<-v.done
		}
		pass(2 * linger)
		if n := w.net.waiting.Load(); n != 0 {
			t.Errorf("%d blocking queries after all have left", n)
		}
		sent = w.net.sent.Load()
		pass(time.Hour)
		if n := w.net.sent.Load() - sent; n != 0 {
			t.Errorf("%d requests after all have left", n)
		}
		// And it begins anew.
		again := w.open("view=locks")
		pass(10 * time.Second)
		if len(again.events("locks")) != 1 {
			t.Error("who comes later is told nothing")
		}
	})
}

// A viewer that was slow, and missed that a lock was free, is told of its next hold.
func TestSlowViewerSeesTheNextHold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.open("view=rollouts")
		pass(10 * time.Second)
		b, obs, have := w.page.board, w.locks.NewObserver("other", nil), map[string]uint64{}
		see := func() {
			v, err := obs.Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			b.judged([]*locksmith.Verdict{v})
		}
		first := w.hold("other")
		see()
		if ch, ok := b.changedRows(have, time.Now()); !ok || len(ch.Set) != 1 {
			t.Fatalf("%+v %v", ch, ok)
		}
		if err := first.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		see()
		second := w.hold("other")
		see()
		if ch, _ := b.changedRows(have, time.Now()); len(ch.Set) != 1 || ch.Set[0].Token == nil || *ch.Set[0].Token != second.Token() {
			t.Errorf("it is told %+v", ch)
		}
		if err := second.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLockDetail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.hold("doomed")
		v := w.open("view=lock&id=doomed")
		free := w.open("view=lock&id=never")
		pass(10 * time.Second)
		var d lockDetail
		got := v.events("lock")
		if len(got) == 0 {
			t.Fatalf("no detail: %s", v.text.String())
		}
		if err := json.Unmarshal([]byte(got[len(got)-1]), &d); err != nil {
			t.Fatal(err)
		}
		if d.State != locksmith.Hot || len(d.Rules) != 1 || d.Rules[0].Value != "holds" || len(d.Evidence) == 0 || d.Cause == "" || len(d.Timeline) == 0 {
			t.Errorf("it shows %s", got[len(got)-1])
		}
		if got := free.events("lock"); len(got) != 1 || !strings.Contains(got[0], `"state":"FREE"`) {
			t.Errorf("of a lock that never was it says %q", got)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		pass(10 * time.Second)
		if got := v.events("lock"); !strings.Contains(got[len(got)-1], `"state":"FREE"`) {
			t.Errorf("after the release it shows %s", got[len(got)-1])
		}
	})
}

// A viewer that does not read is let go.
func TestStuckViewer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		v := w.open("view=locks")
		pass(10 * time.Second)
		v.stuck.Store(true)
		pass(2 * beat)
		select {
		case <-v.done:
		default:
			t.Error("it is still served")
		}
	})
}

func TestTooManyViewers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for range maxStreams {
			w.open("view=locks")
		}
		pass(5 * time.Second)
		v := w.open("view=locks")
		pass(time.Second)
		if v.code != http.StatusServiceUnavailable {
			t.Errorf("one too many is answered %d", v.code)
		}
	})
}

// get asks the page once.
func (w *world) get(req *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.page.ServeHTTP(rec, req)
	return rec
}

func TestWhoIsServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Hosts = []string{"Locks.example.com"} })
		for host, want := range map[string]int{
			"localhost": 200, "localhost:8911": 200, "127.0.0.1:8911": 200, "127.1.2.3": 200, "[::1]:8911": 200, "locks.example.com": 200, "locks.example.com:443": 200, "LOCALHOST.": 200,
			"evil.example": 421, "localhost.evil.example": 421, "10.0.0.1:8911": 421, "": 421, "[::2]:1": 421, "127.0.0.1.evil.example:80": 421,
		} {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
			req.Host = host
			rec := w.get(req)
			if rec.Code != want {
				t.Errorf("host %q is answered %d, not %d", host, rec.Code, want)
			}
			if csp := rec.Header().Get("Content-Security-Policy"); csp != pagePolicy || rec.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("host %q is answered under the policy %q", host, csp)
			}
		}
		for path, want := range map[string]int{"/app.js": 200, "/app.css": 200, "/index.html": 404, "/static/app.js": 404, "/events?view=nothing": 400, "/events?view=lock": 400, "/act": 405, "/report?id=nothing": 404} {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost"+path, http.NoBody)
			if rec := w.get(req); rec.Code != want {
				t.Errorf("%s is answered %d, not %d: %s", path, rec.Code, want, rec.Body)
			}
		}
	})
}

// Nothing of the page is made of text: it has no inline script, style or handler,
// and no way to parse what comes from the server as HTML.
func TestPageIsStrict(t *testing.T) {
	t.Parallel()
	total := 0
	for _, name := range []string{"index.html", "app.js", "app.css"} {
		b, err := static.ReadFile("static/" + name)
		if err != nil {
			t.Fatal(err)
		}
		total += len(b)
		for _, word := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "http://", "https://", "<style", " style=", " onclick=", "@import", "url("} {
			if strings.Contains(string(b), word) {
				t.Errorf("%s has %s", name, word)
			}
		}
	}
	if total > 200<<10 {
		t.Errorf("the page weighs %d bytes", total)
	}
}

func TestAct(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.hold("doomed")
		other := w.hold("other")
		send := func(body string, mod ...func(*http.Request)) (int, string) {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/act", strings.NewReader(body))
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Sec-Fetch-Site", "same-origin")
			req.Header.Set("X-Aimlock-Csrf", w.page.csrf)
			req.Header.Set("X-Consul-Token", "viewer-token")
			for _, m := range mod {
				m(req)
			}
			rec := w.get(req)
			return rec.Code, rec.Body.String()
		}
		header := func(name, value string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Set(name, value) }
		}
		const breakIt = `{"do":"break","target":"doomed","confirm":"doomed"}`
		for name, c := range map[string]struct {
			body string
			mod  func(*http.Request)
			want int
		}{
			"from another page":     {breakIt, header("Sec-Fetch-Site", "cross-site"), 403},
			"from another origin":   {breakIt, func(r *http.Request) { r.Header.Del("Sec-Fetch-Site"); r.Header.Set("Origin", "http://evil.example") }, 403},
			"without the secret":    {breakIt, header("X-Aimlock-Csrf", ""), 403},
			"with another's secret": {breakIt, header("X-Aimlock-Csrf", w.page.csrf+"x"), 403},
			"as a form":             {breakIt, header("Content-Type", "application/x-www-form-urlencoded"), 415},
			"not JSON":              {`{`, nil, 400},
			"a field too many":      {`{"do":"break","target":"doomed","confirm":"doomed","force":true}`, nil, 400},
			"too large":             {`{"do":"` + strings.Repeat("x", maxActBody) + `"}`, nil, 400},
			"another name typed":    {`{"do":"break","target":"doomed","confirm":"Doomed"}`, nil, 400},
			"no target":             {`{"do":"break"}`, nil, 400},
			"a long reason":         {`{"do":"break","target":"doomed","confirm":"doomed","reason":"` + strings.Repeat("x", maxReason+1) + `"}`, nil, 400},
		} {
			mods := []func(*http.Request){}
			if c.mod != nil {
				mods = append(mods, c.mod)
			}
			if code, text := send(c.body, mods...); code != c.want {
				t.Errorf("%s: answered %d, not %d: %s", name, code, c.want, text)
			}
		}
		if len(w.tokens) != 0 {
			t.Errorf("refused orders came to act: %q", w.tokens)
		}
		if code, text := send(`{"do":"explode","target":"doomed","confirm":"doomed"}`); code != http.StatusConflict {
			t.Errorf("an order that there is not: %d %s", code, text)
		}
		// Only a HOT lock is broken.
		if code, text := send(`{"do":"break","target":"other","confirm":"other"}`); code != http.StatusConflict || other.Context().Err() != nil {
			t.Errorf("the break of a lock that is HELD: %d %s", code, text)
		}
		if code, text := send(`{"do":"request","target":"other","confirm":"other","reason":"please"}`); code != 200 {
			t.Errorf("a request: %d %s", code, text)
		}
		pass(time.Second)
		if q := other.Requested(); q == nil || q.Reason != "please" {
			t.Errorf("the holder was asked %+v", q)
		}
		if code, text := send(breakIt); code != http.StatusConflict || !strings.Contains(text, "approval") {
			t.Errorf("a break that nobody approved: %d %s", code, text)
		}
		if code, text := send(`{"do":"approve","target":"doomed","confirm":"doomed","reason":"burnt"}`); code != 200 {
			t.Errorf("an approval: %d %s", code, text)
		}
		if code, text := send(breakIt); code != 200 {
			t.Errorf("a break: %d %s", code, text)
		}
		pass(time.Second)
		if h.Context().Err() == nil {
			t.Error("the holder of a broken lock goes on")
		}
		for _, token := range w.tokens {
			if token != "viewer-token" {
				t.Errorf("acted under %q", token)
			}
		}
		if code, text := send(`{"do":"pause","target":"nothing","confirm":"nothing"}`); code != http.StatusConflict || !strings.Contains(text, "nothing") {
			t.Errorf("the pause of no rollout: %d %s", code, text)
		}
		if err := other.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.Abandon(t.Context())
	})
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Act = nil })
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/act", strings.NewReader("{}"))
		req.Header.Set("X-Aimlock-Csrf", w.page.csrf)
		if rec := w.get(req); rec.Code != http.StatusForbidden {
			t.Errorf("answered %d", rec.Code)
		}
		rec := w.get(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/setup", http.NoBody))
		if rec.Code != 200 || strings.Contains(rec.Body.String(), w.page.csrf) {
			t.Errorf("a page that may not act is told %s", rec.Body)
		}
	})
}
