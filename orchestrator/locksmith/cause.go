package locksmith

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
)

func unmarshal(b []byte, v any) bool { return json.Unmarshal(b, v) == nil }

// cause says why the lock is as it is: what the evidence shows and no more.
func (in *told) cause(t *storyteller) string {
	v := in.verdict
	s := v.Snapshot
	if len(v.Slots) > 0 {
		return causeSlots(v)
	}
	if !s.Held() {
		return in.causeFree(t)
	}
	who := t.holders[s.Index()]
	if who == "" {
		who = first(s.Tool, unknownProgram)
		if who == "unknown" {
			who = unknownProgram
		}
		who += ", session " + s.SessionID()
	}
	who = printable(who)
	switch v.State {
	case Hot, Warm:
		return fmt.Sprintf("%s (rule %s)", in.causeRule(who), v.Judgement.Rule.Name)
	case Unknown:
		return fmt.Sprintf("it is held by %s, and whether that is as it should be cannot be told: %s", who, printable(v.Judgement.Result.Why))
	}
	text := "it is held by " + who
	if v.Policy == nil {
		text += "; no policy watches it"
	} else {
		text += ", and no rule finds anything wrong with that"
	}
	if b := in.brokenBefore(s.Index()); b != nil {
		text += "; the hold before was broken: " + brokenText(t, b)
	}
	return text
}

// unknownProgram stands for a holder that wrote nothing about itself.
const unknownProgram = "an unknown program"

// causeRule says what the rule that decided saw, in words that its facts bear
// out.
func (in *told) causeRule(who string) string {
	v := in.verdict
	res := v.Judgement.Result
	reads := func(name string) bool { return slices.Contains(res.Used, name) }
	alive, gone := factBool(v.Facts, "holder.alive"), factBool(v.Facts, "nomad.gone")
	status, client := factString(v.Facts, "check.status"), factString(v.Facts, "nomad.client_status")
	switch age := factFloat(v.Facts, "progress.age"); {
	case reads("holder.alive") && alive != nil && !*alive:
		return "the process that holds it is gone: " + who
	case reads("nomad.gone") && gone != nil && *gone:
		return "the Nomad allocation that holds it was collected: " + who
	case reads("nomad.client_status") && client != nil && (*client == "complete" || *client == "failed"):
		return fmt.Sprintf("the Nomad allocation that holds it has ended (%s): %s", *client, who)
	case reads("nomad.client_status") && client != nil && *client == "lost":
		return "Nomad lost the client of the allocation that holds it: " + who
	case reads("progress.age") && age != nil:
		at := ""
		if done, total := factInt(v.Facts, "progress.done"), factInt(v.Facts, "progress.total"); done != nil && total != nil {
			unit := factString(v.Facts, "progress.unit")
			if unit == nil {
				unit = new(string)
			}
			at = " at " + doneOf(*done, *total, *unit)
		}
		return fmt.Sprintf("its holder has made no progress for %s%s: %s", round(seconds(*age)), at, who)
	case reads("check.status") && status != nil && *status == "critical":
		return "the check of its holder is critical: " + who
	}
	return first(printable(res.Reason), "the rule holds") + "; held by " + who
}

// causeSlots is about a semaphore: each slot has a cause of its own.
func causeSlots(v *Verdict) string {
	text := fmt.Sprintf("it is a semaphore, of which %s held", isAre(len(v.Slots), "slot"))
	if g := v.gravest(); g != nil && Gravity(v.State) > Gravity(Held) {
		text += fmt.Sprintf("; it is %s for its slot %s", v.State, printable(g.Snapshot.Name))
	}
	return text
}

func isAre(n int, thing string) string {
	if n == 1 {
		return "one " + thing + " is"
	}
	return fmt.Sprintf("%d %ss are", n, thing)
}

// causeFree is about a lock that nobody holds.
func (in *told) causeFree(t *storyteller) string {
	s := in.verdict.Snapshot
	state := "nobody holds it"
	if in.verdict.State == Cooling {
		state = "nobody holds it, and Consul's lock-delay still refuses it"
	}
	h := s.Holder
	var last *keyedBreak
	for i := range in.breaks {
		b := &in.breaks[i]
		if h != nil && h.Broken == b.key {
			last = b
		}
	}
	switch {
	case last != nil:
		return state + ": the last hold was broken: " + brokenText(t, &last.rec)
	case h == nil && unheardOf(s) && len(in.breaks)+len(in.lost)+len(in.seen) == 0:
		return state + noSuchKey
	case h == nil:
		return state
	case h.Released && h.Broken != "":
		return state + ": the last hold was broken, and the record of that is gone"
	case h.Released && h.ReleasedAt != nil:
		return fmt.Sprintf("%s: the last holder, %s, let go of it at %s by its own clock", state, holderName(h.Operation, h.PID, h.Host), text.Time(*h.ReleasedAt))
	}
	return fmt.Sprintf("%s: the last holder, %s, did not let go of it itself; Consul ended its session, or somebody did", state, holderName(h.Operation, h.PID, h.Host))
}

func brokenText(t *storyteller, b *records.Break) string {
	who := t.holders[b.Token]
	if who != "" {
		who = " of " + who
	}
	return printable(fmt.Sprintf("token %d%s, by %s, rule %s: %s", b.Token, who, b.By, b.Rule, b.Reason))
}

// brokenBefore is the break by which the hold called token came to be, or that
// of the one before it; nil if none is known.
func (in *told) brokenBefore(token uint64) *records.Break {
	session := in.verdict.Snapshot.SessionID()
	for i := range slices.Backward(in.breaks) {
		b := &in.breaks[i].rec
		if b.Outcome == records.OutcomeTaken && b.NewSession == session && b.Token < token {
			return b
		}
	}
	return nil
}
