package evidence_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// A value is the holder's record only if whoever holds the lock wrote it. Each
// of these would otherwise prove a live holder dead by the record of another.
func TestOnlyTheHoldersOwnRecordCounts(t *testing.T) {
	t.Parallel()
	dead := deadProcess(t)
	asDead := func(h *records.Holder) { h.PID, h.StartTicks = dead.PID, dead.StartTicks }
	w := newWorld(t)
	for name, tc := range map[string]struct {
		value func(session string) []byte
		why   string
	}{
		"record of an earlier session": {func(string) []byte { h := w.record("earlier", asDead); return records.Encode(&h) }, "earlier session"},
		"record without a session":     {func(string) []byte { h := w.record("", asDead); return records.Encode(&h) }, "earlier session"},
		"record of a released hold":    {func(s string) []byte { h := w.record(s, asDead); h.Released = true; return records.Encode(&h) }, "released"},
		"record of another lock":       {func(s string) []byte { h := w.record(s, asDead); h.Lock = "b"; return records.Encode(&h) }, "another lock"},
		"record of a newer version":    {func(s string) []byte { h := w.record(s, asDead); h.Version = 99; return records.Encode(&h) }, "newer aimlock"},
		"not JSON":                     {func(string) []byte { return []byte("{\"tool\": aimlock") }, "are not a JSON object"},
		"JSON of something else":       {func(string) []byte { return []byte(`["tool"]`) }, "are not a JSON object"},
		"wrong types":                  {func(string) []byte { return []byte(`{"tool":"aimlock","pid":"x"}`) }, "not a record"},
		"empty":                        {func(string) []byte { return nil }, "are not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.hold(prefix.Lock("a"), 0, tc.value)
			s := w.read("a")
			if s.Holder != nil || s.Tool != "unknown" {
				t.Fatalf("taken for the holder's record: %+v", s.Holder)
			}
			want{"holder.alive": "?" + tc.why, "holder.pid": "?" + tc.why, "holder.tool": "unknown", "nomad.gone": "?did not record"}.check(t, w.facts(s))
		})
	}
}

// What an earlier hold did says nothing of this one.
func TestProgressOfAnEarlierHoldIsNull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.holdOwn()
	w.put(prefix.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: "earlier", Done: 3, Total: 4})
	want{"progress.done": "null", "progress.age": "null", "progress.rate": "null"}.check(t, w.facts(w.read("a")))
}

func TestUnreadableProgressIsUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.holdOwn()
	w.put(prefix.Progress("a"), []byte("garbage"))
	want{"progress.done": "?aimlock/progress/a", "progress.age": "?not a record"}.check(t, w.facts(w.read("a")))
}

// One lock whose fence record is broken must not keep others from being listed,
// but what it owes is an error and not nothing.
func TestUnreadableFence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(prefix.Fence("a"), []byte("garbage"))
	s := w.read("a")
	if s.FenceErr == nil || s.Fence != nil || !strings.Contains(s.FenceErr.Error(), prefix.Fence("a")) {
		t.Fatalf("fence %+v, error %v", s.Fence, s.FenceErr)
	}
}

// The picture names the index of every key that it was taken of, and 0 for one
// that was not there.
func TestDepsOfASnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.holdOwn(func(h *records.Holder) { h.RolloutID = "r1" })
	w.put(prefix.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: id})
	s := w.read("a")
	if s.Deps[prefix.Lock("a")] != s.Pair.ModifyIndex || s.Deps[prefix.Progress("a")] <= s.Pair.ModifyIndex {
		t.Errorf("deps %v", s.Deps)
	}
	for _, k := range []string{prefix.Fence("a"), prefix.Request("a"), prefix.Approval("a"), prefix.Rollout("r1")} {
		if idx, ok := s.Deps[k]; !ok || idx != 0 {
			t.Errorf("%s: index %d, read %v", k, idx, ok)
		}
	}
	if time.Since(s.ReadAt) > time.Minute {
		t.Errorf("read at %s", s.ReadAt)
	}
}

func TestWhichToolHasTheLock(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		key    string
		flags  uint64
		value  string
		beside string
		tool   string
	}{
		"consul lock":             {"ops/deploy/.lock", api.LockFlagValue, "", "", evidence.ToolConsulLock},
		"consul lock -n":          {"ops/deploy/.lock", api.SemaphoreFlagValue, `{"Limit":2}`, "", evidence.ToolConsulLock},
		"contender of it":         {"ops/deploy/b1a5c0de-0000-4000-8000-5ec2e75ec2e7", api.SemaphoreFlagValue, "", "", evidence.ToolConsulLock},
		"terraform":               {"terraform/state/.lock", api.LockFlagValue, "id", "terraform/state/.lockinfo", evidence.ToolTerraform},
		"vault":                   {"vault/core/lock", api.LockFlagValue, "uuid", "", evidence.ToolVault},
		"consul-template":         {"consul-template/dedup/0f1e2d/lock", api.LockFlagValue, "", "", evidence.ToolConsulTemplate},
		"consul/api in a program": {"app/leader", api.LockFlagValue, "me", "", evidence.ToolUnknown},
		"a script":                {"app/leader", 0, "me", "", evidence.ToolUnknown},
		"a script, by that name":  {"app/.lock", 0, "", "app/.lockinfo", evidence.ToolUnknown},
		"a script on our key":     {"aimlock/locks/a", api.LockFlagValue, "", "", evidence.ToolUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if tc.beside != "" {
				w.put(tc.beside, []byte("{}"))
			}
			w.hold(tc.key, tc.flags, func(string) []byte { return []byte(tc.value) })
			s := w.read(tc.key)
			if s.Tool != tc.tool {
				t.Errorf("tool %q, want %q", s.Tool, tc.tool)
			}
			want{"holder.tool": tc.tool, "holder.alive": "?"}.check(t, w.facts(s))
			listed, err := w.reader.NewSweep([]string{tc.key}).Read(t.Context())
			if err != nil || len(listed) != 1 || listed[0].Tool != tc.tool {
				t.Errorf("from a listing: %v, want tool %q, %v", listed, tc.tool, err)
			}
		})
	}
}

// A lock of aimlock on a key of another tool's place is aimlock's.
func TestAimlockOnAWholeKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hold("ops/x", 0, func(id string) []byte { h := w.record(id); h.Lock = "ops/x"; return records.Encode(&h) })
	if s := w.read("ops/x"); s.Tool != "aimlock" || s.Holder == nil || s.Own {
		t.Fatalf("tool %q, own %v", s.Tool, s.Own)
	}
	// The same lock by its short name and by its whole key is one lock.
	w.holdOwn()
	if s := w.read(prefix.Lock("a")); s.Name != "a" || s.Holder == nil {
		t.Fatalf("name %q", s.Name)
	}
}
