package keys_test

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/keys"
)

// FuzzKeys: whatever stands in Consul as a key, the names that are read from it are
// those that it was made of, and a name never leaves its folder.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{"a", "a.b/c", "..", "%2F", "a%", "é\x00", "aimlock/locks/x", "aimlock/breaks/x/1-2-3", "1-2-3", "1-18446744073709551616-1", "aimlock/observed/a%2Fb/o", "aimlock/rollouts/r/plan/1"} {
		f.Add(s, "aimlock", uint64(7))
	}
	f.Fuzz(func(t *testing.T, name, prefix string, n uint64) {
		p, err := keys.New(prefix)
		if err != nil {
			return
		}
		// As a key that somebody wrote.
		for _, key := range []string{name, string(p) + name, p.Locks() + name} {
			p.LockName(key)
			p.BesideOf(key)
			p.RolloutID(key)
			p.ObservedOf(key)
			if p.IsQueued(key) && !strings.HasPrefix(key, p.Queue()) {
				t.Fatalf("%q is taken for one of the queue", key)
			}
			if epoch, token, attempt, ok := keys.ParseBreak(key); ok && keys.LastSegment(p.Break("x", epoch, token, attempt)) == "" {
				t.Fatalf("%q", key)
			}
		}
		// As a name.
		if keys.CheckName("lock", name) != nil {
			return
		}
		if seg := keys.Escape(name); strings.Contains(seg, "/") || keys.Unescape(seg) != name {
			t.Fatalf("%q is escaped as %q", name, seg)
		}
		if got, own := p.LockName(p.Lock(name)); got != name || !own {
			t.Fatalf("the lock %q is read as %q, own %v", name, got, own)
		}
		if got, ok := p.RolloutID(p.Rollout(name)); got != name || !ok {
			t.Fatalf("the rollout %q is read as %q", name, got)
		}
		if got, ok := p.BesideOf(p.Progress(name)); got != name || !ok {
			t.Fatalf("the progress of %q is read as %q's", name, got)
		}
		if got, ok := p.ObservedOf(p.Observed(name, name)); got != name || !ok {
			t.Fatalf("what is observed of %q is read as %q's", name, got)
		}
		if epoch, token, attempt, ok := keys.ParseBreak(p.Break(name, n, n+1, 3)); !ok || epoch != n || token != n+1 || attempt != 3 {
			t.Fatalf("break %d-%d of %q", epoch, token, name)
		}
		if b := keys.Bucket(name); b < 0 || b >= keys.Buckets {
			t.Fatalf("bucket %d", b)
		}
	})
}
