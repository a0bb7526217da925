package locksmith

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

// Retention says how long aimlock keeps what it writes about locks.
type Retention struct {
	// Breaks is how long the record of a break is kept; 0 is DefaultKeepBreaks.
	Breaks time.Duration
	// KeepBreaks is how many of each lock, the last ones, are kept however old
	// they are; 0 is DefaultKeepLast.
	KeepBreaks int
	// Ended is how long requests, approvals and silences are kept after they
	// expired, and what was observed of a hold after that; 0 is
	// DefaultKeepEnded.
	Ended time.Duration
}

// Defaults of Retention.
const (
	DefaultKeepBreaks = 90 * 24 * time.Hour
	DefaultKeepLast   = 20
	DefaultKeepEnded  = 24 * time.Hour
)

// Bounds of one Prune, so that it is in nobody's way: older servers take 64
// operations in a transaction.
const (
	maxPruned  = 1000
	pruneBatch = 60
)

// Pruned counts what was deleted.
type Pruned struct {
	Breaks    int `json:"breaks"`
	Requests  int `json:"requests"`
	Approvals int `json:"approvals"`
	Silences  int `json:"silences"`
	Observed  int `json:"observed"`
	// More is set where there may be more to delete: call it again.
	More bool `json:"more"`
}

// Prune deletes what aimlock wrote about locks and nobody needs any more. Ages
// are by the wall clock of this machine, and decide about history alone: locks,
// what they owe, progress, budgets and switches that stand are never touched.
// Each delete compares, so any number of pruners may run at once.
func (c *Client) Prune(ctx context.Context, keep Retention) (Pruned, error) {
	if keep.Breaks <= 0 {
		keep.Breaks = DefaultKeepBreaks
	}
	if keep.KeepBreaks <= 0 {
		keep.KeepBreaks = DefaultKeepLast
	}
	if keep.Ended <= 0 {
		keep.Ended = DefaultKeepEnded
	}
	p := &pruner{c: c, keep: keep, now: time.Now(), left: maxPruned}
	for _, part := range []struct {
		count *int
		run   func(context.Context) (int, error)
	}{
		{&p.out.Breaks, p.breaks},
		{&p.out.Requests, func(ctx context.Context) (int, error) { return p.expired(ctx, c.keys.Requests()) }},
		{&p.out.Approvals, func(ctx context.Context) (int, error) { return p.expired(ctx, c.keys.Approvals()) }},
		{&p.out.Silences, func(ctx context.Context) (int, error) { return p.expired(ctx, c.keys.Silences()) }},
		{&p.out.Observed, p.observed},
	} {
		n, err := part.run(ctx)
		*part.count = n
		if err != nil {
			return p.out, err
		}
	}
	p.out.More = p.left <= 0
	return p.out, nil
}

type pruner struct {
	c    *Client
	keep Retention
	now  time.Time
	// left is how many keys may still be looked at or deleted.
	left int
	out  Pruned
}

// breaks deletes records of old breaks, the oldest of each lock first. It reads
// names, and of values only those that may go.
func (p *pruner) breaks(ctx context.Context) (int, error) {
	names, err := p.c.consul.Keys(ctx, p.c.keys.BreaksRoot(), "")
	if err != nil {
		return 0, err
	}
	type attempt struct {
		key          string
		epoch, token uint64
		n            int
	}
	byLock := map[string][]attempt{}
	for _, k := range names {
		if epoch, token, n, ok := keys.ParseBreak(k); ok {
			folder := k[:strings.LastIndexByte(k, '/')]
			byLock[folder] = append(byLock[folder], attempt{k, epoch, token, n})
		}
	}
	var old []string
	for _, list := range byLock {
		slices.SortFunc(list, func(a, b attempt) int {
			return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.token, b.token), cmp.Compare(a.n, b.n))
		})
		for _, a := range list[:max(0, len(list)-p.keep.KeepBreaks)] {
			old = append(old, a.key)
		}
	}
	slices.Sort(old)
	var gone []*api.KVPair
	for batch := range slices.Chunk(old, pruneBatch) {
		if p.left <= 0 {
			break
		}
		p.left -= len(batch)
		pairs, err := p.read(ctx, batch)
		if err != nil {
			return 0, err
		}
		for _, kv := range pairs {
			var rec records.Break
			if records.Decode(kv.Key, kv.Value, &rec) == nil && p.ago(rec.StartedAt) > p.keep.Breaks {
				gone = append(gone, kv)
			}
		}
	}
	return p.delete(ctx, gone, nil)
}

// ago is how old something is; what has no time is not old.
func (p *pruner) ago(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return p.now.Sub(t)
}

func (p *pruner) read(ctx context.Context, names []string) (consulkv.Results, error) {
	ops := make([]consulkv.Op, len(names))
	for i, k := range names {
		ops[i] = consulkv.GetOrEmpty(k)
	}
	res, err := consulkv.Retry(ctx, p.c.consul, "read what is old", func(ctx context.Context) (consulkv.Results, error) {
		return p.c.consul.Txn(ctx, ops...)
	})
	return slices.DeleteFunc(res, func(kv *api.KVPair) bool { return kv.ModifyIndex == 0 }), err
}

// expired deletes what says when it ends, and ended long ago.
func (p *pruner) expired(ctx context.Context, folder string) (int, error) {
	list, err := p.c.consul.List(ctx, folder)
	if err != nil {
		return 0, err
	}
	var gone []*api.KVPair
	for _, kv := range list {
		var rec records.Request // a silence has the same field
		if records.Decode(kv.Key, kv.Value, &rec) == nil && p.ago(rec.Expires) > p.keep.Ended {
			gone = append(gone, kv)
		}
	}
	return p.delete(ctx, gone, nil)
}

// observed deletes what was seen of holds that are over: neither who has the lock
// nor who had it last, of whom it may prove that all is dead.
func (p *pruner) observed(ctx context.Context) (int, error) {
	list, err := p.c.consul.List(ctx, p.c.keys.ObservedRoot())
	if err != nil {
		return 0, err
	}
	lock := map[string]*api.KVPair{} // by the name of what was seen of it
	var gone []*api.KVPair
	guards := map[string]consulkv.Op{}
	for _, kv := range list {
		name, ok := p.c.keys.ObservedOf(kv.Key)
		var rec records.Observed
		if !ok || records.Decode(kv.Key, kv.Value, &rec) != nil || p.ago(rec.At) <= p.keep.Ended || p.left <= 0 {
			continue
		}
		held, read := lock[name]
		if !read {
			p.left--
			if held, err = p.c.consul.Get(ctx, p.c.keys.Lock(name)); err != nil {
				return 0, err
			}
			lock[name] = held
		}
		index := uint64(0)
		if held != nil {
			index = held.ModifyIndex
			var h records.Holder
			if held.Session == rec.Session || records.Decode(held.Key, held.Value, &h) == nil && h.Session == rec.Session {
				continue
			}
		}
		gone = append(gone, kv)
		guards[kv.Key] = consulkv.CheckIndex(p.c.keys.Lock(name), index)
	}
	return p.delete(ctx, gone, guards)
}

// delete deletes what has not changed since it was read, each with its guard. Of
// a batch that is refused each is tried alone: what somebody has written anew
// stays.
func (p *pruner) delete(ctx context.Context, gone []*api.KVPair, guards map[string]consulkv.Op) (int, error) {
	n := 0
	for batch := range slices.Chunk(gone, pruneBatch/2) {
		if p.left <= 0 {
			break
		}
		batch = batch[:min(len(batch), p.left)]
		p.left -= len(batch)
		done, err := p.deleteBatch(ctx, batch, guards)
		if _, refused := isRefused(err); refused {
			for _, kv := range batch {
				one, err := p.deleteBatch(ctx, []*api.KVPair{kv}, guards)
				if _, refused := isRefused(err); err != nil && !refused {
					return n, err
				}
				done += one
			}
		} else if err != nil {
			return n, err
		}
		n += done
	}
	return n, nil
}

func (p *pruner) deleteBatch(ctx context.Context, batch []*api.KVPair, guards map[string]consulkv.Op) (int, error) {
	var check, ops []consulkv.Op
	for _, kv := range batch {
		if g := guards[kv.Key]; g != nil {
			check = append(check, g)
		}
		ops = append(ops, consulkv.DeleteCAS(kv.Key, kv.ModifyIndex))
	}
	// Repeating a delete that compares is safe.
	_, err := consulkv.Retry(ctx, p.c.consul, "delete what is old", func(ctx context.Context) (consulkv.Results, error) {
		return p.c.consul.Txn(ctx, append(once(check), ops...)...)
	})
	if err != nil {
		return 0, err
	}
	return len(batch), nil
}
