package evidence_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// TestRecordedNomad replays what a real Nomad answered; see testdata/nomad.
func TestRecordedNomad(t *testing.T) {
	t.Parallel()
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata/nomad", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	lost, down, token := read("allocation-lost.json"), read("node-down.json"), read("token-without-acls.json")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Nomad-Index", "30")
		switch path := r.URL.Path; {
		case path == "/v1/allocation/"+anAlloc:
			_, _ = w.Write(lost)
		case strings.HasPrefix(path, "/v1/node/"):
			_, _ = w.Write(down)
		case path == "/v1/acl/token/self":
			_, _ = w.Write(token)
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte("alloc not found"))
		}
	}))
	defer srv.Close()
	c, err := nomadapi.New(nomadapi.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	n := evidence.NewNomad(c)
	a, index, err := n.Alloc(t.Context(), evidence.AllocRef{ID: anAlloc, Region: "global"}, evidence.Since{})
	if err != nil || a.ClientStatus != "lost" || a.DesiredStatus != "stop" || a.NodeStatus != "down" || a.Job != "stays" || index != 30 {
		t.Errorf("of one that is lost: %+v at %d, %v", a, index, err)
	}
	a, _, err = n.Alloc(t.Context(), evidence.AllocRef{ID: strings.Replace(anAlloc, "5", "6", 1), Region: "global"}, evidence.Since{})
	if err != nil || !a.Gone {
		t.Errorf("of one that was collected, without ACLs: %+v, %v", a, err)
	}
}
