package board

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

var update = flag.Bool("update", false, "write the golden files")

var now = time.Date(2026, 11, 25, 20, 0, 0, 0, time.UTC)

func ago(d time.Duration) *time.Time { t := now.Add(-d); return &t }

func counts(applied, failed, unreachable int) (c orchestrator.Counts) {
	c[orchestrator.ClassApplied], c[orchestrator.ClassFailed], c[orchestrator.ClassUnreachable] = applied, failed, unreachable
	return c
}

// tenThousand is a rollout in its third stage, with everything there is to see.
func tenThousand() Model {
	a := &orchestrator.Answers{}
	for i := range 1000 {
		a.Add(time.Duration(800+i) * time.Millisecond)
	}
	h := &orchestrator.Header{
		ID: "aim-lock-config-20261125-194800-k3v9", Name: "aim-lock-config", State: orchestrator.Running, Stage: "tenth", StageIndex: 2,
		Stages: []orchestrator.HeaderStage{
			{Name: "canary", From: 0, End: 1, Done: 1, Counts: counts(1, 0, 0)}, {Name: "one percent of every site", From: 1, End: 100, Done: 99, Counts: counts(99, 0, 0)},
			{Name: "tenth", From: 100, End: 1000, Done: 431, Counts: counts(429, 1, 1)}, {Name: "rest", From: 1000, End: 10000},
		},
		Configs: []orchestrator.HeaderConfig{{Name: "aim_lock_config.conf", Revision: "0f1e2d3c4b5a"}},
		Total:   10000, InFlight: 50, StartedAt: ago(12*time.Minute + 4*time.Second), Answers: a,
		Flying: []orchestrator.Flight{{Node: "drone-0107", Since: *ago(41 * time.Second)}, {Node: "drone-0533", Since: *ago(2 * time.Second)}},
		Problems: []orchestrator.Problem{
			{Node: "drone-0017", Class: "failed", Why: "reload: exit status 1: aimd: /etc/aim/aim_lock_config.conf:14: unknown key \"range_m\"\nnothing was changed", At: *ago(time.Minute)},
			{Node: "größe-7", Class: "unreachable", Why: "it did not answer within 2m0s", At: *ago(10 * time.Second)},
		},
	}
	h.Counts[orchestrator.ClassApplied], h.Counts[orchestrator.ClassFailed], h.Counts[orchestrator.ClassUnreachable], h.Counts[orchestrator.ClassPending] = 529, 1, 1, 9469
	return Model{
		Header: h, Now: now, Hint: "q quits; the rollout goes on",
		Spec: &orchestrator.Spec{Gates: []orchestrator.Gate{{Name: "passing", SuccessLimit: 3, Interval: 10 * time.Second}}, Stages: []orchestrator.Stage{{Name: "canary", Nodes: 1}, {Name: "x", Percent: 1}, {Name: "tenth", Percent: 10, MaxParallel: 50, Bake: 10 * time.Minute, Gate: []string{"passing"}}, {Name: "rest", Percent: 100, MaxParallel: 500}}},
		Events: []records.RolloutEvent{
			{N: 1, At: *ago(12 * time.Minute), Kind: records.EventHold, Text: "driven by ops@control-1"},
			{N: 2, At: *ago(11 * time.Minute), Kind: records.EventStage, Text: `stage "canary": node 1 of 10000`},
			{N: 3, At: *ago(time.Minute), Kind: records.EventNode, Node: "drone-0017", Text: "failed: …"},
		},
	}
}

func baking() Model {
	m := tenThousand()
	h := *m.Header
	h.State, h.BakingSince, h.InFlight, h.Flying, h.Problems = orchestrator.Baking, ago(3*time.Minute), 0, nil, nil
	h.Stages = append([]orchestrator.HeaderStage{}, h.Stages...)
	h.Stages[2].Done, h.Stages[2].Counts = 900, counts(898, 1, 1)
	h.Gates = []orchestrator.GateStatus{{Stage: "tenth", Name: "passing", State: orchestrator.GateMeasuring, Passed: 1, Unknown: 1, Needs: 3, Last: orchestrator.Pass, Value: "99.7", Why: "9970 of 10000 pass\x1b[2J"}}
	m.Header = &h
	return m
}

func paused() Model {
	m := tenThousand()
	h := *m.Header
	h.State, h.Pauses = orchestrator.Paused, 1
	h.Paused = &orchestrator.PauseInfo{Cause: orchestrator.CauseGate, Why: `gate "passing" is unknown: Consul at 127.0.0.1:8500: did not answer within 30s; the page behind it says <html><body>502 Bad Gateway</body></html>`, At: *ago(12 * time.Second)}
	m.Header, m.Note = &h, "Consul does not answer: trying again"
	return m
}

// The golden files are what a person sees; look at them when they change.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]Model{"running": tenThousand(), "baking": baking(), "paused": paused()} {
		for _, s := range []Screen{
			{Width: 40, Height: 20, UTF8: true}, {Width: 80, Height: 24, UTF8: true}, {Width: 80, Height: 24}, {Width: 80, Height: 24, UTF8: true, Color: true},
			{Width: 200, Height: 50, UTF8: true},
		} {
			file := fmt.Sprintf("%s-%dx%d", name, s.Width, s.Height)
			if !s.UTF8 {
				file += "-ascii"
			}
			if s.Color {
				file += "-color"
			}
			t.Run(file, func(t *testing.T) {
				got := strings.Join(Render(m, s), "\n") + "\n"
				path := filepath.Join("testdata", file+".txt")
				if *update {
					if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("%s is drawn as\n%s\nnot as\n%s", file, got, want)
				}
			})
		}
	}
}

// Whatever stands in a record, no line is wider than the screen, no more lines
// are drawn than it has, and nothing but our own colours reaches the terminal.
func TestRenderFits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		foreign := rapid.OneOf(rapid.String(), rapid.StringMatching(`(\x1b\[[0-9]{0,3}[A-Za-z]|\x1b\]0;x\x07|[a-z ]|日本|é|\r|\n|\x9b31m){0,80}`))
		m := tenThousand()
		h := *m.Header
		h.ID, h.Reason = foreign.Draw(t, "id"), foreign.Draw(t, "why")
		h.State = rapid.SampledFrom([]orchestrator.Status{orchestrator.Waiting, orchestrator.Baking, orchestrator.Paused, orchestrator.RollingBack, orchestrator.Succeeded}).Draw(t, "state")
		h.Stages = nil
		for range rapid.IntRange(0, 30).Draw(t, "stages") {
			end := rapid.IntRange(0, 1_000_000).Draw(t, "end")
			h.Stages = append(h.Stages, orchestrator.HeaderStage{Name: foreign.Draw(t, "stage"), End: end, Done: end, Counts: counts(rapid.IntRange(0, end).Draw(t, "applied"), 0, 0)})
		}
		h.StageIndex = max(0, rapid.IntRange(0, 30).Draw(t, "at")%max(1, len(h.Stages)))
		h.Problems = nil
		for range rapid.IntRange(0, 20).Draw(t, "problems") {
			h.Problems = append(h.Problems, orchestrator.Problem{Node: foreign.Draw(t, "node"), Class: "failed", Why: foreign.Draw(t, "output")})
		}
		h.Flying = []orchestrator.Flight{{Node: foreign.Draw(t, "flying"), Since: now}}
		m.Header, m.Note = &h, foreign.Draw(t, "note")
		m.Events = []records.RolloutEvent{{Text: foreign.Draw(t, "event")}}
		s := Screen{
			Width: rapid.IntRange(10, 240).Draw(t, "width"), Height: rapid.IntRange(0, 60).Draw(t, "height"),
			UTF8: rapid.Bool().Draw(t, "utf8"), Color: rapid.Bool().Draw(t, "color"),
		}
		lines := Render(m, s)
		if s.Height > 0 && len(lines) > s.Height {
			t.Fatalf("%d lines on %d", len(lines), s.Height)
		}
		for _, l := range lines {
			if w := ansi.StringWidth(l); w > s.Width {
				t.Fatalf("%d columns on %d: %q", w, s.Width, l)
			}
			bare := l
			if s.Color {
				bare = ourColors(l)
			}
			for _, r := range bare {
				if r < ' ' || r >= 0x7f && r < 0xa0 || !s.UTF8 && r > '~' {
					t.Fatalf("%U in %q", r, l)
				}
			}
		}
	})
}

// ourColors takes out the codes that choose a colour, and no others.
func ourColors(l string) string {
	var b strings.Builder
	for {
		i := strings.Index(l, "\x1b[")
		if i < 0 {
			return b.String() + l
		}
		b.WriteString(l[:i])
		rest := strings.TrimLeft(l[i+2:], "0123456789;")
		if !strings.HasPrefix(rest, "m") {
			return b.String() + l[i:]
		}
		l = rest[1:]
	}
}

// What is said to let a paused rollout go on is what does: resume is refused
// where a stage waits for its promotion.
func TestETANamesTheWayOn(t *testing.T) {
	t.Parallel()
	for cause, want := range map[orchestrator.Cause]string{
		orchestrator.CausePromotion: "`aimlock rollout promote -stage 'the canary' r-1`",
		orchestrator.CauseOperator:  "`aimlock rollout resume -pause 2 r-1`",
		orchestrator.CauseGate:      "`aimlock rollout resume -pause 2 r-1`",
	} {
		h := &orchestrator.Header{ID: "r-1", Stage: "the canary", State: orchestrator.Paused, Pauses: 2, Paused: &orchestrator.PauseInfo{Cause: cause}}
		if got := ETA(h, nil, nil, now, nil); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %s in it", cause, got, want)
		}
	}
}

// However narrow the screen is, the commands that end a pause are broken at their
// blanks only, and the one that sends nothing to anybody stands first after failures.
func TestWaysAreWhole(t *testing.T) {
	t.Parallel()
	m := paused()
	h := *m.Header
	h.Paused = &orchestrator.PauseInfo{Cause: orchestrator.CauseFailure, Why: "1 failed, and max_failed is 0"}
	m.Header = &h
	const back, on = "aimlock rollout rollback aim-lock-config-20261125-194800-k3v9", "aimlock rollout resume -pause 1 aim-lock-config-20261125-194800-k3v9"
	for width := 40; width <= 200; width++ {
		lines := Render(m, Screen{Width: width, UTF8: true})
		all := strings.Join(strings.Fields(strings.Join(lines, " ")), " ")
		i, n, k := strings.Index(all, back), strings.Index(all, "aimlock rollout start SPEC"), strings.Index(all, on)
		if i < 0 || n < i || k < n || !strings.Contains(all, "without the failed nodes, which this rollout does not try again") {
			t.Errorf("width %d:\n%s", width, strings.Join(lines, "\n"))
		}
		if width >= 72 && !strings.Contains(strings.Join(lines, "\n"), on) {
			t.Errorf("width %d: the command is broken where it has room:\n%s", width, strings.Join(lines, "\n"))
		}
	}
}

// Who is to wait for the end of the one that is paused is told to end it first.
func TestWaysWhereOthersQueue(t *testing.T) {
	t.Parallel()
	h := &orchestrator.Header{ID: "r-1", State: orchestrator.Paused, Paused: &orchestrator.PauseInfo{Cause: orchestrator.CauseFailure}}
	if got, want := WaysText(h, nil), "To begin anew in its place, with a corrected content or spec: `aimlock rollout start SPEC`. To go on"; !strings.Contains(got, want) {
		t.Errorf("%q", got)
	}
	h.Conflict = orchestrator.ConflictQueue
	if got, want := WaysText(h, nil), "To end it, before a corrected content or spec is begun: `aimlock rollout abort r-1`. To go on"; !strings.Contains(got, want) {
		t.Errorf("%q", got)
	}
}

// A pause stops no bake: when it is over, and what a resume comes to then, is said.
func TestBakeOfAPause(t *testing.T) {
	t.Parallel()
	m := paused()
	h := *m.Header
	m.Header = &h
	for _, c := range []struct {
		since    *time.Time
		stage    int
		promoted bool
		want     string
	}{
		{nil, 2, false, ""},
		{ago(3 * time.Minute), 2, true, ""},
		{ago(3 * time.Minute), 3, false, ""},
		{ago(3 * time.Minute), 2, false, `that of stage "tenth" runs on, and is over at 20:07:00 UTC, in 7m0s: resumed after that, its gates are asked at once`},
		{ago(13 * time.Minute), 2, false, `that of stage "tenth" is over since 19:57:00 UTC: resumed, its gates are asked at once`},
	} {
		h.BakingSince, h.StageIndex, h.Promoted = c.since, c.stage, c.promoted
		if got := Bake(&h, m.Spec, now); got != c.want {
			t.Errorf("%q, not %q", got, c.want)
		}
		all := strings.Join(strings.Fields(strings.Join(Render(m, Screen{Width: 200, UTF8: true}), " ")), " ")
		if strings.Contains(all, "bake that of") != (c.want != "") || !strings.Contains(all, c.want) {
			t.Errorf("%q is not in %s", c.want, all)
		}
	}
	spec := *m.Spec
	spec.Stages = append([]orchestrator.Stage{}, spec.Stages...)
	spec.Stages[2].Gate = nil
	h.StageIndex, h.Promoted, h.BakingSince = 2, false, ago(13*time.Minute)
	if got := Bake(&h, &spec, now); !strings.HasSuffix(got, `: resumed, stage "rest" begins at once`) {
		t.Errorf("%q", got)
	}
}

// What nobody drives does not go on by itself: that is said, and no time that is left.
func TestUndriven(t *testing.T) {
	t.Parallel()
	m := baking()
	m.Undriven = "nobody drives it now: `aimlock rollout start SPEC`, or the next tick, goes on with it"
	for _, width := range []int{40, 80, 200} {
		lines := Render(m, Screen{Width: width, Height: 24, UTF8: true})
		all := strings.Join(strings.Fields(strings.Join(lines, " ")), " ")
		if !strings.Contains(all, m.Undriven) || strings.Contains(all, " left ") {
			t.Errorf("width %d:\n%s", width, strings.Join(lines, "\n"))
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1234 * time.Millisecond: "1.2s", 61 * time.Second: "1m1s", 5 * time.Minute: "5m0s", time.Hour: "1h0m0s",
		time.Hour + 2*time.Minute + 5*time.Second: "1h2m0s", 50 * time.Hour: "2 days",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}

// A stage that no node is left for is full once its turn has come, and not before.
func TestBarOfAnEmptyStage(t *testing.T) {
	t.Parallel()
	for at, full := range map[int]bool{0: false, 1: true} {
		h := &orchestrator.Header{ID: "r-1", State: orchestrator.Baking, StageIndex: at, Total: 1,
			Stages: []orchestrator.HeaderStage{{Name: "canary", End: 1}, {Name: "rest", From: 1, End: 1}}}
		for _, line := range Render(Model{Header: h, Now: now}, Screen{Width: 80, Height: 24}) {
			if strings.Contains(line, "rest") && strings.Contains(line, "0/0") && strings.Contains(line, "#") != full {
				t.Errorf("at stage %d: %q", at, line)
			}
		}
	}
}

// The first number is of the nodes that have applied it, whatever became of the
// others, as a line and beside a bar.
func TestStageCountsWhoApplied(t *testing.T) {
	t.Parallel()
	back, skipped := orchestrator.Counts{}, orchestrator.Counts{}
	back[orchestrator.ClassRolledBack], skipped[orchestrator.ClassSkipped] = 1, 1
	for want, hs := range map[string]orchestrator.HeaderStage{
		"0 of 1 applied":                {End: 1},
		"1 of 1 applied":                {End: 1, Done: 1, Counts: counts(1, 0, 0)},
		"0 of 1 applied: 1 failed":      {End: 1, Done: 1, Counts: counts(0, 1, 0)},
		"0 of 1 applied: 1 unreachable": {End: 1, Done: 1, Counts: counts(0, 0, 1)},
		"0 of 1 applied: 1 skipped":     {End: 1, Counts: skipped},
		"0 of 1 applied: 1 rolled_back": {End: 1, Counts: back},
	} {
		if got := Stage(&hs); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		hs.Name = "all"
		number := strings.Replace(want[:6], " of ", "/", 1)
		h := &orchestrator.Header{State: orchestrator.Running, Stages: []orchestrator.HeaderStage{hs}, Total: 1}
		if bar := strings.Join(Bars(h, nil, time.Time{}, Screen{Width: 60}), "\n"); !strings.Contains(bar, " "+number) || strings.Contains(bar, "#") != (number == "1/1") {
			t.Errorf("%s: %q", want, bar)
		}
	}
}

// A stage tells how long it still bakes, so far as that is known, and that it has.
func TestBakingBar(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	h := &orchestrator.Header{
		State: orchestrator.Baking, BakingSince: &since, Total: 1, Stage: "all",
		Stages: []orchestrator.HeaderStage{{Name: "all", End: 1, Done: 1}},
	}
	spec := &orchestrator.Spec{Stages: []orchestrator.Stage{{Name: "all", Bake: 10 * time.Second}}}
	bar := func(spec *orchestrator.Spec, after time.Duration) string {
		return strings.Join(Bars(h, spec, since.Add(after), Screen{Width: 60}), "\n")
	}
	for after, want := range map[time.Duration]string{0: "  bakes 10s", 7 * time.Second: "  bakes 3s", 10 * time.Second: "  baked", time.Hour: "  baked"} {
		if got := bar(spec, after); !strings.HasSuffix(got, want) {
			t.Errorf("after %s: %q, want %q", after, got, want)
		}
	}
	if got := bar(nil, time.Second); !strings.HasSuffix(got, "  bakes") {
		t.Errorf("where nothing is known: %q", got)
	}
}

// However long an output is and however narrow the screen, the end of what a node said
// is shown: where it says why.
func TestFailureKeepsItsEnd(t *testing.T) {
	t.Parallel()
	h := &orchestrator.Header{ID: "r-1", State: orchestrator.Paused, Problems: []orchestrator.Problem{
		{Node: "east", Class: "failed", Why: "reload: here ended with status 6: " + strings.Repeat("one of many words ", 12) + "\nError: rollout app-20261126-223125-pkt7 is aborted"},
	}}
	for width := 40; width <= 300; width++ {
		got := strings.Join(strings.Fields(strings.Join(Render(Model{Header: h, Now: now}, Screen{Width: width, UTF8: true}), " ")), " ")
		if !strings.Contains(got, "east: failed: reload: here") || !strings.Contains(got, "pkt7 is aborted") {
			t.Errorf("width %d: %s", width, got)
		}
	}
}

// The number beside "paused" is how long it is paused, and never how old the rollout
// is; one that is paused for days says on which.
func TestPausedSince(t *testing.T) {
	t.Parallel()
	h := &orchestrator.Header{ID: "r-1", State: orchestrator.Paused, Stage: "canary", Total: 5, StartedAt: ago(time.Hour), Paused: &orchestrator.PauseInfo{Cause: orchestrator.CauseOperator, Why: "by root@vm: lunch", At: *ago(12500 * time.Millisecond)}}
	if got, want := State(h, now), "paused since 19:59:47 UTC (12s)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := Headline(h, now), "paused since 19:59:47 UTC, stage canary: 5 in all"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, width := range []int{20, 40, 80} {
		all := strings.Join(strings.Fields(strings.Join(Render(Model{Header: h, Now: now}, Screen{Width: width, UTF8: true}), " ")), " ")
		if !strings.Contains(all, "since 19:59:47 UTC (12s)") || strings.Contains(all, "1h0m0s") {
			t.Errorf("width %d: %s", width, all)
		}
	}
	h.Paused = &orchestrator.PauseInfo{At: *ago(50 * time.Hour)}
	if got, want := State(h, now), "paused since 2026-11-23 18:00:00 UTC (2 days)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	h.Paused.At = now
	if got, want := State(h, now), "paused since 20:00:00 UTC"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, other := range []*orchestrator.Header{{State: orchestrator.Running}, {State: orchestrator.Paused}, {State: orchestrator.Paused, Paused: &orchestrator.PauseInfo{}}} {
		if got := State(other, now); got != string(other.State) {
			t.Errorf("%q, want %q", got, other.State)
		}
	}
}

// Until one of its own nodes was measured, an estimate rests on what the plan's does.
func TestETARestsOnFormerRollouts(t *testing.T) {
	t.Parallel()
	m := tenThousand()
	h := *m.Header
	past := h.Answers
	for _, own := range []*orchestrator.Answers{nil, {}} {
		h.Answers = own
		if got := ETA(&h, m.Spec, nil, now, nil); !strings.HasPrefix(got, "unknown: no node of this config was measured yet") {
			t.Errorf("%q", got)
		}
		if got := ETA(&h, m.Spec, past, now, nil); !strings.HasPrefix(got, "about ") || !strings.Contains(got, "of 1000 measured") {
			t.Errorf("%q", got)
		}
	}
}

// One that waits for its turn has no nodes yet: bars of nothing say nothing.
func TestWaitingHasNoBars(t *testing.T) {
	t.Parallel()
	h := &orchestrator.Header{ID: "r-1", State: orchestrator.Waiting, Stage: "canary", Reason: "it waits for r-0", Stages: []orchestrator.HeaderStage{{Name: "canary"}, {Name: "rest"}}}
	if all := strings.Join(Render(Model{Header: h, Now: now}, Screen{Width: 80}), "\n"); strings.Contains(all, "0/0") || !strings.Contains(all, "it waits for r-0") {
		t.Error(all)
	}
	if got, want := Headline(h, now), "waiting, and has not begun"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Bars(h, nil, time.Time{}, Screen{Width: 80}); len(got) > 0 {
		t.Errorf("%q", got)
	}
}
