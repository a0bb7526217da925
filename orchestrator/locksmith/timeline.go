package locksmith

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// Event is one line of a lock's story.
type Event struct {
	At time.Time `json:"at"`
	// AtLatest is true where it is not on record when it was: At is when it was seen.
	AtLatest bool   `json:"at_latest,omitempty"`
	What     string `json:"what"`
	By       string `json:"by"`
	Detail   string `json:"detail"`
	// Who says more of By, where its record does.
	records.Who
	// Token names the hold that it is about; 0 where it is about none.
	Token uint64 `json:"token,omitempty"`
	// Clock is whose clock At is of: those of two hosts may differ.
	Clock string `json:"clock"`
	// Source is where it is known from: consul or journal.
	Source string `json:"source"`

	// hold stands for Token in the order of holds where the token is not known.
	hold  uint64
	phase int

	// letGo is who let go of the hold that a break was about, where it is known, and
	// asked that the break had asked for it.
	letGo string
	asked bool
}

// Text is what happened and by whom, for people: the outcome of a break in plain
// words. Detail follows it.
func (e *Event) Text() string {
	by := ""
	if e.By != "" {
		by = " by " + e.By
		if e.Accessor != "" {
			by += fmt.Sprintf(" (token accessor %s)", text.Clip(printable(e.Accessor), 60))
		}
	}
	before, outcome, ok := strings.Cut(e.What, "break ")
	switch words := records.OutcomeText(outcome); {
	case ok && outcome == records.OutcomeReleased && e.Detail == "":
		holder := "its holder"
		if e.letGo != "" {
			holder += ", " + e.letGo + ","
		}
		if e.asked {
			return before + "break over: " + holder + " let go, as asked" + by
		}
		return before + "break called off" + by + ": " + holder + " let go"
	case ok && outcome == records.OutcomeReleased:
		return before + "break called off" + by // Detail says why
	case ok && words != outcome:
		return before + words + by
	}
	return e.What + by
}

// When is the time as people are told it: that of what happened at an unknown time
// before is never shown as if it happened then.
func (e *Event) When() string {
	if e.AtLatest {
		return "by " + text.Time(e.At)
	}
	return text.Time(e.At)
}

// of names the hold that an event is about, in the order of holds; 0 for none.
func (e *Event) of() uint64 { return cmp.Or(e.Token, e.hold) }

// Phases of a hold: whatever the clocks say, it is taken before anything else
// happens to it, is ended after all that, and who saw its end saw it after that.
const (
	phaseTaken = iota
	phaseHeld
	phaseEnded
	phaseOver
)

// Sources of events.
const (
	sourceConsul  = "consul"
	sourceJournal = "journal"
)

// What is told of a hold's work.
const (
	progress = "progress"
	stall    = "progress stands still from here"
)

// Story is what happened to a lock.
type Story struct {
	// Cause says in one sentence why the lock is as it is, so far as the
	// evidence tells; empty where it tells nothing.
	Cause string
	// Events are in the order in which they happened. Holds follow each other
	// by their tokens, whatever the clocks say.
	Events []Event
}

// told is everything that a story is made of.
type told struct {
	verdict *Verdict
	breaks  []keyedBreak // oldest first
	// lost are break records that cannot be read.
	lost []string
	seen []*journal.Observed
	// notes are the journal's other entries on the lock.
	notes []journal.Entry
	// hosts are where the journal's runs were.
	hosts map[string]string
}

type keyedBreak struct {
	key string
	rec records.Break
}

// Story tells a lock's story from the audit records and the lock's keys in
// Consul and, if dir is not empty, from the journal there. problem, if not nil,
// is told of what is bad in the journal.
func (c *Client) Story(ctx context.Context, v *Verdict, dir string, problem func(*journal.Problem)) (*Story, error) {
	in := &told{verdict: v}
	pairs, err := c.consul.List(ctx, c.keys.Breaks(v.Snapshot.Name))
	if err != nil {
		return nil, err
	}
	for _, p := range pairs {
		b := keyedBreak{key: p.Key}
		if records.Decode(p.Key, p.Value, &b.rec) != nil {
			in.lost = append(in.lost, p.Key)
			continue
		}
		in.breaks = append(in.breaks, b)
	}
	if dir != "" {
		if err := in.read(dir, problem); err != nil {
			return nil, err
		}
	}
	return in.story(), nil
}

// read takes what a journal has of the lock.
func (in *told) read(dir string, problem func(*journal.Problem)) error {
	fold := journal.Fold{}
	for e, err := range journal.ReadLock(dir, in.verdict.Snapshot.Name) {
		if p, ok := errors.AsType[*journal.Problem](err); ok {
			if problem != nil {
				problem(p)
			}
			continue
		}
		if err != nil {
			return err
		}
		in.entry(&fold, &e)
	}
	return nil
}

func (in *told) entry(fold *journal.Fold, e *journal.Entry) {
	s := in.verdict.Snapshot
	o, _ := fold.Add(e)
	switch {
	case e.Start != nil:
		if in.hosts == nil {
			in.hosts = map[string]string{}
		}
		in.hosts[e.Run] = e.Start.Host
	case e.Lock != s.Name:
	case o != nil && o.Observation.Key == s.Key:
		in.seen = append(in.seen, o)
	case o == nil && (e.Break != nil || e.Error != nil):
		in.notes = append(in.notes, *e)
	}
}

// observer is whose clock a run of the journal is by.
func (in *told) observer(run string) string {
	if h := in.hosts[run]; h != "" {
		return "the observer's, " + h
	}
	return "the observer's"
}

// storyteller gathers events. The first that tells of something is kept: the
// record that its doer wrote, before what somebody saw of it.
type storyteller struct {
	events []Event
	known  map[string]bool
	// holders are who had each token.
	holders map[uint64]string
}

func (t *storyteller) add(id string, e Event) {
	if e.At.IsZero() || t.known[id] {
		return
	}
	t.known[id] = true
	e.At, e.By, e.Detail, e.Clock = e.At.UTC(), printable(e.By), printable(e.Detail), printable(e.Clock)
	t.events = append(t.events, e)
}

func (in *told) story() *Story {
	t := &storyteller{known: map[string]bool{}, holders: map[uint64]string{}}
	for i := range in.breaks {
		t.breakRecord(in.breaks[i].key, &in.breaks[i].rec)
	}
	in.consul(t)
	in.journal(t)
	in.left(t)
	in.stalls(t)
	for _, key := range in.lost {
		t.add("lost "+key, Event{At: in.verdict.At, AtLatest: true, What: "unreadable record of a break", Detail: key, Clock: "this host", Source: sourceConsul, phase: phaseEnded})
	}
	inOrder(t.events)
	return &Story{Cause: in.cause(t), Events: t.events}
}

// holder tells of a hold by its own record. Where the token is 0, as it is not
// known, hold stands for it.
func (t *storyteller) holder(h *records.Holder, token, hold uint64) {
	who := h.User + "@" + h.Host
	t.holders[token] = holderName(h.Operation, h.PID, h.Host)
	t.add(fmt.Sprintf("taken %s", h.Session), Event{At: h.AcquiredAt, What: "acquired", By: who, Token: token, Clock: "the holder's, " + h.Host, Source: sourceConsul,
		Detail: joinWords(h.Operation, first(number64("token", token), "token not on record"), number64("pid", uint64(max(0, h.PID)))), hold: hold, phase: phaseTaken})
}

func holderName(operation string, pid int, host string) string {
	name := first(operation, "aimlock")
	if pid > 0 {
		name += fmt.Sprintf(", pid %d", pid)
	}
	if host != "" {
		name += " on " + host
	}
	return printable(name)
}

func first(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

// breakRecord tells of a break by its audit record.
func (t *storyteller) breakRecord(key string, b *records.Break) {
	if b.Holder != nil {
		t.holder(b.Holder, b.Token, b.Token)
	}
	e := Event{By: b.By, Who: b.Who, Token: b.Token, Clock: "the breaker's, " + b.By, Source: sourceConsul, phase: phaseHeld}
	begun := e
	begun.At, begun.What = b.StartedAt, "break begun"
	begun.Detail = joinWords("rule "+b.Rule, number64("token", b.Token), b.Reason)
	if on := evidenceWords(b.Evidence); on != "" {
		begun.Detail += "; on " + on
	}
	t.add("begun "+key, begun)
	for i, st := range b.Steps {
		step := e
		step.At, step.What, step.Detail = st.At, "step "+st.Step+" "+st.Result, st.Detail
		t.add(fmt.Sprintf("step %s %d", key, i), step)
	}
	if b.EndedAt == nil {
		return
	}
	end := e
	end.At, end.What, end.Detail = *b.EndedAt, "break "+b.Outcome, b.Detail
	if b.Outcome == records.OutcomeTaken || b.Outcome == records.OutcomeUnlocked || b.Outcome == records.OutcomeEnded {
		end.phase = phaseEnded
		t.known[fmt.Sprintf("over %d", b.Token)] = true
	}
	if b.Outcome == records.OutcomeReleased {
		end.phase = phaseOver
	}
	if h := b.Holder; h != nil {
		end.letGo = printable(h.User + "@" + h.Host)
	}
	end.asked = slices.ContainsFunc(b.Steps, func(st records.BreakStep) bool { return st.Step == policies.StepRequest && st.Result == "done" })
	t.add("ended "+key, end)
}

// evidenceWords are the facts that a rule fired on.
func evidenceWords(list []records.Evidence) string {
	var words []string
	for _, e := range list {
		value := text.Number(string(e.Value))
		if !e.Known {
			value = "unknown"
		}
		words = append(words, e.Fact+" = "+value)
	}
	return strings.Join(words, ", ")
}

// consul tells what stands in Consul beside the breaks.
func (in *told) consul(t *storyteller) {
	s := in.verdict.Snapshot
	token := uint64(0)
	if s.Held() {
		token = s.Index()
	}
	if h := s.Holder; h != nil {
		if token == 0 {
			token = cmp.Or(h.Token, in.lastToken(h.Session))
		}
		who, clock := h.User+"@"+h.Host, "the holder's, "+h.Host
		if h.Broken == "" {
			// No hold came after the one whose record stands in the key, so the key's
			// index is past all other tokens: where nothing tells the hold's own, it
			// keeps the hold in its place against clocks. (Who waits for a lock may have
			// it before the breaker has written down that the break has ended.)
			hold := s.Index()
			t.holder(h, token, hold)
			if h.Released && h.ReleasedAt != nil {
				t.known[fmt.Sprintf("over %d", token)] = true
				t.add("released "+h.Session, Event{At: *h.ReleasedAt, What: "released", By: who, Detail: h.Operation, Token: token, Clock: clock, Source: sourceConsul, hold: hold, phase: phaseEnded})
			}
		}
		if p := s.Progress; p != nil {
			t.add(fmt.Sprintf("progress %d %d", p.Token, p.Done), Event{At: p.At, What: progress, By: who, Token: p.Token, Clock: clock, Source: sourceConsul, phase: phaseHeld,
				Detail: joinWords(doneOf(p.Done, p.Total, p.Unit), p.Note)})
		}
	}
	if q := s.Request; q != nil {
		t.add("asked", Event{At: q.At, What: "asked to let go", By: q.By, Who: q.Who, Detail: q.Reason, Token: q.Token, Clock: q.By, Source: sourceConsul, phase: phaseHeld})
	}
	if a := s.Approval; a != nil {
		t.add("approved", Event{At: a.At, What: "break approved", By: a.By, Who: a.Who, Detail: a.Reason, Token: a.Token, Clock: a.By, Source: sourceConsul, phase: phaseHeld})
	}
	if q := s.Silence; q != nil {
		until := "without an end"
		if !q.Expires.IsZero() {
			until = "until " + text.Time(q.Expires)
		}
		t.add("silenced", Event{At: q.At, What: "silenced " + until, By: q.By, Who: q.Who, Detail: q.Reason, Clock: q.By, Source: sourceConsul, phase: phaseHeld})
	}
}

// left tells of a last hold that nobody let go of and nobody broke, where nothing else
// tells of its end.
func (in *told) left(t *storyteller) {
	s := in.verdict.Snapshot
	h := s.Holder
	if s.Held() || h == nil || h.Released || h.Broken != "" {
		return
	}
	token := cmp.Or(h.Token, in.lastToken(h.Session))
	t.add(fmt.Sprintf("over %d", token), Event{At: in.verdict.At, AtLatest: true, What: "not held any more", Token: token, Clock: "this host", Source: sourceConsul, hold: s.Index(), phase: phaseEnded,
		Detail: "its holder did not let go of it; when its session ended is not on record"})
}

// lastToken is the token of an ended session's hold whose record does not name it,
// as it was not released; 0 if nothing tells.
func (in *told) lastToken(session string) uint64 {
	if p := in.verdict.Snapshot.Progress; p != nil && p.Session == session {
		return p.Token
	}
	for i := range slices.Backward(in.breaks) {
		if b := &in.breaks[i].rec; b.Session == session {
			return b.Token
		}
	}
	for i := range slices.Backward(in.seen) {
		if h := in.seen[i].Observation.Hold; h != nil && h.Session == session {
			return h.Token
		}
	}
	return 0
}

func doneOf(done, total int64, unit string) string {
	text := fmt.Sprintf("%d", done)
	if total > 0 {
		text += fmt.Sprintf(" of %d", total)
	}
	if unit != "" {
		text += " " + unit
	}
	return text
}

func joinWords(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), ", ")
}

func number64(what string, n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%s %d", what, n)
}

// inOrder sorts a story. Clocks of several hosts are in it, and what surely came
// first comes first: holds follow each other by their tokens, and each is taken
// before and ended after all else that is about it. What is about no hold stands
// by its time.
func inOrder(events []Event) {
	slices.SortStableFunc(events, func(a, b Event) int { return a.At.Compare(b.At) })
	held := slices.Clone(events)
	held = slices.DeleteFunc(held, func(e Event) bool { return e.of() == 0 })
	slices.SortStableFunc(held, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.of(), b.of()), cmp.Compare(a.phase, b.phase))
	})
	n := 0
	for i := range events {
		if events[i].of() != 0 {
			events[i] = held[n]
			n++
		}
	}
	for i := len(events) - 1; i >= 0; i-- {
		if events[i].What == stall {
			afterProgress(events[i:])
		}
	}
}

// afterProgress moves a stall, the first of events, past the last progress of
// its hold. Since when work stands still is counted from when its last step was
// read, and an observer writes that step down up to its interval later.
func afterProgress(events []Event) {
	last := 0
	for i := range events {
		if events[i].Token == events[0].Token && events[i].What == progress {
			last = i
		}
	}
	moved := events[0]
	copy(events, events[1:last+1])
	events[last] = moved
}
