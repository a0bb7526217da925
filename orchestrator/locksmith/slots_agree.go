package locksmith

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/records"
)

// Contenders that count different numbers of slots would together hold more
// than one of them was told. Nobody writes down how many there are: each holder
// record says what its own holder counts, and whoever comes later gives way.
//
// Two that take slots at the same moment are told apart by their tokens, so that
// one of both finds the other: each reads all slots once more when it has one.

// agree fails with a *SlotsError if somebody holds a slot, since before the Raft
// index before, and counts another number of slots. It goes by what was read
// last.
func (s *slots) agree(ctx context.Context, before uint64) error {
	if s.req.SlotsOf == "" {
		return nil
	}
	s.mu.Lock()
	var other *api.KVPair
	theirs := 0
	for key, p := range s.pairs {
		number := strings.TrimPrefix(key, s.prefix)
		if p.Session == "" || p.ModifyIndex >= before || !isNumber(number) {
			continue
		}
		var h records.Holder
		if records.Decode(key, p.Value, &h) == nil && h.Session == p.Session && h.Slots != 0 && h.Slots != len(s.all) &&
			(other == nil || p.ModifyIndex < other.ModifyIndex) {
			other, theirs = p, h.Slots
		}
	}
	s.mu.Unlock()
	if other == nil {
		return nil
	}
	name, _ := s.c.keys.LockName(other.Key)
	v, err := s.c.NewObserver(name, s.req.Cluster).observe(ctx)
	if err != nil {
		return err
	}
	if v.Snapshot.SessionID() != other.Session {
		return nil // it ended meanwhile, and is not in the way any more
	}
	st := s.c.Status(v)
	st.Next = s.c.Next(v, nil)
	return &SlotsError{Status: st, Theirs: theirs, Ours: len(s.all)}
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// settle hands over a slot that was taken, unless an earlier holder of another
// one counts otherwise: then it is given back.
func (s *slots) settle(ctx context.Context, l *slot, h *Hold, owe time.Duration) (*Hold, error) {
	l.w.att = nil
	if s.req.SlotsOf != "" {
		err := s.readKeys(ctx)
		if err == nil {
			err = s.agree(ctx, h.Token())
		}
		if err != nil {
			return nil, errors.Join(err, h.giveUp(ctx))
		}
	}
	return l.w.settle(ctx, h, owe, 0)
}

// SlotsHeld is how many slots of a lock that nobody holds are held, and the name
// of one of them: people give the name that they gave `lock exec -n`. What cannot
// be read is none.
func (c *Client) SlotsHeld(ctx context.Context, v *Verdict) (n int, one string) {
	if v.Occupied() {
		return 0, ""
	}
	prefix := v.Snapshot.Key + "."
	list, err := c.consul.List(ctx, prefix)
	if err != nil {
		return 0, ""
	}
	for _, p := range list {
		if p.Session == "" || !isNumber(strings.TrimPrefix(p.Key, prefix)) {
			continue
		}
		if n++; n == 1 {
			one, _ = c.keys.LockName(p.Key)
		}
	}
	return n, one
}
