package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
)

// turn lets one follower at a time work on a group: every config of it has a
// follower, and all of them are woken by one transaction.
func (a *Agent) turn(ctx context.Context, configs []string) (end func(), err error) {
	key := strings.Join(configs, "\x00")
	a.mu.Lock()
	ch := a.turns[key]
	if ch == nil {
		ch = make(chan struct{}, 1)
		a.turns[key] = ch
	}
	a.mu.Unlock()
	select {
	case ch <- struct{}{}:
		return func() { <-ch }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// handleGroup carries out an entry with those that belong with it, and reports
// whether it is answered. Whose turn comes after another's finds the answer in
// its own journal: a group costs what its configs cost, and not their square.
func (a *Agent) handleGroup(ctx context.Context, wg *sync.WaitGroup, config string, d *records.Desired) bool {
	for _, c := range d.Configs {
		a.ensure(ctx, wg, c)
	}
	end, err := a.turn(ctx, d.Configs)
	if err != nil {
		return false
	}
	defer end()
	if st := a.fence.peek(config); st != nil && st.Mark == d.Order && together(st.Desired) && sameGroup(st.Desired, d) && finished(st, a.fence.peek) {
		if _, other := st.other(d); !other {
			a.reports.again(config, st.Report)
			return true
		}
	}
	ds, why, err := a.readGroup(ctx, config, d)
	switch {
	case errors.Is(err, errReplaced):
		return true
	case err != nil:
		a.unanswered(ctx, config, err)
		return false
	case ds == nil:
		out, err := a.fence.wait(ctx, config, d, why)
		if err != nil {
			a.unanswered(ctx, config, err)
			return false
		}
		a.report(config, out)
		// What makes it whole wakes a follower; that it may be missed is why
		// the entries are read again.
		return out.Refused != nil || out.Standing != nil && out.Standing.Order == d.Order
	}
	contents := make([]source, len(ds))
	for i, c := range d.Configs {
		contents[i] = func(ctx context.Context) ([]byte, error) {
			return fetchChunks(ctx, a.cfg.Consul, a.cfg.Prefix, c, ds[i])
		}
	}
	outs, err := a.fence.applyGroup(ctx, d.Configs, ds, contents)
	if err != nil {
		a.unanswered(ctx, config, err)
		return false
	}
	for i, c := range d.Configs {
		a.report(c, outs[i])
	}
	return true
}

func (a *Agent) report(config string, out outcome) {
	switch {
	case out.Report != nil:
		a.reports.set(config, out.Report)
	case out.Standing != nil:
		// It was answered before: the entry is here again because a restore of
		// Consul brought it back, and may have taken the answer away.
		a.reports.again(config, out.Standing)
	}
}

// readGroup reads all entries of d's group as they stand at one moment. Where
// they do not make a group, ds is nil and why says so.
func (a *Agent) readGroup(ctx context.Context, config string, d *records.Desired) (ds []*records.Desired, why string, err error) {
	ops := make([]consulkv.Op, len(d.Configs))
	for i, c := range d.Configs {
		ops[i] = consulkv.GetOrEmpty(a.cfg.Prefix.Desired(c, a.cfg.Node))
	}
	res, err := consulkv.Retry(ctx, a.cfg.Consul, "read the entries that belong together", func(ctx context.Context) (consulkv.Results, error) {
		return a.cfg.Consul.Txn(ctx, ops...)
	})
	if err != nil {
		return nil, "", err
	}
	if len(res) != len(ops) {
		return nil, "", fmt.Errorf("%s: Consul answered %d of %d entries", config, len(res), len(ops))
	}
	return whole(config, d, res)
}

// errReplaced: another entry stands where the one was that is carried out. The
// watcher brings it.
var errReplaced = errors.New("the entry was replaced")

// whole checks that what stands in Consul makes the group of config's entry d.
func whole(config string, d *records.Desired, kvs []*api.KVPair) (ds []*records.Desired, why string, err error) {
	for i, c := range d.Configs {
		kv := kvs[i]
		if kv.ModifyIndex == 0 {
			return nil, fmt.Sprintf("the entry of %s, which belongs with it, is missing", c), nil
		}
		e := &records.Desired{}
		bad := records.Decode(kv.Key, kv.Value, e)
		if c == config && (bad != nil || e.Order != d.Order) {
			return nil, "", errReplaced
		}
		if why := apart(d, c, e, bad); why != "" {
			return nil, why, nil
		}
		ds = append(ds, e)
	}
	return ds, "", nil
}

// apart says why config's entry e is not one of d's group; "" where it is.
func apart(d *records.Desired, config string, e *records.Desired, bad error) string {
	switch {
	case bad != nil:
		return fmt.Sprintf("the entry of %s, which belongs with it, cannot be read (%v)", config, bad)
	case e.Order != d.Order:
		return fmt.Sprintf("the entry of %s, which belongs with it, is of order %s (rollout %q)", config, e.Order, e.Rollout)
	case !sameGroup(d, e):
		return fmt.Sprintf("the entry of %s names other configs that belong together (%s), or another rollout (%q)", config, strings.Join(e.Configs, ", "), e.Rollout)
	case (e.Action == records.ActionRestore) != (d.Action == records.ActionRestore):
		return fmt.Sprintf("of the entries of %s and others that belong together, some apply and some restore", config)
	}
	return ""
}
