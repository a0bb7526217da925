package policies

import (
	"fmt"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"
)

func windowPolicy(t *testing.T, when string) *Policy {
	t.Helper()
	set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n  when = "+when+"\n }\n}"))
	if diags.HasErrors() {
		t.Fatalf("%s: %s", when, diags)
	}
	return set.Policies[0]
}

// in_window goes by the zone's own clock, also on the days on which that is
// set: in Berlin 02:00 to 03:00 is left out on 29 March 2026, and comes twice
// on 25 October.
func TestInWindow(t *testing.T) {
	t.Parallel()
	p := windowPolicy(t, `in_window("0 2 * * 1-5", "4h", "Europe/Berlin")`)
	utc := windowPolicy(t, `in_window("30 22 * * *", duration("3h"))`)
	nightly := windowPolicy(t, `in_window("0 1 * * *", "90m", "Europe/Berlin")`)
	for _, c := range []struct {
		p    *Policy
		at   string
		want Tri
	}{
		{p, "2026-01-05T00:59:59Z", False}, // Monday, 01:59:59 in Berlin
		{p, "2026-01-05T01:00:00Z", True},
		{p, "2026-01-05T04:59:59Z", True},
		{p, "2026-01-05T05:00:00Z", False},
		{p, "2026-01-03T02:00:00Z", False}, // Saturday
		{p, "2026-07-06T00:00:00Z", True},  // summer time: an hour sooner
		{p, "2026-07-06T04:00:00Z", False},
		{utc, "2026-07-06T22:29:00Z", False},
		{utc, "2026-07-06T23:59:59Z", True},
		{utc, "2026-07-07T01:29:59Z", True}, // over midnight
		{utc, "2026-07-07T01:30:00Z", False},
		// An hour and a half from 01:00 is an hour and a half, whatever the clocks
		// on the wall show.
		{nightly, "2026-03-29T00:00:00Z", True},
		{nightly, "2026-03-29T01:29:59Z", True},
		{nightly, "2026-03-29T01:30:00Z", False},
		{nightly, "2026-10-24T23:00:00Z", True},
		{nightly, "2026-10-25T00:29:59Z", True},
		{nightly, "2026-10-25T00:30:00Z", False},
		{nightly, "2026-10-25T01:00:00Z", False}, // 02:00 for the second time
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		j := c.p.Judge(Facts{"now": Clock(at)}, nil, "h", 0)
		if got := j.Results[0].Value; got != c.want {
			t.Errorf("%s at %s is %s, want %s", c.p.Hot[0].When, c.at, got, c.want)
		}
		if used := fmt.Sprint(j.Used()); used != "[now.unix]" {
			t.Errorf("the evidence is %s, and a window rests on now.unix", used)
		}
	}
	for name, fact := range map[string]Fact{
		"not observed": {},
		"unknown":      {Value: cty.UnknownVal(cty.Number)},
		"absurd":       {Value: cty.NumberFloatVal(1e30)},
	} {
		if j := p.Judge(Facts{"now": {"unix": fact}}, nil, "h", 0); j.State != StateUnknown {
			t.Errorf("with a now.unix that is %s the verdict is %s", name, j.State)
		}
	}
	for _, when := range []string{`in_window("* * * * *", "1h")`, `!in_window("* * * * *", "1h")`} {
		null := windowPolicy(t, when)
		if j := null.Judge(Facts{"now": {"unix": {Value: cty.NullVal(cty.Number)}}}, nil, "h", 0); j.State != StateHeld {
			t.Errorf("%s with a now.unix that is null is %s", when, j.State)
		}
	}
	// Within a for expression the facts of around it are seen.
	inFor := windowPolicy(t, `anytrue([for x in ["a"] : x == "a" && in_window("* * * * *", "1h")])`)
	if j := inFor.Judge(Facts{"now": Clock(time.Unix(1_700_000_000, 0))}, nil, "h", 0); j.State != StateHot {
		t.Errorf("in a for expression the verdict is %s", j.State)
	}
}

// A verdict by windows and hours stands for as long as Steady says.
func TestSteadyOfWindows(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		zone := rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"}).Draw(rt, "zone")
		cron := fmt.Sprintf("%d %s * * %s", rapid.IntRange(0, 59).Draw(rt, "minute"),
			rapid.SampledFrom([]string{"*", "*/6", "2", "23"}).Draw(rt, "hour"), rapid.SampledFrom([]string{"*", "1-5", "0"}).Draw(rt, "day"))
		when := fmt.Sprintf(`in_window(%q, "%dm", %q)`, cron, rapid.IntRange(1, 300).Draw(rt, "long"), zone)
		if rapid.Bool().Draw(rt, "with hours") {
			when += ` != between(now.hour, 22, 6)`
		}
		p := windowPolicy(t, when)
		// About the changes to summer time and back of 2026.
		at := time.Unix(rapid.SampledFrom([]int64{1772928000, 1774742400, 1792886400, 1793491200}).Draw(rt, "about")+
			rapid.Int64Range(-90000, 90000).Draw(rt, "seconds"), 0)
		for range 6 {
			j := p.Judge(Facts{"now": Clock(at)}, nil, "h", 0)
			d, ok := p.Steady(Facts{"now": Clock(at)}, &j, at)
			if !ok || d <= 0 || d > ClockEvery {
				rt.Fatalf("%s at %s stands for %s, %t", when, at, d, ok)
			}
			for _, part := range []float64{0.5, 1} {
				then := at.Add(time.Duration(part * float64(d-2*crossingSlack)))
				if got := p.Judge(Facts{"now": Clock(then)}, nil, "h", 0); got.State != j.State {
					rt.Fatalf("%s: %s at %s, %s at %s, and it was to stand for %s", when, j.State, at, got.State, then, d)
				}
			}
			at = at.Add(d).Add(rapid.SampledFrom([]time.Duration{0, 7 * time.Minute}).Draw(rt, "later"))
		}
	})
}
