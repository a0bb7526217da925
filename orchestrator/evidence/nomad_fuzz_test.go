package evidence

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/nomadapi"
)

// FuzzNomad: whatever answers where Nomad should. An allocation is gone only if it
// was said to be not there, by one who may see all of them.
func FuzzNomad(f *testing.F) {
	const id = "8ba85cef-26f5-4b6e-9d2f-3f6d2b0e1c11"
	f.Add(`{"ID":"`+id+`","ClientStatus":"running","DesiredStatus":"run","NodeID":"n","JobID":"j"}`, 200, `{"Status":"ready"}`, 200)
	f.Add(`alloc not found`, 404, `{"Type":"management"}`, 200)
	f.Add(`null`, 200, `null`, 200)
	f.Add(`{"NodeID":"../../x\u001b[2J"}`, 200, `[]`, 200)
	f.Add(`{"ClientStatus":5}`, 200, ``, 204)
	f.Add(`alloc not found`, 404, `[null]`, 200)
	f.Add(`alloc not found`, 404, `ACL support disabled`, 400)
	f.Add("\x1b[31m", 403, "", 301)
	var alloc, rest atomic.Pointer[struct {
		body   string
		status int
	}]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := rest.Load()
		if strings.HasPrefix(r.URL.Path, "/v1/allocation/") {
			a = alloc.Load()
		}
		w.Header().Set("X-Nomad-Index", "5")
		w.WriteHeader(a.status)
		_, _ = w.Write([]byte(a.body))
	}))
	f.Cleanup(srv.Close)
	c, err := nomadapi.New(nomadapi.Config{Address: srv.URL})
	if err != nil {
		f.Fatal(err)
	}
	n := NewNomad(c)
	f.Fuzz(func(t *testing.T, body string, status int, other string, otherStatus int) {
		if status < 200 || status > 599 || otherStatus < 200 || otherStatus > 599 || len(body) > 1<<16 || len(other) > 1<<16 {
			return
		}
		alloc.Store(&struct {
			body   string
			status int
		}{body, status})
		rest.Store(&struct {
			body   string
			status int
		}{other, otherStatus})
		start := time.Now()
		a, _, err := n.Alloc(t.Context(), AllocRef{ID: id, Region: "global"}, Since{})
		switch {
		case err != nil:
			if a != nil || strings.ContainsAny(err.Error(), "\x1b\x00") {
				t.Fatalf("%+v beside %q", a, err)
			}
		case a == nil:
			t.Fatal("neither an allocation nor an error")
		case a.Gone && (status != http.StatusNotFound || otherStatus >= 300 && !strings.Contains(other, "ACL support disabled")):
			t.Fatalf("gone by %d %q, %d %q", status, body, otherStatus, other)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Fatalf("it took %s", took)
		}
	})
}
