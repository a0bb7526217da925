package ui

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/htmlreport"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/policies"
)

//go:embed static
var static embed.FS

// Config makes a Server.
type Config struct {
	// Locks and Rollouts read under the server's own token.
	Locks    *locksmith.Client
	Rollouts *runner.Runner
	// Policies are those that this process judges by.
	Policies *policies.Set
	// Rollout and Waiting show rollouts as `aimlock rollout status -json` does.
	Rollout func(*orchestrator.Header) any
	Waiting func(*runner.Waiting) any
	// Act makes what acts under a viewer's token, which may be empty; nil: the
	// page is read-only.
	Act func(token string) (*Actor, error)
	// Hosts are the names by which browsers reach the page, beside the loopback
	// ones: any other is refused, since it may be a page elsewhere that had its
	// name resolved to here.
	Hosts []string
	// Source and PolicySource tell of locks and of policies in place of queries of the
	// page's own, where it stands in a process that watches them anyway; nil: it
	// asks itself. See locksmith.Following, and locksmith.Client.FollowPolicies.
	Source       func(ctx context.Context, tell func([]*evidence.Snapshot)) error
	PolicySource func(ctx context.Context, changed func())
	Log          hclog.Logger
}

// Actor is what acts for one viewer.
type Actor struct {
	Locks    *locksmith.Client
	Rollouts *runner.Runner
}

// Server serves the page. Make it with New.
type Server struct {
	cfg   Config
	log   hclog.Logger
	board *board
	mux   *http.ServeMux
	// csrf is what only the page of this server knows.
	csrf string
}

// New makes a server; it does not connect. It looks at Consul while somebody
// looks at it, until ctx ends.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Locks == nil || cfg.Rollouts == nil || cfg.Policies == nil || cfg.Rollout == nil || cfg.Waiting == nil {
		return nil, errors.New("ui: locks, rollouts, policies and their views are needed")
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.PolicySource == nil {
		cfg.PolicySource = cfg.Locks.FollowPolicies
	}
	s := &Server{cfg: cfg, log: cfg.Log, board: newBoard(ctx, cfg), mux: http.NewServeMux(), csrf: rand.Text()}
	files, err := fs.Sub(static, "static")
	if err != nil {
		return nil, fmt.Errorf("the page's files: %w", err)
	}
	s.mux.Handle("GET /app.css", http.FileServerFS(files))
	s.mux.Handle("GET /app.js", http.FileServerFS(files))
	s.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, files, "index.html")
	})
	s.mux.HandleFunc("GET /setup", s.setup)
	s.mux.HandleFunc("GET /events", s.events)
	s.mux.HandleFunc("GET /report", s.report)
	s.mux.HandleFunc("POST /act", s.act)
	return s, nil
}

// pagePolicy is the page's: nothing from elsewhere, no inline script or style, no
// frame around it.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// ServeHTTP serves the page and what it asks for.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if !s.knows(r.Host) {
		http.Error(w, "this page is not served under that name; name it by -host", http.StatusMisdirectedRequest)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// knows reports whether the page may be asked for under the name in a Host header.
func (s *Server) knows(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if host == "localhost" {
		return true
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		return true
	}
	for _, name := range s.cfg.Hosts {
		if strings.EqualFold(strings.Trim(name, "[]"), host) {
			return true
		}
	}
	return false
}

// setup is what the page must know before its first event.
func (s *Server) setup(w http.ResponseWriter, _ *http.Request) {
	out := struct {
		Prefix  string `json:"prefix"`
		Actions bool   `json:"actions"`
		CSRF    string `json:"csrf,omitempty"`
	}{Prefix: s.cfg.Locks.Prefix(), Actions: s.cfg.Act != nil}
	if out.Actions {
		out.CSRF = s.csrf
	}
	reply(w, http.StatusOK, out)
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the viewer may be gone
}

// failure is how everything but the pages says that it failed.
type failure struct {
	Error string `json:"error"`
}

// reportPatience bounds the reading of what a report needs.
const reportPatience = time.Minute

func (s *Server) report(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), reportPatience)
	defer cancel()
	story, err := s.cfg.Rollouts.Story(ctx, r.URL.Query().Get("id"))
	switch {
	case errors.Is(err, runner.ErrNotFound):
		http.Error(w, "there is no such rollout", http.StatusNotFound)
		return
	case err != nil:
		s.log.Warn("a rollout's report", "error", err)
		http.Error(w, "the report cannot be made now; the log says why", http.StatusBadGateway)
		return
	}
	// The report's own policy allows its one style.
	w.Header().Set("Content-Security-Policy", htmlreport.Policy()+"; frame-ancestors 'none'")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := htmlreport.Write(w, story, time.Now()); err != nil {
		s.log.Debug("a report was not read to its end", "error", err)
	}
}
