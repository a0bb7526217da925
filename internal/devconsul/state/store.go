package state

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"
)

// ErrMissingNode is shown to callers of the API, in Consul's words, as all
// errors here that begin with a capital.
var ErrMissingNode = errors.New("Missing node registration")

// errAbort ends a write without a change and without an error: a compare that
// did not hold.
var errAbort = errors.New("abort")

// firstIndex is where the index of a new store stands. Index 1 is never shown,
// so that a client which blocks on it always gets an answer at once.
const firstIndex = 10

// Store is the state of one datacenter. All its methods are safe for concurrent use.
type Store struct {
	// onSessionEnd is told, after the commit and outside of all locks, which
	// sessions a write ended.
	onSessionEnd func(ids []string)
	// onCommit is told of every write, under mu; nil: nobody is.
	onCommit func(Commit)

	mu    sync.Mutex // one writer at a time; guards index
	index uint64

	// current is what is read and written; Restore replaces it.
	current   atomic.Pointer[memdb.MemDB]
	abandonMu sync.Mutex
	abandon   chan struct{}

	delayMu sync.RWMutex
	delay   map[string]time.Time
}

// New makes an empty store. Both functions may be nil.
func New(onSessionEnd func(ids []string), onCommit func(Commit)) (*Store, error) {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		return nil, fmt.Errorf("state schema: %w", err)
	}
	if onSessionEnd == nil {
		onSessionEnd = func([]string) {}
	}
	s := &Store{index: firstIndex, delay: map[string]time.Time{}, onSessionEnd: onSessionEnd, onCommit: onCommit, abandon: make(chan struct{})}
	s.current.Store(db)
	return s, nil
}

func (s *Store) db() *memdb.MemDB { return s.current.Load() }

// Index is the last index given to a write.
func (s *Store) Index() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index
}

// wtx is a write in progress.
type wtx struct {
	*memdb.Txn
	idx    uint64
	now    time.Time
	ended  []string
	delays map[string]time.Duration
}

// write runs fn in one transaction under the next index. An error of fn undoes
// it all; errAbort does so silently, and then write returns false.
//
// Invariant: an index is used once, whatever fn returns, and lock-delays take
// effect before the next writer can run.
func (s *Store) write(fn func(*wtx) error) (bool, error) {
	s.mu.Lock()
	s.index++
	w := &wtx{Txn: s.db().Txn(true), idx: s.index, now: time.Now()}
	if s.onCommit != nil {
		w.TrackChanges()
	}
	err := fn(w)
	if err != nil {
		w.Abort()
		s.mu.Unlock()
		if errors.Is(err, errAbort) {
			return false, nil
		}
		return false, err
	}
	s.setDelays(w)
	if s.onCommit != nil {
		s.onCommit(commitOf(w))
	}
	w.Commit()
	s.mu.Unlock()
	if len(w.ended) > 0 {
		s.onSessionEnd(w.ended)
	}
	return true, nil
}

func (s *Store) setDelays(w *wtx) {
	if len(w.delays) == 0 {
		return
	}
	s.delayMu.Lock()
	defer s.delayMu.Unlock()
	for key, d := range w.delays {
		s.delay[key] = w.now.Add(d)
	}
}

// lockDelayed tells whether a lock-delay still keeps key from being locked.
func (s *Store) lockDelayed(key string, now time.Time) bool {
	s.delayMu.RLock()
	defer s.delayMu.RUnlock()
	until, ok := s.delay[key]
	return ok && until.After(now)
}

// Reap forgets lock-delays that are over and tombstones older than ttl. A prefix
// whose tombstone is reaped can show a lower index than before, as with Consul:
// clients start over at 0 when they see that.
func (s *Store) Reap(ttl time.Duration) error {
	now := time.Now()
	s.delayMu.Lock()
	for key, until := range s.delay {
		if !until.After(now) {
			delete(s.delay, key)
		}
	}
	s.delayMu.Unlock()

	old, err := s.oldTombstones(now.Add(-ttl))
	if err != nil || len(old) == 0 {
		return err
	}
	_, err = s.write(func(w *wtx) error {
		for _, t := range old {
			// A key deleted again since has a newer tombstone in this place.
			cur, err := w.First(tableTombstones, indexID, t.Key)
			if err != nil {
				return err
			}
			if cur != any(t) {
				continue
			}
			if err := w.Delete(tableTombstones, t); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

func (s *Store) oldTombstones(before time.Time) ([]*tombstone, error) {
	tx := s.db().Txn(false)
	it, err := tx.Get(tableTombstones, indexID)
	if err != nil {
		return nil, err
	}
	var old []*tombstone
	for o := it.Next(); o != nil; o = it.Next() {
		if t := o.(*tombstone); t.At.Before(before) {
			old = append(old, t)
		}
	}
	return old, nil
}

// indexEntry keeps the last index at which something named was changed.
type indexEntry struct {
	Name  string
	Value uint64
}

func (w *wtx) touch(names ...string) error {
	for _, name := range names {
		if err := w.Insert(tableIndex, &indexEntry{Name: name, Value: w.idx}); err != nil {
			return fmt.Errorf("index %s: %w", name, err)
		}
	}
	return nil
}

// maxIndex is the highest index of the names, 0 if none was ever touched.
func maxIndex(tx *memdb.Txn, names ...string) uint64 {
	var idx uint64
	for _, name := range names {
		if _, e := watchIndex(tx, name); e != nil && e.Value > idx {
			idx = e.Value
		}
	}
	return idx
}

func watchIndex(tx *memdb.Txn, name string) (<-chan struct{}, *indexEntry) {
	ch, raw, err := tx.FirstWatch(tableIndex, indexID, name)
	if err != nil {
		// The schema is fixed: this cannot fail at run time.
		panic(fmt.Sprintf("index %s: %v", name, err))
	}
	e, _ := raw.(*indexEntry)
	return ch, e
}

// first is First with its type.
func first[T any](tx *memdb.Txn, table, index string, args ...any) (T, error) {
	raw, err := tx.First(table, index, args...)
	if err != nil {
		var none T
		return none, fmt.Errorf("%s lookup: %w", table, err)
	}
	v, _ := raw.(T)
	return v, nil
}

// list collects all that Get finds, and adds its channel to ws (nil is fine).
func list[T any](tx *memdb.Txn, ws memdb.WatchSet, table, index string, args ...any) ([]T, error) {
	it, err := tx.Get(table, index, args...)
	if err != nil {
		return nil, fmt.Errorf("%s lookup: %w", table, err)
	}
	ws.Add(it.WatchCh())
	var out []T
	for o := it.Next(); o != nil; o = it.Next() {
		out = append(out, o.(T))
	}
	return out, nil
}
