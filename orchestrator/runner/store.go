package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

const (
	// chunkSize is the most bytes of content in one value: Consul's limit is
	// 512 KiB of JSON in base64 for a whole transaction.
	chunkSize = 256 << 10
	// planChunk is about how many bytes of names one chunk of a plan has.
	planChunk = 128 << 10
	// keepHeader bounds a header: what is larger is a defect, found before it
	// is written.
	keepHeader = 400 << 10
)

// writers is how many transactions of one decision are under way at once.
const writers = 4

// batcher fills fenced transactions to their limits, by operations and by
// encoded bytes, and has several of them under way: they are in no order. It is
// used by one goroutine; flush ends it.
type batcher struct {
	h     Hold
	ops   []consulkv.Op
	bytes int
	g     *errgroup.Group
	ctx   context.Context //nolint:containedctx // of the group, for the time of one decision
}

func newBatcher(ctx context.Context, h Hold) *batcher {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	return &batcher{h: h, g: g, ctx: ctx}
}

// add puts operations that belong together into one transaction: those of one
// add stand or do not stand together.
func (b *batcher) add(ops ...consulkv.Op) {
	size := 0
	for _, op := range ops {
		size += consulkv.Size(op)
	}
	// The guards take a little as well.
	guards := (consulkv.MaxTxnOps - b.h.MaxOps()) * 300
	if len(b.ops) > 0 && (len(b.ops)+len(ops) > b.h.MaxOps() || b.bytes+size+guards > consulkv.MaxTxnBytes) {
		b.send()
	}
	b.ops, b.bytes = append(b.ops, ops...), b.bytes+size
}

// send begins the transaction, when fewer than writers are under way. After a
// first error nothing more is begun.
func (b *batcher) send() {
	ops := b.ops
	b.ops, b.bytes = nil, 0
	if len(ops) == 0 {
		return
	}
	b.g.Go(func() error {
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
		_, err := b.h.Txn(b.ctx, ops...)
		return err
	})
}

// flush sends the rest and waits for all.
func (b *batcher) flush() error {
	b.send()
	return b.g.Wait()
}

// chunks is how many values hold size bytes; an empty file has one.
func chunks(size int64) int { return int(max(1, (size+chunkSize-1)/chunkSize)) }

// writePlan writes a new rollout: the plan's chunks, then the header that says
// that the plan is whole.
func (r *Runner) writePlan(ctx context.Context, h Hold, plan *orchestrator.Plan, head *orchestrator.Header, claim ...consulkv.Op) error {
	parts, err := plan.Encode(planChunk)
	if err != nil {
		return err
	}
	b := newBatcher(ctx, h)
	for i, p := range parts {
		if len(p) > keepHeader {
			return fmt.Errorf("the spec of rollout %s is too large: %d bytes", plan.Spec.Name, len(p))
		}
		b.add(consulkv.Set(r.keys.RolloutPart(plan.ID, "plan", i), p))
	}
	if err := b.flush(); err != nil {
		return err
	}
	head.PlanChunks = len(parts)
	return r.writeHeader(ctx, h, head, claim...)
}

// begin writes a new rollout, and takes its place q in the queue away with it.
//
// Invariant: a plan is dropped only if its header does not stand. Where the answer
// to the header is lost, the place that is gone may have been taken by this very
// header.
func (r *Runner) begin(ctx context.Context, h Hold, plan *orchestrator.Plan, head *orchestrator.Header, q *place) error {
	delay, deadline := 50*time.Millisecond, time.Now().Add(r.consul.RetryFor())
	for {
		err := r.writePlan(ctx, h, plan, head, q.claim()...)
		lost := q != nil && consulkv.Ambiguous(err) && !errors.Is(err, locksmith.ErrLost)
		if err == nil || !lost && !q.refusedClaim(err) {
			return err
		}
		stands, rerr := r.header(ctx, plan.ID)
		switch {
		case rerr == nil && stands.Epoch == h.Epoch() && stands.Token == h.Token():
			return nil
		case rerr != nil && !errors.Is(rerr, ErrNotFound):
			return errors.Join(err, rerr)
		case !lost:
			return errors.Join(errNotQueued, r.dropPlan(ctx, h, plan.ID))
		case time.Now().After(deadline):
			return err
		}
		// What was sent before cannot land any more once the next try is under way.
		pause(ctx, delay)
		delay = min(2*delay, time.Second)
	}
}

// dropPlan deletes what was written of a rollout that did not begin.
func (r *Runner) dropPlan(ctx context.Context, h Hold, id string) error {
	_, err := h.Txn(ctx, deleteTree(r.keys.Rollout(id)+"/plan/"))
	return err
}

func encodeHeader(head *orchestrator.Header) ([]byte, error) {
	v := records.Encode(head)
	if len(v) > keepHeader {
		return nil, fmt.Errorf("the state of rollout %s has grown to %d bytes: Consul takes no more", head.ID, len(v))
	}
	return v, nil
}

// writeHeader writes a header, in one transaction with more.
func (r *Runner) writeHeader(ctx context.Context, h Hold, head *orchestrator.Header, more ...consulkv.Op) error {
	v, err := encodeHeader(head)
	if err != nil {
		return err
	}
	_, err = h.Txn(ctx, append(more, consulkv.Set(r.keys.Rollout(head.ID), v))...)
	return err
}

// header reads the header of a rollout.
func (r *Runner) header(ctx context.Context, id string) (*orchestrator.Header, error) {
	p, err := r.consul.Get(ctx, r.keys.Rollout(id))
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, fmt.Errorf("rollout %s: %w", id, ErrNotFound)
	}
	var h orchestrator.Header
	if err := records.Decode(p.Key, p.Value, &h); err != nil {
		return nil, err
	}
	return &h, nil
}

// plan reads the plan of a rollout.
func (r *Runner) plan(ctx context.Context, h *orchestrator.Header) (*orchestrator.Plan, error) {
	plans, err := r.plans(ctx, []*orchestrator.Header{h})
	if err != nil {
		return nil, err
	}
	return plans[0], nil
}

// maxPlanChunks bounds what a header can make its reader ask for: some millions
// of nodes.
const maxPlanChunks = 2000

// plans reads the plans of rollouts.
func (r *Runner) plans(ctx context.Context, heads []*orchestrator.Header) ([]*orchestrator.Plan, error) {
	var ks []string
	for _, h := range heads {
		if h.PlanDropped {
			return nil, fmt.Errorf("rollout %s: its plan was deleted, because it ended long ago: %w", h.ID, orchestrator.ErrPlanDamaged)
		}
		if h.PlanChunks < 1 || h.PlanChunks > maxPlanChunks {
			return nil, fmt.Errorf("rollout %s: its header names %d chunks: %w", h.ID, h.PlanChunks, orchestrator.ErrPlanDamaged)
		}
		for n := range h.PlanChunks {
			ks = append(ks, r.keys.RolloutPart(h.ID, "plan", n))
		}
	}
	pairs, err := r.getMany(ctx, "read the rollouts' plans", ks)
	if err != nil {
		return nil, err
	}
	out := make([]*orchestrator.Plan, 0, len(heads))
	for _, h := range heads {
		parts := make([][]byte, 0, h.PlanChunks)
		for _, p := range pairs[:h.PlanChunks] {
			if p.ModifyIndex != 0 {
				parts = append(parts, p.Value)
			}
		}
		pairs = pairs[h.PlanChunks:]
		plan, err := orchestrator.DecodePlan(parts)
		if err != nil {
			return nil, fmt.Errorf("rollout %s: %w", h.ID, err)
		}
		out = append(out, plan)
	}
	return out, nil
}

// Headers reads all rollouts' headers, the newest first: by the token of their
// last hold, which only grows, and not by the clocks of those who wrote them.
// What cannot be read is left out and logged.
func (r *Runner) Headers(ctx context.Context) ([]*orchestrator.Header, error) {
	names, err := r.consul.Keys(ctx, r.keys.Rollouts(), "/")
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(k string) bool { return strings.HasSuffix(k, "/") })
	pairs, err := r.getMany(ctx, "read the rollouts", names)
	if err != nil {
		return nil, err
	}
	var out []*orchestrator.Header
	for _, p := range pairs {
		if p.ModifyIndex == 0 {
			continue
		}
		var h orchestrator.Header
		if err := records.Decode(p.Key, p.Value, &h); err != nil {
			if _, newer := errors.AsType[*records.ErrNewer](err); newer {
				return nil, err
			}
			r.log.Warn("not a rollout", "error", err)
			continue
		}
		out = append(out, &h)
	}
	slices.SortStableFunc(out, func(a, b *orchestrator.Header) int {
		return cmp.Or(cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(seniority(b), seniority(a)), b.CreatedAt.Compare(a.CreatedAt))
	})
	return out, nil
}

// seniority is the Raft index by which rollouts are sorted: of the last hold that
// drove one, or of the place in the queue of one that never began.
func seniority(h *orchestrator.Header) uint64 { return max(h.Token, h.QueuedAt) }

// neverBegan tells of a rollout that was ended while it waited for its turn: no
// node has heard of it.
func neverBegan(h *orchestrator.Header) bool { return h.Token == 0 && h.QueuedAt != 0 }

// getMany reads keys in filled transactions, several at once; a missing one has
// ModifyIndex 0. They are read consistently, as a transaction that only reads
// is.
func (r *Runner) getMany(ctx context.Context, what string, ks []string) ([]*api.KVPair, error) {
	parts := slices.Collect(slices.Chunk(ks, consulkv.MaxTxnOps))
	read := make([]consulkv.Results, len(parts))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i, part := range parts {
		g.Go(func() error {
			ops := make([]consulkv.Op, len(part))
			for n, k := range part {
				ops[n] = consulkv.GetOrEmpty(k)
			}
			res, err := consulkv.Retry(gctx, r.consul, what, func(ctx context.Context) (consulkv.Results, error) {
				return r.consul.Txn(ctx, ops...)
			})
			if err == nil && len(res) != len(part) {
				err = fmt.Errorf("%s: Consul answered %d of %d keys", what, len(res), len(part))
			}
			read[i] = res
			return err
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return slices.Concat(read...), nil
}

// scan reads those keys under a prefix of which keep says so, consistently.
func (r *Runner) scan(ctx context.Context, what, prefix string, keep func(*consulkv.Head) bool) (api.KVPairs, error) {
	return r.scanAnew(ctx, what, prefix, func() func(*consulkv.Head) bool { return keep })
}

// scanAnew is scan with a keep for each try: one that counts begins anew.
func (r *Runner) scanAnew(ctx context.Context, what, prefix string, begin func() func(*consulkv.Head) bool) (api.KVPairs, error) {
	return consulkv.Retry(ctx, r.consul.ForScan(), what, func(ctx context.Context) (api.KVPairs, error) {
		list, _, err := r.consul.Scan(ctx, prefix, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx), begin())
		return list, err
	})
}

func every(*consulkv.Head) bool { return true }

// seen has the index of the last answer that was read, by config and node: what
// stands unchanged need not be decoded again.
type seen [][]uint64

func newSeen(plan *orchestrator.Plan) seen {
	s := make(seen, len(plan.Spec.Configs))
	for i := range s {
		s[i] = make([]uint64, len(plan.Nodes))
	}
	return s
}

// previous is what each node had of each config before this rollout, as far as
// its answers told: what a restore brings back.
type previous map[[2]int]string

// told is what an answer says of the node beside its report.
type told struct {
	// mark is the newest order that the node has accepted, rollout the one that
	// gave the order answered.
	mark    orchestrator.Order
	rollout string
}

// twin reports whether the node has accepted order, which stands for an entry of
// rollout now, with another entry: Consul was restored, and gave the same index again.
// A target refuses whatever it has seen, the order itself too, so that its refusal says
// nothing of the kind.
func (t told) twin(rep orchestrator.Report, order orchestrator.Order, rollout string, target bool) bool {
	switch {
	case order.IsZero() || t.mark != order || rep.Order != order:
		return false
	case rep.Result == orchestrator.ResultRefused:
		return !target
	}
	return t.rollout != "" && rollout != "" && t.rollout != rollout
}

// answer makes a report of an actual entry; ok is false for one that says
// nothing about an order. Whatever a node wrote is foreign: what cannot be read
// counts as no answer, and the deadline deals with the node.
func (r *Runner) answer(p *api.KVPair, rollout string, node, config int, prev previous) (rep orchestrator.Report, t told, ok bool) {
	var a records.Actual
	if err := records.Decode(p.Key, p.Value, &a); err != nil {
		r.log.Warn("a node's answer cannot be read", "rollout", rollout, "key", p.Key, "error", err)
		return rep, t, false
	}
	t = told{a.Order, a.Rollout}
	rep = orchestrator.Report{Node: node, Config: config, Order: a.Order, Why: why(&a)}
	if a.Rollout != rollout {
		prev[[2]int{node, config}] = a.Revision
	} else if a.Result == records.ResultApplied || a.Result == records.ResultFailed {
		prev[[2]int{node, config}] = a.Previous
	}
	switch a.Result {
	case records.ResultApplied:
		rep.Result = orchestrator.ResultApplied
	case records.ResultFailed:
		rep.Result = orchestrator.ResultFailed
	case records.ResultRolledBack:
		rep.Result = orchestrator.ResultRolledBack
	case records.ResultRefused:
		if a.Refused == nil {
			return rep, t, false
		}
		rep.Result, rep.Order = orchestrator.ResultRefused, *a.Refused
	default:
		return rep, t, false
	}
	return rep, t, true
}

func why(a *records.Actual) string {
	switch {
	case a.Error != "" && a.Output != "":
		return a.Error + ": " + a.Output
	case a.Error != "":
		return a.Error
	}
	return a.Output
}

// newID names a new rollout: its name, when it was made, and what tells two of
// one second apart.
func newID(name string, at time.Time, nonce string) string {
	return fmt.Sprintf("%s-%s-%s", name, at.UTC().Format("20060102-150405"), strings.ToLower(nonce[:4]))
}
