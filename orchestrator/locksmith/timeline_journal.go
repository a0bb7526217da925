package locksmith

import (
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/policies"
)

// journal tells what an observer wrote down.
func (in *told) journal(t *storyteller) {
	var held *journal.Observed // the hold that was seen last
	var work milestones
	for _, o := range in.seen {
		clock := in.observer(o.Run)
		h := o.Observation.Hold
		switch {
		case h == nil:
			if held != nil {
				work.last(t)
				in.over(t, held, o, clock)
			}
			held = nil
			continue
		case held == nil || held.Observation.Hold.ID() != h.ID():
			if held != nil {
				work.last(t)
				in.over(t, held, o, clock)
			}
			work = milestones{token: h.Token, clock: clock}
			t.seenHeld(h, o, clock)
		}
		t.judged(o, clock, held == nil || held.Observation.Hold.ID() != h.ID())
		held = o
		work.saw(t, o)
	}
	work.last(t)
	for i := range in.notes {
		e := &in.notes[i]
		switch {
		case e.Break != nil:
			t.breakSeen(e, in.observer(e.Run))
		case e.Error != nil:
			t.add(fmt.Sprintf("error %s %d", e.Run, e.T), Event{At: e.At, What: "error", Detail: joinWords(e.Error.What, e.Error.Error),
				Clock: in.observer(e.Run), Source: sourceJournal, phase: phaseHeld})
		}
	}
}

// seenHeld tells of a hold that an observer saw, where its own record is gone.
func (t *storyteller) seenHeld(h *journal.Hold, o *journal.Observed, clock string) {
	if t.holders[h.Token] == "" {
		t.holders[h.Token] = holderName(first(h.Operation, h.Tool), h.PID, h.Host)
	}
	e := Event{At: o.At, What: "seen held", Token: h.Token, Clock: clock, Source: sourceJournal, phase: phaseTaken,
		Detail: joinWords(first(h.Operation, h.Tool), number64("token", h.Token), number64("pid", uint64(max(0, h.PID))))}
	if h.Host != "" {
		e.By = h.User + "@" + h.Host
	}
	if h.AcquiredAt != nil {
		e.At, e.What, e.Clock = *h.AcquiredAt, "acquired", "the holder's, "+h.Host
	}
	t.add("taken "+h.Session, e)
}

// over tells that a hold was over, where nothing else tells how.
func (in *told) over(t *storyteller, held, o *journal.Observed, clock string) {
	h := held.Observation.Hold
	for i := range in.notes {
		if b := in.notes[i].Break; b != nil && b.Event == journal.BreakEnded && b.Token == h.Token && (b.Outcome == "taken" || b.Outcome == "unlocked") {
			return
		}
	}
	t.add(fmt.Sprintf("over %d", h.Token), Event{At: o.At, AtLatest: true, What: "seen ended", Token: h.Token, Clock: clock, Source: sourceJournal, phase: phaseEnded,
		Detail: "it was let go, or Consul ended its session"})
}

// judged tells of a verdict that changed. fresh: the hold is a new one.
func (t *storyteller) judged(o *journal.Observed, clock string, fresh bool) {
	v, was := &o.Observation.Verdict, o.Observation.Was
	switch {
	case o.Kind != journal.KindVerdict, v.State == Held && (fresh || was == nil):
		return // that it was taken is told already
	}
	what := "judged " + v.State
	if v.State == Held {
		what = "judged HELD again"
	}
	if v.Rule != "" {
		what += " by rule " + printable(v.Rule)
	}
	t.add(fmt.Sprintf("judged %s %d", o.Run, o.T), Event{At: o.At, What: what, Detail: v.Reason, Token: o.Observation.Hold.Token,
		Clock: clock, Source: sourceJournal, phase: phaseHeld})
}

// breakSeen tells of a break that its breaker wrote down, if Consul has no
// record of it any more.
func (t *storyteller) breakSeen(e *journal.Entry, clock string) {
	b := e.Break
	out := Event{At: e.At, By: b.By, Token: b.Token, Clock: clock, Source: sourceJournal, phase: phaseHeld}
	var id string
	switch b.Event {
	case journal.BreakBegun:
		id, out.What, out.Detail = "begun "+b.Key, "break begun", joinWords("rule "+b.Rule, number64("token", b.Token), b.Reason)
	case journal.BreakStep:
		if t.known["begun "+b.Key] && t.known["ended "+b.Key] {
			return // the audit has all of its steps
		}
		id, out.What, out.Detail = fmt.Sprintf("step %s %s %d", b.Key, e.Run, e.T), "step "+b.Step+" "+b.Result, b.Detail
	case journal.BreakEnded:
		id, out.What, out.Detail = "ended "+b.Key, "break "+b.Outcome, b.Detail
		if b.Outcome == "taken" || b.Outcome == "unlocked" {
			out.phase = phaseEnded
		}
	default:
		return
	}
	if b.DryRun {
		out.What = "dry run: " + out.What
	}
	t.add(id, out)
}

// milestones tells of the work of a hold: where it began, each quarter of it,
// and where it stood last.
type milestones struct {
	token   uint64
	clock   string
	began   bool
	done    int64
	quarter int64
	// latest is not told yet; its At is zero if there is none.
	latest Event
}

func (m *milestones) saw(t *storyteller, o *journal.Observed) {
	done, total := factInt(o.Facts, "progress.done"), factInt(o.Facts, "progress.total")
	if done == nil || m.began && *done == m.done {
		return
	}
	all, unit := int64(0), ""
	if total != nil {
		all = *total
	}
	if u := factString(o.Facts, "progress.unit"); u != nil {
		unit = *u
	}
	e := Event{At: o.At, What: progress, Token: m.token, Clock: m.clock, Source: sourceJournal, phase: phaseHeld, Detail: doneOf(*done, all, unit)}
	quarter := m.quarter
	if all > 0 {
		quarter = 4 * *done / all
	}
	told := !m.began || quarter != m.quarter
	m.began, m.done, m.quarter, m.latest = true, *done, quarter, e
	if told {
		m.last(t)
	}
}

func (m *milestones) last(t *storyteller) {
	t.add(fmt.Sprintf("progress %d %d", m.token, m.done), m.latest)
	m.latest = Event{}
}

// stalls tells since when the work of a hold stood still, where a rule fired on
// that.
func (in *told) stalls(t *storyteller) {
	add := func(token uint64, since time.Time, clock, source string) {
		t.add(fmt.Sprintf("stalled %d", token), Event{At: since, What: stall, Token: token, Clock: clock, Source: source, phase: phaseHeld})
	}
	for i := range in.breaks {
		b := &in.breaks[i].rec
		for _, e := range b.Evidence {
			var age float64
			if e.Fact == "progress.age" && e.Known && unmarshal(e.Value, &age) {
				add(b.Token, e.ObservedAt.Add(-seconds(age)), "the breaker's, "+b.By, sourceConsul)
			}
		}
	}
	if v := in.verdict; v.Snapshot.Held() && readsProgress(v.Judgement.Result) {
		if age := factFloat(v.Facts, "progress.age"); age != nil {
			add(v.Snapshot.Index(), v.At.Add(-seconds(*age)), "this host", sourceConsul)
		}
	}
}

func readsProgress(res *policies.RuleResult) bool {
	if res == nil || res.Value != policies.True {
		return false
	}
	for _, u := range res.Used {
		if u == "progress.age" {
			return true
		}
	}
	return false
}
