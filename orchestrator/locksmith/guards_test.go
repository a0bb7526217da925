package locksmith

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
)

// The tests of this file hold the guards in their places, on the wire: some of
// them overlap as long as Consul is what it is, and each is there for the day
// on which it is not.

// txns records the transactions that match picks, from now on.
func (w *world) txns(match func(*http.Request) bool) func() [][]*api.KVTxnOp {
	var out [][]*api.KVTxnOp
	w.faults.Add(devconsul.Fault{Match: func(r *http.Request) bool {
		if r.URL.Path != "/v1/txn" || match != nil && !match(r) {
			return false
		}
		var ops []struct{ KV *api.KVTxnOp }
		if json.Unmarshal([]byte(bodyOf(r)), &ops) == nil {
			var list []*api.KVTxnOp
			for _, op := range ops {
				list = append(list, op.KV)
			}
			out = append(out, list)
		}
		return false
	}})
	return func() [][]*api.KVTxnOp { return out }
}

func hasOp(ops []*api.KVTxnOp, verb api.KVOp, key, session string, index uint64) bool {
	for _, op := range ops {
		if op != nil && op.Verb == verb && op.Key == key && op.Session == session && op.Index == index {
			return true
		}
	}
	return false
}

// Every write of a holder begins with check-session and check-index of every
// lock that it holds.
func TestEveryWriteOfAHolderBeginsWithItsGuards(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), several("a", "b"))
		sent := w.txns(nil)
		w.progress(h)
		if _, err := h.Txn(t.Context(), consulkv.Set("x", nil)); err != nil {
			t.Fatal(err)
		}
		if err := h.turnPen(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(sent()) != 4 {
			t.Fatalf("%d transactions", len(sent()))
		}
		for i, ops := range sent() {
			for _, n := range h.Names() {
				key := w.keys.Lock(n)
				if !hasOp(ops[:min(4, len(ops))], api.KVCheckSession, key, h.Session(), 0) || !hasOp(ops[:min(4, len(ops))], api.KVCheckIndex, key, "", h.Token()) {
					t.Errorf("transaction %d does not begin with the guards of %s", i, n)
				}
			}
		}
	})
}

// A break rests on its guards: the intent and the last transaction each demand
// the old session, the lock's index, that of the progress, and that of the
// policies; and the intent stands before anything is ended.
func TestEveryBreakBeginsWithItsGuards(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.working("a")
		progress := w.get(w.keys.Progress("a")).ModifyIndex
		sent := w.txns(func(r *http.Request) bool { return w.intentOf("a")(r) || txnWith("unlock", "lock")(r) })
		w.acquire(w.client(withPolicy(t, stalled)), one("a"))
		if len(sent()) != 2 {
			t.Fatalf("%d transactions", len(sent()))
		}
		for i, ops := range sent() {
			key := w.keys.Lock("a")
			for name, ok := range map[string]bool{
				"check-session of the lock":   hasOp(ops, api.KVCheckSession, key, old.Session(), 0),
				"check-index of the lock":     hasOp(ops, api.KVCheckIndex, key, "", old.Token()),
				"check-index of the progress": hasOp(ops, api.KVCheckIndex, w.keys.Progress("a"), "", progress),
				"check of the fence":          hasOp(ops, api.KVCheckNotExists, w.keys.Fence("a"), "", 0),
				"check of the policies":       hasOp(ops, api.KVCheckNotExists, w.keys.PolicyActive(), "", 0),
				"check of the suspension":     hasOp(ops, api.KVCheckNotExists, w.keys.PolicySuspended(), "", 0),
			} {
				if !ok {
					t.Errorf("transaction %d has no %s", i, name)
				}
			}
		}
		intent := w.breaks("a")[0]
		if !hasOp(sent()[0], api.KVCAS, w.keys.Break("a", 0, old.Token(), intent.Attempt), "", 0) {
			t.Error("the intent is not created with cas 0")
		}
	})
}

// Servers that were restored hand out indexes that they handed out before: the
// lock's key can stand at the token of a hold, and be another's.
func TestRestoredServersThatHandOutTheSameIndex(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		key := w.keys.Lock("a")

		srv, err := devconsul.New(devconsul.Config{NodeName: "node-1"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = srv.Close() })
		inner := consulkvtest.InProcess(srv.Handler())
		restored, err := consulkv.New(consulkv.Config{Wrap: inner})
		if err != nil {
			t.Fatal(err)
		}
		other, _, err := restored.API().Session().Create(&api.SessionEntry{LockDelay: time.Millisecond}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			if err := restored.Put(t.Context(), "filler", []byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
			p, err := restored.Get(t.Context(), "filler")
			if err != nil || p.ModifyIndex >= h.Token() {
				t.Fatalf("index %+v, %v", p, err)
			}
			if p.ModifyIndex == h.Token()-1 {
				break
			}
		}
		if ok, _, err := restored.API().KV().Acquire(&api.KVPair{Key: key, Session: other}, nil); err != nil || !ok {
			t.Fatal(ok, err)
		}
		if p, err := restored.Get(t.Context(), key); err != nil || p.ModifyIndex != h.Token() {
			t.Fatalf("%+v, %v: the test tests nothing", p, err)
		}

		w.net.to(inner(nil))
		if _, err := h.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
			t.Fatalf("it writes under the lock of another: %v", err)
		}
		if p, err := restored.Get(t.Context(), "work"); err != nil || p != nil {
			t.Fatalf("%+v, %v", p, err)
		}
		if !errors.Is(context.Cause(h.Context()), ErrLost) {
			t.Fatal("it does not know that it lost")
		}
	})
}

// The epoch is read in the transaction that takes the lock.
func TestEpochOfAHold(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.put(w.keys.Epoch(), " 7\n")
		w.net.before(txnWith("lock"), func() { w.put(w.keys.Epoch(), "8") })
		if h := w.acquire(w.client(), one("a")); h.Epoch() != 8 {
			t.Fatalf("epoch %d", h.Epoch())
		}
	})
}
