package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// modelKey is what the model knows of a key.
type modelKey struct {
	value   string
	session string
}

// model is the KV store as its user thinks of it, and the invariants that every
// state of the real one must keep.
type model struct {
	t        *rapid.T
	s        *Store
	keys     map[string]modelKey
	sessions map[string]string // ID to behavior
	next     int
	// seen is the highest index that a read of a prefix has shown.
	seen map[string]uint64
	// before is the content of each prefix at its last read.
	before map[string]string
	// cut is the prefix of the tree that the last step deleted, "-" if none was:
	// Consul does not tell the watchers of longer prefixes of it.
	cut string
}

var (
	modelKeys     = []string{"a", "a/1", "a/2", "a/b/3", "ab", "b"}
	modelPrefixes = []string{"", "a", "a/", "a/b", "b", "c"}
)

func newModel(t *rapid.T) *model {
	s, err := New(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Register(Registration{Node: &Node{Node: "n1", Address: "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	return &model{t: t, s: s, keys: map[string]modelKey{}, sessions: map[string]string{}, seen: map[string]uint64{}, before: map[string]string{}, cut: "-"}
}

func (m *model) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) key(t *rapid.T) string { return rapid.SampledFrom(modelKeys).Draw(t, "key") }

func (m *model) value(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "value")
}

// session draws one that exists, or one that does not.
func (m *model) session(t *rapid.T) string {
	ids := append(slices.Sorted(mapKeys(m.sessions)), "no-such-session")
	return rapid.SampledFrom(ids).Draw(t, "session")
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (m *model) Put(t *rapid.T) {
	k, v := m.key(t), m.value(t)
	m.must(m.s.KVSet(KVEntry{Key: k, Value: []byte(v)}))
	m.keys[k] = modelKey{v, m.keys[k].session}
}

func (m *model) CAS(t *rapid.T) {
	k, v := m.key(t), m.value(t)
	_, cur, err := m.s.KVGet(nil, k)
	m.must(err)
	var idx uint64
	if cur != nil {
		idx = cur.ModifyIndex
	}
	off := rapid.Uint64Range(0, 1).Draw(t, "off")
	ok, err := m.s.KVCAS(KVEntry{Key: k, Value: []byte(v), ModifyIndex: idx + off})
	m.must(err)
	// On a missing key, 0 creates it and 1 does not; on a key, only its index does.
	if want := off == 0; ok != want {
		t.Fatalf("cas %d on index %d: %v", idx+off, idx, ok)
	}
	if ok {
		m.keys[k] = modelKey{v, m.keys[k].session}
	}
}

func (m *model) Delete(t *rapid.T) {
	k := m.key(t)
	m.must(m.s.KVDelete(k))
	delete(m.keys, k)
}

func (m *model) DeleteTree(t *rapid.T) {
	p := rapid.SampledFrom(modelPrefixes).Draw(t, "prefix")
	m.must(m.s.KVDeleteTree(p))
	for k := range m.keys {
		if strings.HasPrefix(k, p) {
			delete(m.keys, k)
		}
	}
	m.cut = p
}

func (m *model) NewSession(t *rapid.T) {
	m.next++
	id := fmt.Sprintf("session-%d", m.next)
	behavior := rapid.SampledFrom([]string{BehaviorRelease, BehaviorDelete}).Draw(t, "behavior")
	m.must(m.s.SessionCreate(&Session{ID: id, Node: "n1", Behavior: behavior}))
	m.sessions[id] = behavior
}

func (m *model) EndSession(t *rapid.T) {
	id := m.session(t)
	m.must(m.s.SessionDestroy(id))
	for k, v := range m.keys {
		if v.session != id {
			continue
		}
		if m.sessions[id] == BehaviorDelete {
			delete(m.keys, k)
		} else {
			m.keys[k] = modelKey{v.value, ""}
		}
	}
	delete(m.sessions, id)
}

func (m *model) Lock(t *rapid.T) {
	k, v, id := m.key(t), m.value(t), m.session(t)
	ok, err := m.s.KVLock(KVEntry{Key: k, Value: []byte(v), Session: id})
	_, exists := m.sessions[id]
	if (err == nil) != exists {
		t.Fatalf("lock by %s: %v", id, err)
	}
	holder := m.keys[k].session
	if want := exists && (holder == "" || holder == id); ok != want {
		t.Fatalf("lock of %s, held by %q, by %s: %v", k, holder, id, ok)
	}
	if ok {
		m.keys[k] = modelKey{v, id}
	}
}

func (m *model) Unlock(t *rapid.T) {
	k, v, id := m.key(t), m.value(t), m.session(t)
	ok, err := m.s.KVUnlock(KVEntry{Key: k, Value: []byte(v), Session: id})
	m.must(err)
	if want := m.keys[k].session == id; ok != want {
		t.Fatalf("unlock of %s, held by %q, by %s: %v", k, m.keys[k].session, id, ok)
	}
	if ok {
		m.keys[k] = modelKey{v, ""}
	}
}

// Take is the transaction that breaks a lock and takes it.
func (m *model) Take(t *rapid.T) {
	k, old, fresh := m.key(t), m.session(t), m.session(t)
	_, cur, err := m.s.KVGet(nil, k)
	m.must(err)
	var idx uint64
	if cur != nil {
		idx = cur.ModifyIndex
	}
	res, errs := m.s.Txn([]KVOp{
		{"check-session", KVEntry{Key: k, Session: old}},
		{"check-index", KVEntry{Key: k, ModifyIndex: idx}},
		{"unlock", KVEntry{Key: k, Session: old}},
		{"lock", KVEntry{Key: k, Session: fresh, Value: []byte("taken")}},
	})
	_, exists := m.sessions[fresh]
	want := exists && cur != nil && m.keys[k].session == old
	if (len(errs) == 0) != want {
		t.Fatalf("take of %s, held by %q, from %s by %s: %v", k, m.keys[k].session, old, fresh, errs)
	}
	if want {
		if token := res[len(res)-1].ModifyIndex; token <= idx {
			t.Fatalf("the token went from %d to %d", idx, token)
		}
		m.keys[k] = modelKey{"taken", fresh}
	}
}

// Check is run after every step.
func (m *model) Check(t *rapid.T) {
	for _, prefix := range modelPrefixes {
		idx, entries, err := m.s.KVList(nil, prefix)
		m.must(err)
		var want, got []string
		for k, v := range m.keys {
			if strings.HasPrefix(k, prefix) {
				want = append(want, fmt.Sprint(k, "=", v))
			}
		}
		var content strings.Builder
		for _, e := range entries {
			got = append(got, fmt.Sprint(e.Key, "=", modelKey{string(e.Value), e.Session}))
			fmt.Fprintf(&content, "%+v\n", *e)
			if e.ModifyIndex > idx && prefix != "" {
				t.Fatalf("index %d of %q is below that of %s, %d", idx, prefix, e.Key, e.ModifyIndex)
			}
			if _, ok := m.sessions[e.Session]; e.Session != "" && !ok {
				t.Fatalf("%s is held by %s, which does not exist", e.Key, e.Session)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("under %q: %q, want %q", prefix, got, want)
		}
		if idx > m.s.Index() {
			t.Fatalf("index %d of %q is above the last, %d", idx, prefix, m.s.Index())
		}
		// Who blocks on the index he saw must be woken by whatever changed since.
		untold := strings.HasPrefix(prefix, m.cut) && prefix != m.cut
		if content.String() != m.before[prefix] && idx <= m.seen[prefix] && !untold {
			t.Fatalf("%q changed, and its index went from %d to %d", prefix, m.seen[prefix], idx)
		}
		if idx < m.seen[prefix] && !untold {
			t.Fatalf("the index of %q went back from %d to %d", prefix, m.seen[prefix], idx)
		}
		m.seen[prefix], m.before[prefix] = idx, content.String()
	}
	m.cut = "-"
}

func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		t.Repeat(map[string]func(*rapid.T){
			"Put": m.Put, "CAS": m.CAS, "Delete": m.Delete, "DeleteTree": m.DeleteTree,
			"NewSession": m.NewSession, "EndSession": m.EndSession,
			"Lock": m.Lock, "Unlock": m.Unlock, "Take": m.Take, "": m.Check,
		})
	})
}

// A refused write uses an index up and changes nothing.
func TestIndexIsUsedOnce(t *testing.T) {
	t.Parallel()
	s, err := New(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Index()
	if ok, err := s.KVCAS(KVEntry{Key: "a", ModifyIndex: 7}); ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := s.KVLock(KVEntry{Key: "a", Session: "none"}); err == nil {
		t.Fatal("locked by no session")
	}
	if err := s.KVSet(KVEntry{Key: "a"}); err != nil {
		t.Fatal(err)
	}
	_, e, err := s.KVGet(nil, "a")
	if err != nil || e.ModifyIndex != before+3 {
		t.Errorf("modify index %d after %d and two refusals, %v", e.ModifyIndex, before, err)
	}
}

// Tombstones and lock-delays are forgotten in time, and not before.
func TestReap(t *testing.T) {
	t.Parallel()
	s, err := New(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	stones := func() int {
		old, err := s.oldTombstones(time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		return len(old)
	}
	if err := s.KVSet(KVEntry{Key: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := s.KVDelete("a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Reap(time.Minute); err != nil {
		t.Fatal(err)
	}
	if n := stones(); n != 1 {
		t.Errorf("%d tombstones before their time", n)
	}
	if err := s.Reap(-time.Minute); err != nil {
		t.Fatal(err)
	}
	if n := stones(); n != 0 {
		t.Errorf("%d tombstones after their time", n)
	}
}

// What a write ended is told once it is committed, and not if it was not.
func TestOnSessionEnd(t *testing.T) {
	t.Parallel()
	var ended []string
	s, err := New(func(ids []string) { ended = append(ended, ids...) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	check := &Check{Node: "n1", CheckID: "c", Name: "c", Status: Passing}
	if err := s.Register(Registration{Node: &Node{Node: "n1", Address: "a"}, Checks: []*Check{check.Clone()}}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"s1", "s2"} {
		if err := s.SessionCreate(&Session{ID: id, Node: "n1", NodeChecks: []string{"c"}}); err != nil {
			t.Fatal(err)
		}
	}
	failed := check.Clone()
	failed.Status = Critical
	odd := &Check{Node: "other", CheckID: "x"}
	if err := s.Register(Registration{Node: &Node{Node: "n1", Address: "a"}, Checks: []*Check{failed.Clone(), odd}}); err == nil {
		t.Fatal("a check of another node was registered")
	}
	if len(ended) != 0 {
		t.Errorf("told of %q, by a write that was refused", ended)
	}
	if err := s.Register(Registration{Node: &Node{Node: "n1", Address: "a"}, Checks: []*Check{failed}}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(ended)
	if !slices.Equal(ended, []string{"s1", "s2"}) {
		t.Errorf("told of %q", ended)
	}
}
