package state

import (
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"
)

// SessionCreate stores a session. Its node and all its checks must exist, and no
// check may be critical.
func (s *Store) SessionCreate(sess *Session) error {
	_, err := s.write(func(w *wtx) error { return w.sessionCreate(sess) })
	return err
}

func (w *wtx) sessionCreate(sess *Session) error {
	sess.CreateIndex, sess.ModifyIndex = w.idx, w.idx
	node, err := first[*Node](w.Txn, tableNodes, indexID, sess.Node)
	if err != nil {
		return err
	}
	if node == nil {
		return ErrMissingNode
	}
	ids := sess.CheckIDs()
	for _, id := range ids {
		check, err := first[*Check](w.Txn, tableChecks, indexID, sess.Node, id)
		if err != nil {
			return err
		}
		if check == nil {
			return fmt.Errorf("Missing check '%s' registration", id)
		}
		if check.Status == Critical {
			return fmt.Errorf("Check '%s' is in %s state", id, check.Status)
		}
	}
	if err := w.Insert(tableSessions, sess); err != nil {
		return fmt.Errorf("session insert: %w", err)
	}
	for _, id := range ids {
		if err := w.Insert(tableSessionChecks, &sessionCheck{Node: sess.Node, CheckID: id, Session: sess.ID}); err != nil {
			return fmt.Errorf("session check insert: %w", err)
		}
	}
	return w.touch(tableSessions)
}

// SessionGet reads one session, nil where there is none.
func (s *Store) SessionGet(ws memdb.WatchSet, id string) (uint64, *Session, error) {
	tx := s.db().Txn(false)
	ch, raw, err := tx.FirstWatch(tableSessions, indexID, id)
	if err != nil {
		return 0, nil, fmt.Errorf("session lookup: %w", err)
	}
	ws.Add(ch)
	sess, _ := raw.(*Session)
	return maxIndex(tx, tableSessions), sess, nil
}

// SessionList reads all sessions.
func (s *Store) SessionList(ws memdb.WatchSet) (uint64, []*Session, error) {
	tx := s.db().Txn(false)
	out, err := list[*Session](tx, ws, tableSessions, indexPrefix, "")
	return maxIndex(tx, tableSessions), out, err
}

// SessionsOfNode reads all sessions of a node.
func (s *Store) SessionsOfNode(ws memdb.WatchSet, node string) (uint64, []*Session, error) {
	tx := s.db().Txn(false)
	out, err := list[*Session](tx, ws, tableSessions, indexNode, node)
	return maxIndex(tx, tableSessions), out, err
}

// SessionDestroy ends a session; one that does not exist is no error.
func (s *Store) SessionDestroy(id string) error {
	_, err := s.write(func(w *wtx) error { return w.sessionEnd(id) })
	return err
}

// sessionEnd deletes a session, frees or deletes what it holds, and puts its
// lock-delay on those keys.
func (w *wtx) sessionEnd(id string) error {
	sess, err := first[*Session](w.Txn, tableSessions, indexID, id)
	if err != nil || sess == nil {
		return err
	}
	if err := w.Delete(tableSessions, sess); err != nil {
		return fmt.Errorf("session delete: %w", err)
	}
	if err := w.touch(tableSessions); err != nil {
		return err
	}
	w.ended = append(w.ended, sess.ID)

	held, err := list[*KVEntry](w.Txn, nil, tableKV, indexSession, sess.ID)
	if err != nil {
		return err
	}
	for _, e := range held {
		if sess.Behavior == BehaviorDelete {
			err = w.kvDelete(e.Key)
		} else {
			free := e.clone()
			free.Session = ""
			err = w.kvSet(free, true)
		}
		if err != nil {
			return err
		}
		if d := min(sess.LockDelay, MaxLockDelay); d > 0 {
			if w.delays == nil {
				w.delays = map[string]time.Duration{}
			}
			w.delays[e.Key] = d
		}
	}

	bound, err := list[*sessionCheck](w.Txn, nil, tableSessionChecks, indexSession, sess.ID)
	if err != nil {
		return err
	}
	for _, m := range bound {
		if err := w.Delete(tableSessionChecks, m); err != nil {
			return fmt.Errorf("session check delete: %w", err)
		}
	}
	return nil
}

// endSessionsOf ends every session bound to a check.
func (w *wtx) endSessionsOf(node, checkID string) error {
	bound, err := list[*sessionCheck](w.Txn, nil, tableSessionChecks, indexNodeCheck, node, checkID)
	if err != nil {
		return err
	}
	for _, m := range bound {
		if err := w.sessionEnd(m.Session); err != nil {
			return err
		}
	}
	return nil
}
