// Package metrics has the Prometheus metrics of an agent and of whoever drives a
// rollout; those of the locksmith are in package guard. Their names are public
// interface: docs/metrics.md lists them.
package metrics

import (
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

const namespace = "aimlock"

// Handler serves a registry at /metrics.
func Handler(r *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	return mux
}

// registry has what every process has.
func registry(more ...prometheus.Collector) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.MustRegister(more...)
	return r
}

func desc(subsystem, name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, name), help, labels, nil)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// rolloutStates are all states, so that each has a series from the beginning.
var rolloutStates = []orchestrator.Status{
	orchestrator.Waiting, orchestrator.Running, orchestrator.Baking, orchestrator.Paused, orchestrator.RollingBack,
	orchestrator.Succeeded, orchestrator.Failed, orchestrator.RolledBack, orchestrator.Aborted, orchestrator.Superseded,
}

var classes = []orchestrator.Class{
	orchestrator.ClassPending, orchestrator.ClassApplied, orchestrator.ClassFailed, orchestrator.ClassUnreachable,
	orchestrator.ClassSkipped, orchestrator.ClassRolledBack, orchestrator.ClassSuperseded,
}

// Rollout are the metrics of one rollout, as its orchestrator knows it.
type Rollout struct {
	Registry *prometheus.Registry

	mu     sync.Mutex
	header *orchestrator.Header

	state, nodes, flight, stage, stages, token, started, finished, update *prometheus.Desc
}

// NewRollout makes them. Before the first Tell there are none.
func NewRollout() *Rollout {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return desc("rollout", name, help, append([]string{"name"}, labels...)...)
	}
	r := &Rollout{
		state:    d("state", "1 for the state that the rollout is in, 0 for all others.", "state"),
		nodes:    d("nodes", "Nodes of the rollout, by class.", "class"),
		flight:   d("in_flight_nodes", "Nodes that have an order and have not answered it."),
		stage:    d("stage_index", "The present or last stage, from 0."),
		stages:   d("stages", "Stages of the rollout."),
		token:    d("fencing_token", "Fencing token of the hold that drives it."),
		started:  d("start_timestamp_seconds", "When it began; 0: not yet."),
		finished: d("end_timestamp_seconds", "When it ended; 0: not yet."),
		update:   d("update_timestamp_seconds", "When it was last decided upon."),
	}
	r.Registry = registry(r)
	return r
}

// Tell takes in how the rollout stands.
func (r *Rollout) Tell(h *orchestrator.Header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.header = h
}

// Describe is for a registry.
func (r *Rollout) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{r.state, r.nodes, r.flight, r.stage, r.stages, r.token, r.started, r.finished, r.update} {
		ch <- d
	}
}

// Collect is for a registry.
func (r *Rollout) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	h := r.header
	r.mu.Unlock()
	if h == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{text.Printable(h.Name)}, labels...)...)
	}
	for _, s := range rolloutStates {
		gauge(r.state, truth(h.State == s), string(s))
	}
	for _, c := range classes {
		gauge(r.nodes, float64(h.Counts[c]), c.String())
	}
	gauge(r.flight, float64(h.InFlight))
	gauge(r.stage, float64(h.StageIndex))
	gauge(r.stages, float64(len(h.Stages)))
	gauge(r.token, float64(h.Token))
	begun, ended := 0.0, 0.0
	if h.StartedAt != nil {
		begun = float64(h.StartedAt.UnixMilli()) / 1000
	}
	if h.FinishedAt != nil {
		ended = float64(h.FinishedAt.UnixMilli()) / 1000
	}
	gauge(r.started, begun)
	gauge(r.finished, ended)
	gauge(r.update, float64(h.UpdatedAt.UnixMilli())/1000)
}

// results of orders.
var results = []string{records.ResultApplied, records.ResultFailed, records.ResultRefused}

// Agent are the metrics of one node's agent.
type Agent struct {
	Registry *prometheus.Registry

	look func() agent.Standing

	answers, applied, drifted, waiting, token, changed, unsent, reachable *prometheus.Desc
}

// NewAgent makes them; look is [agent.Agent.Standing].
func NewAgent(look func() agent.Standing) *Agent {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return desc("agent", name, help, labels...)
	}
	a := &Agent{
		look:      look,
		answers:   d("answers_total", "Orders answered since the start, by result.", "result"),
		applied:   d("config_applied", "1 if the last order for the config was applied, 0 if it failed or was refused.", "config"),
		drifted:   d("config_drifted", "1 if what stands on the disk is not what the last order left.", "config"),
		waiting:   d("config_waiting", "1 if the newest order waits for others that belong to it.", "config"),
		token:     d("config_fencing_token", "Fencing token of the order that was answered last.", "config"),
		changed:   d("config_answer_timestamp_seconds", "When the config's last order was answered, by this node's clock.", "config"),
		unsent:    d("unsent_answers", "Answers that do not stand in Consul yet."),
		reachable: d("consul_reachable", "0 while Consul cannot be had: the node keeps what it has."),
	}
	a.Registry = registry(a)
	return a
}

// Describe is for a registry.
func (a *Agent) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{a.answers, a.applied, a.drifted, a.waiting, a.token, a.changed, a.unsent, a.reachable} {
		ch <- d
	}
}

// Collect is for a registry.
func (a *Agent) Collect(ch chan<- prometheus.Metric) {
	st := a.look()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, r := range results {
		ch <- prometheus.MustNewConstMetric(a.answers, prometheus.CounterValue, float64(st.Answers[r]), r)
	}
	for config, rep := range st.Reports {
		gauge(a.applied, truth(rep.Result == records.ResultApplied), config)
		gauge(a.drifted, truth(rep.Drift != nil), config)
		gauge(a.waiting, truth(rep.Waiting != ""), config)
		gauge(a.token, float64(rep.Token), config)
		gauge(a.changed, float64(rep.Time.UnixMilli())/1000, config)
	}
	gauge(a.unsent, float64(st.Unsent))
	gauge(a.reachable, truth(st.Reachable))
}
