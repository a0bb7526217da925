package evidence_test

import (
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// told is an observer that is shown pictures at given times.
type told struct {
	t      *testing.T
	reader *evidence.Reader
	mem    evidence.Memory
	start  time.Time
	last   *evidence.Snapshot
}

func newTold(t *testing.T) *told {
	self, err := hostproc.Self()
	if err != nil {
		t.Fatal(err)
	}
	return &told{t: t, start: time.Now(), reader: &evidence.Reader{Keys: prefix, Self: self}}
}

// picture is a lock held since index by a holder on another host.
type picture struct {
	index    uint64
	progress uint64
	done     int64
	check    string
	// checkIndex is the check's.
	checkIndex uint64
	rollout    uint64
	// at and boot are what the holder's clocks say.
	at     time.Time
	boot   float64
	bootID string
}

func (o *told) see(after time.Duration, p picture) {
	h := &records.Holder{Version: 1, Lock: "a", Session: "s", Tool: "aimlock", Host: "elsewhere", BootID: "another", Check: "c", RolloutID: "r", AcquiredAt: p.at, AcquiredBoot: p.boot}
	s := &evidence.Snapshot{
		Name: "a", Key: prefix.Lock("a"), Own: true, Tool: "aimlock", ReadAt: o.start.Add(after), Holder: h,
		Pair:    &api.KVPair{Key: prefix.Lock("a"), Session: "s", ModifyIndex: p.index},
		Session: &api.SessionEntry{ID: "s", Node: "n"}, Deps: map[string]uint64{},
	}
	if p.index == 0 {
		s.Pair, s.Holder, s.Session = nil, nil, nil
	}
	if p.progress > 0 {
		s.Deps[prefix.Progress("a")] = p.progress
		s.Progress = &records.Progress{Session: "s", Done: p.done, Total: 100, At: p.at, Boot: p.boot, BootID: p.bootID}
	}
	if p.rollout > 0 {
		s.Deps[prefix.Rollout("r")] = p.rollout
		s.Rollout = &evidence.RolloutHead{ID: "r", State: "succeeded"}
	}
	if p.check != "" {
		s.Checks = api.HealthChecks{{CheckID: "c", Status: p.check, ModifyIndex: p.checkIndex}}
	}
	o.mem.Observe(s, o.reader)
	o.last = s
}

func (o *told) at(after time.Duration) policies.Facts {
	return o.reader.Facts(o.last, &o.mem, nil, o.start.Add(after))
}

// atLeast checks that a fact is an unknown number with this lower bound.
func atLeast(t *testing.T, f policies.Facts, name string, bound int64) {
	t.Helper()
	got, _ := f.Lookup(name)
	if got.Value.IsKnown() {
		t.Errorf("%s is known: %#v", name, got.Value)
		return
	}
	low, incl := got.Value.Range().NumberLowerBound()
	if !incl || !low.RawEquals(cty.NumberIntVal(bound)) {
		t.Errorf("%s is at least %#v, want %d", name, low, bound)
	}
	// Policies compare with the bound.
	if v := got.Value.GreaterThan(cty.NumberIntVal(bound - 1)); !v.IsKnown() || v.False() {
		t.Errorf("%s > %d is %#v", name, bound-1, v)
	}
	if v := got.Value.GreaterThan(cty.NumberIntVal(bound + 1)); v.IsKnown() {
		t.Errorf("%s > %d is %#v, and nobody can know", name, bound+1, v)
	}
}

func TestAgesWhereNobodySawTheBeginning(t *testing.T) {
	t.Parallel()
	o := newTold(t)
	o.see(0, picture{index: 7, progress: 8, check: "critical"})
	f := o.at(65 * time.Second)
	atLeast(t, f, "lock.held_for", 65)
	atLeast(t, f, "session.age", 65)
	atLeast(t, f, "check.age", 65)
	want{"progress.age": 65}.check(t, f)
}

func TestAgesWhereTheBeginningWasSeen(t *testing.T) {
	t.Parallel()
	o := newTold(t)
	o.see(0, picture{})
	o.see(10*time.Second, picture{index: 7, progress: 8, check: "passing"})
	o.see(20*time.Second, picture{index: 7, progress: 9, check: "critical"})
	o.see(30*time.Second, picture{index: 7, progress: 9, check: "critical"})
	want{"lock.held_for": 50, "session.age": 50, "check.age": 40, "progress.age": 40}.check(t, o.at(time.Minute))

	// A new hold starts all of them anew.
	o.see(61*time.Second, picture{index: 70, progress: 9, check: "critical"})
	f := o.at(62 * time.Second)
	want{"lock.held_for": 1, "progress.age": 1}.check(t, f)
	atLeast(t, f, "check.age", 1)
}

// A check that flaps is as old as its last change, not as the first time that
// it was seen in this state.
func TestAgeOfACheckThatFlaps(t *testing.T) {
	t.Parallel()
	o := newTold(t)
	o.see(0, picture{index: 7, check: "critical"})
	o.see(100*time.Second, picture{index: 7, check: "passing"})
	o.see(200*time.Second, picture{index: 7, check: "critical"})
	want{"check.status": "critical", "check.age": 5}.check(t, o.at(205*time.Second))
}

// Nor may it flap while nobody looks: it is at another index then. That of one that
// passes moves with its output.
func TestAgeOfACheckThatFlapsUnseen(t *testing.T) {
	t.Parallel()
	o := newTold(t)
	o.see(0, picture{index: 7, check: "critical", checkIndex: 8})
	o.see(100*time.Second, picture{index: 7, check: "critical", checkIndex: 8})
	atLeast(t, o.at(105*time.Second), "check.age", 105)
	o.see(200*time.Second, picture{index: 7, check: "critical", checkIndex: 12})
	want{"check.age": 5}.check(t, o.at(205*time.Second))
	o.see(300*time.Second, picture{index: 7, check: "passing", checkIndex: 13})
	o.see(400*time.Second, picture{index: 7, check: "passing", checkIndex: 14})
	want{"check.age": 105}.check(t, o.at(405*time.Second))
}

// A holder elsewhere whose clocks are wrong by years, either way, looks no
// older than this observer saw it stand still.
func TestSkewedClocksMakeNobodyHot(t *testing.T) {
	t.Parallel()
	for name, skew := range map[string]time.Duration{"behind": -10 * 365 * 24 * time.Hour, "ahead": 10 * 365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newTold(t)
			p := picture{index: 7, progress: 8, rollout: 9, at: time.Now().Add(skew), boot: 1, bootID: "another"}
			o.see(0, p)
			o.see(time.Second, p)
			f := o.at(3 * time.Second)
			want{"progress.age": 3, "rollout.finished_ago": 3}.check(t, f)
			atLeast(t, f, "lock.held_for", 3)

			set, err := policies.Builtin("default")
			if err != nil {
				t.Fatal(err)
			}
			j := set.For(policies.LockID{Name: "a", Key: prefix.Lock("a"), Own: true}).Judge(f, &policies.Memory{}, o.last.Hold(), time.Minute)
			if j.State == policies.StateHot || j.State == policies.StateWarm {
				t.Fatalf("it is %s by %s", j.State, j.Rule.Name)
			}
		})
	}
}

// On the same boot the record's own time is exact, and never less than what
// was seen.
func TestAgeOnTheSameBoot(t *testing.T) {
	t.Parallel()
	o := newTold(t)
	p := picture{index: 7, progress: 8, bootID: o.reader.Self.BootID, boot: hostproc.BootSeconds() - 100}
	o.see(0, p)
	f := o.at(time.Second)
	got, _ := f.Lookup("progress.age")
	if age, _ := got.Value.AsBigFloat().Float64(); age < 100 || age > 110 {
		t.Errorf("age %v", age)
	}
	p.boot = hostproc.BootSeconds() + 1000 // cannot be
	o.see(2*time.Second, p)
	want{"progress.age": 30}.check(t, o.at(30*time.Second))
}

// In another time namespace the boot clock is another one: only what was seen counts.
func TestAgeInAnotherTimeNamespace(t *testing.T) {
	t.Parallel()
	o := newTold(t)
	o.reader.Self.PIDNS += " time:[1]"
	o.see(0, picture{index: 7, progress: 8, bootID: o.reader.Self.BootID, boot: hostproc.BootSeconds() - 100})
	want{"progress.age": 30}.check(t, o.at(30*time.Second))

	w := newWorld(t)
	w.holdOwn(func(h *records.Holder) { h.AcquiredBoot, h.PIDNS = hostproc.BootSeconds()-100, h.PIDNS+" time:[1]" })
	want{"lock.held_for": "?nobody here saw it being taken"}.check(t, w.facts(w.read("a")))
}

func TestRateOfWork(t *testing.T) {
	t.Parallel()
	o := newTold(t)
	o.see(0, picture{index: 7, progress: 8, done: 10})
	want{"progress.rate": "?long enough"}.check(t, o.at(9*time.Second))
	o.see(10*time.Second, picture{index: 7, progress: 9, done: 30})
	want{"progress.rate": 2}.check(t, o.at(10*time.Second))
	want{"progress.rate": 1}.check(t, o.at(20*time.Second))
	o.see(21*time.Second, picture{index: 70, progress: 9, done: 30})
	want{"progress.rate": "?long enough"}.check(t, o.at(22*time.Second))
}
