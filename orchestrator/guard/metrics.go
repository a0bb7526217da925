package guard

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/aim-control/aimlock/internal/hooks"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// MaxNamedLocks is how many HOT locks metrics name. A label with every lock's
// name would make as many series as there are locks; these are the few that
// somebody has to look at, the first by name, and the rest are counted.
const MaxNamedLocks = 20

// states in the order of trouble.
var states = []string{locksmith.Free, locksmith.Cooling, locksmith.Held, locksmith.Warm, locksmith.Unknown, locksmith.Hot}

// KnownState tells whether the label state has this value.
func KnownState(s string) bool { return slices.Contains(states, s) }

// Metrics are those of one locksmith, in a registry of their own. Their names
// are public interface; docs/locksmith.md lists them.
type Metrics struct {
	Registry *prometheus.Registry

	judgements prometheus.Counter
	changes    *prometheus.CounterVec
	breaks     *prometheus.CounterVec
	refusals   *prometheus.CounterVec
	duration   prometheus.Histogram
	terms      prometheus.Counter
	errors     *prometheus.CounterVec
	requests   *prometheus.CounterVec
	reloads    *prometheus.CounterVec
	// lostEntries are those that the journal did not take.
	lostEntries atomic.Int64
}

const namespace, subsystem = "aimlock", "locksmith"

// NewMetrics makes the metrics, with those of the process and of Go.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}
	}
	m := &Metrics{
		Registry:   prometheus.NewRegistry(),
		judgements: prometheus.NewCounter(counter("judgements_total", "Verdicts given.")),
		changes:    prometheus.NewCounterVec(counter("verdict_changes_total", "Verdicts that were another state than the one before, by the new state."), []string{"state"}),
		breaks:     prometheus.NewCounterVec(counter("breaks_total", "Breaks that were begun, by policy and outcome."), []string{"policy", "outcome"}),
		refusals:   prometheus.NewCounterVec(counter("refusals_total", "HOT locks that were not broken because of a brake, by policy; each time it was asked."), []string{"policy"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem, Name: "break_duration_seconds",
			Help: "How long breaks took, the waits of their policies included.", Buckets: []float64{0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 300}}),
		terms:    prometheus.NewCounter(counter("terms_total", "Times that this locksmith began to lead.")),
		errors:   prometheus.NewCounterVec(counter("errors_total", "Errors that were noticed, by where."), []string{"where"}),
		requests: prometheus.NewCounterVec(counter("consul_requests_total", "Requests to Consul that ended, by result: ok, refused (4xx), failed (5xx) or broken (no answer)."), []string{"result"}),
		reloads:  prometheus.NewCounterVec(counter("reloads_total", "Reloads of the policies, by result: applied, unchanged or failed."), []string{"result"}),
	}
	for _, s := range states {
		m.changes.WithLabelValues(s)
	}
	for _, r := range []string{"ok", "refused", "failed", "broken"} {
		m.requests.WithLabelValues(r)
	}
	for _, r := range []string{"applied", "unchanged", "failed"} {
		m.reloads.WithLabelValues(r)
	}
	m.Registry.MustRegister(m.judgements, m.changes, m.breaks, m.refusals, m.duration, m.terms, m.errors, m.requests, m.reloads,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// acted counts how an attempt came out.
func (m *Metrics) acted(r result) {
	switch {
	case r.outcome == ActWould, r.outcome == ActCooled:
	case r.outcome == ActLetGo && r.err != nil:
		// Nobody held it any more, and no break was begun.
	case r.outcome == ActRefused:
		m.refusals.WithLabelValues(r.policy).Inc()
	default:
		m.breaks.WithLabelValues(r.policy, r.outcome).Inc()
		m.duration.Observe(r.took.Seconds())
	}
}

// watch adds what a guard's board shows.
func (m *Metrics) watch(b *board, n *hooks.Notifier) { m.Registry.MustRegister(newGauges(m, b, n)) }

// AllMetrics is a registry with every metric of a locksmith, for the documentation.
func AllMetrics() *prometheus.Registry {
	m := NewMetrics()
	b := newBoard(false)
	b.hot["lock"] = struct{}{}
	m.watch(b, nil)
	return m.Registry
}

// gauges reads the board when it is asked, so that what it shows belongs together.
type gauges struct {
	m                                                            *Metrics
	n                                                            *hooks.Notifier
	b                                                            *board
	locks, hot, unnamed, leader, age, inForce, suspended, policy *prometheus.Desc
	reload, reloadAt, turn, dropped                              *prometheus.Desc
}

var _ prometheus.Collector = (*gauges)(nil)

func newGauges(m *Metrics, b *board, n *hooks.Notifier) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, name), help, labels, nil)
	}
	return &gauges{
		m:         m,
		n:         n,
		b:         b,
		locks:     desc("locks", "Locks that are watched, by state.", "state"),
		hot:       desc("hot_lock", "1 for each HOT lock, the first 20 by name.", "lock"),
		unnamed:   desc("hot_locks_unnamed", "HOT locks that hot_lock does not name."),
		leader:    desc("leader", "1 if this locksmith leads, else 0."),
		age:       desc("sweep_age_seconds", "Since when a part of what is watched cannot be read; 0 while all can."),
		inForce:   desc("policies_in_force", "1 if its policies may act: they are the ones applied, or none are."),
		suspended: desc("suspended", "1 if all automatic breaking is suspended."),
		policy:    desc("policies_info", "Always 1; the hash of the policies that it judges by.", "hash"),
		reload:    desc("last_reload_successful", "0 if the last reload of the policies failed."),
		reloadAt:  desc("last_reload_timestamp_seconds", "When the policies were reloaded last, whatever came of it; 0: never."),
		turn:      desc("loop_turn_timestamp_seconds", "When the loop turned last."),
		dropped:   desc("dropped_total", "What could not be written or delivered and was dropped, by what: journal or hook.", "what"),
	}
}

// Describe is for a registry.
func (c *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.locks, c.hot, c.unnamed, c.leader, c.age, c.inForce, c.suspended, c.policy, c.reload, c.reloadAt, c.turn, c.dropped} {
		ch <- d
	}
}

// Collect is for a registry.
func (c *gauges) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	age, _ := c.b.age()
	names, more := c.b.hotNames(MaxNamedLocks)
	seen := map[string]bool{}
	for _, n := range names {
		// Two names may look the same once they can be printed.
		if n = printable(n); !seen[n] {
			seen[n] = true
			gauge(c.hot, 1, n)
		} else {
			more++
		}
	}
	gauge(c.unnamed, float64(more))
	gauge(c.age, age.Seconds())
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	for _, s := range states {
		gauge(c.locks, float64(c.b.states[s]), s)
	}
	gauge(c.leader, truth(c.b.term != nil && c.b.term.hold != nil && c.b.term.ctx.Err() == nil))
	gauge(c.inForce, truth(c.b.brakes.known && c.b.inForce))
	gauge(c.suspended, truth(c.b.brakes.suspended != ""))
	gauge(c.policy, 1, c.b.hash)
	gauge(c.reload, truth(c.b.reloadErr == ""))
	gauge(c.reloadAt, stamp(c.b.reloadedAt))
	gauge(c.turn, stamp(c.b.turn))
	lost := int64(0)
	for _, st := range c.n.Stats() {
		lost += st.Lost
	}
	ch <- prometheus.MustNewConstMetric(c.dropped, prometheus.CounterValue, float64(lost), "hook")
	ch <- prometheus.MustNewConstMetric(c.dropped, prometheus.CounterValue, float64(c.m.lostEntries.Load()), "journal")
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func stamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
