package orchestrator

import "time"

// Answers tells how long nodes took from the order that stands in Consul to
// their answer: what a later rollout's time is estimated from. It stays small
// whatever the fleet's size. The zero value is ready.
type Answers struct {
	// N is how many answers were measured.
	N int `json:"n"`
	// Sum and Max are in seconds.
	Sum float64 `json:"sum"`
	Max float64 `json:"max"`
	// Buckets counts them by length: bucket i holds those of at most
	// 10 ms times the square root of 2 to the i, the last all that are longer.
	Buckets []int `json:"buckets"`
}

const (
	answerBuckets = 40 // the last begins at two hours
	answerLeast   = 10 * time.Millisecond
)

// answerBound is the upper end of a bucket, in seconds.
func answerBound(i int) float64 {
	bound := answerLeast.Seconds() * float64(uint64(1)<<(i/2))
	if i%2 == 1 {
		bound *= 1.4142135623730951
	}
	return bound
}

// Add counts one answer.
func (a *Answers) Add(d time.Duration) {
	s := max(0, d.Seconds())
	i := 0
	for i < answerBuckets-1 && s > answerBound(i) {
		i++
	}
	for len(a.Buckets) <= i {
		a.Buckets = append(a.Buckets, 0)
	}
	a.Buckets[i]++
	a.N++
	a.Sum, a.Max = a.Sum+s, max(a.Max, s)
}

// Merge adds the answers of another rollout.
func (a *Answers) Merge(b Answers) {
	for len(a.Buckets) < min(len(b.Buckets), answerBuckets) {
		a.Buckets = append(a.Buckets, 0)
	}
	for i := range a.Buckets {
		if i < len(b.Buckets) {
			a.Buckets[i] += b.Buckets[i]
		}
	}
	a.N, a.Sum, a.Max = a.N+b.N, a.Sum+b.Sum, max(a.Max, b.Max)
}

// Mean is the mean answer; 0 where there is none.
func (a *Answers) Mean() time.Duration {
	if a.N <= 0 {
		return 0
	}
	return seconds(a.Sum / float64(a.N))
}

// Quantile is a time within which the share q, 0 to 1, of the answers came: the
// upper end of its bucket, and never more than the longest.
func (a *Answers) Quantile(q float64) time.Duration {
	seen := 0
	for i, n := range a.Buckets {
		if seen += n; n > 0 && float64(seen) >= q*float64(a.N) {
			return seconds(min(answerBound(i), a.Max))
		}
	}
	return seconds(a.Max)
}

func seconds(s float64) time.Duration {
	const most = time.Duration(1<<63 - 1)
	if s >= most.Seconds() {
		return most
	}
	return time.Duration(s * float64(time.Second))
}

// Time estimates how long n nodes take of which at most parallel are in flight
// at once (0: all): a sliding window is never empty, so that they follow each
// other at the mean, and the last wave lasts as long as the slow ones do.
func (a *Answers) Time(n, parallel int) time.Duration {
	if n <= 0 || a.N <= 0 {
		return 0
	}
	if parallel <= 0 || parallel > n {
		parallel = n
	}
	return seconds(float64(n-parallel)/float64(parallel)*a.Mean().Seconds() + a.Quantile(0.95).Seconds())
}

// Flight is a node in flight: since when its order stands.
type Flight struct {
	Node  string    `json:"node"`
	Since time.Time `json:"since"`
}

// Oldest returns the n nodes that have been in flight for longest.
func (s *State) Oldest(n int) []Flight {
	var out []Flight
	for _, f := range s.flights {
		if len(out) == n {
			break
		}
		if x := &s.nodes[f.node]; x.flying && x.since == f.when {
			out = append(out, Flight{Node: s.plan.Nodes[f.node], Since: time.Unix(0, f.when).UTC()})
		}
	}
	return out
}

// Since returns since when a node is in flight; the zero time where it is not.
func (s *State) Since(node int) time.Time {
	if n := &s.nodes[node]; n.flying {
		return time.Unix(0, n.since).UTC()
	}
	return time.Time{}
}
