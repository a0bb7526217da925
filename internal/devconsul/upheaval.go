package devconsul

import (
	"errors"
	"fmt"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

// ChangeLeader does what the election of another leader does to what is in memory
// alone: every session has its whole TTL again. With forget the lock-delays are
// forgotten, too: so it is where the new leader has not seen the sessions end.
func (s *Server) ChangeLeader(forget bool) error {
	_, list, err := s.store.SessionList(nil)
	if err != nil {
		return err
	}
	if forget {
		s.store.ForgetDelays()
	}
	return s.armAll(list)
}

func (s *Server) armAll(list []*state.Session) error {
	var errs []error
	for _, sess := range list {
		ttl, err := s.sessionTTL(sess.TTL)
		if err != nil {
			errs = append(errs, fmt.Errorf("session %s: %w", sess.ID, err))
			continue
		}
		s.armSession(sess.ID, ttl)
	}
	return errors.Join(errs...)
}

// EndSessions ends every session at once, as the loss of their nodes does.
func (s *Server) EndSessions() error {
	_, list, err := s.store.SessionList(nil)
	if err != nil {
		return err
	}
	var errs []error
	for _, sess := range list {
		errs = append(errs, s.store.SessionDestroy(sess.ID))
	}
	return errors.Join(errs...)
}

// Snapshot takes a picture of the servers' state. What the local agent knows, its
// services and the last words of its checks, is no part of it.
func (s *Server) Snapshot() *state.Snapshot { return s.store.Snapshot() }

// Restore puts the state of a snapshot in place of what there is, and has the agent
// tell the servers what it knows, as a real one does soon.
func (s *Server) Restore(snap *state.Snapshot) error {
	_, old, err := s.store.SessionList(nil)
	if err != nil {
		return err
	}
	for _, sess := range old {
		s.timers.Stop(sessionTimer(sess.ID))
	}
	list, err := s.store.Restore(snap)
	if err != nil {
		return err
	}
	return errors.Join(s.armAll(list), s.agent.syncAll())
}
