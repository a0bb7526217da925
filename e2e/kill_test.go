package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
)

// killer stands between one process and Consul, counts the process's writes, and
// kills it (kill -9) at the n-th: before Consul gets the write, or when Consul
// has done it and before the process learns of that.
type killer struct {
	n     int64
	after bool
	next  http.RoundTripper

	writes atomic.Int64
	killed atomic.Bool
	// victim is valid once started is closed.
	victim  *harness.Process
	started chan struct{}
}

var errKilled = errors.New("the process that asked was killed")

func (k *killer) RoundTrip(r *http.Request) (*http.Response, error) {
	switch r.Method {
	case http.MethodPut, http.MethodPost, http.MethodDelete:
	default:
		return k.next.RoundTrip(r)
	}
	if k.writes.Add(1) != k.n {
		return k.next.RoundTrip(r)
	}
	if k.after {
		// The process is dead by the time that the proxy would give up.
		resp, err := k.next.RoundTrip(r.WithContext(context.WithoutCancel(r.Context())))
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
	}
	<-k.started
	k.killed.Store(true)
	k.victim.Kill()
	return nil, errKilled
}

// start starts the command with the killer between it and the Consul.
func (k *killer) start(t *testing.T, c *harness.Consul, spec harness.Spec) {
	t.Helper()
	target, err := url.Parse("http://" + c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(tr.CloseIdleConnections)
	k.next, k.started = tr, make(chan struct{})
	srv := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: k,
		// A process that is no more asks for nothing more.
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if !k.killed.Load() && r.Context().Err() == nil {
				t.Errorf("proxy: %s %s: %v", r.Method, r.URL.Path, err)
			}
			panic(http.ErrAbortHandler)
		},
	})
	// Blocking queries of a dead process end with its connections.
	t.Cleanup(srv.Close)
	spec.Env = append(spec.Env, "CONSUL_HTTP_ADDR="+strings.TrimPrefix(srv.URL, "http://"))
	k.victim = harness.Start(t, spec)
	close(k.started)
}

// killsAtOnce is how many rollouts are under way at the same time.
const killsAtOnce = 6

// An orchestrator is killed between any two of its writes: before the n-th, and
// after it but before it knows, for every n that there is. The next one finishes
// what it began, in one rollout, and no order goes back.
func TestKillBetweenWrites(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, manyConns)
	var tried, kills atomic.Int64
	var ended atomic.Bool
	var wg sync.WaitGroup
	for range killsAtOnce {
		wg.Go(func() {
			for !ended.Load() {
				i := tried.Add(1) - 1
				k := &killer{n: i/2 + 1, after: i%2 == 1}
				name := fmt.Sprintf("before%02d", k.n)
				if k.after {
					name = fmt.Sprintf("after%02d", k.n)
				}
				if !t.Run(name, func(t *testing.T) { killOnce(t, c, name, k) }) || !k.killed.Load() {
					ended.Store(true)
				} else {
					kills.Add(1)
				}
			}
		})
	}
	wg.Wait()
	// Service, session, lock, content, plan, a few decisions, release, and
	// twice of each.
	if n := kills.Load(); n < 24 && !t.Failed() {
		t.Errorf("only %d kills were tried: is the rollout's every write seen?", n)
	}
	t.Logf("%d kills", kills.Load())
}

func killOnce(t *testing.T, c *harness.Consul, id string, k *killer) {
	f := newFleet(t, c, id, 3, "")
	f.watchOrders()
	k.start(t, c, f.rollout())
	code := k.victim.Wait(fleetLimit)
	switch {
	case k.killed.Load() && code != 128+9:
		t.Errorf("exit %d of a process that was killed:\n%s", code, k.victim.Stderr())
	case !k.killed.Load() && code != 0:
		t.Errorf("exit %d of a rollout without a kill:\n%s", code, k.victim.Stderr())
	}
	f.finishes()
	f.succeeded()
}

// An orchestrator is killed in the middle of each stage, while a node works on
// its order. The next one takes the lock at once, for it can see that the
// process is dead, and goes on.
func TestKillInStages(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, manyConns)
	for _, at := range []struct {
		stage string
		node  int // which node, in the order of their turns, works on it
	}{{"canary", 1}, {"half", 2}, {"rest", 5}} {
		t.Run(at.stage, func(t *testing.T) {
			t.Parallel()
			turns := t.TempDir()
			f := newFleet(t, c, "stage-"+at.stage, 6, reload(turns))
			f.watchOrders()
			for n := 1; n < at.node; n++ {
				touch(t, filepath.Join(turns, "open-"+strconv.Itoa(n)))
			}
			a := harness.Start(t, f.rollout())
			harness.Eventually(t, fleetLimit, "a node of stage "+at.stage+" works", func() bool {
				return exists(filepath.Join(turns, strconv.Itoa(at.node)))
			})
			a.Kill()
			b := harness.Start(t, f.rollout())
			harness.Eventually(t, fleetLimit, "the next orchestrator has the lock", func() bool {
				p, _, err := c.Client().KV().Get(f.prefix.Lock(fleetConfig), nil)
				return err == nil && p != nil && strings.Contains(string(p.Value), fmt.Sprintf(`"pid":%d,`, b.Pid()))
			})
			touch(t, filepath.Join(turns, "open"))
			if code := b.Wait(fleetLimit); code != 0 {
				t.Errorf("the next orchestrator: exit %d:\n%s", code, b.Stderr())
			}
			if want := "ERROR: " + fleetConfig + ": HOT"; !strings.HasPrefix(b.Stderr(), want) {
				t.Errorf("the next orchestrator did not begin with %q:\n%s", want, b.Stderr())
			}
			f.succeeded()
		})
	}
}
