package ui

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/policies"
)

func TestConsulGoesAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.hold("other")
		v := w.open("view=locks")
		pass(10 * time.Second)
		if s := lastSummary(t, v); !s.Ready || s.AwaySince != nil {
			t.Errorf("it says %+v", s)
		}
		before := len(v.events("locks"))
		went := time.Now()
		w.net.down.Store(true)
		pass(3 * time.Minute)
		s := lastSummary(t, v)
		if !strings.Contains(strings.Join(s.Troubles, " "), "consul.test:8500") {
			t.Errorf("it says %+v", s)
		}
		// A blocking query may be under way for a good minute before it is known.
		if s.AwaySince == nil || s.AwaySince.Before(went) || s.AwaySince.Sub(went) > 2*time.Minute {
			t.Fatalf("Consul went away at %s, and it says since %v", went, s.AwaySince)
		}
		if got := fmt.Sprint(locksOf(t, v)); got != "map[aimlock/locks/other:HELD]" {
			t.Errorf("what was seen last is not shown: %s", got)
		}
		// Who comes now is told for how long it was held when that was known last, though
		// the lock is judged again and again, and who was there is told the same, whatever
		// its own clock had come to.
		late := w.open("view=locks")
		pass(10 * time.Second)
		was, now := v.events("locks"), late.events("locks")
		if len(was) == before || len(now) != 1 || was[len(was)-1] != now[0] {
			t.Errorf("one viewer is told\n%s\nand another\n%s", was[before:], now)
		}
		w.net.down.Store(false)
		pass(3 * time.Minute)
		for _, v := range []*viewer{v, late} {
			if s := lastSummary(t, v); len(s.Troubles) != 0 || s.AwaySince != nil {
				t.Errorf("it says %+v", s)
			}
			// Told again, once Consul was back.
			if ago := agoOf(t, v); ago < 0 {
				t.Errorf("when Consul is back, the age is put right by %s", ago)
			}
		}
		h.Abandon(t.Context())
	})
}

// A page that is opened while Consul is away does not say that no lock is held: it has
// nothing, and says why as soon as that is known.
func TestConsulIsAwayFromTheStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.net.down.Store(true)
		v := w.open("view=locks")
		pass(5 * time.Second)
		if s := lastSummary(t, v); s.Ready || s.AwaySince != nil {
			t.Errorf("before it is known it says %+v", s)
		}
		pass(15 * time.Second)
		if s := lastSummary(t, v); s.Ready || s.AwaySince == nil || len(s.Troubles) == 0 || len(v.events("locks")) != 0 {
			t.Errorf("it says %+v, and of the locks %v", s, v.events("locks"))
		}
		w.net.down.Store(false)
		pass(3 * time.Minute)
		if s := lastSummary(t, v); !s.Ready || s.AwaySince != nil || len(v.events("locks")) != 1 {
			t.Errorf("when Consul is there it says %+v, and of the locks %v", s, v.events("locks"))
		}
	})
}

// A token that may not read something is no Consul that is away.
func TestRefusalIsAnAnswer(t *testing.T) {
	t.Parallel()
	b := newBoard(t.Context(), Config{Policies: &policies.Set{}})
	b.troubles, b.away = map[string]string{}, map[string]struct{}{}
	b.trouble("nodes", &consulkv.Error{Kind: consulkv.Denied, Err: errors.New("403")})
	if s := b.summary(time.Now()); len(s.Troubles) != 1 || s.AwaySince != nil {
		t.Errorf("it says %+v", s)
	}
	for _, kind := range []consulkv.Kind{consulkv.NoLeader, consulkv.ServerError, consulkv.Broken} {
		b.trouble("nodes", nil)
		b.trouble("nodes", &consulkv.Error{Kind: kind, Err: errors.New("500")})
		if s := b.summary(time.Now()); len(s.Troubles) != 1 || s.AwaySince == nil {
			t.Errorf("%s: it says %+v", kind, s)
		}
	}
}

func lastSummary(t *testing.T, v *viewer) summary {
	t.Helper()
	all := v.events("summary")
	if len(all) == 0 {
		t.Fatal("there is no summary")
	}
	var s summary
	if err := json.Unmarshal([]byte(all[len(all)-1]), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// Consul is away from when the first part was not answered, until all are answered.
func TestAwayFromTheFirstPart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t.Context(), Config{Policies: &policies.Set{}})
		b.troubles, b.away = map[string]string{}, map[string]struct{}{}
		gone := &consulkv.Error{Kind: consulkv.Unreachable, Err: errors.New("refused")}
		b.trouble("sessions", gone)
		first := time.Now()
		pass(time.Second)
		b.trouble("nodes", gone)
		b.trouble("sessions", nil)
		if got := b.awaySince(); !got.Equal(first) {
			t.Errorf("it is away since %s in place of %s: ages that stood still jump", got, first)
		}
		b.trouble("nodes", nil)
		if got := b.awaySince(); !got.IsZero() {
			t.Errorf("it is away since %s", got)
		}
		pass(time.Second)
		b.trouble("sessions", gone)
		if got := b.awaySince(); !got.Equal(time.Now()) {
			t.Errorf("when it goes away again that is since %s", got)
		}
	})
}

// Where the switch of all breaking is the first that cannot be read, that says that
// Consul is away, too.
func TestBrakeIsAwayFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.net.down.Store(true)
		b := newBoard(t.Context(), w.page.cfg)
		b.away = map[string]struct{}{}
		done := make(chan struct{})
		go func() { defer close(done); b.switched(t.Context()) }()
		pass(time.Minute)
		if s := b.summary(time.Now()); len(s.Troubles) != 1 || s.AwaySince == nil {
			t.Errorf("without Consul it says %+v", s)
		}
		w.net.down.Store(false)
		<-done
		if s := b.summary(time.Now()); len(s.Troubles) != 0 || s.AwaySince != nil {
			t.Errorf("when it is back it says %+v", s)
		}
	})
}

// agoOf is by what the age of the only lock of a viewer is put right, as told last.
func agoOf(t *testing.T, v *viewer) time.Duration {
	t.Helper()
	all := v.events("locks")
	var ch rowChange
	if err := json.Unmarshal([]byte(all[len(all)-1]), &ch); err != nil {
		t.Fatal(err)
	}
	if len(ch.Set) != 1 {
		t.Fatalf("told last is %s", all[len(all)-1])
	}
	return time.Duration(ch.Set[0].Ago * float64(time.Second))
}
