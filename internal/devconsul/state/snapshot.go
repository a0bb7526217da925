package state

import (
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"
)

// Commit is one write that stands.
type Commit struct {
	Index uint64
	KV    []KVChange
	// Ended are the sessions that it ended.
	Ended []*Session
	// Checks are those that are new, or another status, or gone.
	Checks []CheckChange
}

// CheckChange is a check before and after a write; nil: it was not there, or is not.
type CheckChange struct{ Before, After *Check }

// KVChange is a key before and after a write; nil: it was not there, or is not.
type KVChange struct{ Before, After *KVEntry }

// Key of the entry that changed.
func (c KVChange) Key() string {
	if c.After != nil {
		return c.After.Key
	}
	return c.Before.Key
}

func commitOf(w *wtx) Commit {
	c := Commit{Index: w.idx}
	for _, m := range w.Changes() {
		switch m.Table {
		case tableKV:
			before, _ := m.Before.(*KVEntry)
			after, _ := m.After.(*KVEntry)
			c.KV = append(c.KV, KVChange{before, after})
		case tableChecks:
			before, _ := m.Before.(*Check)
			after, _ := m.After.(*Check)
			if before == nil || after == nil || before.Status != after.Status {
				c.Checks = append(c.Checks, CheckChange{before, after})
			}
		case tableSessions:
			if sess, ok := m.Before.(*Session); ok && m.Deleted() {
				c.Ended = append(c.Ended, sess)
			}
		}
	}
	return c
}

// Snapshot is the whole state at one moment.
type Snapshot struct {
	db    *memdb.MemDB
	index uint64
}

// Snapshot takes a picture of the state.
func (s *Store) Snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Snapshot{db: s.db().Snapshot(), index: s.index}
}

// Restore puts the state of a snapshot in place of what there is: indexes go back,
// and sessions that had ended live again. As with Consul the queries that wait end
// with what stood before, and lock-delays are no part of it. It returns the sessions
// that there are now.
func (s *Store) Restore(snap *Snapshot) ([]*Session, error) {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		return nil, fmt.Errorf("state schema: %w", err)
	}
	from, to := snap.db.Txn(false), db.Txn(true)
	for table := range schema().Tables {
		all, err := list[any](from, nil, table, indexID)
		if err != nil {
			return nil, err
		}
		for _, o := range all {
			if err := to.Insert(table, o); err != nil {
				return nil, fmt.Errorf("restore %s: %w", table, err)
			}
		}
	}
	to.Commit()
	s.mu.Lock()
	s.current.Store(db)
	s.index = snap.index
	s.mu.Unlock()
	s.ForgetDelays()
	s.abandonMu.Lock()
	close(s.abandon)
	s.abandon = make(chan struct{})
	s.abandonMu.Unlock()
	_, sessions, err := s.SessionList(nil)
	return sessions, err
}

// Abandoned is closed when the state is replaced by a snapshot's. It is to be asked
// for before the state is read.
func (s *Store) Abandoned() <-chan struct{} {
	s.abandonMu.Lock()
	defer s.abandonMu.Unlock()
	return s.abandon
}

// ForgetDelays ends all lock-delays.
func (s *Store) ForgetDelays() {
	s.delayMu.Lock()
	defer s.delayMu.Unlock()
	s.delay = map[string]time.Time{}
}
