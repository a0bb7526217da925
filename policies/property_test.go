package policies

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"
)

// letter is one of the four values that a bool fact can have.
func letter(b byte) Fact {
	switch b {
	case 'T':
		return Fact{Value: cty.True}
	case 'F':
		return Fact{Value: cty.False}
	case 'N':
		return Fact{Value: cty.NullVal(cty.Bool)}
	}
	return Fact{Value: cty.UnknownVal(cty.Bool), Why: "drawn"}
}

// logicGen draws an expression over the facts plugin.t.a to plugin.t.d.
func logicGen(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if depth == 0 || rapid.IntRange(0, 3).Draw(t, "leaf") == 0 {
			return "plugin.t." + rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "fact")
		}
		sub := logicGen(depth - 1)
		switch rapid.IntRange(0, 2).Draw(t, "op") {
		case 0:
			return "!(" + sub.Draw(t, "x") + ")"
		case 1:
			return "(" + sub.Draw(t, "l") + " && " + sub.Draw(t, "r") + ")"
		default:
			return "(" + sub.Draw(t, "l") + " || " + sub.Draw(t, "r") + ")"
		}
	})
}

// Whatever an unknown fact turns out to be, a rule that held without it still
// holds: that is what makes it safe to act on a verdict. Where no fact is null,
// a rule that did not hold still does not.
func TestKnownAnswersStand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := logicGen(4).Draw(t, "when")
		set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n  when = "+text+"\n }\n}"))
		if diags.HasErrors() {
			t.Fatalf("%s: %s", text, diags)
		}
		names := []string{"a", "b", "c", "d"}
		facts := map[string]Fact{}
		null := false
		for _, n := range names {
			facts[n] = letter(rapid.SampledFrom([]byte("TFUUN")).Draw(t, n))
			null = null || facts[n].Value.IsNull()
		}
		rule := set.Policies[0].Hot[0]
		before, _ := rule.when.eval(newScope(Facts{"plugin.t": facts}, rule.when.reads))
		for _, n := range names {
			if !facts[n].Value.IsKnown() {
				facts[n] = letter(rapid.SampledFrom([]byte("TF")).Draw(t, n+" is"))
			}
		}
		after, _ := rule.when.eval(newScope(Facts{"plugin.t": facts}, rule.when.reads))
		if before == True && after != True || before == False && !null && after != False {
			t.Fatalf("%s was %s while facts were unknown and is %s now that they are known", text, before, after)
		}
		if after == Unknown {
			t.Fatalf("%s is unknown although every fact is known", text)
		}
	})
}

// world is a policy of random rules, each over a fact of its own.
type world struct {
	set   *Set
	rules []worldRule
}

type worldRule struct {
	hot bool
	dur time.Duration
}

func drawWorld(t *rapid.T) world {
	var (
		w world
		b strings.Builder
	)
	b.WriteString("policy \"p\" {\n  locks = [\"**\"]\n")
	for i := range rapid.IntRange(1, 6).Draw(t, "rules") {
		r := worldRule{
			hot: rapid.Bool().Draw(t, "hot"),
			dur: time.Duration(rapid.SampledFrom([]int{0, 0, 10, 60}).Draw(t, "for")) * time.Second,
		}
		w.rules = append(w.rules, r)
		kind := map[bool]string{true: "hot", false: "warm"}[r.hot]
		fmt.Fprintf(&b, "  %s \"r%d\" {\n    when = plugin.t.f%d\n    for = \"%s\"\n  }\n", kind, i, i, r.dur)
	}
	b.WriteString("}\n")
	set, diags := Parse("p.hcl", []byte(b.String()))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	w.set = set
	return w
}

// TestVerdictProperty drives one lock through random facts, holds and times,
// and holds each verdict against a model that remembers everything.
func TestVerdictProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		type sample struct {
			at     time.Duration
			hold   string
			values []byte
		}
		var (
			m       Memory
			now     time.Duration
			hold    = "h0"
			history []sample
		)
		for step := range rapid.IntRange(1, 12).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 40).Draw(t, "passed")) * time.Second
			if rapid.IntRange(0, 7).Draw(t, "new hold") == 0 {
				hold = fmt.Sprintf("h%d", step+1)
			}
			s := sample{at: now, hold: hold}
			facts := map[string]Fact{}
			for i := range w.rules {
				v := rapid.SampledFrom([]byte("TTTFUN")).Draw(t, "value")
				s.values = append(s.values, v)
				facts[fmt.Sprintf("f%d", i)] = letter(v)
			}
			history = append(history, s)
			j := w.set.Policies[0].Judge(Facts{"plugin.t": facts}, &m, hold, now)

			// The model: since when has a rule held, looking back over history.
			heldFor := func(i int) time.Duration {
				since := now
				for k := len(history) - 1; k >= 0 && history[k].hold == hold && history[k].values[i] == 'T'; k-- {
					since = history[k].at
				}
				return now - since
			}
			want, rule := StateHeld, -1
			first := func(accept func(i int) bool) int {
				for i := range w.rules {
					if accept(i) {
						return i
					}
				}
				return -1
			}
			holds := func(i int) bool { return s.values[i] == 'T' && heldFor(i) >= w.rules[i].dur }
			if i := first(func(i int) bool { return w.rules[i].hot && holds(i) }); i >= 0 {
				want, rule = StateHot, i
			} else if i := first(func(i int) bool { return w.rules[i].hot && s.values[i] == 'U' }); i >= 0 {
				want, rule = StateUnknown, i
			} else if i := first(func(i int) bool { return !w.rules[i].hot && holds(i) }); i >= 0 {
				want, rule = StateWarm, i
			}
			got := ""
			if j.Rule != nil {
				got = j.Rule.Name
			}
			wantRule := ""
			if rule >= 0 {
				wantRule = fmt.Sprintf("r%d", rule)
			}
			if j.State != want || got != wantRule {
				t.Fatalf("at %s: %s by %q, want %s by %q\n%+v", now, j.State, got, want, wantRule, history)
			}
			// What the model of the memory says, and no more, is pending.
			pending := 0
			for i, r := range w.rules {
				if s.values[i] == 'T' && heldFor(i) < r.dur {
					pending++
				}
			}
			if len(j.Pending) != pending {
				t.Fatalf("at %s: %d rules pending, want %d", now, len(j.Pending), pending)
			}
			for _, p := range j.Pending {
				if p.Left <= 0 || p.Left > p.Rule.For || p.Since > now {
					t.Fatalf("at %s: pending %+v", now, p)
				}
			}
			// Without a memory nothing with a `for` decides.
			if alone := w.set.Policies[0].Judge(Facts{"plugin.t": facts}, nil, hold, now); alone.Rule != nil && alone.State != StateUnknown && alone.Rule.For > 0 {
				t.Fatalf("without a memory, %q decided", alone.Rule.Name)
			}
			// A memory that was written down and read back judges the same.
			if rapid.Bool().Draw(t, "restart") {
				var again Memory
				again.Restore(m.Hold())
				m = again
			}
		}
	})
}
