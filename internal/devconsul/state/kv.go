package state

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
)

// KVGet reads one key; the entry is nil where there is none. The index is the
// key's own while it exists, else that of the last change of any key.
func (s *Store) KVGet(ws memdb.WatchSet, key string) (uint64, *KVEntry, error) {
	tx := s.db().Txn(false)
	ch, raw, err := tx.FirstWatch(tableKV, indexID, key)
	if err != nil {
		return 0, nil, fmt.Errorf("kv lookup: %w", err)
	}
	ws.Add(ch)
	e, _ := raw.(*KVEntry)
	if e == nil {
		return kvMaxIndex(tx), nil, nil
	}
	return e.ModifyIndex, e, nil
}

// KVList reads all keys under a prefix, in order. Its index is the newest of
// theirs and of the deletions under the prefix, and that of the last change of
// any key where there is neither.
func (s *Store) KVList(ws memdb.WatchSet, prefix string) (uint64, []*KVEntry, error) {
	return kvList(s.db().Txn(false), ws, prefix)
}

func kvMaxIndex(tx *memdb.Txn) uint64 { return maxIndex(tx, tableKV, tableTombstones) }

func kvList(tx *memdb.Txn, ws memdb.WatchSet, prefix string) (uint64, []*KVEntry, error) {
	entries, err := list[*KVEntry](tx, ws, tableKV, indexPrefix, prefix)
	if err != nil {
		return 0, nil, err
	}
	if prefix == "" {
		return kvMaxIndex(tx), entries, nil
	}
	var idx uint64
	for _, e := range entries {
		idx = max(idx, e.ModifyIndex)
	}
	stones, err := list[*tombstone](tx, nil, tableTombstones, indexPrefix, prefix)
	if err != nil {
		return 0, nil, err
	}
	for _, t := range stones {
		idx = max(idx, t.Index)
	}
	if idx == 0 {
		idx = kvMaxIndex(tx)
	}
	return idx, entries, nil
}

// KVSet writes a key and leaves its session as it is.
func (s *Store) KVSet(e KVEntry) error {
	_, err := s.write(func(w *wtx) error { return w.kvSet(&e, false) })
	return err
}

// KVCAS writes a key if its ModifyIndex is e.ModifyIndex; 0 means: if it does not exist.
func (s *Store) KVCAS(e KVEntry) (bool, error) {
	return s.write(func(w *wtx) error { return okOrAbort(w.kvCAS(&e)) })
}

// KVLock writes a key and gives it to e.Session. False: somebody else holds it,
// or a lock-delay applies.
func (s *Store) KVLock(e KVEntry) (bool, error) {
	return s.write(func(w *wtx) error {
		if s.lockDelayed(e.Key, w.now) {
			return errAbort
		}
		return okOrAbort(w.kvLock(&e))
	})
}

// KVUnlock writes a key and takes it from e.Session. False: that does not hold it.
func (s *Store) KVUnlock(e KVEntry) (bool, error) {
	return s.write(func(w *wtx) error { return okOrAbort(w.kvUnlock(&e)) })
}

// KVDelete deletes a key, held or not.
func (s *Store) KVDelete(key string) error {
	_, err := s.write(func(w *wtx) error { return w.kvDelete(key) })
	return err
}

// KVDeleteCAS deletes a key if its ModifyIndex is cas. True where there is no such key.
func (s *Store) KVDeleteCAS(key string, cas uint64) (bool, error) {
	return s.write(func(w *wtx) error { return okOrAbort(w.kvDeleteCAS(key, cas)) })
}

// KVDeleteTree deletes all keys under a prefix.
func (s *Store) KVDeleteTree(prefix string) error {
	_, err := s.write(func(w *wtx) error { return w.kvDeleteTree(prefix) })
	return err
}

func okOrAbort(ok bool, err error) error {
	if err == nil && !ok {
		return errAbort
	}
	return err
}

// kvSet stores e, which gets its indexes. Unless updateSession, the session that
// holds the key stays.
func (w *wtx) kvSet(e *KVEntry, updateSession bool) error {
	old, err := first[*KVEntry](w.Txn, tableKV, indexID, e.Key)
	if err != nil {
		return err
	}
	if old != nil {
		e.CreateIndex = old.CreateIndex
	} else {
		e.CreateIndex = w.idx
	}
	if !updateSession {
		// A write that is not about the lock leaves its session alone, but not its
		// LockIndex: Consul drops that to what the request says, which is 0.
		e.Session = ""
		if old != nil {
			e.Session = old.Session
		}
	}
	if old != nil && old.sameAs(e) {
		e.ModifyIndex = old.ModifyIndex
		return nil
	}
	e.ModifyIndex = w.idx
	// The caller goes on using e (a transaction may answer with it): store a copy.
	if err := w.Insert(tableKV, e.clone()); err != nil {
		return fmt.Errorf("kv insert: %w", err)
	}
	return w.touch(tableKV)
}

func (w *wtx) kvCAS(e *KVEntry) (bool, error) {
	old, err := first[*KVEntry](w.Txn, tableKV, indexID, e.Key)
	if err != nil {
		return false, err
	}
	switch {
	case e.ModifyIndex == 0 && old != nil,
		e.ModifyIndex != 0 && old == nil,
		e.ModifyIndex != 0 && e.ModifyIndex != old.ModifyIndex:
		return false, nil
	}
	return true, w.kvSet(e, false)
}

func (w *wtx) kvLock(e *KVEntry) (bool, error) {
	if e.Session == "" {
		return false, errors.New("missing session")
	}
	sess, err := first[*Session](w.Txn, tableSessions, indexID, e.Session)
	if err != nil {
		return false, err
	}
	if sess == nil {
		return false, fmt.Errorf("invalid session %q", e.Session)
	}
	old, err := first[*KVEntry](w.Txn, tableKV, indexID, e.Key)
	if err != nil {
		return false, err
	}
	switch {
	case old == nil:
		e.LockIndex = 1
	case old.Session == e.Session:
		e.LockIndex = old.LockIndex
	case old.Session != "":
		return false, nil
	default:
		e.LockIndex = old.LockIndex + 1
	}
	return true, w.kvSet(e, true)
}

func (w *wtx) kvUnlock(e *KVEntry) (bool, error) {
	if e.Session == "" {
		return false, errors.New("missing session")
	}
	old, err := first[*KVEntry](w.Txn, tableKV, indexID, e.Key)
	if err != nil {
		return false, err
	}
	if old == nil || old.Session != e.Session {
		return false, nil
	}
	e.Session = ""
	e.LockIndex = old.LockIndex
	return true, w.kvSet(e, true)
}

func (w *wtx) bury(key string) error {
	if err := w.Insert(tableTombstones, &tombstone{Key: key, Index: w.idx, At: w.now}); err != nil {
		return fmt.Errorf("tombstone insert: %w", err)
	}
	return w.touch(tableTombstones)
}

func (w *wtx) kvDelete(key string) error {
	old, err := first[*KVEntry](w.Txn, tableKV, indexID, key)
	if err != nil || old == nil {
		return err
	}
	if err := w.bury(key); err != nil {
		return err
	}
	if err := w.Delete(tableKV, old); err != nil {
		return fmt.Errorf("kv delete: %w", err)
	}
	return w.touch(tableKV)
}

func (w *wtx) kvDeleteCAS(key string, cas uint64) (bool, error) {
	old, err := first[*KVEntry](w.Txn, tableKV, indexID, key)
	if err != nil {
		return false, err
	}
	if old == nil || old.ModifyIndex != cas {
		return old == nil, nil
	}
	return true, w.kvDelete(key)
}

func (w *wtx) kvDeleteTree(prefix string) error {
	deleted, err := w.DeletePrefix(tableKV, indexPrefix, prefix)
	if err != nil {
		return fmt.Errorf("kv delete tree: %w", err)
	}
	if !deleted {
		return nil
	}
	// One tombstone covers the tree; none is needed for all of KV, whose index is
	// the table's. As in Consul, it does not cover prefixes longer than itself: who
	// watches one of those, where an older tombstone is left, is not told.
	if prefix != "" {
		if err := w.bury(prefix); err != nil {
			return err
		}
	}
	return w.touch(tableKV)
}

// Keys cuts entries to their names, and, with a separator, to one name for each
// group that shares what stands before the first separator after the prefix.
func Keys(entries []*KVEntry, prefix, separator string) []string {
	var keys []string
	seen := map[string]bool{}
	for _, e := range entries {
		key := e.Key
		if separator != "" {
			if i := strings.Index(e.Key[len(prefix):], separator); i >= 0 {
				key = e.Key[:len(prefix)+i+len(separator)]
				if seen[key] {
					continue
				}
				seen[key] = true
			}
		}
		keys = append(keys, key)
	}
	return keys
}

// LockDelayed tells whether key cannot be locked at the time now.
func (s *Store) LockDelayed(key string, now time.Time) bool { return s.lockDelayed(key, now) }
