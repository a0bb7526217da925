package devconsul_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/devconsul"
)

// direct sends requests to a handler without a network, so that a test can run
// in a bubble of fake time.
type direct struct{ h http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	d.h.ServeHTTP(w, r)
	return w.Result(), nil
}

// bubble runs a test in fake time, with a server that listens nowhere.
func bubble(t *testing.T, cfg devconsul.Config, run func(t *testing.T, c *api.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg.NodeName = "n1"
		s, err := devconsul.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		c, err := api.NewClient(&api.Config{Address: "direct", HttpClient: &http.Client{Transport: direct{s.Handler()}}})
		if err != nil {
			t.Fatal(err)
		}
		run(t, c)
	})
}

// pass lets fake time go on.
func pass(d time.Duration) { <-time.NewTimer(d).C }

func must[T any](t *testing.T) func(v T, _ any, err error) T {
	return func(v T, _ any, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func exists(t *testing.T, c *api.Client, session string) bool {
	t.Helper()
	se, _, err := c.Session().Info(session, nil)
	if err != nil {
		t.Fatal(err)
	}
	return se != nil
}

func newSession(t *testing.T, c *api.Client, se *api.SessionEntry) string {
	t.Helper()
	id, _, err := c.Session().Create(se, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestSessionTTL(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		factor float64
		lives  time.Duration
	}{"by default": {0, 30 * time.Second}, "by factor": {1.2, 18 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, devconsul.Config{SessionTTLFactor: tc.factor}, func(t *testing.T, c *api.Client) {
				id := newSession(t, c, &api.SessionEntry{TTL: "15s"})
				pass(14 * time.Second)
				if se, _, err := c.Session().Renew(id, nil); err != nil || se == nil {
					t.Fatal(se, err)
				}
				pass(tc.lives - time.Millisecond)
				if !exists(t, c, id) {
					t.Fatalf("ended before %v after its renewal", tc.lives)
				}
				pass(2 * time.Millisecond)
				if exists(t, c, id) {
					t.Fatalf("lives %v after its renewal", tc.lives)
				}
			})
		})
	}
}

func TestLockDelay(t *testing.T) {
	t.Parallel()
	bubble(t, devconsul.Config{}, func(t *testing.T, c *api.Client) {
		lock := func(id string) bool {
			ok, _, err := c.KV().Acquire(&api.KVPair{Key: "a", Session: id}, nil)
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		first, second := newSession(t, c, nil), newSession(t, c, nil)
		if !lock(first) {
			t.Fatal("not locked")
		}
		if _, err := c.Session().Destroy(first, nil); err != nil {
			t.Fatal(err)
		}
		pass(15*time.Second - time.Millisecond)
		if lock(second) {
			t.Fatal("locked under the default lock-delay")
		}
		pass(2 * time.Millisecond)
		if !lock(second) {
			t.Fatal("not locked after the default lock-delay")
		}
	})
	bubble(t, devconsul.Config{}, func(t *testing.T, c *api.Client) {
		// More than a minute is not granted.
		id := newSession(t, c, &api.SessionEntry{LockDelay: time.Hour})
		other := newSession(t, c, nil)
		kv := c.KV()
		if ok, _, err := kv.Acquire(&api.KVPair{Key: "a", Session: id}, nil); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if _, err := c.Session().Destroy(id, nil); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute + time.Millisecond)
		if ok, _, err := kv.Acquire(&api.KVPair{Key: "a", Session: other}, nil); err != nil || !ok {
			t.Fatal("not locked after the longest lock-delay", ok, err)
		}
	})
}

func status(t *testing.T, c *api.Client, service string) *api.HealthCheck {
	t.Helper()
	checks, _, err := c.Health().Checks(service, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(checks) == 0 {
		return nil
	}
	return checks[0]
}

// A critical check takes its service out of the catalog, at the earliest after a
// minute, at the first look at it after that.
func TestDeregisterCriticalService(t *testing.T) {
	t.Parallel()
	bubble(t, devconsul.Config{}, func(t *testing.T, c *api.Client) {
		reg := &api.AgentServiceRegistration{Name: "web", Check: &api.AgentServiceCheck{
			TTL: "10s", Status: api.HealthPassing, DeregisterCriticalServiceAfter: "5s"}}
		if err := c.Agent().ServiceRegister(reg); err != nil {
			t.Fatal(err)
		}
		pass(10*time.Second + time.Millisecond)
		if got := status(t, c, "web"); got.Status != api.HealthCritical || got.Output != "TTL expired" {
			t.Fatalf("after its TTL the check is %s, %q", got.Status, got.Output)
		}
		pass(time.Minute - 2*time.Millisecond)
		if status(t, c, "web") == nil {
			t.Fatal("gone within a minute")
		}
		pass(30*time.Second + 2*time.Millisecond)
		if status(t, c, "web") != nil {
			t.Fatal("left after a minute and the interval of looking")
		}
		services, err := c.Agent().Services()
		if err != nil || len(services) != 0 {
			t.Errorf("the agent has %v, %v", services, err)
		}
	})
}

// New output of an unchanged status shows after half to one and a half intervals.
func TestOutputIsPublishedLate(t *testing.T) {
	t.Parallel()
	bubble(t, devconsul.Config{}, func(t *testing.T, c *api.Client) {
		if err := c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web", Check: &api.AgentServiceCheck{TTL: "1h"}}); err != nil {
			t.Fatal(err)
		}
		for _, note := range []string{"first", "second"} {
			if err := c.Agent().UpdateTTL("service:web", note, api.HealthPassing); err != nil {
				t.Fatal(err)
			}
		}
		pass(150*time.Second - time.Millisecond)
		if got := status(t, c, "web").Output; got != "first" {
			t.Fatalf("after half the interval the output is %q", got)
		}
		pass(300*time.Second + 2*time.Millisecond)
		if got := status(t, c, "web").Output; got != "second" {
			t.Fatalf("after one and a half intervals the output is %q", got)
		}
	})
}

// The agent puts the catalog right within a minute, but leaves serfHealth to
// whoever changed it.
func TestAntiEntropy(t *testing.T) {
	t.Parallel()
	bubble(t, devconsul.Config{}, func(t *testing.T, c *api.Client) {
		if err := c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web", Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing}}); err != nil {
			t.Fatal(err)
		}
		catalog := c.Catalog()
		register := func(r api.CatalogRegistration) {
			t.Helper()
			r.Node, r.SkipNodeUpdate = "n1", true
			if _, err := catalog.Register(&r, nil); err != nil {
				t.Fatal(err)
			}
		}
		bound := newSession(t, c, nil)
		register(api.CatalogRegistration{Check: &api.AgentCheck{Node: "n1", CheckID: "serfHealth", Name: "Serf Health Status", Status: api.HealthCritical}})
		if exists(t, c, bound) {
			t.Error("a session outlives its failed node")
		}
		register(api.CatalogRegistration{Service: &api.AgentService{ID: "stray", Service: "stray"}})
		register(api.CatalogRegistration{Check: &api.AgentCheck{Node: "n1", CheckID: "stray", Name: "stray", Status: api.HealthPassing}})
		if _, err := catalog.Deregister(&api.CatalogDeregistration{Node: "n1", ServiceID: "web"}, nil); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute + time.Millisecond)
		synctest.Wait()
		services := must[map[string][]string](t)(catalog.Services(nil))
		if _, stray := services["stray"]; stray || len(services) != 2 {
			t.Errorf("services: %v", services)
		}
		checks := must[api.HealthChecks](t)(c.Health().Node("n1", nil))
		got := map[string]string{}
		for _, check := range checks {
			got[check.CheckID] = check.Status
		}
		if len(got) != 2 || got["serfHealth"] != api.HealthCritical || got["service:web"] != api.HealthPassing {
			t.Errorf("checks: %v", got)
		}

		if _, err := catalog.Deregister(&api.CatalogDeregistration{Node: "n1"}, nil); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		synctest.Wait()
		checks = must[api.HealthChecks](t)(c.Health().Node("n1", nil))
		if len(checks) != 2 || checks.AggregatedStatus() != api.HealthPassing {
			t.Errorf("checks of a node that was deregistered: %v", checks)
		}
	})
}

// A blocking query without a change ends after its wait and up to a sixteenth.
func TestWait(t *testing.T) {
	t.Parallel()
	bubble(t, devconsul.Config{}, func(t *testing.T, c *api.Client) {
		if _, err := c.KV().Put(&api.KVPair{Key: "a"}, nil); err != nil {
			t.Fatal(err)
		}
		_, meta, err := c.KV().List("a", nil)
		if err != nil {
			t.Fatal(err)
		}
		for wait, most := range map[time.Duration]time.Duration{
			time.Minute: time.Minute, 0: 5 * time.Minute, time.Hour: 10 * time.Minute, 10 * time.Millisecond: 10 * time.Millisecond,
		} {
			start := time.Now()
			_, again, err := c.KV().List("a", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: wait})
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < min(wait, most) || took > most+most/16+time.Millisecond {
				t.Errorf("wait=%v took %v", wait, took)
			}
			if again.LastIndex != meta.LastIndex {
				t.Errorf("the index went from %d to %d", meta.LastIndex, again.LastIndex)
			}
		}
	})
}
