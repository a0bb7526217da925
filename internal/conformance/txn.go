package conformance

import (
	"fmt"
	"strings"

	"github.com/hashicorp/consul/api"
)

// op is short for an operation.
func op(verb api.KVOp, key string, set ...func(*api.KVTxnOp)) *api.KVTxnOp {
	o := &api.KVTxnOp{Verb: verb, Key: key}
	for _, f := range set {
		f(o)
	}
	return o
}

func value(v string) func(*api.KVTxnOp)    { return func(o *api.KVTxnOp) { o.Value = []byte(v) } }
func by(session string) func(*api.KVTxnOp) { return func(o *api.KVTxnOp) { o.Session = session } }
func at(index uint64) func(*api.KVTxnOp)   { return func(o *api.KVTxnOp) { o.Index = index } }
func flags(f uint64) func(*api.KVTxnOp)    { return func(o *api.KVTxnOp) { o.Flags = f } }

type ops = []*api.KVTxnOp

const fakeSession = "11111111-2222-3333-4444-555555555555"

var txnTests = []test{
	{"writes share one index and blank their values", func(e *env) {
		a, b := e.key("a"), e.key("b")
		res := e.txn(op(api.KVSet, a, value("1"), flags(9)), op(api.KVCAS, b, value("2")), op(api.KVGet, a))
		same(e, "results", len(res), 3)
		same(e, "index of the second", res[1].ModifyIndex, res[0].ModifyIndex)
		same(e, "value of a set", string(res[0].Value), "")
		same(e, "value of a get after it", string(res[2].Value), "1")
		same(e, "flags", e.get(a).Flags, 9)
		same(e, "modify index", e.get(b).ModifyIndex, res[0].ModifyIndex)
	}},
	{"all or nothing, and every error", func(e *env) {
		a, b := e.key("a"), e.key("b")
		p := e.put(b, "old")
		e.refused(ops{
			op(api.KVSet, a, value("1")),
			op(api.KVCAS, b, value("x"), at(p.ModifyIndex+1)),
			op(api.KVCAS, e.key("none"), value("x"), at(5)),
			op(api.KVDeleteCAS, b, at(1)),
			op(api.KVGet, e.key("none")),
			op("bogus", b),
		},
			fmt.Sprintf("1: failed to set key %q, index is stale", b),
			fmt.Sprintf("2: failed to set key %q, index is stale", e.key("none")),
			fmt.Sprintf("3: failed to delete key %q, index is stale", b),
			fmt.Sprintf("4: key %q doesn't exist", e.key("none")),
			`5: unknown KV verb "bogus"`)
		same(e, "the set before the refusal", e.find(a) == nil, true)
		same(e, "modify index of the other", e.get(b).ModifyIndex, p.ModifyIndex)
	}},
	{"later operations see earlier ones", func(e *env) {
		a := e.key("a")
		res := e.txn(op(api.KVSet, a, value("1")), op(api.KVGet, a), op(api.KVDelete, a), op(api.KVCheckNotExists, a),
			op(api.KVSet, a, value("2")))
		same(e, "results", len(res), 3) // delete and check-not-exists show nothing
		same(e, "get", string(res[1].Value), "1")
		same(e, "left", string(e.get(a).Value), "2")
	}},
	{"get of a missing key aborts", func(e *env) {
		a, none := e.key("a"), e.key("none")
		e.refused(ops{op(api.KVSet, a), op(api.KVGet, none)}, fmt.Sprintf("1: key %q doesn't exist", none))
		e.refused(ops{op(api.KVGet, none)}, fmt.Sprintf("0: key %q doesn't exist", none))
		same(e, "found", e.find(a) != nil, false)
	}},
	{"get-or-empty of a missing key does not", func(e *env) {
		res := e.txn(op(api.KVSet, e.key("a"), value("1")), op(api.KVGetOrEmpty, e.key("none")), op(api.KVGetOrEmpty, e.key("a")))
		same(e, "results", len(res), 3)
		same(e, "key", res[1].Key, e.key("none"))
		same(e, "modify index of a missing key", res[1].ModifyIndex, 0)
		same(e, "value of a missing key", len(res[1].Value), 0)
		same(e, "value of a key", string(res[2].Value), "1")
		res = e.txn(op(api.KVGetOrEmpty, e.key("none")))
		same(e, "modify index in a transaction that only reads", res[0].ModifyIndex, 0)
	}},
	{"get-tree", func(e *env) {
		e.txn(op(api.KVSet, e.key("t/1"), value("1")), op(api.KVSet, e.key("t/2"), value("2")))
		res := e.txn(op(api.KVGetTree, e.key("t/")), op(api.KVGetTree, e.key("none")))
		same(e, "results", len(res), 2)
		same(e, "value", string(res[1].Value), "2")
	}},
	{"delete and delete-tree", func(e *env) {
		e.put(e.key("a"), "1")
		e.put(e.key("t/1"), "1")
		e.put(e.key("t/2"), "2")
		res := e.txn(op(api.KVDelete, e.key("a")), op(api.KVDeleteTree, e.key("t/")), op(api.KVDelete, e.key("none")))
		same(e, "results", len(res), 0)
		pairs, _, err := e.kv.List(e.prefix, e.q())
		e.must(err)
		same(e, "keys left", len(pairs), 0)
		same(e, "refusal of delete-cas on a missing key", len(e.txn(op(api.KVDeleteCAS, e.key("none"), at(3)))), 0)
	}},
	{"check-index", func(e *env) {
		p := e.put(e.key("a"), "1")
		res := e.txn(op(api.KVCheckIndex, p.Key, at(p.ModifyIndex)), op(api.KVSet, e.key("b"), value("1")))
		same(e, "results", len(res), 2)
		same(e, "value shown by a check", len(res[0].Value), 0)
		e.refused(ops{op(api.KVCheckIndex, p.Key, at(p.ModifyIndex-1)), op(api.KVSet, e.key("c"))},
			fmt.Sprintf("0: failed index check for key %q, current modify index %d != %d", p.Key, p.ModifyIndex, p.ModifyIndex-1))
		e.refused(ops{op(api.KVCheckIndex, e.key("none"), at(1)), op(api.KVSet, e.key("c"))},
			fmt.Sprintf("0: failed to check index, key %q doesn't exist", e.key("none")))
		same(e, "found", e.find(e.key("c")) != nil, false)
	}},
	{"check-not-exists", func(e *env) {
		p := e.put(e.key("a"), "1")
		e.refused(ops{op(api.KVCheckNotExists, p.Key), op(api.KVSet, e.key("b"))}, fmt.Sprintf("0: key %q exists", p.Key))
		e.txn(op(api.KVCheckNotExists, e.key("b")), op(api.KVSet, e.key("b")))
	}},
	{"check-session", func(e *env) {
		s := e.session()
		p := e.mustAcquire(e.key("a"), s, "1")
		res := e.txn(op(api.KVCheckSession, p.Key, by(s)), op(api.KVSet, e.key("b")))
		same(e, "session shown", res[0].Session, s)
		e.refused(ops{op(api.KVCheckSession, p.Key, by(fakeSession)), op(api.KVSet, e.key("c"))},
			fmt.Sprintf("0: failed session check for key %q, current session %q != %q", p.Key, s, fakeSession))
		e.refused(ops{op(api.KVCheckSession, e.key("none"), by(s)), op(api.KVSet, e.key("c"))},
			fmt.Sprintf("0: failed to check session, key %q doesn't exist", e.key("none")))
		e.put(e.key("free"), "1")
		e.refused(ops{op(api.KVCheckSession, e.key("free"), by(s))},
			fmt.Sprintf("0: failed session check for key %q, current session %q != %q", e.key("free"), "", s))
		e.txn(op(api.KVCheckSession, e.key("free"), by("")))
	}},
	{"lock and unlock", func(e *env) {
		s, other := e.session(), e.session()
		k := e.key("a")
		res := e.txn(op(api.KVLock, k, by(s), value("mine"), flags(3)))
		p := e.get(k)
		same(e, "modify index shown by lock", res[0].ModifyIndex, p.ModifyIndex)
		same(e, "session", p.Session, s)
		same(e, "lock index", p.LockIndex, 1)
		same(e, "flags", p.Flags, 3)
		e.refused(ops{op(api.KVLock, k, by(other))}, fmt.Sprintf("0: failed to lock key %q, lock is already held", k))
		e.refused(ops{op(api.KVUnlock, k, by(other))},
			fmt.Sprintf("0: failed to unlock key %q, lock isn't held, or is held by another session", k))
		e.refused(ops{op(api.KVLock, e.key("b"), by(fakeSession))}, fmt.Sprintf("0: invalid session %q", fakeSession))
		e.refused(ops{op(api.KVLock, e.key("b")), op(api.KVUnlock, e.key("b"))}, "0: missing session", "1: missing session")
		e.refused(ops{op(api.KVUnlock, e.key("none"), by(s))},
			fmt.Sprintf("0: failed to unlock key %q, lock isn't held, or is held by another session", e.key("none")))
		e.txn(op(api.KVUnlock, k, by(s), value("free")))
		p = e.get(k)
		same(e, "session", p.Session, "")
		same(e, "value", string(p.Value), "free")
		same(e, "lock index", p.LockIndex, 1)
	}},
	{"empty key", func(e *env) {
		e.refused(ops{op(api.KVGet, e.key("a")), op(api.KVSet, "")}, "1: Must provide key")
	}},
	{"128 operations and no more", func(e *env) {
		var many ops
		for i := range 128 {
			many = append(many, op(api.KVSet, e.key(fmt.Sprintf("%03d", i)), value("x")))
		}
		same(e, "results", len(e.txn(many...)), 128)
		many = append(many, op(api.KVSet, e.key("128"), value("x")))
		_, _, _, err := e.kv.Txn(many, e.q())
		e.mustFail(err, "Transaction contains too many operations (129 > 128)")
		same(e, "found", e.find(e.key("128")) != nil, false)
	}},
	{"512 KiB of JSON and no more", func(e *env) {
		big := func(kib int) error {
			_, _, _, err := e.kv.Txn(ops{op(api.KVSet, e.key("a"), value(strings.Repeat("x", kib*1024)))}, e.q())
			return err
		}
		e.must(big(383))
		e.mustFail(big(384), "too large")
		same(e, "length", len(e.get(e.key("a")).Value), 383*1024)
	}},
	{"what is no transaction", func(e *env) {
		for body, want := range map[string]string{
			`{`:                    "Failed to parse body",
			`[{"Bogus":{}}]`:       `unknown field "Bogus"`,
			`[{"KV":{"Bogus":1}}]`: `unknown field "Bogus"`,
			// There is no session operation: a session is ended by its own endpoint.
			`[{"Session":{"Verb":"delete"}}]`: `unknown field "Session"`,
		} {
			a := e.raw("PUT", "/v1/txn", body)
			same(e, "status of "+body, a.code, 400)
			if !strings.Contains(a.body, want) {
				e.Errorf("%s is answered with %q, want %q", body, a.body, want)
			}
		}
	}},
}
