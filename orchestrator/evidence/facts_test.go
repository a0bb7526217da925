package evidence_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// Every object and fact that a policy may read is there, with its type, a source,
// and a reason where it is unknown; whatever the lock is.
func TestFactsAreThoseOfTheSchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.holdOwn(func(h *records.Holder) { h.RolloutID, h.AllocID = "r1", "5d2c1a52-0000-4000-8000-000000000001" })
	own := w.read("a")
	w.put(prefix.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: own.SessionID(), Done: 1, Total: 2, Unit: "nodes"})
	w.put(prefix.Rollout("r1"), []byte(`{"id":"r1","state":"succeeded","finished_at":"2026-01-02T03:04:05Z"}`))
	w.hold("ops/.lock", api.LockFlagValue, func(string) []byte { return nil })
	w.hold(prefix.Lock("junk"), 0, func(string) []byte { return []byte("\x00{") })
	for name, s := range map[string]*evidence.Snapshot{
		"free": w.read("nobody"), "held": w.read("a"), "foreign": w.read("ops/.lock"), "junk": w.read("junk"), "bare": own,
	} {
		for _, mem := range []*evidence.Memory{nil, {}} {
			asTheSchema(t, name, w.reader.Facts(s, mem, nil, time.Now()))
		}
	}
}

// asTheSchema checks that every fact of the schema is there, with its type, a
// source and a time, and that it is known, null, or unknown for a reason.
func asTheSchema(t *testing.T, name string, facts policies.Facts) {
	t.Helper()
	for object, defs := range policies.Schema() {
		for fact, def := range defs {
			full := object + "." + fact
			got, ok := facts.Lookup(full)
			switch {
			case !ok || got.Value == cty.NilVal:
				t.Errorf("%s: %s is missing", name, full)
			case !got.Value.Type().Equals(def.Type):
				t.Errorf("%s: %s is a %s, not a %s", name, full, got.Value.Type().FriendlyName(), def.Type.FriendlyName())
			case got.Source == "" || got.ObservedAt.IsZero():
				t.Errorf("%s: %s has no source or time", name, full)
			case !got.Value.IsKnown() && got.Why == "":
				t.Errorf("%s: %s is unknown and nobody says why", name, full)
			case len(def.Values) > 0 && got.Value.IsKnown() && !got.Value.IsNull() && !strings.Contains(fmt.Sprint(def.Values), got.Value.AsString()):
				t.Errorf("%s: %s is %q, which is none of %v", name, full, got.Value.AsString(), def.Values)
			}
		}
	}
	for object, list := range facts {
		for fact := range list {
			if _, ok := policies.Schema()[object][fact]; !ok {
				t.Errorf("%s: %s.%s is not in the schema", name, object, fact)
			}
		}
	}
}

// The same where much cannot be had: nothing then is left out, guessed, or
// unknown without a word.
func TestFactsWhereMuchCannotBeHad(t *testing.T) {
	t.Parallel()
	denied := []devconsul.Fault{
		{Match: path("/v1/session/"), Status: 403, Body: "Permission denied"}, {Match: path("/v1/health/"), Status: 403, Body: "Permission denied"},
		{Match: path("/v1/status/"), Status: 403, Body: "Permission denied"},
	}
	for name, tc := range map[string]struct {
		faults []devconsul.Fault
		mod    func(*records.Holder)
		said   func(string) any
		more   want
	}{
		"no rights at all": {denied, elsewhere, nil, want{"session.exists": "?permission denied", "check.status": "?permission denied",
			"node.serf": "?permission denied", "holder.alive": "?no aimlock agent"}},
		"empty answers for want of rights": {[]devconsul.Fault{devFault("/v1/session/", 200), devFault("/v1/health/", 200)}, elsewhere,
			func(s string) any { return said(s, yes()) },
			want{"session.exists": "?session:read", "check.status": "?node:read", "holder.alive": "?still runs is not known"}},
		"no agent":   {nil, elsewhere, nil, want{"holder.alive": "?no aimlock agent"}},
		"an agent":   {nil, elsewhere, func(s string) any { return said(s, no()) }, want{"holder.alive": false}},
		"no service": {nil, func(h *records.Holder) { elsewhere(h); h.Check = "" }, nil, want{"check.status": "null", "holder.alive": "?no service"}},
		"an allocation": {nil, func(h *records.Holder) { elsewhere(h); h.AllocID = anAlloc }, nil,
			want{"nomad.gone": "?NOMAD_ADDR", "nomad.client_status": "?NOMAD_ADDR", "nomad.alloc_id": anAlloc}},
		"a rollout without a record": {nil, func(h *records.Holder) { h.RolloutID = "r9" }, nil, want{"rollout.id": "r9", "rollout.finished": "?has no record"}},
		"an empty record":            {nil, func(h *records.Holder) { *h = records.Holder{Lock: "a", Tool: "aimlock", Session: h.Session} }, nil, want{"holder.alive": "?"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.holdOwn(tc.mod)
			if tc.said != nil {
				w.put(observedKey, tc.said(id))
			}
			for _, f := range tc.faults {
				w.faults.Add(f)
			}
			for _, cl := range []*evidence.Cluster{nil, {}} {
				f := w.reader.Facts(w.read("a"), &evidence.Memory{}, cl, time.Now())
				asTheSchema(t, name, f)
				tc.more.check(t, f)
			}
		})
	}
}

// A rollout has no record until its holder has waited for what an earlier one may have
// running: it has not begun then, and who asks is told so.
func TestRolloutBeforeItBegins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	owed := records.Fence{Version: 1, Owed: 15, Why: "Consul was restored", Session: "an earlier one"}
	w.put(prefix.Fence("a"), &owed)
	id := w.holdOwn(func(h *records.Holder) { h.RolloutID = "r9" })
	s := w.read("a")
	want{"rollout.id": "r9", "rollout.finished": false, "rollout.finished_ago": "null", "rollout.state": "?has no record"}.check(t, w.facts(s))
	asTheSchema(t, "waiting", w.facts(s))
	// Raised by somebody who breaks it: it may be at work by now.
	owed.Owed = 60
	w.put(prefix.Fence("a"), &owed)
	want{"rollout.finished": "?has no record"}.check(t, w.facts(w.read("a")))
	// What it will leave itself.
	w.put(prefix.Fence("a"), &records.Fence{Version: 1, Owed: 15, Why: "it did not release", Session: id})
	want{"rollout.finished": "?has no record", "rollout.finished_ago": "?has no record"}.check(t, w.facts(w.read("a")))
	if _, err := w.kv.API().KV().Delete(prefix.Fence("a"), nil); err != nil {
		t.Fatal(err)
	}
	want{"rollout.finished": "?has no record"}.check(t, w.facts(w.read("a")))
}

func TestFactsOfAFreeLock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want{
		"lock.name": "a", "lock.key": "aimlock/locks/a", "lock.token": "null", "lock.held_for": "null", "lock.delay_left": "?lock-delay",
		"session.exists": "null", "check.status": "null", "node.name": "null", "holder.alive": "null", "holder.tool": "null",
		"nomad.gone": "null", "progress.age": "null", "rollout.finished": "null", "file.locked": "null", "cluster.leader": "?nobody here",
	}.check(t, w.facts(w.read("a")))
}

func TestFactsOfALiveHolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.holdOwn()
	w.put(prefix.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: id, Done: 3, Total: 10, Unit: "nodes"})
	s := w.read("a")
	want{
		"lock.token": s.Pair.ModifyIndex, "lock.held_for": "?nobody here saw", "lock.delay_left": "null",
		"session.id": id, "session.exists": true, "session.ttl": 15, "session.node": "node-1", "session.behavior": "release", "session.has_ttl": true,
		"session.age": "?when a session was made",
		"node.name":   "node-1", "node.exists": true, "node.serf": "alive",
		"check.status": "null",
		"holder.local": true, "holder.host": w.self.Host, "holder.pid": w.self.PID, "holder.alive": true, "holder.boot_id": w.self.BootID,
		"holder.tool": "aimlock", "holder.user": "tester",
		"nomad.alloc_id": "null", "nomad.gone": "null",
		"progress.done": 3, "progress.total": 10, "progress.unit": "nodes", "progress.age": 0, "progress.rate": "?long enough",
		"rollout.id": "null", "rollout.finished": "null",
	}.check(t, w.facts(s))
}

// Whether the processes of a hold live, as seen from here.
func TestHolderAlive(t *testing.T) {
	t.Parallel()
	dead := deadProcess(t)
	elsewhere := func(h *records.Holder) { h.Host, h.BootID = "elsewhere", "another-boot" }
	for name, tc := range map[string]struct {
		mod  func(*records.Holder)
		want want
	}{
		"lives":             {func(*records.Holder) {}, want{"holder.alive": true, "holder.local": true}},
		"is dead":           {func(h *records.Holder) { h.PID, h.StartTicks = dead.PID, dead.StartTicks }, want{"holder.alive": false, "holder.local": true}},
		"pid was reused":    {func(h *records.Holder) { h.StartTicks-- }, want{"holder.alive": false}},
		"no start time":     {func(h *records.Holder) { h.StartTicks = 0 }, want{"holder.alive": "?no start time"}},
		"no pid":            {func(h *records.Holder) { h.PID = 0 }, want{"holder.alive": "?no pid"}},
		"a pid below 0":     {func(h *records.Holder) { h.PID = -1 }, want{"holder.alive": "?no pid"}},
		"another host":      {elsewhere, want{"holder.alive": "?is on host elsewhere", "holder.local": false}},
		"another boot":      {func(h *records.Holder) { h.BootID = "earlier" }, want{"holder.alive": "?another boot", "holder.local": false}},
		"no boot id":        {func(h *records.Holder) { h.BootID = "" }, want{"holder.alive": "?another boot", "holder.local": false}},
		"another container": {func(h *records.Holder) { h.PIDNS = "pid:[1]" }, want{"holder.alive": "?another pid namespace", "holder.local": false}},
		"another time namespace": {func(h *records.Holder) { h.PIDNS += " time:[1]"; h.StartTicks-- },
			want{"holder.alive": "?another time namespace", "holder.local": false}},
		"no pid namespace":   {func(h *records.Holder) { h.PIDNS = "" }, want{"holder.alive": "?another pid namespace", "holder.local": false}},
		"dead, another host": {func(h *records.Holder) { h.PID = dead.PID; elsewhere(h) }, want{"holder.alive": "?is on host"}},
		"dead, its supervisor lives": {func(h *records.Holder) {
			h.Processes = []records.Process{{PID: h.PID, StartTicks: h.StartTicks}}
			h.PID, h.StartTicks = dead.PID, dead.StartTicks
		}, want{"holder.alive": true}},
		"dead, of another nothing is known": {func(h *records.Holder) {
			h.Processes = []records.Process{{PID: h.PID}}
			h.PID, h.StartTicks = dead.PID, dead.StartTicks
		}, want{"holder.alive": "?no start time"}},
		"a host name with escape codes": {func(h *records.Holder) { h.Host = "x\x1b[2J\ny" }, want{"holder.host": "x?[2J y", "holder.alive": "?x?[2J y"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.holdOwn(tc.mod)
			tc.want.check(t, w.facts(w.read("a")))
		})
	}
}

// A hold lives by those of its processes that are named, and who waits for their end
// waits for one at least: also where one ends while they are looked at.
func TestLiving(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dead, self := deadProcess(t), records.Process{PID: w.self.PID, StartTicks: w.self.StartTicks}
	h := w.record("s")
	h.PID, h.StartTicks, h.Processes = dead.PID, dead.StartTicks, []records.Process{{PID: self.PID}}
	if state, why, living := w.reader.Living(&h, nil); state != hostproc.Unknown || why == "" || len(living) != 0 {
		t.Errorf("where one is dead and of another nothing is known it is %v: %s, %v", state, why, living)
	}
	if state, _, living := w.reader.Living(&h, &records.Progress{Processes: []records.Process{self}}); state != hostproc.True || !slices.Equal(living, []records.Process{self}) {
		t.Errorf("where only this one lives it is %v: %v", state, living)
	}
	for range 20 {
		cmd := exec.CommandContext(t.Context(), "sleep", "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p, err := hostproc.Lookup(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		h.Processes = []records.Process{records.Process(p)}
		go func() { _ = cmd.Process.Kill() }()
		for state := hostproc.True; state == hostproc.True; {
			var living []records.Process
			if state, _, living = w.reader.Living(&h, nil); (state == hostproc.True) != (len(living) == 1) {
				t.Fatalf("it is %v, and %v live", state, living)
			}
		}
		_ = cmd.Wait()
	}
}

// A process that its parent has not reaped is dead; one that is stopped lives.
func TestZombieAndStoppedHolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	zombie, stopped := zombieProcess(t), stoppedProcess(t)
	for name, tc := range map[string]struct {
		pid   int
		ticks uint64
		alive bool
	}{"zombie": {zombie.PID, zombie.StartTicks, false}, "stopped": {stopped.PID, stopped.StartTicks, true}} {
		h := w.record("s")
		h.PID, h.StartTicks = tc.pid, tc.ticks
		s := &evidence.Snapshot{Name: "a", Key: prefix.Lock("a"), Own: true, Holder: &h, Tool: "aimlock", ReadAt: time.Now(),
			Pair: &api.KVPair{Key: prefix.Lock("a"), Session: "s", ModifyIndex: 7}}
		t.Log(name)
		want{"holder.alive": tc.alive}.check(t, w.facts(s))
	}
}

// A further process that only the progress record names counts too.
func TestProcessesOfTheProgressRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dead := deadProcess(t)
	id := w.holdOwn(func(h *records.Holder) { h.PID, h.StartTicks = dead.PID, dead.StartTicks })
	want{"holder.alive": false}.check(t, w.facts(w.read("a")))
	w.put(prefix.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: id,
		Processes: []records.Process{{PID: w.self.PID, StartTicks: w.self.StartTicks}}})
	want{"holder.alive": true}.check(t, w.facts(w.read("a")))

	// It also counts once Consul has ended the session: what is owed depends
	// on it.
	if _, err := w.kv.API().Session().Destroy(id, nil); err != nil {
		t.Fatal(err)
	}
	s := w.read("a")
	if s.Held() || s.Progress == nil {
		t.Fatalf("held %v, progress of the last hold %v", s.Held(), s.Progress)
	}
	if dead, why := w.reader.ProvedDead(s.Holder, s.Progress); dead {
		t.Fatalf("proved dead though a process lives: %s", why)
	}
	want{"progress.done": "null", "progress.age": "null"}.check(t, w.facts(s))
}

// Consul answers with nothing, and not with an error, where the token lacks
// rights: that is unknown, and never "gone".
func TestEmptyAnswersAreUnknown(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault devconsul.Fault
		want  want
	}{
		"no session, null": {devconsul.Fault{Match: path("/v1/session/info/"), Status: 200, Body: "null"},
			want{"session.exists": "?session:read", "session.ttl": "?session:read", "session.has_ttl": "?session:read", "node.serf": "alive"}},
		"no session, list": {devconsul.Fault{Match: path("/v1/session/info/"), Status: 200, Body: "[]"},
			want{"session.exists": "?session:read", "session.behavior": "?session:read"}},
		"session denied": {devconsul.Fault{Match: path("/v1/session/info/"), Status: 403, Body: "Permission denied"},
			want{"session.exists": "?permission denied"}},
		"session read fails": {devconsul.Fault{Match: path("/v1/session/info/"), Status: 500, Body: "boom"},
			want{"session.exists": "?boom"}},
		"no checks, list": {devconsul.Fault{Match: path("/v1/health/node/"), Status: 200, Body: "[]"},
			want{"check.status": "?node:read", "node.exists": "?node:read", "node.serf": "?node:read", "session.exists": true}},
		"no checks, null": {devconsul.Fault{Match: path("/v1/health/node/"), Status: 200, Body: "null"},
			want{"check.status": "?node:read", "node.serf": "?node:read"}},
		"health read fails": {devconsul.Fault{Match: path("/v1/health/node/"), Drop: true},
			want{"check.status": "?did not answer", "node.exists": "?did not answer"}},
		"not this check": {devconsul.Fault{Match: path("/v1/health/node/"), Status: 200, Body: `[{"CheckID":"serfHealth","Status":"passing"}]`},
			want{"check.status": "?deregistered, or the token lacks service:read", "check.age": "?deregistered", "node.serf": "alive"}},
		"serf fails": {devconsul.Fault{Match: path("/v1/health/node/"), Status: 200, Body: `[{"CheckID":"serfHealth","Status":"critical"}]`},
			want{"node.serf": "failed"}},
		"serf says what it never does": {devconsul.Fault{Match: path("/v1/health/node/"), Status: 200, Body: `[{"CheckID":"serfHealth","Status":"warning"}]`},
			want{"node.serf": "?serfHealth is warning"}},
		"no serf": {devconsul.Fault{Match: path("/v1/health/node/"), Status: 200, Body: `[{"CheckID":"c1","Status":"critical","Output":"gone \u001b[31m"}]`},
			want{"node.serf": "?no serfHealth", "check.status": "critical", "check.output": "gone ?[31m"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.holdOwn(func(h *records.Holder) { h.Check = "c1" })
			w.faults.Add(tc.fault)
			tc.want.check(t, w.facts(w.read("a")))
		})
	}
}

func TestFactsOfARollout(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		record string
		want   want
	}{
		"no record": {"", want{"rollout.id": "r1", "rollout.state": "?no record", "rollout.finished": "?no record", "rollout.finished_ago": "?no record"}},
		"nonsense":  {"[]", want{"rollout.id": "r1", "rollout.state": "?not a record"}},
		"runs":      {`{"id":"r1","state":"running"}`, want{"rollout.state": "running", "rollout.finished": false, "rollout.finished_ago": "null"}},
		"is paused": {`{"id":"r1","state":"paused"}`, want{"rollout.finished": false}},
		"succeeded": {`{"id":"r1","state":"succeeded"}`, want{"rollout.finished": true, "rollout.finished_ago": 0}},
		"aborted":   {`{"id":"r1","state":"aborted"}`, want{"rollout.finished": true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.holdOwn(func(h *records.Holder) { h.RolloutID = "r1" })
			if tc.record != "" {
				w.put(prefix.Rollout("r1"), []byte(tc.record))
			}
			tc.want.check(t, w.facts(w.read("a")))
		})
	}
}

func TestFactsOfTheClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	at := time.Date(2026, 3, 1, 23, 30, 0, 0, time.FixedZone("ahead", 2*3600))
	want{"now.unix": int(at.Unix()), "now.hour": 21, "now.weekday": "sunday"}.check(t, w.reader.Facts(w.read("a"), nil, nil, at))
}

// For how long a lock is held leaves out the pause that its holder first waits out,
// by the record on the same boot and by what was seen elsewhere, and no record can
// make that more than an hour.
func TestHeldForWithoutThePause(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		ago, pause float64
		least      float64
	}{
		"no pause":       {20, 0, 20},
		"after it":       {20, 15, 5},
		"in it":          {10, 15, 0},
		"of the longest": {7200, 1e300, 3600},
		"of less than 0": {20, -1000, 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A machine that booted since has no record of so long ago.
			if boot := hostproc.BootSeconds(); boot > tc.ago {
				w := newWorld(t)
				w.holdOwn(func(h *records.Holder) { h.AcquiredBoot, h.Pause = boot-tc.ago, tc.pause })
				f, _ := w.facts(w.read("a")).Lookup("lock.held_for")
				if !f.Value.IsKnown() {
					t.Fatalf("it is not known: %s", f.Why)
				}
				// The machine may be slow, and only ever shows more.
				if n, _ := f.Value.AsBigFloat().Float64(); n < tc.least-0.001 || n > tc.least+4 {
					t.Errorf("held for %v, want %v", n, tc.least)
				}
			}

			elsewhere := newWorld(t)
			elsewhere.holdOwn(func(h *records.Holder) { h.Host, h.BootID, h.Pause = "elsewhere", "another-boot", tc.pause })
			s, mem := elsewhere.read("a"), &evidence.Memory{}
			mem.Observe(s, elsewhere.reader)
			later := elsewhere.reader.Facts(s, mem, nil, s.ReadAt.Add(time.Duration(tc.ago*float64(time.Second))))
			atLeast(t, later, "lock.held_for", int64(tc.least))
		})
	}
}
