package sim

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul/state"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

// byHand notes what people said of breaking, and reports whether it is that.
func (c *checker) byHand(key, name string, e *state.KVEntry) bool {
	p := c.w.keys
	switch {
	case strings.HasPrefix(key, p.Silences()):
		delete(c.silences, name)
		var rec struct{ Expires time.Time }
		if e != nil && json.Unmarshal(e.Value, &rec) == nil {
			c.silences[name] = rec.Expires
		}
	case strings.HasPrefix(key, string(p)+"approvals/"):
		delete(c.approvals, name)
		var rec records.Request
		if e != nil && json.Unmarshal(e.Value, &rec) == nil {
			c.approvals[name] = rec
		}
	case key == p.PolicySuspended():
		c.suspends = e != nil
	default:
		return false
	}
	return true
}

// restored begins anew with what stands in the servers. What the nodes have accepted
// stays what it is.
func (c *checker) restored() {
	var list []struct {
		Key, Session string
		Value        []byte
		ModifyIndex  uint64
	}
	var checks []state.Check
	_ = json.Unmarshal(c.w.read("/v1/kv/?recurse="), &list)
	_ = json.Unmarshal(c.w.read("/v1/health/state/any"), &checks)
	c.reset()
	for _, chk := range checks {
		c.health(state.CheckChange{After: &chk})
	}
	for _, e := range list {
		c.byHand(e.Key, keys.Unescape(keys.LastSegment(e.Key)), &state.KVEntry{Value: e.Value})
		if name, own := c.w.keys.LockName(e.Key); own && strings.HasPrefix(e.Key, c.w.keys.Locks()) {
			// How long each pause has been owed the servers do not tell.
			c.locks[name] = &lockModel{session: e.Session, index: e.ModifyIndex, value: e.Value, used: true}
		}
	}
}
