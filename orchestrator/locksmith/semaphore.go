package locksmith

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// judgeSemaphore judges every slot by itself, as the lock that it is: the
// semaphore is as grave as the gravest of them. It has no holder of its own, and
// rules have nothing else to read.
func (o *Observer) judgeSemaphore(v *Verdict, whole bool) {
	if o.slots == nil {
		o.slots = map[string]*Observer{}
	}
	present := map[string]*Observer{}
	for _, s := range v.Snapshot.Semaphore.Slots {
		obs := o.slots[s.Key]
		if obs == nil {
			obs = o.c.NewObserver(s.Name, o.past())
		}
		present[s.Key] = obs
		slot := obs.judge(s, v.At, whole)
		v.Slots = append(v.Slots, slot)
		if len(v.Slots) == 1 || Gravity(slot.State) > Gravity(v.State) {
			v.State, v.Policy, v.Judgement = slot.State, slot.Policy, slot.Judgement
		}
	}
	o.slots = present
}

// Gravity orders the states of locks: the higher, the worse.
func Gravity(state string) int {
	switch state {
	case Hot:
		return 4
	case Unknown:
		return 3
	case Warm:
		return 2
	case Held:
		return 1
	}
	return 0
}

// gravest is the first slot that gives a semaphore its state; nil if none is
// held.
func (v *Verdict) gravest() *Verdict {
	for _, s := range v.Slots {
		if s.State == v.State {
			return s
		}
	}
	return nil
}

// Occupied reports whether anybody has the lock: a session, or one in a slot.
func (v *Verdict) Occupied() bool { return v.Snapshot.Held() || len(v.Slots) > 0 }

// unfit says why no step of a policy fits the lock; "" if one does. A
// semaphore's list is other contenders' property: to take it would take all
// slots at once, and a contender's key cannot be held for it.
func (c *Client) unfit(v *Verdict) string {
	s := v.Snapshot
	switch {
	case s.Semaphore != nil:
		why := "it is a semaphore: each of its slots is broken by itself"
		if g := v.gravest(); g != nil {
			why += fmt.Sprintf("; `%s`", c.flags.Judging("lock break", g.Snapshot.Name))
		}
		return why
	case s.Slot != nil && !s.Slot.Holds:
		return "it only waits for a slot of " + s.Slot.Of
	case s.Slot != nil && v.Policy.Break != nil && !hasStep(v.Policy, policies.StepDestroySession):
		return fmt.Sprintf("%s of a semaphore, and policy %s has no step destroy_session", slotCannot, v.Policy.Name)
	}
	return ""
}

// slotCannot is why the step take is refused for a slot.
const slotCannot = "take does not fit a slot"

func hasStep(p *policies.Policy, kind string) bool {
	for _, st := range p.Break.Steps {
		if st.Kind == kind {
			return true
		}
	}
	return false
}

// SemaphoreView is a lock of several slots as people and programs are shown it.
type SemaphoreView struct {
	Limit   int         `json:"limit"`
	Holders []*SlotView `json:"holders"`
	Waiting []*SlotView `json:"waiting"`
	// Stale are entries that nobody stands behind any more.
	Stale []string `json:"stale"`
	// Why says why it is not known who holds a slot; empty if it is.
	Why string `json:"why,omitempty"`
}

// SlotView is one contender for a semaphore.
type SlotView struct {
	Name    string `json:"name"`
	Session string `json:"session"`
	// Node and Operation are empty where they are not known.
	Node      string `json:"node"`
	Operation string `json:"operation"`
	// State, Rule and Reason are the verdict on a holder; empty for who waits.
	State  string `json:"state,omitempty"`
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"`
}

func (c *Client) semaphoreView(v *Verdict) *SemaphoreView {
	sem := v.Snapshot.Semaphore
	out := &SemaphoreView{Limit: sem.Limit, Holders: []*SlotView{}, Waiting: []*SlotView{}, Stale: append([]string{}, sem.Stale...), Why: sem.Why}
	for _, slot := range v.Slots {
		st, view := c.Status(slot), slotView(slot.Snapshot)
		view.State, view.Rule, view.Reason = st.State, st.Rule, st.Reason
		out.Holders = append(out.Holders, view)
	}
	for _, s := range sem.Waiting {
		out.Waiting = append(out.Waiting, slotView(s))
	}
	return out
}

// semaphoreStatus shows the gravest slot's rule, and all slots.
func (c *Client) semaphoreStatus(v *Verdict, st *Status) {
	st.Semaphore = c.semaphoreView(v)
	tool := v.Snapshot.Tool
	st.Holder = &HolderView{Tool: &tool}
	g := v.gravest()
	if g == nil {
		st.Holder = nil
		return
	}
	slot := c.Status(g)
	st.Rule, st.Reason, st.Pending, st.Evidence, st.Decisive = slot.Rule, slot.Reason, slot.Pending, slot.Evidence, slot.Decisive
}

func slotView(s *evidence.Snapshot) *SlotView {
	view := &SlotView{Name: s.Name, Session: s.SessionID(), Operation: printable(s.Operation())}
	if s.Session != nil {
		view.Node = s.Session.Node
	}
	return view
}

// SlotsText says in a few words how many slots are held.
func (s *SemaphoreView) SlotsText() string {
	if s.Why != "" && s.Limit == 0 {
		return "slots not known: " + s.Why
	}
	text := fmt.Sprintf("%d of %d slots held", len(s.Holders), s.Limit)
	if n := len(s.Waiting); n > 0 {
		text += fmt.Sprintf(", %d waiting", n)
	}
	if n := len(s.Stale); n > 0 {
		text += fmt.Sprintf(", %d stale", n)
	}
	return text
}

func (c *Client) nextSemaphore(v *Verdict) string {
	sem := v.Snapshot.Semaphore
	switch g := v.gravest(); {
	case sem.Why != "":
		return "it is left alone: " + sem.Why
	case v.State == Hot:
		return fmt.Sprintf("each slot is broken by itself: `%s`", c.flags.Judging("lock break", g.Snapshot.Name))
	case v.State == Unknown:
		return fmt.Sprintf("it is not broken on unknown evidence; `%s` shows what is missing", c.flags.Judging("lock explain", g.Snapshot.Name))
	case len(v.Slots) < sem.Limit:
		return "a slot is free: anybody may take it"
	}
	return fmt.Sprintf("a slot is free when a holder lets go; of each holder: `%s`", c.flags.Judging("lock explain", v.Slots[0].Snapshot.Name))
}

// HeldBeside is the name of a held lock that stands beside one that nobody holds,
// where people who give this name may have meant it, and how it comes to be there;
// "" if there is none. consul lock and Terraform lock <name>/.lock for the name that
// they are given; a name without a slash is aimlock's own, and /<name> is the key.
func (c *Client) HeldBeside(ctx context.Context, v *Verdict) (name, how string) {
	if v.Occupied() || strings.HasSuffix(v.Snapshot.Key, "/.lock") {
		return "", ""
	}
	bare := strings.TrimPrefix(v.Snapshot.Name, "/")
	if name, how := c.beside(ctx, bare); name != "" {
		return name, how
	}
	other, how := "/"+bare, "a name without a slash is a lock of aimlock's own, and that is a key of KV"
	if !v.Snapshot.Own {
		other, how = bare, "a name without a slash is a lock of aimlock's own"
	}
	if !strings.Contains(bare, "/") && c.occupied(ctx, other) {
		return other, how
	}
	return "", ""
}

// LockBeside is the part of HeldBeside for who has taken the lock called name: of a
// whole key only, since nobody gives consul lock the name of a lock of aimlock's.
func (c *Client) LockBeside(ctx context.Context, name string) (other, how string) {
	if !strings.Contains(name, "/") || strings.HasSuffix(name, "/.lock") {
		return "", ""
	}
	// A lock is held meanwhile, and this is but a hint.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return c.beside(ctx, strings.TrimPrefix(name, "/"))
}

func (c *Client) beside(ctx context.Context, bare string) (name, how string) {
	if name := bare + "/.lock"; c.occupied(ctx, name) {
		return name, "consul lock and Terraform add /.lock to the name that they are given"
	}
	return "", ""
}

// occupied reports whether somebody holds the lock called name, so far as it can
// be read.
func (c *Client) occupied(ctx context.Context, name string) bool {
	s, err := c.reader.Read(ctx, name)
	return err == nil && (s.Held() || s.Semaphore != nil && len(s.Semaphore.Slots) > 0)
}

// foreignSince is when another tool says that it took the lock; for people.
func foreignSince(s *evidence.Snapshot) (time.Time, bool) {
	if s.Info == nil || s.Info.Created.IsZero() {
		return time.Time{}, false
	}
	return s.Info.Created, true
}
