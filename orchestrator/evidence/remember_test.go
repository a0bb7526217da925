package evidence_test

import (
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// scribe notes a lock at times that the test makes up.
func (w *world) scribe() *evidence.Scribe {
	w.t.Helper()
	s, err := evidence.NewScribe(w.kv, prefix, "locksmith@h")
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

var memoryKey = prefix.Observed("a", "locksmith@h")

// remoteHold is a lock that is held on another host, with progress and a check.
func (w *world) remoteHold() string {
	w.t.Helper()
	err := w.kv.API().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "c", Name: "c", Check: &api.AgentServiceCheck{CheckID: "c", TTL: "1h", Status: "passing"}})
	if err != nil {
		w.t.Fatal(err)
	}
	id := w.holdOwn(elsewhere, func(h *records.Holder) { h.Check = "c" })
	w.put(prefix.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: id, Total: 9})
	return id
}

// A command without a memory knows as much as a long-lived observer wrote of
// what still stands: as a lower bound, and of nothing else.
func TestAgesOutOfAnothersMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.remoteHold()
	var mem evidence.Memory
	s := w.read("a")
	mem.Observe(s, w.reader)
	wrote, err := w.scribe().Note(t.Context(), s, &mem, s.ReadAt.Add(100*time.Second))
	if err != nil || !wrote {
		t.Fatalf("wrote %v, %v", wrote, err)
	}
	now := w.read("a")
	f := w.reader.Facts(now, nil, nil, now.ReadAt.Add(5*time.Second))
	atLeast(t, f, "lock.held_for", 105)
	atLeast(t, f, "session.age", 105)
	atLeast(t, f, "check.age", 105)
	want{"progress.age": 105}.check(t, f)
	if got, _ := f.Lookup("lock.held_for"); got.Source != "observer locksmith@h" {
		t.Errorf("its source is %q", got.Source)
	}
	// One who saw it begin knows better.
	var own evidence.Memory
	own.Observe(&evidence.Snapshot{Name: "a", Key: prefix.Lock("a"), ReadAt: now.ReadAt}, w.reader)
	own.Observe(now, w.reader)
	want{"lock.held_for": 5}.check(t, w.reader.Facts(now, &own, nil, now.ReadAt.Add(5*time.Second)))

	// What moved since has no past.
	w.put(prefix.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: id, Done: 1, Total: 9})
	for _, status := range []string{"critical", "passing"} {
		if err := w.kv.API().Agent().UpdateTTL("c", "", status); err != nil {
			t.Fatal(err)
		}
	}
	now = w.read("a")
	f = w.reader.Facts(now, nil, nil, now.ReadAt)
	atLeast(t, f, "lock.held_for", 100)
	atLeast(t, f, "check.age", 0)
	want{"progress.age": 0}.check(t, f)

	// Nor has another hold, whoever it is of.
	if ok, _, err := w.kv.API().KV().Release(&api.KVPair{Key: prefix.Lock("a"), Session: id}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	w.holdOwn(elsewhere)
	now = w.read("a")
	atLeast(t, w.reader.Facts(now, nil, nil, now.ReadAt), "lock.held_for", 0)
}

// Records that lie or are broken are not believed beyond what they can say.
func TestMemoryThatIsNone(t *testing.T) {
	t.Parallel()
	for name, mod := range map[string]func(*records.Observed){
		"of another lock":    func(o *records.Observed) { o.Lock = "b" },
		"of a host's agent":  func(o *records.Observed) { o.Kind = records.ObservedHost },
		"of another version": func(o *records.Observed) { o.Remembers[0].Version = "x@1" },
		"below 0":            func(o *records.Observed) { o.Remembers[0].Age = -5 },
		"beyond all reason":  func(o *records.Observed) { o.Remembers[0].Age = 1e300 },
		"newer":              func(o *records.Observed) { o.Version = 99 },
	} {
		w := newWorld(t)
		w.remoteHold()
		s := w.read("a")
		o := &records.Observed{Version: 1, Kind: records.ObservedMemory, Lock: "a", Session: s.SessionID(), Remembers: []records.Remembered{{What: "hold", Version: s.Hold(), Age: 50}}}
		mod(o)
		w.put(memoryKey, o)
		s = w.read("a")
		t.Log(name)
		atLeast(t, w.reader.Facts(s, nil, nil, s.ReadAt), "lock.held_for", 0)
	}
}

// A lock that stands still is written down at 15 s and at each doubling, and the
// record goes with the hold.
func TestScribeSparesConsul(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.remoteHold()
	var mem evidence.Memory
	first := w.read("a")
	mem.Observe(first, w.reader)
	scribe, writes := w.scribe(), 0
	for at := time.Second; at <= 24*time.Hour; at += time.Second {
		wrote, err := scribe.Note(t.Context(), first, &mem, first.ReadAt.Add(at))
		if err != nil {
			t.Fatal(err)
		}
		if wrote {
			writes++
		}
		if at == 14*time.Second && writes > 0 {
			t.Error("a young hold was written down")
		}
	}
	if writes < 10 || writes > 14 {
		t.Errorf("%d writes for a day", writes)
	}
	s := w.read("a")
	f := w.reader.Facts(s, nil, nil, s.ReadAt)
	if got, _ := f.Lookup("progress.age"); got.Value.AsBigFloat().Cmp(ctyOf(12*3600).AsBigFloat()) < 0 {
		t.Errorf("of a day is known %#v", got.Value)
	}
	if _, err := w.kv.API().Session().Destroy(id, nil); err != nil {
		t.Fatal(err)
	}
	s = w.read("a")
	mem.Observe(s, w.reader)
	if wrote, err := scribe.Note(t.Context(), s, &mem, first.ReadAt.Add(25*time.Hour)); err != nil || !wrote {
		t.Fatalf("wrote %v, %v", wrote, err)
	}
	if p, err := w.kv.Get(t.Context(), memoryKey); err != nil || p != nil {
		t.Errorf("the record is left: %v, %v", p, err)
	}
}

// Never about a hold that is over by the time that it is written.
func TestScribeIsLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.remoteHold()
	var mem evidence.Memory
	s := w.read("a")
	mem.Observe(s, w.reader)
	if _, err := w.kv.API().Session().Destroy(id, nil); err != nil {
		t.Fatal(err)
	}
	if wrote, err := w.scribe().Note(t.Context(), s, &mem, s.ReadAt.Add(time.Minute)); err != nil || wrote {
		t.Fatalf("wrote %v, %v", wrote, err)
	}
	if _, err := evidence.NewScribe(w.kv, prefix, "a/b"); err == nil {
		t.Error("a name with a slash passes")
	}
}

// What is left of a lock-delay is known between the moments at which the lock
// was last seen held and first seen free; and a hold that let go leaves none.
func TestDelayLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.session()
	w.put(prefix.Lock("a"), []byte("{}"))
	h := w.record(id)
	if ok, _, err := w.kv.API().KV().Acquire(&api.KVPair{Key: prefix.Lock("a"), Session: id, Value: records.Encode(&h)}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	held := w.read("a")
	held.Session.LockDelay = 15 * time.Second
	var mem evidence.Memory
	mem.Observe(held, w.reader)
	if _, err := w.kv.API().Session().Destroy(id, nil); err != nil {
		t.Fatal(err)
	}
	free := w.read("a")
	free.ReadAt = held.ReadAt.Add(2 * time.Second)
	mem.Observe(free, w.reader)
	f := w.reader.Facts(free, &mem, nil, held.ReadAt.Add(6*time.Second))
	atLeast(t, f, "lock.delay_left", 9)
	got, _ := f.Lookup("lock.delay_left")
	if high, _ := got.Value.Range().NumberUpperBound(); !high.RawEquals(ctyOf(11)) {
		t.Errorf("at most %#v", high)
	}
	want{"lock.delay_left": 0}.check(t, w.reader.Facts(free, &mem, nil, held.ReadAt.Add(20*time.Second)))
	h.Released = true
	w.put(prefix.Lock("a"), &h)
	want{"lock.delay_left": 0}.check(t, w.facts(w.read("a")))
}
