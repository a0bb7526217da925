package conformance

import (
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
)

var kvTests = []test{
	{"put and get", func(e *env) {
		k := e.key("a")
		_, err := e.kv.Put(&api.KVPair{Key: k, Value: []byte("one"), Flags: 42}, e.w())
		e.must(err)
		p := e.get(k)
		same(e, "value", string(p.Value), "one")
		same(e, "flags", p.Flags, 42)
		same(e, "lock index", p.LockIndex, 0)
		same(e, "modify index of a new key", p.ModifyIndex, p.CreateIndex)

		again := e.put(k, "two")
		same(e, "create index after a write", again.CreateIndex, p.CreateIndex)
		same(e, "flags after a write without them", again.Flags, 0)
		if again.ModifyIndex <= p.ModifyIndex {
			e.Errorf("modify index went from %d to %d", p.ModifyIndex, again.ModifyIndex)
		}
	}},
	{"writing the same changes nothing", func(e *env) {
		p := e.put(e.key("a"), "one")
		same(e, "modify index", e.put(e.key("a"), "one").ModifyIndex, p.ModifyIndex)
	}},
	{"missing key", func(e *env) {
		if p := e.find(e.key("none")); p != nil {
			e.Errorf("got %v", p)
		}
		same(e, "status", e.raw("GET", "/v1/kv/"+e.key("none"), "").code, 404)
		_, err := e.kv.Delete(e.key("none"), e.w())
		e.must(err)
	}},
	{"empty value", func(e *env) {
		p := e.put(e.key("a"), "")
		same(e, "length", len(p.Value), 0)
	}},
	{"key with odd characters", func(e *env) {
		k := e.key("ü %2F?#&+x")
		same(e, "value", string(e.put(k, "odd").Value), "odd")
		same(e, "key", e.get(k).Key, k)
	}},
	{"cas", func(e *env) {
		k := e.key("a")
		cas := func(idx uint64, value string) bool {
			ok, _, err := e.kv.CAS(&api.KVPair{Key: k, Value: []byte(value), ModifyIndex: idx}, e.w())
			e.must(err)
			return ok
		}
		same(e, "cas 7 on a missing key", cas(7, "x"), false)
		same(e, "cas 0 on a missing key", cas(0, "one"), true)
		same(e, "cas 0 on a key", cas(0, "x"), false)
		idx := e.get(k).ModifyIndex
		same(e, "cas with the right index", cas(idx, "two"), true)
		same(e, "cas with the old index", cas(idx, "x"), false)
		same(e, "value", string(e.get(k).Value), "two")
	}},
	{"delete cas", func(e *env) {
		p := e.put(e.key("a"), "one")
		del := func(idx uint64) bool {
			ok, _, err := e.kv.DeleteCAS(&api.KVPair{Key: p.Key, ModifyIndex: idx}, e.w())
			e.must(err)
			return ok
		}
		same(e, "with another index", del(p.ModifyIndex+1), false)
		e.get(p.Key)
		same(e, "with the right index", del(p.ModifyIndex), true)
		same(e, "of what is gone", del(p.ModifyIndex), true)
		same(e, "found", e.find(p.Key) != nil, false)
	}},
	{"recurse, keys and separator", func(e *env) {
		for _, k := range []string{"a", "b/1", "b/2", "b/c/3", "bb"} {
			e.put(e.key(k), k)
		}
		pairs, _, err := e.kv.List(e.prefix, e.q())
		e.must(err)
		var got []string
		for _, p := range pairs {
			same(e, "value of "+p.Key, e.key(string(p.Value)), p.Key)
			got = append(got, strings.TrimPrefix(p.Key, e.prefix))
		}
		e.equalKeys("recurse", got, "a", "b/1", "b/2", "b/c/3", "bb")

		keys := func(prefix, sep string) []string {
			keys, _, err := e.kv.Keys(e.key(prefix), sep, e.q())
			e.must(err)
			for i := range keys {
				keys[i] = strings.TrimPrefix(keys[i], e.prefix)
			}
			return keys
		}
		e.equalKeys("keys", keys("", ""), "a", "b/1", "b/2", "b/c/3", "bb")
		e.equalKeys("keys to /", keys("", "/"), "a", "b/", "bb")
		e.equalKeys("keys to / under b/", keys("b/", "/"), "b/1", "b/2", "b/c/")
		e.equalKeys("keys under b", keys("b", ""), "b/1", "b/2", "b/c/3", "bb")
		e.equalKeys("keys under nothing", keys("none", ""))

		_, err = e.kv.DeleteTree(e.key("b/"), e.w())
		e.must(err)
		e.equalKeys("keys after delete tree", keys("", ""), "a", "bb")
	}},
	{"raw", func(e *env) {
		e.put(e.key("a"), "<b>raw</b>")
		a := e.raw("GET", "/v1/kv/"+e.key("a")+"?raw", "")
		same(e, "body", a.body, "<b>raw</b>")
		same(e, "type", a.header.Get("Content-Type"), "text/plain")
	}},
	{"consistency modes", func(e *env) {
		e.put(e.key("a"), "one")
		for _, q := range []*api.QueryOptions{{RequireConsistent: true}, {AllowStale: true}} {
			p, meta, err := e.kv.Get(e.key("a"), q.WithContext(e.ctx))
			e.must(err)
			same(e, "value", string(p.Value), "one")
			same(e, "known leader", meta.KnownLeader, true)
		}
	}},
	{"largest value", func(e *env) {
		const limit = 512 * 1024
		big := &api.KVPair{Key: e.key("a"), Value: make([]byte, limit)}
		_, err := e.kv.Put(big, e.w())
		e.must(err)
		same(e, "length", len(e.get(big.Key).Value), limit)
		big.Value = make([]byte, limit+1)
		_, err = e.kv.Put(big, e.w())
		same(e, "status of one byte more", statusOf(err), 413)
		same(e, "length kept", len(e.get(big.Key).Value), limit)
	}},
}

func (e *env) equalKeys(what string, got []string, want ...string) {
	e.Helper()
	if !slices.Equal(got, want) {
		e.Errorf("%s: got %q, want %q", what, got, want)
	}
}
