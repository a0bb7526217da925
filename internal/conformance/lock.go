package conformance

import (
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"
)

func lockDelay(d time.Duration) func(*api.SessionEntry) {
	return func(se *api.SessionEntry) { se.LockDelay = d }
}

var lockTests = []test{
	{"acquire and release", func(e *env) {
		s, other := e.session(), e.session()
		k := e.key("a")
		p := e.mustAcquire(k, s, "one")
		same(e, "session", p.Session, s)
		same(e, "lock index", p.LockIndex, 1)
		same(e, "acquire of a held key", e.acquire(k, other, "x"), false)
		same(e, "value", string(e.get(k).Value), "one")

		release := func(session string) bool {
			ok, _, err := e.kv.Release(&api.KVPair{Key: k, Session: session, Value: []byte("free")}, e.w())
			e.must(err)
			return ok
		}
		same(e, "release by another session", release(other), false)
		same(e, "release", release(s), true)
		same(e, "release of what is free", release(s), false)
		free := e.get(k)
		same(e, "session", free.Session, "")
		same(e, "value", string(free.Value), "free")

		p = e.mustAcquire(k, other, "two")
		same(e, "lock index at the second lock", p.LockIndex, 2)
		if p.ModifyIndex <= free.ModifyIndex {
			e.Errorf("the token went from %d to %d", free.ModifyIndex, p.ModifyIndex)
		}
	}},
	{"unknown session", func(e *env) {
		_, _, err := e.kv.Acquire(&api.KVPair{Key: e.key("a"), Session: fakeSession}, e.w())
		e.mustFail(err, "invalid session")
		same(e, "status", statusOf(err), 500)
		same(e, "status without a session", e.raw("PUT", "/v1/kv/"+e.key("a")+"?acquire=", "x").code, 500)
	}},
	{"the holder locks again", func(e *env) {
		s := e.session()
		p := e.mustAcquire(e.key("a"), s, "one")
		again := e.mustAcquire(p.Key, s, "two")
		same(e, "lock index", again.LockIndex, p.LockIndex)
		same(e, "value", string(again.Value), "two")
		if again.ModifyIndex <= p.ModifyIndex {
			e.Errorf("modify index went from %d to %d", p.ModifyIndex, again.ModifyIndex)
		}
		same(e, "modify index of the same value again", e.mustAcquire(p.Key, s, "two").ModifyIndex, again.ModifyIndex)
	}},
	{"a put on a held key keeps the session and moves the index", func(e *env) {
		s := e.session()
		p := e.mustAcquire(e.key("a"), s, "one")
		after := e.put(p.Key, "outsider")
		same(e, "session", after.Session, s)
		same(e, "lock index", after.LockIndex, 0)
		if after.ModifyIndex <= p.ModifyIndex {
			e.Errorf("modify index went from %d to %d", p.ModifyIndex, after.ModifyIndex)
		}
		// Only the index tells the holder.
		e.refused(ops{op(api.KVCheckSession, p.Key, by(s)), op(api.KVCheckIndex, p.Key, at(p.ModifyIndex)), op(api.KVSet, e.key("b"))},
			fmt.Sprintf("1: failed index check for key %q, current modify index %d != %d", p.Key, after.ModifyIndex, p.ModifyIndex))
	}},
	{"a put of the same value on a held key moves the index too", func(e *env) {
		s := e.session()
		p := e.mustAcquire(e.key("a"), s, "one")
		if after := e.put(p.Key, "one"); after.ModifyIndex <= p.ModifyIndex {
			e.Errorf("modify index went from %d to %d", p.ModifyIndex, after.ModifyIndex)
		}
	}},
	{"a deleted lock can be taken, with a larger token", func(e *env) {
		s, other := e.session(), e.session()
		p := e.mustAcquire(e.key("a"), s, "one")
		e.delete(p.Key)
		same(e, "session", e.sessionExists(s), true)
		after := e.mustAcquire(p.Key, other, "two")
		if after.ModifyIndex <= p.ModifyIndex {
			e.Errorf("the token went from %d to %d", p.ModifyIndex, after.ModifyIndex)
		}
	}},
	{"unlock without a value erases it", func(e *env) {
		s := e.session()
		p := e.mustAcquire(e.key("a"), s, "record")
		e.txn(op(api.KVUnlock, p.Key, by(s)))
		same(e, "length", len(e.get(p.Key).Value), 0)
	}},
	{"break and take in one transaction, without lock-delay", func(e *env) {
		old, fresh := e.session(lockDelay(time.Minute)), e.session()
		p := e.mustAcquire(e.key("lock"), old, "old")
		progress := e.put(e.key("progress"), "1")
		res := e.txn(
			op(api.KVCheckSession, p.Key, by(old)), op(api.KVCheckIndex, p.Key, at(p.ModifyIndex)),
			op(api.KVCheckIndex, progress.Key, at(progress.ModifyIndex)),
			op(api.KVUnlock, p.Key, by(old)), op(api.KVLock, p.Key, by(fresh), value("new")),
			op(api.KVSet, e.key("fence"), value("x")))
		got := e.get(p.Key)
		same(e, "session", got.Session, fresh)
		same(e, "value", string(got.Value), "new")
		same(e, "lock index", got.LockIndex, p.LockIndex+1)
		same(e, "token shown by lock", res[4].ModifyIndex, got.ModifyIndex)
		if got.ModifyIndex <= p.ModifyIndex {
			e.Errorf("the token went from %d to %d", p.ModifyIndex, got.ModifyIndex)
		}
		same(e, "old session", e.sessionExists(old), true)
		// What the old one holds no more is not freed with it.
		e.destroy(old)
		same(e, "session after the old one ended", e.get(p.Key).Session, fresh)
		// And no lock-delay of the old one is left on the key.
		e.txn(op(api.KVUnlock, p.Key, by(fresh)))
		e.mustAcquire(p.Key, fresh, "again")
	}},
	{"break and take is refused to the second who tries", func(e *env) {
		old, first, second := e.session(), e.session(), e.session()
		p := e.mustAcquire(e.key("lock"), old, "old")
		take := func(s string) ops {
			return ops{op(api.KVCheckSession, p.Key, by(old)), op(api.KVCheckIndex, p.Key, at(p.ModifyIndex)),
				op(api.KVUnlock, p.Key, by(old)), op(api.KVLock, p.Key, by(s), value(s))}
		}
		res := e.txn(take(first)...)
		token := res[len(res)-1].ModifyIndex
		e.refused(take(second),
			fmt.Sprintf("0: failed session check for key %q, current session %q != %q", p.Key, first, old),
			fmt.Sprintf("1: failed index check for key %q, current modify index %d != %d", p.Key, token, p.ModifyIndex),
			fmt.Sprintf("2: failed to unlock key %q, lock isn't held, or is held by another session", p.Key),
			fmt.Sprintf("3: failed to lock key %q, lock is already held", p.Key))
		same(e, "session", e.get(p.Key).Session, first)
	}},
	{"break and take is refused if the evidence moved", func(e *env) {
		old, fresh := e.session(), e.session()
		p := e.mustAcquire(e.key("lock"), old, "old")
		progress := e.put(e.key("progress"), "1")
		moved := e.put(progress.Key, "2")
		e.refused(ops{op(api.KVCheckIndex, progress.Key, at(progress.ModifyIndex)),
			op(api.KVUnlock, p.Key, by(old)), op(api.KVLock, p.Key, by(fresh))},
			fmt.Sprintf("0: failed index check for key %q, current modify index %d != %d", progress.Key, moved.ModifyIndex, progress.ModifyIndex))
		got := e.get(p.Key)
		same(e, "session", got.Session, old)
		same(e, "modify index", got.ModifyIndex, p.ModifyIndex)
	}},
	{"release has no lock-delay", func(e *env) {
		s, other := e.session(lockDelay(time.Minute)), e.session()
		p := e.mustAcquire(e.key("a"), s, "one")
		ok, _, err := e.kv.Release(&api.KVPair{Key: p.Key, Session: s}, e.w())
		e.must(err)
		same(e, "release", ok, true)
		e.mustAcquire(p.Key, other, "two")
	}},
	{"lock-delay after a destroyed session", func(e *env) {
		const delay = 2 * time.Second
		s, other := e.session(lockDelay(delay)), e.session()
		p := e.mustAcquire(e.key("a"), s, "record")
		start := time.Now()
		e.destroy(s)
		free := e.get(p.Key)
		same(e, "session", free.Session, "")
		same(e, "value", string(free.Value), "record")
		same(e, "lock index", free.LockIndex, p.LockIndex)
		same(e, "acquire under lock-delay", e.acquire(p.Key, other, "x"), false)
		e.refused(ops{op(api.KVLock, p.Key, by(other))}, fmt.Sprintf("0: failed to lock key %q due to lock delay", p.Key))
		e.put(p.Key, "anybody may write")
		e.retry("lock-delay ends", delay+e.tgt.Slack, func() bool { return e.acquire(p.Key, other, "two") })
		if took := time.Since(start); took < delay-50*time.Millisecond {
			e.Errorf("locked %v after the session ended, under a lock-delay of %v", took, delay)
		}
	}},
	{"lock-delay of 1 ms is as good as none", func(e *env) {
		s, other := e.session(lockDelay(time.Millisecond)), e.session()
		p := e.mustAcquire(e.key("a"), s, "one")
		e.destroy(s)
		e.retry("locked", time.Second, func() bool { return e.acquire(p.Key, other, "two") })
	}},
	{"behavior delete", func(e *env) {
		s := e.session(func(se *api.SessionEntry) { se.Behavior, se.LockDelay = api.SessionBehaviorDelete, time.Minute })
		other := e.session()
		p := e.mustAcquire(e.key("a"), s, "one")
		e.destroy(s)
		same(e, "found", e.find(p.Key) != nil, false)
		same(e, "acquire under lock-delay", e.acquire(p.Key, other, "x"), false)
	}},
	{"a destroyed session frees all that it holds", func(e *env) {
		s := e.session()
		for i := range 20 {
			e.mustAcquire(e.key(fmt.Sprint(i)), s, "x")
		}
		e.destroy(s)
		pairs, _, err := e.kv.List(e.prefix, e.q())
		e.must(err)
		same(e, "keys", len(pairs), 20)
		for _, p := range pairs {
			same(e, "session of "+p.Key, p.Session, "")
			same(e, "modify index of "+p.Key, p.ModifyIndex, pairs[0].ModifyIndex)
		}
		// A key that it held would be refused for its lock-delay instead.
		_, _, err = e.kv.Acquire(&api.KVPair{Key: e.key("other"), Session: s}, e.w())
		e.mustFail(err, "invalid session")
	}},
	{"delete-tree takes held keys along", func(e *env) {
		s := e.session(lockDelay(time.Minute))
		p := e.mustAcquire(e.key("t/a"), s, "one")
		_, err := e.kv.DeleteTree(e.key("t/"), e.w())
		e.must(err)
		same(e, "found", e.find(p.Key) != nil, false)
		e.mustAcquire(p.Key, e.session(), "two")
	}},
}
