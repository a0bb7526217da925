package orchestrator

import (
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs the stories in testdata. Each is a rollout told event by
// event, with what the core answers. Commands:
//
//	plan nodes=N [zones=a,b]     a stage or block in each line of input
//	start                        a process takes the lock and recovers
//	answer [node …] [fail=why]   agents answer; without nodes all that can
//	up|down node …               health of agents
//	gate ANSWER [NAME] [why=…] [value=…]  answers the oldest question (of NAME);
//	                             ANSWER is pass, fail, unknown, pending or error
//	gates                        how the gates stand
//	window open|closed
//	command VERB [node …] [pause=N]  N: the newest pause that its giver saw
//	supersede ID
//	advance DURATION             time passes, with a tick
//	beat                         the header is written, as a runner does now and then
//	die after=N CMD …            the process dies after N effects of CMD
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if filepath.Ext(path) != ".txt" {
			return // golden files, and what fuzzing has found
		}
		sc := &script{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return sc.run(t, d) })
	})
}

type script struct{ w *world }

func (sc *script) run(t *testing.T, d *datadriven.TestData) string {
	if d.Cmd == "plan" {
		return sc.plan(t, d)
	}
	sc.w.t = t
	cmd, args, n := d.Cmd, d.CmdArgs, -1
	if cmd == "die" {
		n, _ = strconv.Atoi(args[0].Vals[0])
		cmd, args = args[1].Key, args[2:]
	}
	if cmd == "gates" {
		return sc.gates()
	}
	if cmd == "start" {
		return sc.show(sc.w.start())
	}
	if sc.w.s == nil {
		d.Fatalf(t, "the process is dead: start another")
	}
	if cmd == "beat" {
		sc.w.header = sc.w.s.Header()
		return fmt.Sprintf("%s used of the deadline\n", sc.w.header.Elapsed)
	}
	return sc.show(sc.w.step(sc.event(t, d, cmd, args), n))
}

func (sc *script) event(t *testing.T, d *datadriven.TestData, cmd string, args []datadriven.CmdArg) Event {
	w := sc.w
	var nodes []int
	why := ""
	index := w.plan.Index()
	for _, a := range args {
		if i, ok := index[a.Key]; ok {
			nodes = append(nodes, i)
		}
		if a.Key == "fail" {
			why = strings.Join(a.Vals, " ")
		}
	}
	switch cmd {
	case "answer":
		if len(nodes) == 0 {
			nodes = w.unanswered()
		}
		var rs Reports
		for _, i := range nodes {
			if r, ok := w.answer(i, why == "", why); ok {
				rs = append(rs, r)
			}
		}
		return rs
	case "up":
		return Health{Up: nodes}
	case "down":
		return Health{Down: nodes}
	case "gate":
		if len(w.asks) == 0 {
			d.Fatalf(t, "no gate is asked")
		}
		which := 0
		ev := GateAnswered{Answer: Answer(args[0].Key)}
		if args[0].Key == "error" {
			ev.Answer, ev.Error = Unknown, true
		}
		for _, a := range args[1:] {
			switch a.Key {
			case "why":
				ev.Why = strings.Join(a.Vals, " ")
			case "value":
				ev.Value = strings.Join(a.Vals, " ")
			default:
				which = slices.IndexFunc(w.asks, func(g AskGate) bool { return g.Gate.Name == a.Key })
				if which < 0 {
					d.Fatalf(t, "gate %s is not asked", a.Key)
				}
			}
		}
		ev.Ask, ev.Gate = w.asks[which].Ask, w.asks[which].Gate.Name
		w.asks = slices.Delete(w.asks, which, which+1)
		return ev
	case "window":
		return WindowChanged{Open: args[0].Key == "open"}
	case "command":
		c := OperatorCommand{N: 1, Verb: Verb(args[0].Key), By: "sam"}
		if h := w.header.Command; h != nil {
			c.N = h.N + 1
		}
		for _, a := range args[1:] {
			if a.Key == "pause" {
				n, err := strconv.ParseUint(a.Vals[0], 10, 64)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				c.Pause = &n
				continue
			}
			c.Nodes = append(c.Nodes, a.Key)
		}
		return c
	case "supersede":
		return Supersede{By: args[0].Key}
	case "advance":
		dur, err := time.ParseDuration(args[0].Key)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		w.now = w.now.Add(dur)
		return Tick{}
	}
	d.Fatalf(t, "unknown command %q", cmd)
	return nil
}

func (sc *script) gates() string {
	var b strings.Builder
	for _, g := range sc.w.header.Gates {
		fmt.Fprintf(&b, "%s/%s %s: %d of %d passed, %d failed, %d unknown, %d errors", g.Stage, g.Name, g.State, g.Passed, g.Needs, g.Failed, g.Unknown, g.Errors)
		if g.Last != "" {
			fmt.Fprintf(&b, "; last %s%s%s", g.Last, g.Value, because(g.Why))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// plan reads "stage NAME key=value …", "gate NAME key=value …", "own key=value …" (the failure block of
// the stage before it), "failure key=value …", "retry key=value …", "rollout
// deadline=…" and "window". select=VALUE means the zone.
func (sc *script) plan(t *testing.T, d *datadriven.TestData) string {
	spec := testSpec()
	num := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		return n
	}
	for line := range strings.Lines(d.Input) {
		f := strings.Fields(line)
		st, g := Stage{}, Gate{Kind: GateConsulChecks}
		if f[0] == "retry" {
			spec.Retry = &Retry{}
		}
		own := func() *StageFailure {
			last := &spec.Stages[len(spec.Stages)-1]
			if last.Failure == nil {
				last.Failure = &StageFailure{Then: spec.Failure.Then}
			}
			return last.Failure
		}
		for _, kv := range f[1:] {
			k, v, ok := strings.Cut(kv, "=")
			switch {
			case !ok:
				st.Name = k
			case k == "nodes":
				st.Nodes = num(v)
			case k == "percent":
				st.Percent = num(v)
			case k == "max_parallel":
				st.MaxParallel = num(v)
			case k == "bake":
				st.Bake, _ = time.ParseDuration(v)
			case k == "gate":
				st.Gate = append(st.Gate, v)
				spec.Gates = append(spec.Gates, Gate{Name: v, Kind: GateConsulChecks})
			case k == "interval":
				g.Interval, _ = time.ParseDuration(v)
			case k == "success_limit":
				g.SuccessLimit = num(v)
			case k == "failure_limit":
				g.FailureLimit = num(v)
			case k == "unknown_limit":
				g.UnknownLimit = num(v)
			case k == "consecutive_error_limit":
				g.ConsecutiveErrorLimit = num(v)
			case k == "during":
				g.During = v
			case k == "wait":
				g.Wait, _ = time.ParseDuration(v)
			case k == "select":
				st.Select = v
			case k == "order":
				st.Order = strings.Split(v, ",")
			case k == "promote":
				st.Promote = v
			case k == "attempts":
				spec.Retry.Attempts = num(v)
			case k == "delay":
				spec.Retry.Delay, _ = time.ParseDuration(v)
			case k == "max_delay":
				spec.Retry.MaxDelay, _ = time.ParseDuration(v)
			case k == "deadline":
				spec.Deadline, _ = time.ParseDuration(v)
			case f[0] == "own" && k == "max_failed":
				n := num(v)
				own().MaxFailed = &n
			case f[0] == "own" && k == "max_unreachable_percent":
				n := num(v)
				own().MaxUnreachablePercent = &n
			case f[0] == "own" && k == "then":
				own().Then = v
			case k == "max_failed":
				spec.Failure.MaxFailed = num(v)
			case k == "max_unreachable_percent":
				spec.Failure.MaxUnreachablePercent = num(v)
			case k == "then":
				spec.Failure.Then = v
			default:
				d.Fatalf(t, "unknown key %q", k)
			}
		}
		switch f[0] {
		case "stage":
			spec.Stages = append(spec.Stages, st)
		case "gate":
			g.Name = st.Name
			spec.Gates = append(spec.Gates, g)
		case "window":
			spec.Window = &Window{}
		}
	}
	var n int
	var zones []string
	d.ScanArgs(t, "nodes", &n)
	if d.HasArg("zones") {
		for _, a := range d.CmdArgs {
			if a.Key == "zones" {
				zones = a.Vals
			}
		}
		spec.Spread = "zone"
	}
	plan, err := NewPlan("r-1", spec, fleet(n, zones...), t0, Selecting(inZone(&spec)))
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	sc.w = newWorld(t, plan)
	var b strings.Builder
	for i, st := range spec.Stages {
		from, end := plan.Stage(i)
		fmt.Fprintf(&b, "%s: %s\n", st.Name, strings.Join(plan.Nodes[from:end], " "))
	}
	for _, w := range plan.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}

func (sc *script) show(effects []Effect) string {
	var b strings.Builder
	names := func(idx []int) string {
		var out []string
		for _, i := range idx {
			out = append(out, sc.w.plan.Nodes[i])
		}
		sort.Strings(out)
		return strings.Join(out, " ")
	}
	for _, e := range effects {
		switch e := e.(type) {
		case Persist:
			h := e.Header
			fmt.Fprintf(&b, "persist  %s, stage %s", h.State, h.Stage)
			if h.Command != nil && !h.Command.OK {
				fmt.Fprintf(&b, ", refused: %s", h.Command.Result)
			}
			b.WriteByte('\n')
		case Assign:
			fmt.Fprintf(&b, "assign   %s: %s\n", e.Order, names(e.Nodes))
		case Restore:
			fmt.Fprintf(&b, "restore  %s: %s\n", e.Order, names(e.Nodes))
		case AskGate:
			fmt.Fprintf(&b, "ask      %s\n", e.Gate.Name)
		case Finish:
			fmt.Fprintf(&b, "finish   %s\n", e.Status)
		case Tell:
			fmt.Fprintf(&b, "tell     %s\n", strings.TrimSpace(e.Node+" "+e.Text))
		}
	}
	if sc.w.s == nil {
		b.WriteString("-- the process is dead\n")
		return b.String()
	}
	fmt.Fprintf(&b, "-- %s, in flight %d,", sc.w.s.Status(), sc.w.s.InFlight())
	for c, n := range sc.w.s.Counts() {
		if n > 0 {
			fmt.Fprintf(&b, " %s %d", Class(c), n)
		}
	}
	if wake := sc.w.s.NextWake(); !wake.IsZero() {
		fmt.Fprintf(&b, ", wake in %s", wake.Sub(sc.w.now).Round(time.Millisecond))
	}
	b.WriteByte('\n')
	return b.String()
}
