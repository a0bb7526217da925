package state

import (
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"
)

// KVOp is one operation of a transaction. Verb is Consul's name of it.
type KVOp struct {
	Verb  string
	Entry KVEntry // ModifyIndex carries the index to compare with
}

// Writes tells whether the operation can change the store. A transaction
// without such an operation is a read.
func (op KVOp) Writes() bool {
	switch op.Verb {
	case "set", "delete", "delete-cas", "delete-tree", "cas", "lock", "unlock":
		return true
	}
	return false
}

// TxnError says what an operation was refused for.
type TxnError struct {
	OpIndex int
	What    string
}

// Txn runs all operations or none. Every operation is tried, so that the errors
// name all that would fail, each against what the ones before it left.
func (s *Store) Txn(ops []KVOp) ([]*KVEntry, []TxnError) {
	var results []*KVEntry
	var errs []TxnError
	_, err := s.write(func(w *wtx) error {
		// The lock-delay is judged before the transaction, for all its operations:
		// it does not apply to a key that the transaction itself frees.
		if errs = s.precheck(ops, w.now); len(errs) > 0 {
			return errAbort
		}
		if results, errs = w.run(ops); len(errs) > 0 {
			return errAbort
		}
		return nil
	})
	if err != nil {
		return nil, []TxnError{{What: err.Error()}}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return results, nil
}

// TxnRead runs operations that do not write, without raising the index.
func (s *Store) TxnRead(ops []KVOp) ([]*KVEntry, []TxnError) {
	now := time.Now()
	if errs := s.precheck(ops, now); len(errs) > 0 {
		return nil, errs
	}
	w := &wtx{Txn: s.db().Txn(false), now: now}
	results, errs := w.run(ops)
	if len(errs) > 0 {
		return nil, errs
	}
	return results, nil
}

func (s *Store) precheck(ops []KVOp, now time.Time) []TxnError {
	var errs []TxnError
	for i, op := range ops {
		switch {
		case op.Entry.Key == "" && op.Verb != "delete-tree":
			errs = append(errs, TxnError{i, "Must provide key"})
		case op.Verb == "lock" && s.lockDelayed(op.Entry.Key, now):
			errs = append(errs, TxnError{i, fmt.Sprintf("failed to lock key %q due to lock delay", op.Entry.Key)})
		}
	}
	return errs
}

func (w *wtx) run(ops []KVOp) ([]*KVEntry, []TxnError) {
	results := make([]*KVEntry, 0, len(ops))
	var errs []TxnError
	for i, op := range ops {
		got, err := w.op(op)
		if err != nil {
			errs = append(errs, TxnError{i, err.Error()})
		}
		results = append(results, got...)
	}
	return results, errs
}

// op runs one operation. Reads answer with the value, all others without it.
func (w *wtx) op(op KVOp) ([]*KVEntry, error) {
	e := op.Entry
	switch op.Verb {
	case "get":
		return orMissing(w.Txn, e.Key, "key %q doesn't exist")
	case "get-or-empty":
		cur, err := first[*KVEntry](w.Txn, tableKV, indexID, e.Key)
		if err != nil {
			return nil, err
		}
		if cur == nil {
			e.Value = nil
			cur = &e
		}
		return []*KVEntry{cur}, nil
	case "get-tree":
		_, entries, err := kvList(w.Txn, nil, e.Key)
		return entries, err
	case "check-session":
		return w.check(e.Key, "failed to check session, key %q doesn't exist", func(cur *KVEntry) error {
			if cur.Session != e.Session {
				return fmt.Errorf("failed session check for key %q, current session %q != %q", e.Key, cur.Session, e.Session)
			}
			return nil
		})
	case "check-index":
		return w.check(e.Key, "failed to check index, key %q doesn't exist", func(cur *KVEntry) error {
			if cur.ModifyIndex != e.ModifyIndex {
				return fmt.Errorf("failed index check for key %q, current modify index %d != %d", e.Key, cur.ModifyIndex, e.ModifyIndex)
			}
			return nil
		})
	case "check-not-exists":
		cur, err := first[*KVEntry](w.Txn, tableKV, indexID, e.Key)
		if err == nil && cur != nil {
			err = fmt.Errorf("key %q exists", e.Key)
		}
		return nil, err
	case "delete":
		return nil, w.kvDelete(e.Key)
	case "delete-tree":
		return nil, w.kvDeleteTree(e.Key)
	case "delete-cas":
		ok, err := w.kvDeleteCAS(e.Key, e.ModifyIndex)
		return nil, orRefusal(ok, err, "failed to delete key %q, index is stale", e.Key)
	case "set":
		err := w.kvSet(&e, false)
		return blank(&e), err
	case "cas":
		ok, err := w.kvCAS(&e)
		return blank(&e), orRefusal(ok, err, "failed to set key %q, index is stale", e.Key)
	case "lock":
		ok, err := w.kvLock(&e)
		return blank(&e), orRefusal(ok, err, "failed to lock key %q, lock is already held", e.Key)
	case "unlock":
		ok, err := w.kvUnlock(&e)
		return blank(&e), orRefusal(ok, err, "failed to unlock key %q, lock isn't held, or is held by another session", e.Key)
	}
	return nil, fmt.Errorf("unknown KV verb %q", op.Verb)
}

func (w *wtx) check(key, missing string, ok func(*KVEntry) error) ([]*KVEntry, error) {
	got, err := orMissing(w.Txn, key, missing)
	if err != nil {
		return nil, err
	}
	if err := ok(got[0]); err != nil {
		return nil, err
	}
	return blank(got[0]), nil
}

func orMissing(tx *memdb.Txn, key, missing string) ([]*KVEntry, error) {
	cur, err := first[*KVEntry](tx, tableKV, indexID, key)
	if err == nil && cur == nil {
		err = fmt.Errorf(missing, key)
	}
	if err != nil {
		return nil, err
	}
	return []*KVEntry{cur}, nil
}

func orRefusal(ok bool, err error, format, key string) error {
	if err == nil && !ok {
		return fmt.Errorf(format, key)
	}
	return err
}

// blank is e without its value.
func blank(e *KVEntry) []*KVEntry {
	c := e.clone()
	c.Value = nil
	return []*KVEntry{c}
}
