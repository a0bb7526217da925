package chaos

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// measured is what one round took.
type measured struct {
	fault string
	// gap is the longest time in which no command worked under the lock, the fault
	// included.
	gap time.Duration
	// consul, lock and rollout are from the end of the fault until Consul takes
	// writes by every machine, until the lock has been handed on, and until a
	// rollout has reached every node.
	consul, lock, rollout time.Duration
}

// table is the distribution of what rounds took, by fault.
func table(all []measured) string {
	by := map[string][]measured{}
	var names []string
	for _, m := range all {
		if by[m.fault] == nil {
			names = append(names, m.fault)
		}
		by[m.fault] = append(by[m.fault], m)
	}
	slices.Sort(names)
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "seconds, p50/p90/p99/max\trounds\tno work under the lock\tuntil Consul serves\tuntil the lock passes on\tuntil a rollout reaches all nodes")
	row := func(name string, ms []measured) {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n", name, len(ms),
			quantiles(ms, func(m measured) time.Duration { return m.gap }),
			quantiles(ms, func(m measured) time.Duration { return m.consul }),
			quantiles(ms, func(m measured) time.Duration { return m.lock }),
			quantiles(ms, func(m measured) time.Duration { return m.rollout }))
	}
	for _, name := range names {
		row(name, by[name])
	}
	row("all", all)
	t.Flush()
	return b.String()
}

// quantiles is "-" of no rounds: a story may have ended before its first.
func quantiles(ms []measured, of func(measured) time.Duration) string {
	if len(ms) == 0 {
		return "-"
	}
	var ds []time.Duration
	for _, m := range ms {
		ds = append(ds, of(m))
	}
	slices.Sort(ds)
	var out []string
	for _, q := range []float64{0.5, 0.9, 0.99, 1} {
		// The least value that has this share at or below it.
		i := max(0, int(float64(len(ds))*q+0.999999)-1)
		out = append(out, fmt.Sprintf("%.1f", ds[min(i, len(ds)-1)].Seconds()))
	}
	return strings.Join(out, "/")
}

// The report of a story that broke off before anything was measured does not hide why.
func TestTableOfNothing(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		all  []measured
		want string
	}{
		"none": {nil, "all 0 - - - -"},
		"one":  {[]measured{{fault: "kill", gap: time.Second}}, "all 1 1.0/1.0/1.0/1.0 0.0/0.0/0.0/0.0 0.0/0.0/0.0/0.0 0.0/0.0/0.0/0.0"},
	} {
		lines := strings.Split(strings.TrimSpace(table(tc.all)), "\n")
		if got := strings.Join(strings.Fields(lines[len(lines)-1]), " "); got != tc.want {
			t.Errorf("%s: the last line is %q, want %q", name, got, tc.want)
		}
	}
}
