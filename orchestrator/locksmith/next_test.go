package locksmith

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// When the lock of a silent holder can be had counts the lock-delay, too.
func TestNextCountsTheLockDelay(t *testing.T) {
	t.Parallel()
	checked := []api.ServiceCheck{{ID: "service:x"}}
	for want, s := range map[string]*api.SessionEntry{
		"": nil,
		", or about 25s after it was last heard of (10s, then 15s of lock-delay)":                            {ServiceChecks: checked, LockDelay: 15 * time.Second},
		", or about 10s after it was last heard of":                                                          {ServiceChecks: checked, LockDelay: time.Millisecond},
		", or up to 45s after it was last heard of (twice its session's TTL of 15s, then 15s of lock-delay)": {TTL: "15.000000s", LockDelay: 15 * time.Second},
		", or up to twice its session's TTL of 15s after it was last heard of":                               {TTL: "15s"},
		", or when its node fails, then 15s of lock-delay: its session has no TTL":                           {LockDelay: 15 * time.Second},
		", or when its node fails: its session has no TTL":                                                   {},
		", or up to 1m after it was last heard of (twice its session's TTL of 20s, then 20s of lock-delay)":  {TTL: "20s", LockDelay: 20 * time.Second},
		", or up to twice its session's TTL of soon after it was last heard of":                              {TTL: "soon", LockDelay: 15 * time.Second},
	} {
		if got := gone(&evidence.Snapshot{Session: s}); got != want {
			t.Errorf("%+v: %q, not %q", s, got, want)
		}
	}
}

// Whoever judges by policies of his own is told that others need the same.
func TestSameFlags(t *testing.T) {
	t.Parallel()
	for want, judge := range map[string][]string{
		"":                             nil,
		" with the same -policy":       {"-policy", "a.hcl", "-policy", "b.hcl"},
		" with the same -policy, -var": {"-policy", "a.hcl", "-var", "x=-1"},
	} {
		if got := (Flags{Where: []string{"-prefix", "p/"}, Judge: judge}).same(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

// authorized makes clients of a Consul that says of every right whether their token has
// it, and "" where it does not say.
func (w *world) authorized(token, allow string) func(*Config) {
	w.t.Helper()
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Token: token, Wrap: func(rt http.RoundTripper) http.RoundTripper {
		next := consulkvtest.InProcess(w.srv.Handler())(rt)
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path != consulkv.AuthorizePath || allow == "" {
				return next.RoundTrip(r)
			}
			if r.Method != http.MethodPost {
				return &http.Response{StatusCode: http.StatusMethodNotAllowed, Header: http.Header{}, Request: r, Body: http.NoBody}, nil
			}
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r, Body: io.NopCloser(strings.NewReader(`[{"Allow":` + allow + `}]`))}, nil
		})
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	return func(c *Config) { c.Consul = kv }
}

// What a token is known not to be able to is not promised: while no policies are
// applied, it breaks nothing unless it may apply them.
func TestNextOfAPowerlessToken(t *testing.T) {
	t.Parallel()
	const promise, instead = "the next one who wants it breaks it", "it is broken once policies are applied"
	for name, tc := range map[string]struct {
		token, allow, want string
		applied            bool
	}{
		"it may not apply":     {"s3cret", "false", instead, false},
		"it may":               {"s3cret", "true", promise, false},
		"Consul does not say":  {"s3cret", "", promise, false},
		"no token":             {"", "false", promise, false},
		"policies are applied": {"s3cret", "false", promise, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.acquire(w.client(asElsewhere), one("a"))
				c := w.client(withPolicy(t, alwaysHot), w.authorized(tc.token, tc.allow))
				if tc.applied {
					w.put(w.keys.PolicyActive(), &records.PolicyActive{Version: 1, Hash: c.Policies().Hash})
				}
				v, err := c.NewObserver("a", nil).Observe(t.Context())
				if err != nil || v.State != Hot {
					t.Fatalf("%+v, %v", v, err)
				}
				p, err := c.Outlook(t.Context(), v)
				if err != nil || !p.OK {
					t.Fatalf("%+v, %v", p, err)
				}
				if next := c.Next(v, p); !strings.HasPrefix(next, tc.want) {
					t.Errorf("next: %s", next)
				}
				// Nor is it to who waits for the lock and is about to break it.
				pending := w.acquiring(c, one("a"))
				pending.wait(time.Minute)
				pending.mu.Lock()
				defer pending.mu.Unlock()
				for _, n := range pending.notices {
					if n.Kind == NoticeWaiting && !strings.HasPrefix(n.Status.Next, tc.want) {
						t.Errorf("told: %s", n.Status.Next)
					}
				}
			})
		})
	}
}

// A lock that cannot be had yet is among those that are taken, whether any session is
// left in Consul or none.
func TestEachTaken(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		taken := func(prefixes ...string) string {
			var out []string
			if _, err := c.EachTaken(t.Context(), prefixes, func(v *Verdict) { out = append(out, v.Snapshot.Name+" "+v.State) }); err != nil {
				t.Fatal(err)
			}
			return strings.Join(out, ", ")
		}
		if err := w.acquire(w.client(asElsewhere), unfenced("left")).Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := w.acquire(w.client(asElsewhere), unfenced("gone"))
		w.destroy(old.Session())
		for prefix, want := range map[string]string{"": "gone COOLING", "aim": "gone COOLING", "aimlock/locks/g": "gone COOLING", "aimlock/locks/x": "", "ops/": ""} {
			if got := taken(prefix); got != want {
				t.Errorf("under %q: %q, not %q", prefix, got, want)
			}
		}
		w.acquire(w.client(asElsewhere), unfenced("held"))
		if got := taken(""); !strings.Contains(got, "gone COOLING") || !strings.Contains(got, "held ") || strings.Contains(got, "left") {
			t.Errorf("beside one that is held: %q", got)
		}
		time.Sleep(20 * time.Second)
		if got := taken("aimlock/locks/gone"); got != "" {
			t.Errorf("when it is over: %q", got)
		}
	})
}
