package agent

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// What is still on its way of an answer that was given up for lost does not stand in
// place of a newer one when it arrives.
func TestAnswerThatArrivesLate(t *testing.T) {
	t.Parallel()
	srv, err := devconsul.New(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	var late consulkvtest.Late
	direct := consulkvtest.InProcess(srv.Handler())
	consul, err := consulkv.New(consulkv.Config{Wrap: func(next http.RoundTripper) http.RoundTripper { return late.Wrap(direct(next)) }})
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Node: "n1", StateDir: t.TempDir(), Root: t.TempDir(), Consul: consul})
	if err != nil {
		t.Fatal(err)
	}
	answer := func(token uint64) *records.Actual {
		return &records.Actual{
			Version: records.Version, Node: "n1", Config: conf, Order: order(token, 1), Rollout: "r", Result: records.ResultApplied,
			Revision: strings.Repeat("a", 12), Instance: "I", Time: time.Unix(int64(token), 0).UTC(),
		}
	}
	key := keys.Prefix(keys.DefaultPrefix).Actual(conf, "n1")
	stands := func() (orchestrator.Order, uint64) {
		t.Helper()
		kv, err := consul.Get(t.Context(), key)
		if err != nil || kv == nil {
			t.Fatal(kv, err)
		}
		var rep records.Actual
		if err := records.Decode(key, kv.Value, &rep); err != nil {
			t.Fatal(err)
		}
		return rep.Order, kv.ModifyIndex
	}
	put := func(token uint64) error { return a.reports.put(t.Context(), conf, answer(token), false) }
	writes := func(req *http.Request) bool {
		if req.Method != http.MethodPut {
			return false
		}
		b, err := io.ReadAll(req.Body)
		return err == nil && (strings.Contains(string(b), key) || strings.Contains(req.URL.Path, key))
	}

	for i, first := range []bool{true, false} {
		token := uint64(10 * (i + 1))
		if !first {
			if err := put(token - 1); err != nil {
				t.Fatal(err)
			}
		}
		late.Keep(writes)
		if err := put(token); err == nil || late.Kept() != 1 {
			t.Fatalf("nothing was held back: %v", err)
		}
		for _, next := range []uint64{token, token + 1} {
			if err := put(next); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := late.Deliver(); err != nil {
			t.Fatal(err)
		}
		if o, _ := stands(); o != order(token+1, 1) {
			t.Errorf("first: %v: %s stands", first, o)
		}
	}

	// Nor does that of another process of the node, which knows of an older order only.
	a.reports.stands = map[string]uint64{}
	if err := put(20); err != nil {
		t.Fatal(err)
	}
	if o, _ := stands(); o != order(21, 1) {
		t.Errorf("%s stands", o)
	}

	// Consul was restored, or somebody wrote the key: the answer goes in its place.
	if err := consul.Put(t.Context(), key, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if err := put(30); err != nil {
		t.Fatal(err)
	}
	// What arrived although nobody was told so is not written twice.
	o, index := stands()
	a.reports.stands = map[string]uint64{}
	if err := put(30); err != nil || o != order(30, 1) {
		t.Fatal(o, err)
	}
	if _, now := stands(); now != index {
		t.Errorf("written again: index %d, and was %d", now, index)
	}
}
