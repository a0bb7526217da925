package locksmith

import (
	"context"
	"slices"
	"sort"
	"strconv"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// List judges every held lock under a prefix of keys, "" for all of KV, and
// every free lock of aimlock's own there. However many locks there are, Consul
// is asked the same few questions; see [evidence.Sweep].
func (c *Client) List(ctx context.Context, prefix string) ([]*Verdict, error) {
	return c.list(ctx, prefix, false)
}

// ListHeld is List without the free locks.
func (c *Client) ListHeld(ctx context.Context, prefix string) ([]*Verdict, error) {
	return c.list(ctx, prefix, true)
}

func (c *Client) list(ctx context.Context, prefix string, held bool) ([]*Verdict, error) {
	sweep := c.reader.NewSweep([]string{prefix})
	sweep.HeldOnly = held
	found, err := sweep.Read(ctx)
	if err != nil {
		return nil, err
	}
	semaphores := map[string]bool{}
	for _, s := range found {
		semaphores[s.Key] = s.Semaphore != nil
	}
	found = slices.DeleteFunc(found, func(s *evidence.Snapshot) bool {
		if s.Slot != nil {
			// It is shown with its semaphore, but for one that has none.
			return semaphores[s.Slot.Of]
		}
		return held && !s.Held() && (s.Semaphore == nil || len(s.Semaphore.Slots)+len(s.Semaphore.Waiting) == 0)
	})
	cooling := c.coolingOf(ctx, found)
	now := time.Now()
	out := make([]*Verdict, len(found))
	for i, s := range found {
		out[i] = c.NewObserver(s.Name, nil).Judge(s, now)
		if cooling[s.Key] {
			out[i].State = Cooling
		}
	}
	return out, nil
}

// Event is one line of a lock's story.
type Event struct {
	At     time.Time `json:"at"`
	What   string    `json:"what"`
	By     string    `json:"by"`
	Detail string    `json:"detail"`
}

// Timeline tells a lock's story, oldest first, from what Consul still has: who
// holds it or held it last, its progress, requests, approvals and breaks.
// Times are those that the records name, each by its writer's clock.
func (c *Client) Timeline(ctx context.Context, s *evidence.Snapshot) ([]Event, error) {
	var out []Event
	add := func(at time.Time, what, by, detail string) {
		if !at.IsZero() {
			out = append(out, Event{At: at.UTC(), What: what, By: printable(by), Detail: printable(detail)})
		}
	}
	holder := func(h *records.Holder, token uint64) {
		who := h.User + "@" + h.Host
		add(h.AcquiredAt, "acquired", who, joinWords(h.Operation, idWords("token", token), idWords("pid", uint64(max(0, h.PID)))))
	}
	breaks, err := c.consul.List(ctx, c.keys.Breaks(s.Name))
	if err != nil {
		return nil, err
	}
	for _, p := range breaks {
		var b records.Break
		if records.Decode(p.Key, p.Value, &b) != nil {
			add(time.Now(), "unreadable break record", "", p.Key)
			continue
		}
		if b.Holder != nil {
			holder(b.Holder, b.Token)
		}
		add(b.StartedAt, "break begun", b.By, joinWords("rule "+b.Rule, idWords("token", b.Token), b.Reason))
		for _, st := range b.Steps {
			add(st.At, "step "+st.Step+" "+st.Result, b.By, st.Detail)
		}
		if b.EndedAt != nil {
			add(*b.EndedAt, "break "+b.Outcome, b.By, b.Detail)
		}
	}
	if h := s.Holder; h != nil {
		token := s.Index()
		if !s.Held() {
			token = 0
		}
		if h.Broken == "" {
			holder(h, token)
			if h.Released && h.ReleasedAt != nil {
				add(*h.ReleasedAt, "released", h.User+"@"+h.Host, h.Operation)
			}
		}
	}
	if p := s.Progress; p != nil {
		add(p.At, "progress", "", joinWords(idWords("done", uint64(max(0, p.Done))), idWords("of", uint64(max(0, p.Total))), p.Unit, p.Note))
	}
	if q := s.Request; q != nil {
		add(q.At, "asked to let go", q.By, q.Reason)
	}
	if a := s.Approval; a != nil {
		add(a.At, "break approved", a.By, a.Reason)
	}
	if q := s.Silence; q != nil {
		add(q.At, "silenced until "+q.Expires.UTC().Format(time.RFC3339), q.By, q.Reason)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].At.Before(out[j].At) })
	return out, nil
}

func joinWords(words ...string) string {
	out := ""
	for _, w := range words {
		if w == "" {
			continue
		}
		if out != "" {
			out += ", "
		}
		out += w
	}
	return out
}

func idWords(what string, n uint64) string {
	if n == 0 && what != "done" && what != "of" {
		return ""
	}
	return what + " " + strconv.FormatUint(n, 10)
}
