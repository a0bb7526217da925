package consulkv_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// entry is an entry of the KV store as Consul sends it.
type entry struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func scanOf(body string) (api.KVPairs, []string, error) {
	h := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", asJSON)
		w.Header().Set("X-Consul-Index", "7")
		_, _ = w.Write([]byte(body))
	}
	c, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(http.RoundTripper) http.RoundTripper { return handlerTransport(h) }})
	if err != nil {
		return nil, nil, err
	}
	var seen []string
	pairs, _, err := c.Scan(context.Background(), "", &api.QueryOptions{}, func(h *consulkv.Head) bool {
		seen = append(seen, string(h.Key))
		return h.Flags != 99
	})
	return pairs, seen, err
}

func TestScan(t *testing.T) {
	t.Parallel()
	in := []entry{
		{Key: "a/ü<&\"\\\n", Value: []byte("x\x00\xff"), Session: "s", Flags: 1<<64 - 1, LockIndex: 3, CreateIndex: 5, ModifyIndex: 1<<64 - 1},
		{Key: "left out", Value: []byte("big"), Flags: 99},
		{Key: "empty"},
		{Key: "none", Value: []byte{}},
	}
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	got, seen, err := scanOf(string(body))
	if err != nil {
		t.Fatal(err)
	}
	want := api.KVPairs{
		{Key: in[0].Key, Value: in[0].Value, Session: "s", Flags: 1<<64 - 1, LockIndex: 3, CreateIndex: 5, ModifyIndex: 1<<64 - 1},
		{Key: "empty"},
		{Key: "none"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if len(seen) != 4 {
		t.Errorf("asked about %q", seen)
	}
}

func TestScanOfNonsense(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		body string
		kind consulkv.Kind
	}{
		"an object":       {`{"Key":"a"}`, consulkv.NotConsul},
		"numbers":         {`[1,2]`, consulkv.NotConsul},
		"a text":          {`no JSON at all`, consulkv.NotConsul},
		"a wrong type":    {`[{"Key":5}]`, consulkv.NotConsul},
		"a bad index":     {`[{"Key":"a","ModifyIndex":-1}]`, consulkv.NotConsul},
		"too large":       {`[{"Key":"a","ModifyIndex":18446744073709551616}]`, consulkv.NotConsul},
		"a bad value":     {`[{"Key":"a","Value":"%%"}]`, consulkv.NotConsul},
		"cut off":         {`[{"Key":"a","Val`, consulkv.Broken},
		"cut off between": {`[{"Key":"a"},`, consulkv.Broken},
		"nothing":         {``, consulkv.Broken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", asJSON)
				_, _ = w.Write([]byte(tc.body))
			}, once)
			_, err := consulkv.Retry(t.Context(), c, "list all keys", func(ctx context.Context) (api.KVPairs, error) {
				p, _, err := c.Scan(ctx, "", &api.QueryOptions{}, func(*consulkv.Head) bool { return true })
				return p, err
			})
			if got := consulkv.KindOf(err); got != tc.kind {
				t.Errorf("kind %q, want %q: %v", got, tc.kind, err)
			}
		})
	}
}

// A server that stops in mid-answer is noticed by the time-out of a request,
// however long a whole scan may take.
func TestScanStalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", RetryFor: time.Nanosecond, Wrap: func(http.RoundTripper) http.RoundTripper {
			return stalled{}
		}})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = consulkv.Retry(t.Context(), c.ForScan(), "list all keys", func(ctx context.Context) (api.KVPairs, error) {
			p, _, err := c.Scan(ctx, "", &api.QueryOptions{}, func(*consulkv.Head) bool { return true })
			return p, err
		})
		if took := time.Since(start); took > 2*consulkv.DefaultTimeout || consulkv.KindOf(err) != consulkv.Broken {
			t.Errorf("%v after %s", err, took)
		}
	})
}

// stalled answers with a beginning, and then nothing for as long as it is
// waited for.
type stalled struct{}

func (stalled) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {asJSON}}, Request: r,
		Body: &stalledBody{ctx: r.Context(), rest: strings.NewReader(`[{"Key":"a"},`)},
	}, nil
}

type stalledBody struct {
	ctx  context.Context
	rest *strings.Reader
}

func (b *stalledBody) Read(p []byte) (int, error) {
	if b.rest.Len() > 0 {
		return b.rest.Read(p)
	}
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

func (*stalledBody) Close() error { return nil }

// handlerTransport serves without a network and without goroutines.
type handlerTransport http.HandlerFunc

func (h handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := newRecorder()
	h(rec, r)
	return rec.response(r), nil
}

// What is scanned is what encoding/json makes of the same answer, and nothing
// panics.
func FuzzScan(f *testing.F) {
	f.Add(`[{"LockIndex":0,"Key":"a","Flags":0,"Value":"eA==","Session":"s","CreateIndex":1,"ModifyIndex":2}]`)
	f.Add(`[{"Key":"\ud83d\ude00\u0000","Value":null},{"Key":""}]`)
	f.Add(`null`)
	f.Add(fmt.Sprintf(`[{"Value":"%s"}]`, base64.StdEncoding.EncodeToString(make([]byte, 100))))
	f.Fuzz(func(t *testing.T, body string) {
		got, _, err := scanOf(body)
		if err != nil {
			return
		}
		var want []entry
		if json.Unmarshal([]byte(body), &want) != nil {
			// encoding/json is stricter about some values that are skipped.
			return
		}
		n := 0
		for _, e := range want {
			if e.Flags != 99 {
				n++
			}
		}
		if len(got) > len(want) || len(got) < n && !strings.Contains(strings.ToLower(body), `"flags"`) {
			t.Errorf("%d entries of %d: %q", len(got), len(want), body)
		}
	})
}

// recorder is the part of an http.ResponseWriter that a test answer needs.
type recorder struct {
	header http.Header
	body   strings.Builder
}

func newRecorder() *recorder { return &recorder{header: http.Header{}} }

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(int)             {}
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

func (r *recorder) response(req *http.Request) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Header: r.header, Request: req, Body: io.NopCloser(strings.NewReader(r.body.String()))}
}
