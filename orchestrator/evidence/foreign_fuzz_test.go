package evidence

import (
	"strings"
	"testing"
	"unicode"

	"github.com/hashicorp/consul/api"
)

// What foreign keys hold never panics, and never reaches a terminal raw.
func FuzzForeign(f *testing.F) {
	f.Add([]byte(`{"Limit":2,"Holders":{"a":true,"b":true}}`), "a", "b", uint64(api.SemaphoreFlagValue))
	f.Add([]byte(`{"ID":"a","Who":"me@host","Created":"2026-01-02T03:04:05Z"}`), "a", "", uint64(api.LockFlagValue))
	f.Add([]byte("{\"Limit\":1,\"Holders\":{\"\\u001b[2J\":true}}"), "\x1b[31m", "x", uint64(0))
	f.Fuzz(func(t *testing.T, value []byte, a, b string, flags uint64) {
		all := []*api.KVPair{
			{Key: "d/.lock", Value: value, Flags: flags},
			{Key: "d/" + a, Session: a, Flags: flags},
			{Key: "d/" + b, Flags: flags},
		}
		c := tellApart("d/", all, false)
		if c.why != "" && len(c.slots) > 0 {
			t.Errorf("slots %q of a list that is none: %s", c.slots, c.why)
		}
		if len(c.slots)+len(c.waiting) != min(1, len(a)) && "d/"+a != "d/.lock" {
			t.Errorf("contender %q: slots %q, waiting %q", a, c.slots, c.waiting)
		}
		for _, s := range append(c.stale, c.why) {
			if strings.ContainsFunc(s, unicode.IsControl) {
				t.Errorf("%q holds control characters", s)
			}
		}
		if info, err := decodeLockInfo(value, a); err == nil {
			_, _ = info.user(), info.host()
			if a == "" {
				t.Error("the info of nobody's session was taken")
			}
		}
		s := &Snapshot{Name: "d/.lock", Key: "d/.lock", Pair: all[0], Deps: map[string]uint64{}}
		s.decodeHolder()
		s.takeInfo(all[0])
		toolOf(all[0], true)
	})
}
