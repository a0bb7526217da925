package guard

import (
	"slices"
	"sync"
	"time"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// board is what a guard shows of itself: to health, to metrics, to the leader's
// progress. Its methods may be called from anywhere.
type board struct {
	mu     sync.Mutex
	dryRun bool
	hash   string

	// states counts locks by state, and hot holds the names of those that are HOT.
	states map[string]int
	hot    map[string]struct{}
	total  int

	// begun: the first sweep came. turn is when the loop turned last.
	begun bool
	turn  time.Time
	// freshness asks the source how old its picture is at most.
	freshness func() (age time.Duration, err error)

	term *term
	// leading is who else leads, "" if nobody is known to, and leadState the
	// state of the leader's lock.
	leading, leadState string
	brakes             brakes
	inForce            bool
	reloadErr          string
	reloadedAt         time.Time
}

// Bounds of what counts as fresh.
const (
	// turnLimit is how long the loop may stand still: its heartbeat alone wakes
	// it every beatEvery.
	turnLimit = 3 * beatEvery
	// freshLimit is how old the picture of the locks may be. A blocking query
	// that brings nothing returns after a minute and a little.
	freshLimit = 2 * time.Minute
)

// aged is a Source that knows how old its picture is.
type aged interface {
	// Age is for how long it may have missed a change, and why.
	Age() (time.Duration, error)
}

func newBoard(dryRun bool) *board {
	return &board{dryRun: dryRun, states: map[string]int{}, hot: map[string]struct{}{}, turn: time.Now(), inForce: true}
}

// with runs f under the board's lock.
func (b *board) with(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *board) policies(hash string) { b.with(func() { b.hash = hash }) }
func (b *board) turned()              { b.with(func() { b.turn = time.Now() }) }
func (b *board) swept()               { b.with(func() { b.begun = true }) }
func (b *board) counts(total int)     { b.with(func() { b.total = total }) }
func (b *board) leads(t *term)        { b.with(func() { b.term = t }) }

func (b *board) follows(src Source) {
	b.with(func() {
		b.begun, b.freshness = false, nil
		if a, ok := src.(aged); ok {
			b.freshness = a.Age
		}
	})
}

func (b *board) braked(br brakes, inForce bool) {
	b.with(func() { b.brakes, b.inForce = br, inForce })
}

func (b *board) reloaded(err error) {
	b.with(func() {
		b.reloadedAt, b.reloadErr = time.Now(), ""
		if err != nil {
			b.reloadErr = err.Error()
		}
	})
}

// change counts a lock that went from one state to another; "" is none.
func (b *board) change(name, from, to string) {
	b.with(func() {
		if from != "" {
			b.states[from]--
		}
		if to != "" {
			b.states[to]++
		}
		if to == locksmith.Hot {
			b.hot[name] = struct{}{}
		} else if from == locksmith.Hot {
			delete(b.hot, name)
		}
	})
}

func (b *board) count(state string) (n int) {
	b.with(func() { n = b.states[state] })
	return n
}

// leader notes who else leads; it tells whether that is new.
func (b *board) leader(st *locksmith.Status, state string) (fresh bool) {
	name := leaderName(st)
	b.with(func() {
		fresh = b.leading != name
		b.leading, b.leadState = name, state
	})
	return fresh
}

// fresh tells whether the picture of the locks is whole and not too old.
func (b *board) fresh() bool {
	_, why := b.age()
	return why == ""
}

// age is how old the picture of the locks may be; why says that, and why, it
// is too old or not there.
func (b *board) age() (age time.Duration, why string) {
	b.mu.Lock()
	begun, ask := b.begun, b.freshness
	b.mu.Unlock()
	var err error
	if ask != nil {
		age, err = ask()
	}
	switch {
	case !begun && err != nil:
		return age, "no sweep of the locks yet: " + err.Error()
	case !begun:
		return age, "no sweep of the locks yet"
	case age > freshLimit && err != nil:
		return age, "the locks were last seen " + age.Round(time.Second).String() + " ago: " + err.Error()
	case age > freshLimit:
		return age, "the locks were last seen " + age.Round(time.Second).String() + " ago"
	}
	return age, ""
}

// hotNames are the names of at most n HOT locks, in order, and how many more
// there are.
func (b *board) hotNames(n int) (names []string, more int) {
	b.with(func() {
		for name := range b.hot {
			names = append(names, name)
		}
	})
	slices.Sort(names)
	if len(names) > n {
		return names[:n], len(names) - n
	}
	return names, 0
}

func leaderName(st *locksmith.Status) string {
	switch {
	case st == nil || st.Session == nil:
		return ""
	case st.Holder != nil && st.Holder.Host != nil && st.Holder.PID != nil:
		return hostPID(*st.Holder.Host, *st.Holder.PID)
	}
	return "session " + *st.Session
}
