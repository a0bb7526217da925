package hooks

import (
	"fmt"
	"slices"
	"time"

	"github.com/aim-control/aimlock/internal/records"
)

// Kinds of events.
const (
	// Hot: a lock became HOT.
	Hot = "hot"
	// Unknown: a lock has been UNKNOWN for as long as the hook wants to wait.
	Unknown = "unknown"
	// BreakBegun: the intent to break a lock is committed.
	BreakBegun = "break_begun"
	// BreakDone: the hold was ended.
	BreakDone = "break_done"
	// BreakFailed: a break came to nothing.
	BreakFailed = "break_failed"
	// Leader: another locksmith leads.
	Leader = "leader"
)

// Break stands in Config.On for all three events of a break.
const Break = "break"

// Kinds are the words of Config.On.
func Kinds() []string {
	return []string{Hot, Unknown, Break, BreakBegun, BreakDone, BreakFailed, Leader}
}

// Event is what a hook is told, as JSON: the body of the POST, or the command's
// stdin. What does not apply is left out.
type Event struct {
	// ID is the same each time that the delivery of one event is tried.
	ID   string    `json:"id"`
	Kind string    `json:"event"`
	At   time.Time `json:"at"`

	Lock   string `json:"lock,omitempty"`
	Key    string `json:"key,omitempty"`
	State  string `json:"state,omitempty"`
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Token and Session name the hold, Holder who has it.
	Token   uint64 `json:"token,omitempty"`
	Session string `json:"session,omitempty"`
	Holder  string `json:"holder,omitempty"`
	// For is for how many seconds the lock has been UNKNOWN.
	For float64 `json:"for,omitempty"`

	// Break is the key of the break's record; Outcome and Detail say how it
	// came out.
	Break   string `json:"break,omitempty"`
	Outcome string `json:"outcome,omitempty"`
	Detail  string `json:"detail,omitempty"`

	// By and the rest say who tells: the breaker, or the new leader.
	By string `json:"by,omitempty"`
	records.Who

	// Dropped is how many events this hook was not told since the last one
	// that it was told.
	Dropped int64 `json:"dropped,omitempty"`
}

// OfBreak makes the event of a break out of its record.
func OfBreak(key string, r *records.Break) Event {
	e := Event{
		Kind: BreakFailed, Lock: r.Lock, Key: r.Key, State: "HOT", Policy: r.Policy, Rule: r.Rule, Reason: r.Reason,
		Token: r.Token, Session: r.Session, Break: key, Outcome: r.Outcome, Detail: r.Detail, By: r.By, Who: r.Who,
	}
	switch r.Outcome {
	case records.OutcomeIntent:
		e.Kind, e.Outcome = BreakBegun, ""
	case records.OutcomeTaken, records.OutcomeUnlocked, records.OutcomeEnded, records.OutcomeReleased:
		e.Kind = BreakDone
	}
	if h := r.Holder; h != nil {
		e.Holder = fmt.Sprintf("pid %d on %s", h.PID, h.Host)
	}
	return e
}

// wants tells whether a hook with these words is told of the kind.
func wants(on []string, kind string) bool {
	return slices.Contains(on, kind) ||
		slices.Contains(on, Break) && (kind == BreakBegun || kind == BreakDone || kind == BreakFailed)
}
