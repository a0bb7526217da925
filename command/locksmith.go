package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/internal/version"
	"github.com/aim-control/aimlock/orchestrator/guard"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/policies"
)

func newLocksmith(m *Meta) *command {
	f := &locksmithFlags{}
	return &command{
		Meta:     m,
		Synopsis: "Guard all locks that a policy covers",
		Usage:    "[options]",
		Description: `Watches every lock that a policy is for, judges it whenever something about it
changes, and breaks those that are HOT where their policy lets it. A lock that it
breaks is free for whoever wants it.

Several locksmiths may run at once: all of them watch, and one acts, the holder
of the lock aimlock.locksmith. Its progress is judged like that of any other lock,
so that one which hangs is found HOT and broken by another.

On SIGHUP it reads the policies again; where they are not valid it says so, and
those that are in force stay. On SIGTERM it finishes, and lets go of its lock.

With -once it sweeps the locks a single time, acts if no other locksmith leads,
prints what it found and did, and exits 0. Where a rule has a for, or a freeze
asks for the cluster's past, it watches for that long first.`,
		Examples: []example{
			{"What would it do? Nothing is changed", "aimlock locksmith -once -dry-run"},
			{"The daemon, with metrics and health", "aimlock locksmith -policy policies/ -listen 127.0.0.1:9108"},
			{"With the web page", "aimlock locksmith -policy policies/ -ui 127.0.0.1:8911"},
			{"From cron, for a machine", "aimlock locksmith -once -json -policy policies/"},
		},
		Groups: groupConsul | groupPolicy | groupDaemon | groupJSON,
		Flags:  f.register,
		Run: func(ctx context.Context, _ *input) error {
			if m.JSON && !f.once {
				return usagef("-json goes with -once: the daemon reports by its log (-log-json), its metrics and its health (-listen)")
			}
			if f.once && f.ui != "" {
				return usagef("-ui does not go with -once, which ends before anybody could look")
			}
			if f.once && f.listen != "" {
				return usagef("-listen does not go with -once, which ends before anybody could ask it")
			}
			return m.locksmith(ctx, f)
		},
	}
}

type locksmithFlags struct {
	once, dryRun bool
	listen       string
	journal      string
	ui           string
	uiHosts      stringList
}

func (f *locksmithFlags) register(fs *flag.FlagSet) {
	fs.BoolVar(&f.once, "once", false, "Sweep once, report, and exit.")
	fs.BoolVar(&f.dryRun, "dry-run", false, "Judge, and say what would be broken; write nothing to Consul.")
	fs.StringVar(&f.listen, "listen", "", "Serve /metrics (Prometheus) and /health on `ADDRESS`, such as\n127.0.0.1:9108. There is no TLS and no password: keep it off the world.")
	fs.StringVar(&f.ui, "ui", "", "Serve the web page of \"aimlock ui\" on `ADDRESS`, such as "+uiAddress+":\nread-only, and of the locks that the policies cover.")
	fs.Var(&f.uiHosts, "ui-host", "Serve the page under the name `HOST`, too, as browsers ask for it. May be\nrepeated.")
	fs.StringVar(&f.journal, "journal", "", "Keep a journal of what is seen in the folder `DIR`. Or set\nAIMLOCK_JOURNAL, or journal in the config file. Default: none.")
}

// daemonGC is the garbage that may pile up, in percent of what is in use: a
// daemon that watches ten thousand locks has time, and its neighbours memory.
const daemonGC = 40

// journalGC is daemonGC where a journal is kept: at the start every fact of every
// lock is made, written and thrown away.
const journalGC = 25

// guardPolicies reads the policies, and prints what is wrong with them.
func (m *Meta) guardPolicies() (*policies.Set, error) {
	set, diags := m.loadPolicySet(nil)
	if err := m.policyDiagnostics(set, diags); err != nil {
		return nil, err
	}
	return set, nil
}

func (m *Meta) locksmith(ctx context.Context, f *locksmithFlags) error {
	set, err := m.guardPolicies()
	if err != nil {
		return err
	}
	metrics := guard.NewMetrics()
	consul, err := m.consulVia(metrics.Count)
	if err != nil {
		return err
	}
	notifier, err := m.Hooks()
	if err != nil {
		return err
	}
	rec, err := m.recorder(f)
	if err != nil {
		return err
	}
	defer func() {
		if err := rec.Close(); err != nil {
			m.Log.Warn("the journal's end could not be written", "error", err)
		}
	}()
	nomad, err := m.nomadEvidence()
	if err != nil {
		return err
	}
	c, err := locksmith.New(locksmith.Config{
		Consul: consul, Nomad: nomad, Plugins: m.Plugins(), Alloc: m.allocation(), Prefix: m.Prefix, Log: m.Log.Named("lock"), Policies: set, OnBreak: guard.OnBreak(rec, notifier, metrics), As: "locksmith",
	})
	if err != nil {
		return err
	}
	var page *guardPage
	if f.ui != "" {
		page = &guardPage{m: m, ctx: ctx, hosts: f.uiHosts}
	}
	cfg := guard.Config{
		Journal: rec, Hooks: notifier,
		Client: c, Source: guard.Sweeps(c.Reader()), Log: m.Log.Named("locksmith"), DryRun: f.dryRun, Metrics: metrics,
		Load: func() (*policies.Set, error) {
			set, err := m.guardPolicies()
			if err != nil {
				return nil, errors.New("what is wrong with them stands on the locksmith's stderr")
			}
			return set, page.use(set)
		},
	}
	rollouts, err := m.runner(nil)
	if err != nil {
		return err
	}
	cfg.Prune = func(ctx context.Context) (int, bool, error) {
		out, err := rollouts.Prune(ctx, runner.Retention{})
		contents, more := 0, false
		if err == nil {
			// After the rollouts: what those had delivered is not wanted any more.
			contents, more, err = rollouts.PruneContents(ctx)
		}
		if consulkv.KindOf(err) == consulkv.Denied {
			// A locksmith needs no rights on rollouts: who ends one deletes, too.
			err = nil
		}
		return out.Rollouts + out.Plans + contents, out.More || more, err
	}
	if !f.once {
		if m.Env("GOGC") == "" {
			percent := daemonGC
			if rec != nil {
				percent = journalGC
			}
			debug.SetGCPercent(percent)
		}
		var stop func()
		cfg.Reload, stop = signals.Hangups()
		defer stop()
	}
	g, err := guard.New(cfg)
	if err != nil {
		return err
	}
	if f.once {
		rep, err := g.Once(ctx, func(line string) { m.Notef("%s\n", line) })
		if err != nil {
			return err
		}
		return m.showSweep(rep)
	}
	serve, err := m.listen(f.listen, g.Handler())
	if err != nil {
		return err
	}
	defer serve()
	if page != nil {
		stop, err := page.serve(f.ui, g, set)
		if err != nil {
			return err
		}
		defer stop()
	}
	m.started()
	return g.Run(ctx)
}

// recorder opens the journal; nil without one. A single sweep does without where
// the daemon writes it.
func (m *Meta) recorder(f *locksmithFlags) (*locksmith.Recorder, error) {
	dir := m.journalDir(f.journal)
	if dir == "" {
		return nil, nil
	}
	w, err := journal.Open(dir, journal.Options{Start: journal.Start{Program: version.Get().Version, Lag: guard.Lag}})
	if used, ok := errors.AsType[*journal.InUseError](err); ok && f.once {
		m.Notef("Warning: this sweep is not in the journal: %s\n", used)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return locksmith.NewRecorder(w), nil
}

// listen serves h until the function that it returns is called; nothing for an
// empty address.
func (m *Meta) listen(addr string, h http.Handler) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("-listen %s: %w", addr, err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			m.Log.Error("metrics and health are not served any more", "error", err)
		}
	}()
	m.Log.Info("serving metrics and health", "address", l.Addr().String())
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		<-done
	}, nil
}

// sweepView is the result of "locksmith -once -json".
type sweepView struct {
	At         time.Time      `json:"at"`
	PolicyHash string         `json:"policy_hash"`
	DryRun     bool           `json:"dry_run"`
	Acting     bool           `json:"acting"`
	NotActing  string         `json:"not_acting,omitempty"`
	Counts     map[string]int `json:"counts"`
	Broken     int            `json:"broken"`
	Locks      []sweptView    `json:"locks"`
}

// sweptView is one lock of it: what "lock list -json" shows, and what was done.
type sweptView struct {
	*locksmith.Status
	// Action is broken, let_go, would, refused, cooled, stopped, timed_out,
	// failed, or empty.
	Action string `json:"action"`
	Detail string `json:"detail"`
}

func (m *Meta) showSweep(rep *guard.Report) error {
	v := sweepView{
		At: rep.At, PolicyHash: rep.PolicyHash, DryRun: rep.DryRun, Acting: rep.Acting, NotActing: rep.NotActing,
		Counts: map[string]int{}, Locks: []sweptView{},
	}
	for _, l := range rep.Locks {
		l.Status.Evidence = nil
		v.Counts[l.Status.State]++
		if l.Action == guard.ActBroken {
			v.Broken++
		}
		v.Locks = append(v.Locks, sweptView{Status: l.Status, Action: l.Action, Detail: l.Detail})
	}
	switch {
	case m.JSON:
		if err := m.PrintJSON(v); err != nil {
			return err
		}
	default:
		if err := m.sweepTable(v.Locks); err != nil {
			return err
		}
	}
	if rep.NotActing != "" {
		m.Notef("Nothing was broken: %s.\n", rep.NotActing)
	}
	if n := rep.Failed(); n > 0 {
		return exitf(ExitFailed, "%s could not be broken; see what was done", text.Count(n, "HOT lock"))
	}
	return nil
}

func (m *Meta) sweepTable(list []sweptView) error {
	if len(list) == 0 {
		m.Notef("No locks that a policy is for.\n")
		return nil
	}
	w := tabwriter.NewWriter(m.Stdout, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "LOCK\tSTATE\tRULE\tHOLDER\tDONE")
	for _, l := range list {
		who, done := "-", first(l.Action, "-")
		if l.Session != nil {
			who = shortHolder(l.Status)
		}
		if l.Detail != "" {
			done += ": " + l.Detail
		}
		_, _ = fmt.Fprint(w, m.plain(fmt.Sprintf("%s\t%s\t%s\t%s\t%s\n", text.Printable(l.Name), l.State, first(l.Rule, "-"), text.Printable(who), text.Clip(text.Printable(done), 160))))
	}
	return w.Flush()
}
