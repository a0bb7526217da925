// Package nomadtest keeps what a real Nomad answered, and answers so again: the
// client is tested on it where there is no Nomad. The recordings stand in the
// folder recorded, and each says of which version it is and how it was made.
//
// The end-to-end tests make them anew, with NOMAD_RECORD=1 and NOMAD_BIN.
package nomadtest

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/aim-control/aimlock/internal/nomadapi"
)

//go:embed recorded/*.json
var recorded embed.FS

// indexHeader tells the Raft index of an answer.
const indexHeader = "X-Nomad-Index"

// Recording is what was asked of a Nomad in one case, and what it answered.
type Recording struct {
	// Version is Nomad's, such as 2.0.5, and How says what it was set up to be.
	Version   string     `json:"version"`
	How       string     `json:"how"`
	Exchanges []Exchange `json:"exchanges"`
}

// Exchange is one request and its answer. Of a body that is JSON, what tells
// about the machine that it was recorded on is left out, and secrets are.
type Exchange struct {
	// Request is the method and the path with its query, in the order of its keys.
	Request string `json:"request"`
	Status  int    `json:"status"`
	Index   uint64 `json:"index,omitempty"`
	// Body is JSON, or a string for what is none.
	Body json.RawMessage `json:"body"`
}

func load(t testing.TB, name string) *Recording {
	t.Helper()
	b, err := recorded.ReadFile("recorded/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	rec := &Recording{}
	if err := json.Unmarshal(b, rec); err != nil {
		t.Fatalf("recording %s: %v", name, err)
	}
	if rec.Version == "" || rec.How == "" || len(rec.Exchanges) == 0 {
		t.Fatalf("recording %s does not say how it was made, or is empty", name)
	}
	return rec
}

var allocation = regexp.MustCompile(`/v1/allocation/([0-9a-f-]{36})`)

// AllocOf is the allocation that the first request of a recording is about.
func AllocOf(t testing.TB, name string) string {
	t.Helper()
	m := allocation.FindStringSubmatch(load(t, name).Exchanges[0].Request)
	if m == nil {
		t.Fatalf("recording %s does not begin with an allocation", name)
	}
	return m[1]
}

// Replay makes a client whose Nomad gives the answers of a recording. Requests
// that were not made then fail the test.
func Replay(t testing.TB, name string) *nomadapi.Client {
	t.Helper()
	c, err := nomadapi.New(nomadapi.Config{Address: Serve(t, name).Addr, Token: "00000000-0000-0000-0000-000000000000"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Server gives the answers of a recording.
type Server struct {
	// Addr is its URL.
	Addr string

	mu    sync.Mutex
	rec   *Recording
	asked []string
}

// Serve serves the answers of a recording until the test ends. Requests that were
// not made then fail the test.
func Serve(t testing.TB, name string) *Server {
	t.Helper()
	s := &Server{rec: load(t, name)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		is := requestOf(r)
		e, ok := s.answer(is)
		if !ok {
			t.Errorf("recording %s has no answer to %s", name, is)
			w.WriteHeader(http.StatusTeapot)
			return
		}
		if e.Index > 0 {
			w.Header().Set(indexHeader, strconv.FormatUint(e.Index, 10))
		}
		body := []byte(e.Body)
		if bytes.HasPrefix(body, []byte(`"`)) {
			var text string
			if err := json.Unmarshal(body, &text); err != nil {
				t.Error(err)
			}
			body = []byte(text)
		}
		w.WriteHeader(e.Status)
		_, _ = w.Write(body)
	}))
	t.Cleanup(srv.Close)
	s.Addr = srv.URL
	return s
}

// Asked counts the requests whose method and path begin so.
func (s *Server) Asked(begin string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, is := range s.asked {
		if strings.HasPrefix(is, begin) {
			n++
		}
	}
	return n
}

func (s *Server) answer(is string) (Exchange, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, is)
	i := slices.IndexFunc(s.rec.Exchanges, func(e Exchange) bool { return e.Request == is })
	if i < 0 {
		return Exchange{}, false
	}
	e := s.rec.Exchanges[i]
	// The last answer to a request stands for all that follow.
	if slices.ContainsFunc(s.rec.Exchanges[i+1:], func(e Exchange) bool { return e.Request == is }) {
		s.rec.Exchanges = slices.Delete(s.rec.Exchanges, i, i+1)
	}
	return e, true
}

// requestOf leaves out of a request what differs from one to the next: how long
// it may wait.
func requestOf(r *http.Request) string {
	q := r.URL.Query()
	q.Del("wait")
	out := r.Method + " " + r.URL.EscapedPath()
	if len(q) > 0 {
		out += "?" + q.Encode()
	}
	return out
}

// Recorder stands before a real Nomad and keeps what goes by.
type Recorder struct {
	// Addr is where to ask instead.
	Addr string

	t   testing.TB
	mu  sync.Mutex
	rec Recording
}

// Record starts a recorder before the Nomad at addr, until the test ends.
func Record(t testing.TB, addr string) *Recorder {
	t.Helper()
	to, err := url.Parse(addr)
	if err != nil {
		t.Fatal(err)
	}
	r := &Recorder{t: t}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(to)
			p.Out.Header.Del("Accept-Encoding")
		},
		ModifyResponse: r.took,
	}
	srv := httptest.NewServer(proxy)
	t.Cleanup(srv.Close)
	r.Addr = srv.URL
	return r
}

func (r *Recorder) took(res *http.Response) error {
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	e := Exchange{Request: requestOf(res.Request), Status: res.StatusCode}
	if s := res.Header.Get(indexHeader); s != "" {
		if e.Index, err = strconv.ParseUint(s, 10, 64); err != nil {
			return err
		}
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber() // times in nanoseconds are no floats
	if d.Decode(&v) == nil {
		v = scrub(v)
	} else {
		v = string(body)
	}
	if e.Body, err = json.Marshal(v); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec.Exchanges = append(r.rec.Exchanges, e)
	return nil
}

// machine are the fields that tell about the machine or its set-up and that
// nobody reads.
var machine = map[string]bool{
	"AllocatedResources": true, "Attributes": true, "CSIControllerPlugins": true, "CSINodePlugins": true, "Drivers": true, "Events": true,
	"HTTPAddr": true, "HostNetworks": true, "HostVolumes": true, "LastDrain": true, "Links": true, "Metrics": true, "NodeResources": true,
	"Reserved": true, "ReservedResources": true, "Resources": true, "SharedResources": true, "SignedIdentities": true, "SigningKeyID": true,
	"TaskResources": true, "TaskStates": true, "TLSEnabled": true, "Address": true,
}

func scrub(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key := range maps.Clone(v) {
			switch {
			case machine[key]:
				delete(v, key)
			case key == "SecretID":
				v[key] = ""
			default:
				v[key] = scrub(v[key])
			}
		}
	case []any:
		for i := range v {
			v[i] = scrub(v[i])
		}
	}
	return v
}

// Drop forgets what went by since the last Save.
func (r *Recorder) Drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rec = Recording{}
}

// Save writes what went by since the last Save, and says of which Nomad it is
// and how it was made, to a file in dir, where NOMAD_RECORD is set.
func (r *Recorder) Save(dir, name, version, how string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.rec
	r.rec = Recording{}
	if os.Getenv("NOMAD_RECORD") == "" {
		return
	}
	rec.Version, rec.How = version, how
	b, err := json.MarshalIndent(rec, "", " ")
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), append(b, '\n'), 0o644); err != nil {
		r.t.Fatal(fmt.Errorf("keep a recording: %w", err))
	}
}
