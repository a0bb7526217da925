package runner

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
)

const (
	// answersEvery is the least interval between two reads of answers, and
	// answersAtMost how far it grows.
	answersEvery  = 100 * time.Millisecond
	answersAtMost = 5 * time.Second
	// fewFlying nodes are read at each wake-up: that costs next to nothing.
	fewFlying = 64
	// answersPer is for how long a node that got its order is left alone at
	// least, times the nodes that got theirs with it: no Consul takes many more
	// than 20,000 answers in a second.
	answersPer = 50 * time.Microsecond
	// manyFlying is from how many answers on reading all at once is thought of.
	manyFlying = 512
	// readAnswers names what is read in errors.
	readAnswers = "read the nodes' answers"
	// lateEvery is how often nodes are read that were given up.
	lateEvery = 5 * time.Second
)

// reader decides when the answers of which nodes are read. A wake-up says that
// some node has written something and not which, so each read is of all nodes
// in flight. For the whole to be O(N) bytes, reads must not come much faster
// than answers: after one that finds few new answers the interval doubles,
// after one that finds many it is halved. So a node is read some ten times at
// most, and the window stands idle for a tenth of a node's time. Where nobody
// waits for a place in the window, the next read is due when half of the rest
// will have answered, at the pace of the last interval: then all reads together
// are of two times the fleet.
//
// It is used by one goroutine.
type reader struct {
	interval time.Duration
	last     time.Time // end of the last read
	pending  bool      // something changed since
	late     time.Time // last read of the late ones
	buf      []int
}

// changed notes that something has been written, and returns when to read it.
func (r *reader) changed() time.Time {
	r.pending = true
	return r.due()
}

// due is when to read next; zero: not before something changes.
func (r *reader) due() time.Time {
	if !r.pending {
		return time.Time{}
	}
	return r.last.Add(max(r.interval, answersEvery))
}

// choose returns the nodes to read, valid until the next call.
func (r *reader) choose(s *orchestrator.State) []int {
	r.pending = false
	r.buf = s.AppendFlying(r.buf[:0])
	if time.Since(r.late) >= lateEvery {
		r.late = time.Now()
		r.buf = s.AppendLate(r.buf)
	}
	return r.buf
}

// gave notes that nodes got their orders just now. But for a few, they are left
// alone for a while: what a read at the first answer finds says nothing of the
// pace at which the others come.
func (r *reader) gave(nodes int) {
	if nodes > fewFlying {
		r.last, r.interval = time.Now(), min(time.Duration(nodes)*answersPer, answersAtMost)
	}
}

// read takes how many nodes were read, how many of them had answered, and
// whether others wait for their places.
func (r *reader) read(nodes, answered int, backlog bool) {
	took := answersEvery
	if !r.last.IsZero() {
		took = time.Since(r.last)
	}
	r.last = time.Now()
	switch {
	case !backlog && answered > 0 && nodes-answered > fewFlying:
		half := float64(nodes-answered) / 2 / float64(answered) * float64(took)
		r.interval = min(answersAtMost, max(answersEvery, time.Duration(half)))
	case nodes-answered <= fewFlying:
		r.interval = answersEvery
	case answered*3 > nodes:
		r.interval = max(answersEvery, r.interval/2)
	case answered*10 < nodes:
		r.interval = min(answersAtMost, max(answersEvery, r.interval)*2)
	}
}

// found is what stands of one config at one node.
type found struct {
	node, config int
	pair         *api.KVPair
}

// fetch reads what stands at some nodes; what was read before may be left out.
// A few are asked for by name. Where they are a good part of all there is, the
// whole is read: that costs Consul and this process less than as many names, and
// in bytes no more than some times as much.
func (d *drive) fetch(ctx context.Context, nodes []int) ([]found, error) {
	configs := d.plan.Spec.Configs
	if n := len(nodes) * len(configs); n > manyFlying && n > d.entries/4 {
		return d.sweep(ctx, nodes)
	}
	ks := make([]string, 0, len(nodes)*len(configs))
	for _, i := range nodes {
		for _, c := range configs {
			ks = append(ks, d.r.keys.Actual(c.Name, d.plan.Nodes[i]))
		}
	}
	pairs, err := d.r.getMany(ctx, readAnswers, ks)
	if err != nil {
		return nil, err
	}
	out := make([]found, 0, len(pairs))
	for n, p := range pairs {
		if p.ModifyIndex != 0 {
			out = append(out, found{nodes[n/len(configs)], n % len(configs), p})
		}
	}
	return out, nil
}

// sweep reads the answers under each config that are new.
func (d *drive) sweep(ctx context.Context, nodes []int) ([]found, error) {
	wanted := make([]bool, len(d.plan.Nodes))
	for _, i := range nodes {
		wanted[i] = true
	}
	var out []found
	total := 0
	for ci, c := range d.plan.Spec.Configs {
		count := 0
		keep := func(h *consulkv.Head) bool {
			count++
			i, ours := d.f.index[keys.LastSegment(string(h.Key))]
			return ours && wanted[i] && d.seen[ci][i] != h.ModifyIndex
		}
		list, err := d.r.scanAnew(ctx, readAnswers, d.r.keys.ActualAll(c.Name), func() func(*consulkv.Head) bool {
			count = 0
			return keep
		})
		if err != nil {
			return nil, err
		}
		total += count
		out = slices.Grow(out, len(list))
		for _, p := range list {
			out = append(out, found{d.f.index[keys.LastSegment(p.Key)], ci, p})
		}
	}
	d.entries = total
	return out, nil
}
