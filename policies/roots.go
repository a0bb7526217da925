package policies

import (
	"slices"
	"strings"
)

// Root is the literal beginning of what a pattern can match.
type Root struct {
	// Own: Prefix begins a lock's name, of a lock of aimlock's own. Else it
	// begins a whole key.
	Own    bool
	Prefix string
}

// Roots are the beginnings of all that the policies' patterns can match, sorted,
// none of which begins with another: whoever reads all that stands below them
// misses no lock that a policy is for.
func (s *Set) Roots() []Root {
	var all []Root
	for _, p := range s.Policies {
		for _, g := range p.globs {
			text, whole := strings.CutPrefix(g.text, "/")
			if n := strings.IndexAny(text, "*?"); n >= 0 {
				text = text[:n]
			}
			all = append(all, Root{Own: !whole, Prefix: text})
		}
	}
	slices.SortFunc(all, func(a, b Root) int {
		if a.Own != b.Own {
			if a.Own {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Prefix, b.Prefix)
	})
	var out []Root
	for _, r := range all {
		if n := len(out); n > 0 && out[n-1].Own == r.Own && strings.HasPrefix(r.Prefix, out[n-1].Prefix) {
			continue
		}
		out = append(out, r)
	}
	return out
}
