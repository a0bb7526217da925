package locksmith

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
)

// The whole way over a real connection and on real time: the other tests have
// neither.
func TestOverARealConnection(t *testing.T) {
	t.Parallel()
	srv, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	kv, err := consulkv.New(consulkv.Config{Address: srv.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, srv: srv, kv: kv, keys: "aimlock/"}
	old := w.acquire(w.client(asDead), unfenced("a"))
	w.progress(old)
	start := time.Now()
	h := w.acquire(w.client(), unfenced("a"))
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("took %s", took)
	}
	waitDone(t, old.Context(), 5*time.Second)
	w.stillHolds(h)
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.stillHolds(w.acquire(w.client(), Request{Names: []string{"a"}, Try: true}))
}
