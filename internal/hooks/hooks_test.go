package hooks

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/records"
)

// receiver is what a POST reaches, in this process and on virtual time.
type receiver struct {
	mu     sync.Mutex
	events []Event
	reqs   []*http.Request
	bodies [][]byte
	// answer is asked for each request, counted from 1.
	answer func(n int, req *http.Request) (*http.Response, error)
}

func status(code int) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: http.NoBody}
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.reqs, r.bodies = append(r.reqs, req), append(r.bodies, body)
	n := len(r.reqs)
	r.mu.Unlock()
	resp, err := status(204), error(nil)
	if r.answer != nil {
		resp, err = r.answer(n, req)
	}
	if err == nil && resp.StatusCode < 300 {
		var e Event
		if err := json.Unmarshal(body, &e); err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.events = append(r.events, e)
		r.mu.Unlock()
	}
	return resp, err
}

func (r *receiver) kinds() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []string{}
	for _, e := range r.events {
		out = append(out, e.Kind+" "+e.Lock)
	}
	return out
}

func start(t *testing.T, r *receiver, log io.Writer, list ...Config) *Notifier {
	t.Helper()
	opts := Options{Transport: r}
	if log != nil {
		opts.Log = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Trace})
	}
	n, err := New(list, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		n.Close(ctx)
	})
	return n
}

func hookOn(on ...string) Config {
	return Config{Name: "pager", On: on, URL: "https://user:pass@hooks.test/secret-path?key=secret-query"}
}

func (n *Notifier) drain(t *testing.T, d time.Duration) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return n.Close(ctx)
}

// A hook is told what it wants, once, signed, with its headers.
func TestPost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		c := hookOn(Hot, Break)
		c.Secret, c.Headers = []byte("key"), map[string]string{"Authorization": "Bearer x"}
		n := start(t, r, nil, c)
		n.Notify(Event{Kind: Hot, Lock: "a", State: "HOT", Reason: "gone \x1b[31m", Who: records.Who{Host: "h", User: "u"}})
		n.Notify(Event{Kind: Leader})
		n.Notify(OfBreak("k", &records.Break{Lock: "b", Outcome: records.OutcomeIntent, Holder: &records.Holder{PID: 7, Host: "h"}}))
		n.Notify(OfBreak("k", &records.Break{Lock: "b", Outcome: records.OutcomeTaken}))
		n.Notify(OfBreak("k", &records.Break{Lock: "b", Outcome: records.OutcomeAborted}))
		if lost := n.drain(t, time.Second); lost != 0 {
			t.Fatalf("%d lost", lost)
		}
		if got, want := fmt.Sprint(r.kinds()), "[hot a break_begun b break_done b break_failed b]"; got != want {
			t.Fatalf("told %s, want %s", got, want)
		}
		if e := r.events[0]; strings.Contains(e.Reason, "\x1b") || e.At.IsZero() || e.ID == "" || e.ID == r.events[1].ID || e.User != "u" {
			t.Errorf("event %+v", e)
		}
		mac := hmac.New(sha256.New, []byte("key"))
		mac.Write(r.bodies[0])
		h := r.reqs[0].Header
		if h.Get(SignatureHeader) != "sha256="+hex.EncodeToString(mac.Sum(nil)) || h.Get("Authorization") != "Bearer x" ||
			h.Get("Content-Type") != "application/json" || h.Get("Aimlock-Event-Id") != r.events[0].ID {
			t.Errorf("headers %v", h)
		}
		n.Notify(Event{Kind: Hot})
		if len(r.kinds()) != 4 {
			t.Error("told after its end")
		}
	})
}

// A receiver that is away for a while is told when it is back, in order; one that
// will never take it is not asked again.
func TestRetry(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer func(n int) (*http.Response, error)
		tries  int
		told   bool
		least  time.Duration
	}{
		"away, then back": {func(n int) (*http.Response, error) {
			if n < 4 {
				return nil, errors.New("connection refused")
			}
			return status(200), nil
		}, 4, true, 3 * time.Second},
		"an error of the server's": {func(n int) (*http.Response, error) { return status(map[bool]int{true: 502, false: 200}[n < 3]), nil }, 3, true, time.Second},
		"too many requests": {func(n int) (*http.Response, error) {
			if n == 1 {
				r := status(429)
				r.Header.Set("Retry-After", "30")
				return r, nil
			}
			return status(200), nil
		}, 2, true, 30 * time.Second},
		"not wanted": {func(int) (*http.Response, error) { return status(404), nil }, 1, false, 0},
		"a redirect": {func(int) (*http.Response, error) {
			r := status(302)
			r.Header.Set("Location", "https://other.test/")
			return r, nil
		}, 1, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := &receiver{answer: func(n int, _ *http.Request) (*http.Response, error) { return tc.answer(n) }}
				n := start(t, r, nil, hookOn(Hot))
				begin := time.Now()
				n.Notify(Event{Kind: Hot, Lock: "a"})
				lost := n.drain(t, time.Hour)
				if len(r.reqs) != tc.tries || (len(r.events) == 1) != tc.told || (lost == 0) != tc.told || time.Since(begin) < tc.least {
					t.Fatalf("%d tries, told %v, %d lost, in %s", len(r.reqs), r.kinds(), lost, time.Since(begin))
				}
			})
		})
	}
}

// One that never comes back is given up after a while, and those that came
// meanwhile are bounded: the oldest go, and whoever comes back is told how many.
func TestAwayForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var back atomic.Bool
		r := &receiver{}
		r.answer = func(int, *http.Request) (*http.Response, error) {
			if !back.Load() {
				return nil, errors.New("no route to host")
			}
			return status(200), nil
		}
		n := start(t, r, nil, hookOn(Hot))
		for i := range QueueSize + 11 {
			n.Notify(Event{Kind: Hot, Lock: strconv.Itoa(i)})
			synctest.Wait()
		}
		st := n.Stats()[0]
		if st.Waiting != QueueSize || st.Lost != 10 || st.Delivered != 0 {
			t.Fatalf("stats %+v", st)
		}
		time.Sleep(RetryFor + time.Minute)
		if st = n.Stats()[0]; st.Waiting != QueueSize-1 || st.Lost != 11 {
			t.Fatalf("after %s: %+v", RetryFor, st)
		}
		back.Store(true)
		n.drain(t, time.Hour)
		if len(r.events) < QueueSize-1 || r.events[0].Dropped < 11 || r.events[1].Dropped != 0 {
			t.Fatalf("told %d, the first says that %d were dropped", len(r.events), r.events[0].Dropped)
		}
	})
}

// Nobody waits for a receiver that hangs: not who tells, not another hook, and
// not the end of the program.
func TestHangingReceiver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(_ int, req *http.Request) (*http.Response, error) {
			if req.URL.Host == "fast.test" {
				return status(200), nil
			}
			<-req.Context().Done()
			return nil, req.Context().Err()
		}}
		fast := hookOn(Hot)
		fast.URL = "http://fast.test"
		n := start(t, r, nil, hookOn(Hot), fast)
		begin := time.Now()
		for range 1000 {
			n.Notify(Event{Kind: Hot})
		}
		if time.Since(begin) > 0 {
			t.Fatalf("it took %s", time.Since(begin))
		}
		synctest.Wait()
		if got := len(r.kinds()); got < QueueSize {
			t.Fatalf("the other hook was told %d events", got)
		}
		if lost := n.drain(t, 3*time.Second); lost < 900 || time.Since(begin) > 4*time.Second {
			t.Fatalf("%d lost, in %s", lost, time.Since(begin))
		}
	})
}

// Neither log nor error shows a secret.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{answer: func(n int, _ *http.Request) (*http.Response, error) {
			if n == 1 {
				return nil, errors.New("connection refused")
			}
			return status(410), nil
		}}
		c := hookOn(Hot)
		c.Secret, c.Headers = []byte("secret-key"), map[string]string{"Authorization": "secret-header"}
		n := start(t, r, &log, c)
		n.Notify(Event{Kind: Hot, Lock: "a"})
		n.drain(t, time.Minute)
	})
	if text := log.String(); !strings.Contains(text, "HTTP 410") || !strings.Contains(text, "https://hooks.test") ||
		strings.Contains(text, "secret") || strings.Contains(text, "pass") {
		t.Fatalf("log:\n%s", text)
	}
	for _, u := range []string{"ftp://user:secret@host/", "::secret::", "https://", "secret"} {
		c := hookOn(Hot)
		c.URL = u
		if err := c.Check(); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", u, err)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	url, cmd := "https://x.test", []string{"true"}
	for _, tc := range []struct {
		c    Config
		says string
	}{
		{Config{URL: url}, "on is empty"},
		{Config{On: []string{"hott"}, URL: url}, `on has "hott": it is of hot, unknown, break`},
		{Config{On: []string{Hot}}, "either url or command"},
		{Config{On: []string{Hot}, URL: url, Command: cmd}, "either url or command"},
		{Config{On: []string{Hot}, Command: []string{""}}, "names no program"},
		{Config{On: []string{Hot}, Command: cmd, Secret: []byte("x")}, "go with url"},
		{Config{On: []string{Hot}, Command: cmd, Timeout: time.Hour}, "at most"},
		{Config{On: []string{Hot}, Command: cmd, UnknownAfter: -1}, "unknown_after"},
		{Config{On: []string{Hot}, Command: cmd}, ""},
		{Config{On: Kinds(), URL: url}, ""},
	} {
		err := tc.c.Check()
		if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%+v: %v, want %q", tc.c, err, tc.says)
		}
	}
}

// A hold is told to be HOT once, and a lock UNKNOWN only after it was so all the
// while.
func TestSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{}
		late := hookOn(Unknown)
		late.UnknownAfter, late.URL = 30*time.Minute, "https://late.test"
		n := start(t, r, nil, hookOn(Hot, Unknown), late)
		see := func(lock, state string, token uint64) {
			n.Seen(Event{Lock: lock, State: state, Token: token, Session: "s"})
			synctest.Wait()
		}
		expect := func(want ...string) {
			t.Helper()
			if got := r.kinds(); !slices.Equal(got, want) {
				t.Fatalf("told %v, want %v", got, want)
			}
		}
		see("a", "HELD", 1)
		see("a", "HOT", 1)
		see("a", "HOT", 1)
		expect("hot a")
		see("a", "WARM", 1)
		see("a", "HOT", 1)
		see("a", "HOT", 2)
		expect("hot a", "hot a", "hot a")
		see("b", "UNKNOWN", 3)
		time.Sleep(9 * time.Minute)
		see("b", "HELD", 3)
		see("b", "UNKNOWN", 3)
		time.Sleep(9 * time.Minute)
		see("b", "UNKNOWN", 3)
		expect("hot a", "hot a", "hot a")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		expect("hot a", "hot a", "hot a", "unknown b")
		if e := r.events[3]; e.For < 600 || e.For > 660 {
			t.Fatalf("for %v s", e.For)
		}
		time.Sleep(15 * time.Minute)
		expect("hot a", "hot a", "hot a", "unknown b")
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		expect("hot a", "hot a", "hot a", "unknown b", "unknown b")
		see("b", "FREE", 0)
		see("c", "UNKNOWN", 4)
		n.drain(t, time.Second)
		time.Sleep(time.Hour)
		if len(r.kinds()) != 5 {
			t.Fatalf("told %v", r.kinds())
		}
	})
}

func TestNobodyIsTold(t *testing.T) {
	t.Parallel()
	n, err := New(nil, Options{})
	if err != nil || n != nil {
		t.Fatal(n, err)
	}
	n.Notify(Event{Kind: Hot})
	n.Seen(Event{State: "HOT"})
	if n.Close(t.Context()) != 0 || n.Stats() != nil {
		t.Fatal("a nil notifier counts")
	}
}

// A command reads the event on its stdin, and sees no more of the environment
// than it needs.
func TestExec(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", "secret")
	dir := t.TempDir()
	n := start(t, nil, nil, Config{Name: "x", On: []string{Hot}, Command: []string{"sh", "-c", `cat > "$0/body"; env > "$0/env"`, dir}})
	n.Notify(Event{Kind: Hot, Lock: "a", ID: "id-1"})
	if lost := n.drain(t, time.Minute); lost != 0 {
		t.Fatalf("%d lost", lost)
	}
	var e Event
	body, err := os.ReadFile(filepath.Join(dir, "body"))
	if err != nil || json.Unmarshal(body, &e) != nil || e.Lock != "a" || e.ID != "id-1" {
		t.Fatalf("body %s: %v", body, err)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil || !bytes.Contains(env, []byte("AIMLOCK_EVENT=hot\n")) || bytes.Contains(env, []byte("secret")) {
		t.Fatalf("environment %s: %v", env, err)
	}
}

// A command that fails is run again; one that is not there is not.
func TestExecFails(t *testing.T) {
	t.Parallel()
	mark := filepath.Join(t.TempDir(), "mark")
	n := start(t, nil, nil,
		Config{Name: "x", On: []string{Hot}, Command: []string{"sh", "-c", `test -e "$0" || { touch "$0"; exit 3; }`, mark}},
		Config{Name: "y", On: []string{Hot}, Command: []string{"/no/such/program"}})
	n.Notify(Event{Kind: Hot})
	n.drain(t, time.Minute)
	if st := n.Stats(); st[0].Delivered != 1 || st[0].Failed != 1 || st[1].Lost != 1 || st[1].Failed != 1 {
		t.Fatalf("stats %+v", st)
	}
}

// A command that hangs ends at its time-out, with all that it started; and at
// the end of the program.
func TestExecHangs(t *testing.T) {
	t.Parallel()
	for name, timeout := range map[string]time.Duration{"time-out": 300 * time.Millisecond, "end": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pids := filepath.Join(t.TempDir(), "pids")
			n := start(t, nil, nil, Config{Name: "x", On: []string{Hot}, Timeout: timeout,
				Command: []string{"sh", "-c", `sleep 600 & echo $! > "$0.new"; mv "$0.new" "$0"; wait`, pids}})
			n.Notify(Event{Kind: Hot})
			var pid int
			until(t, func() bool {
				b, err := os.ReadFile(pids)
				if err != nil {
					return false
				}
				pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
				return err == nil
			})
			if name == "time-out" {
				until(t, func() bool { return n.Stats()[0].Failed > 0 })
			} else if n.drain(t, 100*time.Millisecond) != 1 {
				t.Fatal("it counts as delivered")
			}
			until(t, func() bool { return !alive(pid) })
		})
	}
}

// alive tells whether the process runs: one that is dead and not yet reaped by
// whoever inherited it does not.
func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(b, []byte(") Z "))
}

func until(t *testing.T, f func() bool) {
	t.Helper()
	tick, deadline := time.NewTicker(10*time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not within 20 s")
		}
	}
}

// While another process tells, nothing is told of what is seen; what still stands
// when it does not any more is told then, with the same id as by it.
func TestMute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		leads, follows := &receiver{}, &receiver{}
		a, b := start(t, leads, nil, hookOn(Hot, Unknown)), start(t, follows, nil, hookOn(Hot, Unknown))
		b.Mute(true)
		see := func(lock, state string, token uint64) {
			for _, n := range []*Notifier{a, b} {
				n.Seen(Event{Lock: lock, Key: "k/" + lock, State: state, Token: token, Session: "s", Rule: "r"})
			}
			synctest.Wait()
		}
		see("gone", "HOT", 1)
		see("gone", "FREE", 0)
		see("hot", "HOT", 2)
		see("odd", "UNKNOWN", 3)
		time.Sleep(time.Hour)
		synctest.Wait()
		told := []string{"hot gone", "hot hot", "unknown odd"}
		if got := leads.kinds(); !slices.Equal(got, told) || len(follows.kinds()) != 0 {
			t.Fatalf("who leads told %v, and who follows %v", got, follows.kinds())
		}
		b.Mute(false)
		b.Mute(false)
		synctest.Wait()
		got := follows.kinds()
		slices.Sort(got)
		if !slices.Equal(got, told[1:]) {
			t.Fatalf("told %v after it, want %v", got, told[1:])
		}
		ids := map[string]string{}
		for _, e := range leads.events {
			ids[e.Kind+e.Lock] = e.ID
		}
		for _, e := range follows.events {
			if e.ID == "" || e.ID != ids[e.Kind+e.Lock] {
				t.Errorf("%s %s has id %q, and by the other one %q", e.Kind, e.Lock, e.ID, ids[e.Kind+e.Lock])
			}
		}
		if len(ids) != 3 || ids["hotgone"] == ids["hothot"] {
			t.Errorf("ids %v", ids)
		}
		see("new", "HOT", 4)
		if n := len(follows.kinds()); n != 3 {
			t.Errorf("told %d events in all", n)
		}
		a.drain(t, time.Second)
		b.drain(t, time.Second)
	})
}
