package evidence_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// contend puts a contender for a semaphore, with a session of its own.
func (w *world) contend(dir string) string {
	w.t.Helper()
	id := w.session()
	p := &api.KVPair{Key: dir + id, Flags: api.SemaphoreFlagValue, Session: id}
	if ok, _, err := w.kv.API().KV().Acquire(p, nil); err != nil || !ok {
		w.t.Fatalf("contend for %s: %v, %v", dir, ok, err)
	}
	return id
}

// holders writes a semaphore's list.
func (w *world) holders(dir, value string) {
	w.t.Helper()
	if _, err := w.kv.API().KV().Put(&api.KVPair{Key: dir + ".lock", Flags: api.SemaphoreFlagValue, Value: []byte(value)}, nil); err != nil {
		w.t.Fatal(err)
	}
}

func TestSemaphore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.contend("ops/sem/"), w.contend("ops/sem/"), w.contend("ops/sem/")
	left := w.contend("ops/sem/")
	if _, err := w.kv.API().Session().Destroy(left, nil); err != nil {
		t.Fatal(err)
	}
	const gone = "11111111-2222-3333-4444-\x1b[31m"
	w.holders("ops/sem/", fmt.Sprintf(`{"Limit":3,"Holders":{%q:true,%q:true,"11111111-2222-3333-4444-\u001b[31m":true}}`, a, b))

	s := w.read("ops/sem/.lock")
	sem := s.Semaphore
	if sem == nil || sem.Limit != 3 || sem.Why != "" || s.Tool != evidence.ToolConsulLock || s.Held() {
		t.Fatalf("%+v, tool %s", sem, s.Tool)
	}
	ids := func(list []*evidence.Snapshot) []string {
		var out []string
		for _, s := range list {
			out = append(out, s.SessionID())
			if s.Session == nil || s.Slot == nil || s.Slot.Of != "ops/sem/.lock" {
				t.Errorf("%s: session %v, slot %v", s.Key, s.Session, s.Slot)
			}
		}
		slices.Sort(out)
		return out
	}
	want := []string{a, b}
	slices.Sort(want)
	if got := ids(sem.Slots); !slices.Equal(got, want) {
		t.Errorf("slots %v, want %v", got, want)
	}
	if got := ids(sem.Waiting); !slices.Equal(got, []string{c}) {
		t.Errorf("waiting %v, want %v", got, c)
	}
	stale := strings.Join(sem.Stale, "\n")
	if len(sem.Stale) != 2 || !strings.Contains(stale, left+" has no session") || !strings.Contains(stale, "is gone") || strings.Contains(stale, gone) {
		t.Errorf("stale: %q", sem.Stale)
	}
	if s := w.read("ops/sem/" + a); s.Slot == nil || !s.Slot.Holds || !s.Held() {
		t.Errorf("the slot of %s: %+v", a, s.Slot)
	}
	if s := w.read("ops/sem/" + c); s.Slot == nil || s.Slot.Holds || !s.Held() {
		t.Errorf("the contender %s: %+v", c, s.Slot)
	}
	if s := w.read("ops/sem/" + left); s.Held() {
		t.Errorf("what is left of %s: %+v", left, s)
	}

	// Followed, a change of the list is told of the contenders that it is about.
	run := w.follow("ops/")
	run.until("the waiting contender", func(m map[string]*evidence.Snapshot) bool {
		s := m["ops/sem/"+c]
		return s != nil && s.Slot != nil && !s.Slot.Holds && s.Session != nil
	})
	w.holders("ops/sem/", fmt.Sprintf(`{"Limit":3,"Holders":{%q:true}}`, c))
	run.until("its slot", func(m map[string]*evidence.Snapshot) bool {
		sem := m["ops/sem/.lock"].Semaphore
		return m["ops/sem/"+c].Slot.Holds && !m["ops/sem/"+a].Slot.Holds && len(sem.Slots) == 1 && len(sem.Waiting) == 2
	})
	if _, err := w.kv.API().KV().Delete("ops/sem/.lock", nil); err != nil {
		t.Fatal(err)
	}
	run.until("the end of the list", func(m map[string]*evidence.Snapshot) bool {
		return m["ops/sem/.lock"].Pair == nil && !m["ops/sem/"+c].Slot.Holds
	})
}

// Whatever stands in a list that is not one, nobody is taken for a holder.
func TestSemaphoreOfNonsense(t *testing.T) {
	t.Parallel()
	many := `{"Limit":9,"Holders":{` + strings.Repeat(`"x":true,`, 10) + strings.TrimSuffix(func() string {
		var b strings.Builder
		for i := range 10_001 {
			fmt.Fprintf(&b, `"%d":true,`, i)
		}
		return b.String()
	}(), ",") + `}}`
	for name, tc := range map[string]struct{ value, why string }{
		"empty":            {"", "empty"},
		"not JSON":         {"\x00\xff\x1b[2J", "not the list"},
		"another type":     {`[1,2]`, "not the list"},
		"another map":      {`{"Limit":1,"Holders":["a"]}`, "not the list"},
		"no limit":         {`{"Holders":{}}`, "limit of 0"},
		"a negative limit": {`{"Limit":-3,"Holders":{}}`, "limit of -3"},
		"too many":         {many, "10002 holders"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.contend("s/")
			w.holders("s/", tc.value)
			sem := w.read("s/.lock").Semaphore
			if sem == nil || !strings.Contains(sem.Why, tc.why) || len(sem.Slots) != 0 || len(sem.Waiting) != 1 {
				t.Errorf("%+v, want no slots for %q", sem, tc.why)
			}
		})
	}
}

func TestTerraform(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.hold("tf/state/.lock", api.LockFlagValue, func(string) []byte { return nil })
	info := func(session string) []byte {
		return []byte(`{"ID":"` + session + `","Operation":"OperationTypeApply","Info":"consul session: ` + session +
			`","Who":"ann\u001b[2J@build-7","Version":"1.9.0","Created":"2026-01-02T03:04:05Z","Path":"tf/state"}`)
	}
	w.put("tf/state/.lockinfo", info(id))
	s := w.read("tf/state/.lock")
	if s.Tool != evidence.ToolTerraform || s.Info == nil || s.Operation() != "OperationTypeApply" {
		t.Fatalf("tool %s, info %+v (%s)", s.Tool, s.Info, s.HolderWhy)
	}
	want{"holder.tool": "terraform", "holder.user": "ann?[2J", "holder.host": "build-7", "holder.started_at": "2026-01-02T03:04:05Z", "holder.alive": "?"}.check(t, w.facts(s))

	// A holder that was killed leaves its info to the next one.
	w.put("tf/state/.lockinfo", info("another"))
	s = w.read("tf/state/.lock")
	if s.Tool != evidence.ToolTerraform || s.Info != nil {
		t.Fatalf("tool %s, info %+v", s.Tool, s.Info)
	}
	want{"holder.tool": "terraform", "holder.user": "?earlier holder"}.check(t, w.facts(s))
	w.put("tf/state/.lockinfo", []byte("{"))
	want{"holder.user": "?not Terraform's"}.check(t, w.facts(w.read("tf/state/.lock")))

	// A script that takes the lock for Terraform knows nothing of the flag.
	id = w.hold("tf/other/.lock", 0, func(string) []byte { return nil })
	if s := w.read("tf/other/.lock"); s.Tool != evidence.ToolUnknown {
		t.Fatalf("tool %s without lock info", s.Tool)
	}
	w.put("tf/other/.lockinfo", info(id))
	want{"holder.tool": "terraform", "holder.user": "ann?[2J"}.check(t, w.facts(w.read("tf/other/.lock")))
}

// Where the key does not tell the tool, its session's name may.
func TestToolBySession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, tool := range map[string]string{
		"Vault Lock":                            evidence.ToolVault,
		"Consul lock for 'sleep 1' at 'ops'":    evidence.ToolConsulLock,
		"Consul-Template de-duplication":        evidence.ToolConsulTemplate,
		"my script":                             evidence.ToolUnknown,
		"not Consul lock for 'x' at 'y'\x1b[2J": evidence.ToolUnknown,
	} {
		id, _, err := w.kv.API().Session().Create(&api.SessionEntry{Name: name, TTL: "15s"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ok, _, err := w.kv.API().KV().Acquire(&api.KVPair{Key: "some/key/" + id, Session: id}, nil); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if s := w.read("some/key/" + id); s.Tool != tool {
			t.Errorf("%s: tool %s, want %s", name, s.Tool, tool)
		}
	}
	w.hold("consul-template/dedup/0123456789abcdef/data", api.LockFlagValue, func(string) []byte { return []byte("__NO_DATA__") })
	if s := w.read("consul-template/dedup/0123456789abcdef/data"); s.Tool != evidence.ToolConsulTemplate {
		t.Errorf("tool %s", s.Tool)
	}
}

// A key without any slash is named by one in front, apart from aimlock's own of
// that name.
func TestLockAtTheRoot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hold("a", 0, func(string) []byte { return nil })
	s := w.read("/a")
	if s.Key != "a" || s.Name != "/a" || s.Own || !s.Held() {
		t.Errorf("%q, key %q", s.Name, s.Key)
	}
	if s := w.read("a"); s.Key != prefix.Lock("a") || s.Held() {
		t.Errorf("%q, key %q", s.Name, s.Key)
	}
}
