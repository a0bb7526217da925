package policies

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"
)

// aging are the facts that the drawn conditions read: three ages, and a number
// that stands still.
var aging = []string{"progress.age", "lock.held_for", "check.age", "session.ttl"}

// ageGen draws a number made of facts and constants, with max() as what the
// analysis does not follow.
func ageGen(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if depth == 0 || rapid.Bool().Draw(t, "leaf") {
			if rapid.IntRange(0, 2).Draw(t, "fact") > 0 {
				return rapid.SampledFrom(aging).Draw(t, "which")
			}
			return fmt.Sprint(rapid.IntRange(-20, 20).Draw(t, "constant"))
		}
		sub := ageGen(depth - 1)
		switch rapid.IntRange(0, 6).Draw(t, "op") {
		case 0, 1:
			return "(" + sub.Draw(t, "l") + " + " + sub.Draw(t, "r") + ")"
		case 2:
			return "(" + sub.Draw(t, "l") + " - " + sub.Draw(t, "r") + ")"
		case 3:
			return fmt.Sprintf("(%s * %d)", sub.Draw(t, "x"), rapid.IntRange(-3, 3).Draw(t, "factor"))
		case 4:
			return fmt.Sprintf("(%s / %d)", sub.Draw(t, "x"), rapid.IntRange(1, 4).Draw(t, "part"))
		case 5:
			return "max(" + sub.Draw(t, "l") + ", " + sub.Draw(t, "r") + ")"
		default:
			return "-(" + sub.Draw(t, "x") + ")"
		}
	})
}

func agesGen(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if depth == 0 {
			op := rapid.SampledFrom([]string{"<", "<=", ">", ">="}).Draw(t, "op")
			return ageGen(2).Draw(t, "l") + " " + op + " " + ageGen(1).Draw(t, "r")
		}
		sub := agesGen(depth - 1)
		switch rapid.IntRange(0, 3).Draw(t, "shape") {
		case 0:
			return "!(" + sub.Draw(t, "x") + ")"
		case 1:
			return "(" + sub.Draw(t, "l") + ") && (" + sub.Draw(t, "r") + ")"
		case 2:
			return "(" + sub.Draw(t, "l") + ") || (" + sub.Draw(t, "r") + ")"
		default:
			return "(" + sub.Draw(t, "c") + ") ? (" + sub.Draw(t, "l") + ") : (" + sub.Draw(t, "r") + ")"
		}
	})
}

// factsAfter are the drawn facts after d: known ages have grown, bounds have risen.
func factsAfter(now map[string]cty.Value, d time.Duration) Facts {
	out := Facts{}
	for name, v := range now {
		object, attr, _ := strings.Cut(name, ".")
		if schema[object][attr].Age && !v.IsNull() {
			by := cty.NumberFloatVal(d.Seconds())
			if v.IsKnown() {
				v = v.Add(by)
			} else if low, _ := v.Range().NumberLowerBound(); low.IsKnown() && !low.IsNull() {
				v = cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(low.Add(by), true).NewValue()
			}
		}
		if out[object] == nil {
			out[object] = map[string]Fact{}
		}
		out[object][attr] = Fact{Value: v, Why: "drawn"}
	}
	return out
}

// A verdict stands for as long as Steady says, whatever the rule; and where it
// says for ever, it does.
func TestSteady(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := agesGen(2).Draw(t, "when")
		set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n  when = "+text+"\n }\n}"))
		if diags.HasErrors() {
			t.Skip() // a condition that can never hold is refused
		}
		p := set.Policies[0]
		now := map[string]cty.Value{}
		for _, name := range aging {
			n := rapid.IntRange(0, 40).Draw(t, name)
			switch rapid.IntRange(0, 5).Draw(t, name+" is") {
			case 0:
				now[name] = cty.NullVal(cty.Number)
			case 1:
				now[name] = cty.UnknownVal(cty.Number)
			case 2:
				now[name] = cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(cty.NumberIntVal(int64(n)), true).NewValue()
			default:
				now[name] = cty.NumberIntVal(int64(n))
			}
		}
		clock := time.Unix(1_700_000_000, 0)
		// Every moment is looked at in turn, as a caller does.
		for at, looks := time.Duration(0), 0; at < 200*time.Second && looks < 30; looks++ {
			facts := factsAfter(now, at)
			j := p.Judge(facts, nil, "h", at)
			d, ok := p.Steady(facts, &j, clock)
			until := d
			if !ok {
				until = 200 * time.Second
			}
			if until <= 0 {
				t.Fatalf("%s: steady for %s at %s", text, until, at)
			}
			// The last millisecond is the slack in which the change may have come.
			span := until - 2*crossingSlack
			if p.Hot[0].when.horizon.restless {
				span = 0 // looked at every so often, and no moment is promised
			}
			for _, part := range []float64{0.1, 0.3, 0.5, 0.7, 0.9, 1} {
				then := at + time.Duration(part*float64(max(span, 0)))
				if got := p.Judge(factsAfter(now, then), nil, "h", then); got.State != j.State {
					t.Fatalf("%s on %v: %s at %s, %s at %s, and it was to stand for %s", text, now, j.State, at, got.State, then, until)
				}
			}
			at += until
		}
	})
}

// What a policy is likely to say is told to the moment, and not looked at every
// second.
func TestSteadyOf(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 3, 4, 12, 20, 0, 0, time.UTC)
	for _, tc := range []struct {
		when string
		want time.Duration // 0: for ever
	}{
		{`progress.age > duration("2m")`, 110 * time.Second},
		{`progress.age <= 4`, 0},
		{`!(duration("1m") < progress.age) && node.serf == "alive"`, 50 * time.Second},
		{`progress.age > session.ttl * 2`, 20 * time.Second},
		{`progress.age - lock.held_for > 10`, 0},
		{`lock.held_for > 40`, 35 * time.Second}, // known to be 5 s at least
		{`check.age > 40`, 0},                    // not known at all
		{`rollout.finished_ago > 40`, 0},         // null
		{`progress.age == null || progress.age > 70`, time.Minute},
		{`max(progress.age, 3) > 12`, RestlessEvery},
		{`progress.rate < 1`, RestlessEvery},
		{`plugin.p.x`, RestlessEvery},
		{`holder.alive == false`, 0},
		{`between(now.hour, 22, 6)`, ClockEvery},
		{`now.unix > 1 && progress.age > 20`, 10 * time.Second},
	} {
		set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n  when = "+tc.when+"\n }\n}"))
		if diags.HasErrors() {
			t.Fatalf("%s: %s", tc.when, diags)
		}
		number := func(v float64) Fact { return Fact{Value: cty.NumberFloatVal(v)} }
		facts := Facts{
			"progress": {"age": number(10), "rate": number(3)}, "session": {"ttl": number(15)}, "now": {"unix": number(float64(noon.Unix())), "hour": number(12)},
			"lock": {"held_for": {Value: cty.UnknownVal(cty.Number).Refine().NumberRangeLowerBound(cty.NumberIntVal(5), true).NewValue()}},
			"node": {"serf": {Value: cty.StringVal("alive")}}, "holder": {"alive": {Value: cty.True}},
			"rollout": {"finished_ago": {Value: cty.NullVal(cty.Number)}},
		}
		j := set.Policies[0].Judge(facts, nil, "h", 0)
		d, ok := set.Policies[0].Steady(facts, &j, noon)
		if want := tc.want; want == 0 && ok || want != 0 && (d < want || d > want+2*crossingSlack) {
			t.Errorf("%s: steady for %s, %t, want %s", tc.when, d, ok, tc.want)
		}
	}
}

// A rule that holds counts when its `for` is over, whatever else it reads.
func TestSteadyFor(t *testing.T) {
	t.Parallel()
	set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n  when = session.exists\n  for = \"1m\"\n }\n}"))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	p, facts, m := set.Policies[0], Facts{"session": {"exists": {Value: cty.True}}}, &Memory{}
	j := p.Judge(facts, m, "h", 0)
	if d, ok := p.Steady(facts, &j, time.Now()); !ok || d != time.Minute {
		t.Fatalf("pending for %s, %t", d, ok)
	}
	j = p.Judge(facts, m, "h", time.Minute)
	if d, ok := p.Steady(facts, &j, time.Now()); ok || j.State != StateHot {
		t.Fatalf("%s, and it changes in %s", j.State, d)
	}
}
