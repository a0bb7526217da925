package supervise

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestMachine(t *testing.T) {
	const s = time.Second
	type step struct {
		at   time.Duration
		on   func(m *machine, now time.Duration) act
		want act
	}
	start := func(m *machine, now time.Duration) act {
		if !m.start(now) {
			return leave
		}
		return nothing
	}
	lease := func(d time.Duration) func(*machine, time.Duration) act {
		return func(m *machine, now time.Duration) act { return m.extend(now, now+d) }
	}
	stop := func(grace time.Duration) func(*machine, time.Duration) act {
		return func(m *machine, now time.Duration) act { return m.stop(now, grace, becauseStop) }
	}
	tick := (*machine).tick
	orphan := (*machine).parentGone
	ended := (*machine).commandEnded
	empty := func(m *machine, _ time.Duration) act { return m.empty() }

	for _, c := range []struct {
		name   string
		m      machine
		script []step
		why    reason
	}{
		{"a lease that runs out: asked with a fifth left, killed with a twentieth", machine{grace: 9 * s}, []step{
			{1 * s, start, nothing}, {1 * s, lease(10 * s), nothing},
			{8*s + 499*time.Millisecond, tick, nothing},
			{8*s + 500*time.Millisecond, tick, ask},
			{10*s + 499*time.Millisecond, tick, nothing},
			{10*s + 500*time.Millisecond, tick, kill},
			{10*s + 510*time.Millisecond, empty, leave},
		}, becauseLease},
		{"a lease that is renewed in time", machine{grace: 9 * s}, []step{
			{1 * s, start, nothing}, {1 * s, lease(10 * s), nothing}, {8 * s, lease(10 * s), nothing},
			{15 * s, tick, nothing}, {16 * s, tick, ask},
		}, becauseLease},
		{"the machine was suspended past the lease: no grace", machine{grace: 9 * s}, []step{
			{1 * s, start, nothing}, {1 * s, lease(10 * s), nothing}, {3600 * s, tick, kill},
		}, becauseLease},
		{"a renewal does not call off what was begun", machine{grace: 9 * s}, []step{
			{1 * s, start, nothing}, {1 * s, lease(10 * s), nothing}, {9 * s, tick, ask},
			{9 * s, lease(60 * s), nothing}, {10*s + 500*time.Millisecond, tick, kill},
		}, becauseLease},
		{"the parent dies: killed at once", machine{grace: 9 * s}, []step{
			{1 * s, start, nothing}, {1 * s, orphan, kill}, {2 * s, empty, leave},
		}, becauseOrphan},
		{"the parent dies while a stop waits: its grace is over", machine{grace: 9 * s}, []step{
			{1 * s, start, nothing}, {1 * s, stop(30 * s), ask}, {2 * s, orphan, kill},
		}, becauseStop},
		{"the parent dies, with a grace for orphans, under a lease that is shorter", machine{orphanGrace: 30 * s}, []step{
			{0, start, nothing}, {0, lease(10 * s), nothing}, {1 * s, orphan, ask}, {9*s + 500*time.Millisecond, tick, kill},
		}, becauseOrphan},
		{"the command ends and leaves something behind", machine{grace: 2 * s}, []step{
			{1 * s, start, nothing}, {5 * s, ended, ask}, {7 * s, tick, kill}, {7 * s, empty, leave},
		}, becauseEnded},
		{"a second stop shortens the grace and never lengthens it", machine{}, []step{
			{1 * s, start, nothing}, {1 * s, stop(5 * s), ask}, {2 * s, stop(60 * s), nothing},
			{2 * s, stop(2 * s), nothing}, {4 * s, tick, kill}, {5 * s, stop(0), nothing},
		}, becauseStop},
		{"nothing was started", machine{}, []step{{1 * s, empty, nothing}, {1 * s, orphan, leave}, {2 * s, start, leave}}, becauseOrphan},
		{"the lease is over before the start", machine{}, []step{{1 * s, lease(s), nothing}, {2 * s, start, leave}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := c.m
			for i, st := range c.script {
				if got := st.on(&m, st.at); got != st.want {
					t.Fatalf("step %d at %s: act %d, want %d (%+v)", i, st.at, got, st.want, m)
				}
			}
			if m.why != c.why {
				t.Errorf("because %q, want %q", m.why, c.why)
			}
		})
	}
}

// Any order of events keeps what the type promises, provided that tick is
// called when wake says so.
func TestMachineInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		span := func(what string) time.Duration {
			return time.Duration(rapid.Int64Range(0, int64(20*time.Second)).Draw(t, what))
		}
		m := machine{grace: span("grace"), orphanGrace: span("orphan grace")}
		now := span("boot")
		var asked, killed int
		// limit is by when killing must have begun; 0 is no limit.
		var limit time.Duration
		due := func(at time.Duration) {
			if limit == 0 || at < limit {
				limit = at
			}
		}
		note := func(a act) {
			switch a {
			case ask:
				asked++
				if killed > 0 || asked > 1 {
					t.Fatalf("SIGTERM number %d after %d SIGKILL", asked, killed)
				}
			case kill:
				killed++
				if killed > 1 {
					t.Fatal("killing began twice")
				}
			case nothing, leave:
			}
			if m.phase == running && m.lease != 0 && now >= m.lease-m.leaseMargin {
				t.Fatalf("%s: still running, the lease ends at %s", now, m.lease)
			}
			if m.phase == asking && m.lease != 0 && now >= m.lease-m.leaseMargin {
				t.Fatalf("%s: still asking, the lease ends at %s", now, m.lease)
			}
			if (m.phase == running || m.phase == asking) && limit != 0 && now > limit {
				t.Fatalf("%s: not killing, though it was to begin by %s", now, limit)
			}
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			// Time passes, and no wake is missed on the way.
			target := now + span("pause")
			for {
				at, ok := m.wake()
				if !ok || at > target {
					break
				}
				now = max(now, at)
				before := m.phase
				note(m.tick(now))
				if m.phase == before {
					t.Fatalf("%s: woken for nothing in phase %d", now, m.phase)
				}
			}
			now = target
			before := m.phase
			switch rapid.IntRange(0, 5).Draw(t, "event") {
			case 0:
				if ok := m.start(now); ok && before != idle {
					t.Fatalf("started in phase %d", before)
				}
			case 1:
				note(m.extend(now, now+span("lease")))
			case 2:
				g := span("stop grace")
				if before == running || before == asking {
					due(now + g)
				}
				note(m.stop(now, g, becauseStop))
			case 3:
				if before == running || before == asking {
					due(now + m.orphanGrace)
				}
				note(m.parentGone(now))
			case 4:
				if before == running || before == asking {
					due(now + m.grace)
				}
				note(m.commandEnded(now))
			case 5:
				a := m.empty()
				if (a == leave) != (before != idle && before != over) {
					t.Fatalf("empty in phase %d: act %d", before, a)
				}
				limit = 0
			}
			if before == over && m.phase != over {
				t.Fatal("it came back to life")
			}
			if before > m.phase {
				t.Fatalf("phase went back from %d to %d", before, m.phase)
			}
		}
	})
}

// A parent that was stopped before it heard of the start finds, when it wakes,
// that its time is over and the answer there.
func TestStoppedWhileStarting(t *testing.T) {
	done, tick := make(chan struct{}), make(chan time.Time, 1)
	tick <- time.Now()
	close(done)
	if !before(done, 30, tick) {
		t.Error("the time of the stop counted against the start")
	}
	tick = make(chan time.Time, 30)
	for range cap(tick) {
		tick <- time.Now()
	}
	if before(make(chan struct{}), 30, tick) {
		t.Error("no end of the wait for the start")
	}
}
