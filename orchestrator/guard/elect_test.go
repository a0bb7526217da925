package guard

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// cut is a network that can be cut off.
type cut struct {
	next http.RoundTripper
	off  atomic.Bool
}

func (c *cut) RoundTrip(r *http.Request) (*http.Response, error) {
	if !c.off.Load() {
		return c.next.RoundTrip(r)
	}
	return nil, errors.New("no route to host")
}

// behind puts a locksmith behind a network of its own.
func (w *world) behind(c *cut, policy string) func(*Config) {
	return func(cfg *Config) {
		kv := w.connect(func(rt http.RoundTripper) http.RoundTripper { c.next = rt; return c })
		cfg.Client = w.client(func(lc *locksmith.Config) {
			lc.Consul = kv
			if policy != "" {
				lc.Policies = parse(w.t, policy)
			}
		})
		cfg.Source = Sweeps(cfg.Client.Reader())
	}
}

// writes counts what is sent that changes something.
type writes struct {
	next http.RoundTripper
	n    atomic.Int64
}

func (c *writes) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		c.n.Add(1)
	}
	return c.next.RoundTrip(r)
}

// Of two locksmiths one acts. When it is cut off from Consul it stops by itself,
// and the other one takes over within the lease, with a watch that is as old as
// its own: a rule's `for` is not counted anew.
func TestFailover(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		policy := `policy "p" {
			locks = ["job-*"]
			hot "always" {
				when = session.exists
				for  = "10m"
			}
			break {
				approval = "auto"
			}
		}`
		var c cut
		first := w.start("", w.behind(&c, policy))
		first.leads(10 * time.Second)
		second := w.start(policy)
		w.until(10*time.Second, "the second one follows", func() bool { return second.Health().Role == RoleFollower })
		if h := second.Health(); !h.OK() || h.Leader == "" {
			t.Errorf("health of a follower: %+v", h)
		}
		old := w.hold(w.client(asElsewhere), "job-a")
		start := time.Now()
		time.Sleep(9 * time.Minute)
		c.off.Store(true)
		cutAt := time.Now()
		w.until(locksmith.CheckTTL, "the first one stops by itself", func() bool { return first.Health().Role != RoleLeader })
		took := second.leads(locksmith.CheckTTL + 3*time.Second)
		t.Logf("the first one stopped and the second one led %s after the cut", time.Since(cutAt))
		_ = took
		if w.pair("job-a").Session != old.Session() {
			t.Error("the lock was broken before its time")
		}
		w.freed("job-a", 2*time.Minute)
		if took := time.Since(start); took < 10*time.Minute || took > 10*time.Minute+10*time.Second {
			t.Errorf("broken after %s: the follower's memory was not warm", took)
		}
		c.off.Store(false)
		w.until(2*time.Minute, "the first one follows", func() bool { h := first.Health(); return h.Role == RoleFollower && h.OK() })
	})
}

// A leader whose loop stands still writes no heartbeat, is found HOT by the
// shipped policy, asked to let go, and followed. It lets go although its loop
// stands still, and stands for election again once that turns.
func TestLeaderThatHangs(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		first := w.start("")
		first.leads(10 * time.Second)
		hang := make(chan struct{})
		first.load = func() (*policies.Set, error) { <-hang; return nil, errors.New("late") }
		second := w.start("")
		time.Sleep(15 * time.Minute) // its heartbeat keeps a leader that works, past the 11 minutes of the policy
		if h := first.Health(); !h.OK() || h.Role != RoleLeader {
			t.Fatalf("after a quarter of an hour of work: %+v", h)
		}
		first.reload <- struct{}{}
		start := time.Now()
		w.until(time.Minute, "health says that the loop stands still", func() bool { return !first.Health().OK() })
		second.leads(15 * time.Minute)
		took := time.Since(start)
		t.Logf("followed %s after its loop stood still", took)
		if took < 11*time.Minute || took > 11*time.Minute+30*time.Second {
			t.Errorf("followed after %s, want the policy's 11 minutes", took)
		}
		if !second.log.has("lock is HOT") {
			t.Error("the follower does not say why")
		}
		var rec records.Break
		list, err := w.kv.List(t.Context(), w.keys.Breaks(LeaderLock))
		if err != nil || len(list) != 1 || records.Decode(list[0].Key, list[0].Value, &rec) != nil || rec.Rule != "stalled" {
			t.Errorf("breaks of the leader's lock: %v, %+v, %v", list, rec, err)
		}
		close(hang)
		w.until(time.Minute, "the first one follows", func() bool { h := first.Health(); return h.OK() && h.Role == RoleFollower })
	})
}

// A leader that is asked to let go does, and does not take the lock again at once.
func TestLeaderLetsGo(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		first := w.start("")
		first.leads(10 * time.Second)
		second := w.start("")
		w.until(10*time.Second, "the second one follows", func() bool { return second.Health().Role == RoleFollower })
		if _, err := w.client().Request(t.Context(), LeaderLock, "maintenance", time.Minute); err != nil {
			t.Fatal(err)
		}
		if took := second.leads(10 * time.Second); took > 3*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// Who has other policies than those applied does not stand for election, so that
// it cannot keep it from who has the right ones; once they are applied it does.
func TestOtherPoliciesDoNotLead(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		more := always + "\npolicy \"q\" {\n locks = [\"x\"]\n}\n"
		first := w.start(always)
		first.leads(10 * time.Second)
		second := w.start(more)
		apply := func(src string) {
			w.put(w.keys.PolicyActive(), &records.PolicyActive{Version: 1, Hash: parse(t, src).Hash})
		}
		apply(more)
		second.leads(10 * time.Second)
		if h := first.Health(); h.OK() || h.Role != RoleBystander {
			t.Errorf("health of a bystander: %+v", h)
		}
		w.hold(w.client(asElsewhere), "job-a")
		w.freed("job-a", 10*time.Second)
		apply(always)
		first.leads(10 * time.Second)
	})
}

// A dry run says what it would do and writes nothing at all.
func TestDryRun(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.hold(w.client(asElsewhere), "job-a")
		var sent writes
		s := w.start(always, func(cfg *Config) {
			cfg.DryRun = true
			kv := w.connect(func(rt http.RoundTripper) http.RoundTripper { sent.next = rt; return &sent })
			cfg.Client = w.client(func(lc *locksmith.Config) { lc.Consul, lc.Policies = kv, parse(t, always) })
			cfg.Source = Sweeps(cfg.Client.Reader())
		})
		w.until(10*time.Second, "it says what it would do", func() bool { return s.log.has("would break a HOT lock") })
		w.stays(10*time.Minute, "the lock is held", func() bool { return w.held("job-a") })
		if n := s.log.count("would break a HOT lock"); n != 1 {
			t.Errorf("it says so %d times", n)
		}
		if h := s.Health(); !h.OK() || h.Role != RoleDryRun {
			t.Errorf("health: %+v", h)
		}
		if w.held(LeaderLock) || w.pair(LeaderLock) != nil {
			t.Error("it stood for election")
		}
		if n := sent.n.Load(); n > 0 {
			// Transactions that only read are sent by PUT, too.
			t.Logf("%d requests that were no GET", n)
		}
		if list, err := w.kv.List(t.Context(), ""); err != nil || len(list) != 1 {
			t.Errorf("KV has %d keys: %v", len(list), err)
		}
	})
}

// Consul that goes away and comes back is followed again; meanwhile health says
// so, and nothing is broken on what is not known.
func TestConsulGoesAway(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		var c cut
		s := w.start("", w.behind(&c, always))
		s.leads(10 * time.Second)
		c.off.Store(true)
		w.until(5*time.Minute, "health says so", func() bool { return !s.Health().OK() })
		w.hold(w.client(asElsewhere), "job-a")
		w.stays(5*time.Minute, "the lock is held", func() bool { return w.held("job-a") })
		c.off.Store(false)
		w.freed("job-a", 2*time.Minute)
		if h := s.Health(); !h.OK() {
			t.Errorf("health: %+v", h)
		}
	})
}
