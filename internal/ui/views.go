package ui

import (
	"maps"
	"slices"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// summary is what every page shows.
type summary struct {
	// Ready is false until the first reading of the locks.
	Ready    bool           `json:"ready"`
	Counts   map[string]int `json:"counts"`
	Running  int            `json:"rollouts_unfinished"`
	Troubles []string       `json:"troubles"`
	// AwaySince is when it became known that Consul does not answer; null: it does.
	AwaySince *time.Time `json:"away_since"`
	Policies  string     `json:"policy_hash"`
	// Suspended is that all automatic breaking is suspended.
	Suspended *records.PolicySuspended `json:"suspended"`
}

func (b *board) summary(time.Time) summary {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := summary{Ready: b.ready, Counts: map[string]int{}, Troubles: []string{}, Policies: b.cfg.Policies.Hash, Suspended: b.brake.suspended}
	if t := b.awaySince(); !t.IsZero() {
		t = t.UTC()
		out.AwaySince = &t
	}
	for state, n := range b.counts {
		if n > 0 {
			out.Counts[state] = n
		}
	}
	for _, part := range slices.Sorted(maps.Keys(b.troubles)) {
		out.Troubles = append(out.Troubles, b.troubles[part])
	}
	if b.brake.why != "" {
		out.Troubles = append(out.Troubles, "whether breaking is suspended is not known: "+b.brake.why)
	}
	for _, r := range b.rollouts {
		if r.open {
			out.Running++
		}
	}
	return out
}

// lockView is a lock as `aimlock lock list -json` shows it, as of some time ago.
type lockView struct {
	*locksmith.Status
	Gravity int `json:"gravity"`
	// Ago is for how many seconds the ages in it have been growing. Below zero they have
	// grown on while Consul did not answer, and nobody knows whether the lock was held.
	Ago float64 `json:"ago"`
}

// view is the row as of now, or, where Consul went away, as of then.
func (r *lockRow) view(now, away time.Time) lockView {
	ago := max(0, now.Sub(r.at).Seconds())
	if !away.IsZero() {
		ago = away.Sub(r.at).Seconds()
	}
	return lockView{Status: r.st, Gravity: locksmith.Gravity(r.st.State), Ago: ago}
}

// rowChange is what changed of the locks that are shown.
type rowChange struct {
	Set  []lockView `json:"set"`
	Gone []string   `json:"gone"` // by key
	// More are held and not shown: the gravest are.
	More int `json:"more"`
}

// changedRows finds how what is shown differs from what a viewer has, and notes
// in have what it has then. ok is false before the first reading.
func (b *board) changedRows(have map[string]uint64, now time.Time) (rowChange, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := rowChange{Set: []lockView{}, Gone: []string{}}
	if !b.ready {
		return out, false
	}
	rows, more := b.gravest()
	out.More = more
	away := b.awaySince()
	shown := map[string]bool{}
	for _, r := range rows {
		shown[r.st.Key] = true
		if have[r.st.Key] != r.rev {
			have[r.st.Key] = r.rev
			out.Set = append(out.Set, r.view(now, away))
		}
	}
	for key := range have {
		if !shown[key] {
			delete(have, key)
			out.Gone = append(out.Gone, key)
		}
	}
	slices.Sort(out.Gone)
	return out, true
}

// policiesRev changes when what is applied, or whether breaking is suspended, may have
// changed; 0: nothing was read yet.
func (b *board) policiesRev() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.policies
}

// allRollouts are all that are shown; ok is false before the first reading.
func (b *board) allRollouts() ([]rolloutRow, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := append([]rolloutRow{}, b.rollouts...)
	for i := range out {
		out[i].Driving = b.drivingOf(out[i].header)
	}
	return out, b.listed
}

// row finds a lock by its name.
func (b *board) row(name string) (r *lockRow, ready bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.locks {
		if r.st.Name == name {
			return r, b.ready
		}
	}
	return nil, b.ready
}

// rolloutRev is the state of a rollout's row, 0 if it is not among those shown.
func (b *board) rolloutRev(id string) (rev uint64, listed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.rollouts {
		if r.ID == id {
			return r.rev, b.listed
		}
	}
	return 0, b.listed
}
