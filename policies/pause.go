package policies

import (
	"slices"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
)

// usualQuiesce is the pause that a hold of aimlock asks for unless all its
// participants check the order.
const usualQuiesce = 15 * time.Second

// tooYoung warns of a hot rule by which holders of aimlock's locks would be broken
// one after the other before they may do anything: each new one first waits out the
// pause that is owed after the break of the one before it, and its session ages
// meanwhile.
func (d *decoder) tooYoung(p *Policy) {
	own := slices.ContainsFunc(p.Locks, func(pattern string) bool { return !strings.HasPrefix(pattern, "/") })
	if p.Break == nil || p.Break.Approval != ApprovalAuto || !own {
		return
	}
	pause := usualQuiesce
	if q := p.Break.Quiesce; q != nil {
		pause = max(pause, *q)
	}
	for _, r := range p.Hot {
		for _, part := range r.when.parts() {
			if part.onlyAge(pause) {
				d.warn(part.rng, "Holders that never begin",
					"A holder that follows one which did not let go first waits %s, and its session ages meanwhile: this could break one after the other before it did anything. lock.held_for leaves that pause out.", pause)
			}
		}
	}
}

// onlyAge reports whether a condition compares the age of the session with less than
// pause, and reads nothing that could tell a holder in need from one that waits.
func (e *expr) onlyAge(pause time.Duration) bool {
	for _, r := range e.reads {
		switch r.object {
		case "lock", "session", "now":
		case "holder":
			if r.attr == "alive" {
				return false
			}
		default:
			return false
		}
	}
	c := comparedWith(e)["session.age"]
	return c != nil && slices.ContainsFunc(c.constants, func(v cty.Value) bool {
		if v.Type() != cty.Number {
			return false
		}
		n, _ := v.AsBigFloat().Float64()
		return n < pause.Seconds()
	})
}
