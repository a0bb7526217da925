package runner

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestReadsAreBounded: a window of nodes that answer one after another, each
// after a time of its own, with a wake-up at every answer, is read in the end
// at O(N): the same number of reads for each node, however many there are.
func TestReadsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		perNode := func(n int, each time.Duration) float64 {
			// Node i of the window answers at (i+1)*each/window, then the next
			// one takes its place: steady, max_parallel = window.
			const window = 500
			var r reader
			reads, done, flying := 0, 0, window
			start := time.Now()
			answered := func() int { return int(time.Since(start) * window / each) }
			for done < n {
				<-time.After(each / window) // virtual: to the next answer
				if due := r.changed(); due.After(time.Now()) {
					continue
				}
				r.pending = false
				now := min(answered(), n)
				fresh := min(now-done, flying)
				reads += flying
				done += fresh
				r.read(flying, fresh, done < n)
			}
			return float64(reads) / float64(n)
		}
		for _, each := range []time.Duration{50 * time.Millisecond, time.Second, 20 * time.Second} {
			small, large := perNode(2000, each), perNode(20000, each)
			t.Logf("nodes that take %s: %.1f reads of each of 2,000, %.1f of each of 20,000", each, small, large)
			if large > 12 || large > 1.5*small+1 {
				t.Errorf("nodes that take %s: %.1f reads of each of 2,000, %.1f of each of 20,000", each, small, large)
			}
		}
	})
}

func TestFewAreReadAtOnce(t *testing.T) {
	var r reader
	r.interval = answersAtMost
	for range 10 {
		r.read(3, 0, true)
	}
	if r.interval != answersEvery {
		t.Errorf("three nodes in flight are read every %s", r.interval)
	}
}

// TestRestIsReadTwice: a whole fleet has its orders and answers at a steady
// pace: all reads together are of about two times the fleet, and the last
// answer does not lie for long.
func TestRestIsReadTwice(t *testing.T) {
	for _, took := range []time.Duration{time.Second, 3 * time.Second, 20 * time.Second, 200 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			const n = 10_000
			var r reader
			start := time.Now()
			r.gave(n)
			reads, done := 0, 0
			for done < n {
				if due := r.changed(); due.After(time.Now()) {
					<-time.After(time.Until(due)) // virtual
				}
				r.pending = false
				now := min(n, int(time.Since(start)*n/took))
				flying, fresh := n-done, now-done
				reads, done = reads+flying, now
				r.read(flying, fresh, false)
			}
			late := time.Since(start) - took
			t.Logf("answers within %s: %.1f reads a node, the last is seen %s after", took, float64(reads)/n, late)
			// A slow fleet is read every answersAtMost.
			most := 3 + took.Seconds()/answersAtMost.Seconds()/2
			if float64(reads)/n > most || late > took/8 {
				t.Errorf("answers within %s: %.1f reads a node, the last is seen %s after", took, float64(reads)/n, late)
			}
		})
	}
}

// TestFirstReadWaits: a fleet is not read at its first answers, from which the
// next read would be put off for as long as all others seem to take.
func TestFirstReadWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r reader
		r.read(1, 1, false) // a canary, just before
		r.gave(fewFlying)
		if wait := time.Until(r.changed()); wait > answersEvery {
			t.Errorf("a few nodes are left alone for %s", wait)
		}
		<-time.After(90 * time.Millisecond) // virtual
		r.gave(1000)
		if wait := time.Until(r.changed()); wait != answersEvery {
			t.Errorf("a fleet is left alone for %s, want %s", wait, answersEvery)
		}
	})
}
