package chaos

import (
	"bytes"
	"encoding/json"
	"io"

	"github.com/hashicorp/consul/api"
)

// stale reads what a server has itself.
var stale = &api.QueryOptions{AllowStale: true}

func (w *world) snapshot(m *machine) []byte {
	w.t.Helper()
	var out []byte
	w.until(recovery, "a snapshot is taken", func() bool {
		r, _, err := w.client(m).Snapshot().Save(nil)
		if err != nil {
			w.note("snapshot: %v", err)
			return false
		}
		defer r.Close()
		out, err = io.ReadAll(r)
		return err == nil
	})
	return out
}

func (w *world) restore(m *machine, snapshot []byte) {
	w.t.Helper()
	w.until(recovery, "the snapshot is restored", func() bool {
		err := w.client(m).Snapshot().Restore(nil, bytes.NewReader(snapshot))
		if err != nil {
			w.note("restore: %v", err)
		}
		return err == nil
	})
}

func epochOf(w *world, out string) uint64 {
	var r struct {
		Epoch uint64 `json:"epoch"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		w.t.Fatalf("recover says %q: %v", out, err)
	}
	return r.Epoch
}
