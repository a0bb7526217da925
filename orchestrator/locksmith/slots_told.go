package locksmith

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// weight orders states by how much they say of a set of slots.
func weight(state string) int {
	return slices.Index([]string{Free, Held, Warm, Unknown, Cooling, Hot}, state)
}

// tell says once that all slots are held, and each time that one is HOT.
func (s *slots) tell() {
	verdicts := s.judged()
	for _, l := range s.all {
		if v := verdicts[l]; v != nil && v.State == Hot && s.req.NoBreak {
			l.w.tell(v) // else whoever breaks it, or may not, says so
		}
	}
	if s.said || len(verdicts) < len(s.all) {
		return
	}
	s.said = true
	front := s.front(verdicts)
	s.req.Notify(Notice{
		Kind: NoticeWaiting, Lock: front.name(), Status: front.w.status(verdicts[front]),
		Text: fmt.Sprintf("all %d slots are held; waiting", len(s.all)),
	})
}

func (s *slots) front(verdicts map[*slot]*Verdict) *slot {
	return slices.MaxFunc(s.all, func(a, b *slot) int {
		va, vb := verdicts[a], verdicts[b]
		switch {
		case va == nil || vb == nil:
			return boolInt(va != nil) - boolInt(vb != nil)
		default:
			return weight(va.State) - weight(vb.State)
		}
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// refusal names every holder.
func (s *slots) refusal(ctx context.Context, why string) error {
	ref := &RefusedError{Why: why}
	verdicts := map[*slot]*Verdict{}
	for _, l := range s.all {
		v := l.v
		if v == nil || s.hold(l) != "" && v.Snapshot.Hold() != s.hold(l) {
			var err error
			if v, err = l.w.obs[l.name()].observe(ctx); err != nil {
				return err
			}
		}
		if !v.Snapshot.Held() && time.Now().Before(l.cooling) {
			c := *v
			c.State = Cooling
			v = &c
		}
		verdicts[l] = v
		ref.Slots = append(ref.Slots, l.w.status(v))
		ref.Hot = ref.Hot || v.State == Hot
	}
	front := s.front(verdicts)
	ref.Status = front.w.status(verdicts[front])
	return ref
}
