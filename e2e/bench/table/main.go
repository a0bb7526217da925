// Command table makes a table in Markdown of what benchmarks print: of each count its
// median over all runs, and how far the runs are apart. It is run by `make bench`.
package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// line is a line of the table: what is measured, by which benchmark and unit.
type line struct{ title, bench, unit string }

// section is a table; each of its figures comes from one run beside what it is
// compared with.
type section struct {
	title, command string
	lines          []line
}

const inBench = "cd e2e && go test -run '^$' -benchtime 1x ./bench -bench "

func sections() []section {
	return []section{
		{"A holder dies, hangs or is stopped", inBench + "'RecoveryAfterKill|Peers|Hang'", []line{
			{"kill -9: `consul lock`, seconds to the next holder", "RecoveryAfterKill/consul-lock", "s/recovery"},
			{"kill -9: `aimlock lock exec`", "RecoveryAfterKill/lock-exec", "s/recovery"},
			{"kill -9: `consul lock` takes longer by, times", "RecoveryAfterKill/lock-exec", "ratio"},
			{"kill -9: `aimlock rollout start`", "RecoveryAfterKill/rollout", "s/recovery"},
			{"kill -9: `consul lock` takes longer by, times", "RecoveryAfterKill/rollout", "ratio"},
			{"kill -9: commands that then run, `consul lock`", "Peers/consul-lock/kill", "commands-at-once"},
			{"kill -9: commands that then run, `etcdctl lock`", "Peers/etcdctl-lock/kill", "commands-at-once"},
			{"kill -9: commands that then run, `aimlock lock exec`", "Peers/lock-exec/kill", "commands-at-once"},
			{"stopped: `consul lock`, seconds", "Peers/consul-lock/stop", "s-to-next"},
			{"stopped: `etcdctl lock`", "Peers/etcdctl-lock/stop", "s-to-next"},
			{"stopped: `aimlock lock exec`", "Peers/lock-exec/stop", "s-to-next"},
			{"stopped: commands that then run, `consul lock`", "Peers/consul-lock/stop", "commands-at-once"},
			{"stopped: commands that then run, `aimlock lock exec`", "Peers/lock-exec/stop", "commands-at-once"},
			{"cut off: `consul lock`, seconds", "Peers/consul-lock/cut", "s-to-next"},
			{"cut off: `etcdctl lock`", "Peers/etcdctl-lock/cut", "s-to-next"},
			{"cut off: `aimlock lock exec`", "Peers/lock-exec/cut", "s-to-next"},
			{"cut off: commands that then run, `consul lock`", "Peers/consul-lock/cut", "commands-at-once"},
			{"cut off: commands that then run, `etcdctl lock`", "Peers/etcdctl-lock/cut", "commands-at-once"},
			{"cut off: commands that then run, `aimlock lock exec`", "Peers/lock-exec/cut", "commands-at-once"},
			{"hangs: `consul lock` still holds after a minute (1 is yes; it never lets go)", "Hang/consul-lock", "held-after-a-minute"},
			{"hangs: `aimlock lock exec` by a policy of 5 s, seconds", "Hang/lock-exec", "s-to-next"},
		}},
		{"Taking a lock", inBench + "AcquireRelease", []line{
			{"acquire and release by the bare API, ms", "AcquireRelease/in-process", "ms-bare-p50"},
			{"aimlock, one acquisition, times the bare API", "AcquireRelease/in-process", "ratio-once"},
			{"aimlock, again and again, times the bare API", "AcquireRelease/in-process", "ratio-again"},
			{"`aimlock lock exec -- true` is faster than `consul lock true` by, times", "AcquireRelease/lock-exec-true", "ratio"},
		}},
		{"A rollout to 10,000 nodes", inBench + "'Scale$|ScaleTraffic'", []line{
			{"the raw floor, seconds", "Scale/nodes-10000", "s-floor"},
			{"the rollout, times the floor", "Scale/nodes-10000", "x-floor"},
			{"processor time of everything, times the floor's", "Scale/nodes-10000", "x-floor-cpu"},
			{"the orchestrator's own processor time, seconds", "Scale/nodes-10000", "cpu-s-own"},
			{"its peak memory, MB", "Scale/nodes-10000", "MB-peak"},
			{"its requests", "ScaleTraffic/nodes-10000", "requests"},
			{"bytes read for each node", "ScaleTraffic/nodes-10000", "B-read/node"},
		}},
		{"10,000 held locks", inBench + "'Locksmith10k|Sweep'", []line{
			{"locksmith, processor time until all are judged, ms", "Locksmith10kLocks/watching", "cpu-ms/start"},
			{"locksmith, processor time of an idle minute, ms", "Locksmith10kLocks/watching", "cpu-ms/idle-minute"},
			{"locksmith, memory, MB", "Locksmith10kLocks/watching", "MB-rss"},
			{"the same, and it leads: an idle minute, ms", "Locksmith10kLocks/leading", "cpu-ms/idle-minute"},
		}},
		{"What always runs, idle and busy", inBench + "Daemons", daemons()},
		{"Idle agents, each and hour", inBench + "Idle$", []line{
			{"requests in all", "Idle", "requests/agent-hour"},
			{"blocking queries", "Idle", "blocking/agent-hour"},
			{"passes of its own check, which its Consul agent takes", "Idle", "passes/agent-hour"},
			{"reads", "Idle", "reads/agent-hour"},
			{"writes", "Idle", "writes/agent-hour"},
		}},
	}
}

// daemons are the same figures of each daemon.
func daemons() (out []line) {
	for _, d := range []struct{ command, bench string }{
		{"agent", "agent"},
		{"agent -listen", "agent-with-metrics"},
		{"locksmith", "locksmith"},
		{"locksmith -listen", "locksmith-with-metrics"},
		{"ui", "ui"},
	} {
		for _, f := range []struct{ title, unit string }{
			{"processor time of an idle minute, ms", "cpu-ms/idle-minute"},
			{"resident memory, idle, MB", "MB-rss-idle"},
			{"of it its own, not the file of the program, MB", "MB-own-idle"},
			{"processor time of a rollout and a lock, ms", "cpu-ms/rollout-and-lock"},
			{"peak memory, MB", "MB-peak"},
		} {
			out = append(out, line{"`aimlock " + d.command + "`: " + f.title, "Daemons/" + d.bench, f.unit})
		}
	}
	return out
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: table BENCHMARKS.txt")
		os.Exit(2)
	}
	if err := tables(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func tables(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return write(os.Stdout, f)
}

// write makes the tables. What was not measured has a dash.
func write(to io.Writer, from io.Reader) error {
	measured := map[string][]float64{}
	r := benchfmt.NewReader(from, "benchmarks")
	for r.Scan() {
		res, ok := r.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		name := string(res.Name)
		if base, procs := res.Name.Parts(); len(procs) > 0 && strings.HasPrefix(string(procs[len(procs)-1]), "-") {
			name = string(base)
			for _, p := range procs[:len(procs)-1] {
				name += string(p)
			}
		}
		for _, v := range res.Values {
			unit, value := v.Unit, v.Value
			if v.OrigUnit != "" {
				unit, value = v.OrigUnit, v.OrigValue
			}
			measured[name+" "+unit] = append(measured[name+" "+unit], value)
		}
	}
	if err := r.Err(); err != nil {
		return err
	}
	if len(measured) == 0 {
		return fmt.Errorf("no benchmark printed anything")
	}
	for _, s := range sections() {
		if _, err := fmt.Fprintf(to, "## %s\n\n| | median | spread | runs |\n|---|---|---|---|\n", s.title); err != nil {
			return err
		}
		for _, l := range s.lines {
			all := measured[l.bench+" "+l.unit]
			if len(all) == 0 {
				if _, err := fmt.Fprintf(to, "| %s | – | – | 0 |\n", l.title); err != nil {
					return err
				}
				continue
			}
			slices.Sort(all)
			if _, err := fmt.Fprintf(to, "| %s | %s | %s to %s | %d |\n", l.title, short(median(all)), short(all[0]), short(all[len(all)-1]), len(all)); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(to, "\n    %s\n\n", s.command); err != nil {
			return err
		}
	}
	return nil
}

func median(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// short is a number with three digits that count, and no more.
func short(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) || a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
