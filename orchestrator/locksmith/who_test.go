package locksmith

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/records"
)

// withToken makes clients whose token's accessor answers tells: "" if the
// question is swallowed.
func (w *world) withToken(accessor string) func(*Config) {
	w.t.Helper()
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Token: "s3cret", Wrap: func(rt http.RoundTripper) http.RoundTripper {
		next := consulkvtest.InProcess(w.srv.Handler())(rt)
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			if !strings.HasSuffix(r.URL.Path, "/acl/token/self") {
				return next.RoundTrip(r)
			}
			if accessor == "" {
				return silence(r)
			}
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r,
				Body: io.NopCloser(strings.NewReader(`{"AccessorID":"` + accessor + `","SecretID":"s3cret"}`))}, nil
		})
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	return func(c *Config) { c.Consul = kv }
}

// Who broke a lock stands in the budget that the break was taken out of, and a
// locksmith is told from the person whose account it runs under.
func TestBudgetSaysWho(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		me, _ := self()
		for i, as := range []string{"", "locksmith"} {
			w.acquire(w.client(asElsewhere), one("a"))
			c := w.client(withPolicy(t, budgeted(2)), w.withToken("6a1253d2"), named(""), func(c *Config) { c.As = as })
			if _, err := c.Break(t.Context(), BreakRequest{Name: "a"}); err != nil {
				t.Fatal(err)
			}
			var b records.Budget
			if err := records.Decode("budget", []byte(w.value(w.keys.Budget("p"))), &b); err != nil {
				t.Fatal(err)
			}
			want := records.BudgetItem{By: strings.TrimSpace(as + " " + me.User + "@" + me.Host), Who: records.Who{Accessor: "6a1253d2", Host: me.Host, User: me.User}}
			if len(b.Breaks) != i+1 {
				t.Fatalf("%d breaks in the budget: %+v", len(b.Breaks), b)
			}
			if got := b.Breaks[i]; got.By != want.By || got.Who != want.Who {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
	})
}

// An ACL endpoint that hangs is not in the way of a lock.
func TestAHangingAccessorIsNotInTheWay(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, alwaysHot), w.withToken(""))
		start := time.Now()
		h := w.acquire(c, one("a"))
		if took := time.Since(start); took > 2*accessorGrace {
			t.Errorf("the first acquisition took %s", took)
		}
		if h.record["a"].Accessor != "" {
			t.Errorf("accessor %q", h.record["a"].Accessor)
		}
		w.acquire(w.client(asElsewhere), one("b"))
		start = time.Now()
		if _, err := c.Break(t.Context(), BreakRequest{Name: "b"}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("the break took %s", took)
		}
		c.consul.Accessor(t.Context()) // what is still asked ends
	})
}

// Who gives no reason leaves no colon that nothing follows.
func TestARequestWithoutAReason(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		if _, err := w.client(named("ann")).Request(t.Context(), "a", "", time.Minute); err != nil {
			t.Fatal(err)
		}
		waitDone(t, h.Context(), 5*time.Second)
		if got := context.Cause(h.Context()).Error(); !strings.HasSuffix(got, "of a by ann") {
			t.Errorf("got %q", got)
		}
	})
}
