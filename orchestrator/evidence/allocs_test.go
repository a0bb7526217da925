package evidence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// turnNomad answers for allocations, and counts what is asked.
type turnNomad struct {
	mu      sync.Mutex
	status  map[string]string
	index   map[string]uint64
	changed chan struct{}
	err     error
	asked   map[string]int
	at, max int // queries under way
}

func newTurnNomad() *turnNomad {
	return &turnNomad{status: map[string]string{}, index: map[string]uint64{}, asked: map[string]int{}, changed: make(chan struct{})}
}

var _ Nomad = (*turnNomad)(nil)

func (n *turnNomad) Alloc(ctx context.Context, ref AllocRef, since Since) (*Alloc, uint64, error) {
	n.mu.Lock()
	n.asked[ref.ID]++
	n.at++
	n.max = max(n.max, n.at)
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.at--
		n.mu.Unlock()
	}()
	end := time.After(since.Wait)
	for {
		n.mu.Lock()
		a, index, changed, err := &Alloc{ID: ref.ID, ClientStatus: n.status[ref.ID], Gone: n.status[ref.ID] == "gone"}, n.index[ref.ID], n.changed, n.err
		n.mu.Unlock()
		if err != nil {
			return nil, 0, err
		}
		if index > since.Index || since.Index == 0 {
			return a, index, nil
		}
		select {
		case <-changed:
		case <-end:
			return a, index, nil
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

func (n *turnNomad) Stop(context.Context, AllocRef) error { return nil }

func (n *turnNomad) set(id, status string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id != "" {
		n.status[id] = status
		n.index[id] += 10
	}
	n.err = err
	close(n.changed)
	n.changed = make(chan struct{})
}

// counts are the most queries under way, and how many there were of id, or in
// all.
func (n *turnNomad) counts(id string) (most, asked int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k, c := range n.asked {
		if id == "" || k == id {
			asked += c
		}
	}
	return n.max, asked
}

// following is a follower with n allocations, and what it tells.
func following(t *testing.T, n *turnNomad, count int) (*allocFollower, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var told []string
	f := &allocFollower{nomad: n, tell: func(_ context.Context, ref AllocRef, seen allocSeen) {
		mu.Lock()
		defer mu.Unlock()
		what := seen.why
		if seen.alloc != nil {
			what = seen.alloc.ClientStatus
		}
		told = append(told, ref.ID+" "+what)
	}}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); f.wg.Wait() })
	ids := make([]string, count)
	for i := range ids {
		ids[i] = fmt.Sprintf("a%05d", i)
		n.status[ids[i]], n.index[ids[i]] = "running", 5
	}
	for _, id := range ids {
		f.follow(ctx, AllocRef{ID: id}, allocSeen{alloc: &Alloc{ID: id, ClientStatus: "running"}, index: 5})
	}
	return f, func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		out := told
		told = nil
		slices.Sort(out)
		return out
	}
}

func TestAllocationsAreFollowed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newTurnNomad()
		f, told := following(t, n, 3)
		time.Sleep(time.Minute)
		if got := told(); len(got) > 0 {
			t.Errorf("told without news: %v", got)
		}
		// A query that waits is asked anew each 20 s and not more often.
		if _, asked := n.counts("a00001"); asked < 3 || asked > 5 {
			t.Errorf("asked %d times in a minute", asked)
		}
		n.set("a00001", "lost", nil)
		if got := told(); fmt.Sprint(got) != "[a00001 lost]" {
			t.Errorf("told %v at once", got)
		}
		n.set("", "", errors.New("no route"))
		time.Sleep(time.Minute)
		if got := told(); fmt.Sprint(got) != "[a00000 no route a00001 no route a00002 no route]" {
			t.Errorf("told %v of a Nomad that is away", got)
		}
		n.set("a00002", "gone", nil)
		time.Sleep(time.Minute)
		if got := told(); fmt.Sprint(got) != "[a00000 running a00001 lost a00002 gone]" {
			t.Errorf("told %v of a Nomad that is back", got)
		}
		if f.known(AllocRef{ID: "a00002"}) {
			t.Error("one that is gone is still followed")
		}
		f.forget(AllocRef{ID: "a00000"})
		n.set("a00000", "failed", nil)
		time.Sleep(time.Minute)
		if got := told(); len(got) > 0 {
			t.Errorf("told %v of one that nobody names", got)
		}
	})
}

// However many there are, Nomad has no more than 64 queries under way and a
// bounded number a second, and news is not missed.
func TestManyAllocations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newTurnNomad()
		_, told := following(t, n, 640)
		time.Sleep(time.Minute)
		at, total := n.counts("")
		if at != allocFollowers {
			t.Errorf("%d queries under way", at)
		}
		if total > 640*4+allocFollowers {
			t.Errorf("%d queries in a minute", total)
		}
		told()
		n.set("a00600", "lost", nil)
		time.Sleep(allocTurn + 2*time.Second)
		if got := told(); fmt.Sprint(got) != "[a00600 lost]" {
			t.Errorf("told %v", got)
		}
	})
}
