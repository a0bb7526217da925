package guard

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Roles of a locksmith.
const (
	RoleLeader   = "leader"
	RoleFollower = "follower"
	// RoleBystander may not act: its policies are not the ones applied.
	RoleBystander = "bystander"
	RoleDryRun    = "dry_run"
	// RoleNone stands for election, and nobody is known to lead.
	RoleNone = "none"
)

// Health is the answer of /health.
type Health struct {
	// Status is "ok" or "failing"; Reasons say why it fails, and Notes what is
	// worth knowing though it does not.
	Status  string   `json:"status"`
	Reasons []string `json:"reasons"`
	Notes   []string `json:"notes"`
	Role    string   `json:"role"`
	// Leader names who leads, "" if nobody is known to.
	Leader string `json:"leader"`
	Token  uint64 `json:"token,omitempty"`
	// SweepAge is since how many seconds a part of what is watched cannot be
	// read; 0 while all can.
	SweepAge float64 `json:"sweep_age"`
	Locks    int     `json:"locks"`
	// States counts the locks by state.
	States map[string]int `json:"states"`
	// PolicyHash are the policies in force here, and Applied those applied in
	// Consul, "" if none are.
	PolicyHash string `json:"policy_hash"`
	Applied    string `json:"applied"`
	Suspended  string `json:"suspended,omitempty"`
}

// OK tells whether all is well.
func (h *Health) OK() bool { return h.Status == "ok" }

// Health says how the guard is.
func (g *Guard) Health() *Health {
	b := g.board
	age, stale := b.age()
	b.mu.Lock()
	defer b.mu.Unlock()
	h := &Health{
		Status: "ok", Reasons: []string{}, Notes: []string{}, Leader: b.leading, SweepAge: age.Seconds(), Locks: b.total, States: map[string]int{},
		PolicyHash: b.hash, Applied: b.brakes.applied, Suspended: b.brakes.suspended,
	}
	for _, s := range states {
		h.States[s] = b.states[s]
	}
	fail := func(format string, args ...any) {
		h.Status, h.Reasons = "failing", append(h.Reasons, fmt.Sprintf(format, args...))
	}
	if stale != "" {
		fail("%s", stale)
	}
	if still := time.Since(b.turn); still > turnLimit {
		fail("the loop has stood still for %s", still.Round(time.Second))
	}
	if !b.brakes.known {
		fail("it is not known which policies are applied, nor whether breaking is suspended")
	}
	switch {
	case b.dryRun:
		h.Role = RoleDryRun
	case b.term != nil && b.term.ctx.Err() == nil:
		h.Role, h.Leader, h.Token = RoleLeader, self(), b.term.hold.Token()
	case b.brakes.known && !b.inForce:
		h.Role = RoleBystander
		fail("its policies (%s) are not the ones applied (%s): it does not act", short(b.hash), short(b.brakes.applied))
	case b.leading != "":
		h.Role = RoleFollower
		if b.leadState == locksmith.Hot {
			h.Notes = append(h.Notes, "the leader's lock is HOT")
		}
	default:
		h.Role = RoleNone
		fail("nobody is known to lead")
	}
	if b.brakes.suspended != "" {
		h.Notes = append(h.Notes, "all automatic breaking is suspended by "+b.brakes.suspended)
	}
	if b.reloadErr != "" {
		h.Notes = append(h.Notes, "the last reload failed, and the policies before it are in force: "+b.reloadErr)
	}
	return h
}

// Handler serves /metrics and /health.
func (g *Guard) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.metrics.Registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		h := g.Health()
		w.Header().Set("Content-Type", "application/json")
		if !h.OK() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		_ = enc.Encode(h)
	})
	return mux
}

func hostPID(host string, pid int64) string { return fmt.Sprintf("pid %d on %s", pid, printable(host)) }

func self() string {
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	return hostPID(host, int64(os.Getpid()))
}

// short is a hash as people are shown it.
func short(hash string) string { return fmt.Sprintf("%.12s", hash) }
