package runner

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

const (
	// diaryChunk is about how many bytes of events one value has: the last one
	// is written anew with each event.
	diaryChunk = 8 << 10
	// diaryHead and diaryTail bound the log: so many of its first and of its
	// last values are kept. A rollout's beginning and its end tell the most.
	diaryHead, diaryTail = 32, 96
	// diaryFlush bounds the bytes of events that one write of a header carries:
	// where a whole stage fails at once, its first nodes tell enough.
	diaryFlush = 48 << 10
	// diaryWhole is how many nodes of one write keep their whole output, and
	// diaryShort how many bytes of it the others keep.
	diaryWhole, diaryShort = 4, 300
)

// diary is the log of a rollout's events, at rollouts/<id>/events/. It is
// written in the transaction that writes the header, so that it is fenced as
// everything is, costs no write of its own, and never tells what is not true.
// The decisions rest on none of it: what is lost of it is lost to people only.
// It belongs to drive's goroutine.
type diary struct {
	chunks []uint64 // numbers of the first events of the values that stand
	open   []records.RolloutEvent
	size   int // bytes of open, about
	last   uint64

	pending []records.RolloutEvent
	bytes   int // of pending
	nodes   int // of pending
	dropped int

	hold    uint64 // token of the last hold that is told of
	command uint64 // number of the last command that is
	sample  time.Time
	began   time.Time
	counts  orchestrator.Counts
	state   orchestrator.Status
	stage   string
}

func (r *Runner) eventsFolder(id string) string { return r.keys.RolloutEvents(id) }

func (r *Runner) eventsKey(id string, n uint64) string {
	return r.eventsFolder(id) + fmt.Sprintf("%012d", n)
}

// eventChunks lists the values of a log by the numbers of their first events.
func (r *Runner) eventChunks(ctx context.Context, id string) ([]uint64, error) {
	ks, err := r.consul.Keys(ctx, r.eventsFolder(id), "")
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, k := range ks {
		if n, err := strconv.ParseUint(keys.LastSegment(k), 10, 64); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Events reads the events of a rollout behind the one numbered after, in their
// order. What cannot be read of them is left out and logged.
func (r *Runner) Events(ctx context.Context, id string, after uint64) ([]records.RolloutEvent, error) {
	chunks, err := r.eventChunks(ctx, id)
	if err != nil {
		return nil, err
	}
	from := 0
	for i, n := range chunks {
		if n <= after+1 {
			from = i
		}
	}
	ks := make([]string, 0, len(chunks))
	for _, n := range chunks[from:] {
		ks = append(ks, r.eventsKey(id, n))
	}
	pairs, err := r.getMany(ctx, "read the rollout's events", ks)
	if err != nil {
		return nil, err
	}
	var out []records.RolloutEvent
	for _, p := range pairs {
		if p.ModifyIndex == 0 {
			continue // dropped meanwhile
		}
		var part records.RolloutEvents
		if err := records.Decode(p.Key, p.Value, &part); err != nil {
			r.log.Warn("events of a rollout cannot be read", "rollout", id, "error", err)
			continue
		}
		for _, e := range part.Events {
			if e.N > after {
				out = append(out, e)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b records.RolloutEvent) int { return cmp.Compare(a.N, b.N) })
	return out, nil
}

// resumeDiary goes on with the log of the last hold.
func (d *drive) resumeDiary(ctx context.Context) error {
	chunks, err := d.r.eventChunks(ctx, d.plan.ID)
	if err != nil {
		return err
	}
	y := &d.diary
	y.chunks, y.last = chunks, d.header.Events
	y.began, y.counts, y.state, y.stage = d.header.CreatedAt, d.header.Counts, d.header.State, d.header.Stage
	y.command = seenBy(&d.header)
	if len(chunks) == 0 {
		return nil
	}
	first := chunks[len(chunks)-1]
	events, err := d.r.Events(ctx, d.plan.ID, first-1)
	if err != nil {
		return err
	}
	for _, e := range events {
		y.open = append(y.open, e)
		y.size += len(records.Encode(e))
		y.last, y.hold = max(y.last, e.N), e.Token
	}
	if len(events) == 0 {
		// It cannot be read, and is not written over.
		y.last = max(y.last, first)
		y.open, y.size = nil, diaryChunk
	}
	return nil
}

// add notes an event for the next write.
func (y *diary) add(e records.RolloutEvent) {
	if e.Kind == records.EventNode {
		if y.nodes++; y.nodes > diaryWhole {
			e.Text = text.Clip(e.Text, diaryShort)
		}
		if y.bytes > diaryFlush {
			y.dropped++
			return
		}
	}
	y.bytes += len(e.Text) + len(e.Node) + 120
	y.pending = append(y.pending, e)
}

// told notes what the core tells.
func (d *drive) told(t orchestrator.Tell, now time.Time) {
	d.diary.add(records.RolloutEvent{At: now, Kind: string(t.Kind), State: d.state.Status(), Stage: t.Stage, Node: t.Node, Text: t.Text})
}

// sampleFraction is the share of its age that a rollout goes on between two
// samples of its counts, so that however long it takes they are few.
const (
	sampleFraction = 50
	sampleLeast    = 2 * time.Second
)

// observe notes what a header says that was not noted yet.
func (y *diary) observe(h *orchestrator.Header, now time.Time) {
	if c := h.Command; c != nil && c.N > y.command {
		y.command = c.N
		verdict := c.Result
		if !c.OK {
			verdict = "refused: " + c.Result
		}
		y.add(records.RolloutEvent{At: c.At, Kind: records.EventCommand, State: h.State, Stage: h.Stage, Text: fmt.Sprintf("%s by %s: %s", c.Verb, c.By, verdict)})
	}
	if y.began.IsZero() {
		y.began = h.CreatedAt
	}
	moved := h.State != y.state || h.Stage != y.stage
	due := now.Sub(y.sample) >= max(sampleLeast, now.Sub(y.began)/sampleFraction)
	if !moved && (!due || h.Counts == y.counts) {
		return
	}
	y.state, y.stage, y.counts, y.sample = h.State, h.Stage, h.Counts, now
	c := h.Counts
	y.add(records.RolloutEvent{At: now, Kind: records.EventCounts, State: h.State, Stage: h.Stage, Counts: &c, InFlight: h.InFlight})
}

// ops are the writes of what is pending, and what the header says of them.
func (d *drive) diaryOps(h *orchestrator.Header, now time.Time) []consulkv.Op {
	y := &d.diary
	y.observe(h, now)
	if y.dropped > 0 {
		y.pending = append(y.pending, records.RolloutEvent{At: now, Kind: records.EventNode, State: h.State, Stage: h.Stage, Text: fmt.Sprintf("and %d more nodes, which are left out here", y.dropped)})
	}
	if len(y.pending) == 0 {
		h.Events = y.last
		return nil
	}
	if token := d.h.Token(); token != y.hold {
		y.hold = token
		first := records.RolloutEvent{At: y.pending[0].At, Kind: records.EventHold, State: h.State, Stage: h.Stage, Text: "driven by " + cmp.Or(d.r.by, "an unknown operator")}
		y.pending = slices.Insert(y.pending, 0, first)
	}
	var ops []consulkv.Op
	put := func() {
		if len(y.open) == 0 {
			return
		}
		v := records.RolloutEvents{Version: records.Version, Events: y.open}
		ops = append(ops, consulkv.Set(d.r.eventsKey(h.ID, y.open[0].N), records.Encode(&v)))
	}
	for _, e := range y.pending {
		y.last++
		e.N, e.Token = y.last, y.hold
		size := len(records.Encode(e))
		if y.size+size > diaryChunk && (len(y.open) > 0 || y.size > 0) {
			put()
			y.open, y.size = nil, 0
		}
		if len(y.open) == 0 {
			y.chunks = append(y.chunks, e.N)
		}
		y.open, y.size = append(y.open, e), y.size+size
	}
	put()
	for len(y.chunks) > diaryHead+diaryTail {
		ops = append(ops, consulkv.Delete(d.r.eventsKey(h.ID, y.chunks[diaryHead])))
		y.chunks = slices.Delete(y.chunks, diaryHead, diaryHead+1)
	}
	y.pending, y.bytes, y.nodes, y.dropped = nil, 0, 0, 0
	h.Events = y.last
	return ops
}

// write writes a header, with the events that led to it.
func (d *drive) write(ctx context.Context, h *orchestrator.Header) error {
	d.noted = time.Now()
	ops := d.diaryOps(h, d.now())
	v, err := encodeHeader(h)
	if err != nil {
		return err
	}
	set := consulkv.Set(d.r.keys.Rollout(h.ID), v)
	size := consulkv.Size(set)
	for _, op := range ops {
		size += consulkv.Size(op)
	}
	guards := (consulkv.MaxTxnOps - d.h.MaxOps()) * 300
	if len(ops)+1 <= d.h.MaxOps() && size+guards <= consulkv.MaxTxnBytes {
		_, err = d.h.Txn(ctx, append(ops, set)...)
		return err
	}
	// A header of its greatest size leaves no room beside it.
	if _, err = d.h.Txn(ctx, set); err != nil {
		return err
	}
	b := newBatcher(ctx, d.h)
	for _, op := range ops {
		b.add(op)
	}
	return b.flush()
}
