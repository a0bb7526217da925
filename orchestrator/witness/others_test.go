package witness_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/records"
)

// Of what else is registered on its node, holders under another prefix included,
// the witness is sent nothing: each of its reads of the services is as large as one.
func TestOtherServicesAreNotSent(t *testing.T) {
	t.Parallel()
	var reads, most atomic.Int64
	h := newHostVia(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/v1/catalog/node/") {
				next.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			reads.Add(1)
			most.Store(max(most.Load(), int64(strings.Count(rec.Body.String(), `"Service":`))))
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes())
		})
	}, nil)
	meta, _ := records.HolderMeta("other/", []string{"a"}, nil)
	for i := range 20 {
		for _, s := range []api.AgentServiceRegistration{{Name: "web"}, {Name: records.HolderService, Meta: meta}} {
			s.ID = fmt.Sprintf("%s-%d", s.Name, i)
			if err := h.kv.API().Agent().ServiceRegister(&s); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.hold(func(*records.Holder) {})
	h.until("alive", func(o *records.Observed) bool { return o != nil && o.Alive != nil && *o.Alive })
	if reads.Load() == 0 || most.Load() != 1 {
		t.Errorf("%d reads, and the largest has %d services", reads.Load(), most.Load())
	}
}
