package runner

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

const (
	// maxPrunedContents bounds the revisions that one call deletes, so that it is
	// in nobody's way.
	maxPrunedContents = 5000
	// pruneBatch is how many are deleted in one transaction: older servers take
	// 64 operations.
	pruneBatch = 60
)

// PruneContents deletes contents that nobody can want any more: those that no
// kept rollout delivers, no node is to have, has, or had before. more tells that
// there may be more to delete.
//
// It takes no lock, and is safe beside those who do: a config whose lock is held,
// or of which a rollout is unfinished, is left alone, and every delete rests on
// the lock being as it was before anything was looked at. Whoever takes the lock
// after that looks which contents are there, and writes what is missing.
func (r *Runner) PruneContents(ctx context.Context) (deleted int, more bool, err error) {
	root := r.keys.ConfigsRoot()
	folders, err := r.consul.Keys(ctx, root, "/")
	if err != nil {
		return 0, false, err
	}
	for _, f := range folders {
		seg, ok := strings.CutSuffix(strings.TrimPrefix(f, root), "/")
		if !ok {
			continue
		}
		n, err := r.pruneConfig(ctx, keys.Unescape(seg), maxPrunedContents-deleted)
		if deleted += n; err != nil || deleted >= maxPrunedContents {
			return deleted, err == nil, err
		}
	}
	return deleted, false, nil
}

// tidyContents is PruneContents of a rollout's configs, after it has ended. What
// goes wrong is the next one's.
func (r *Runner) tidyContents(ctx context.Context, spec *orchestrator.Spec) {
	for _, c := range spec.Configs {
		n, err := r.pruneConfig(ctx, c.Name, maxPrunedContents)
		switch {
		case err != nil && ctx.Err() == nil:
			r.log.Warn("deleting old contents", "config", c.Name, "error", err)
		case n > 0:
			r.log.Info("deleted old contents", "config", c.Name, "revisions", n)
		}
	}
}

func (r *Runner) pruneConfig(ctx context.Context, config string, most int) (int, error) {
	// First of all: what is read below is no older than the lock.
	lock, err := r.consul.Get(ctx, r.keys.Lock(config))
	if err != nil || lock != nil && lock.Session != "" {
		return 0, err
	}
	folder := r.keys.ConfigFolder(config)
	names, err := r.consul.Keys(ctx, folder, "/")
	if err != nil || len(names) < 2 {
		return 0, err
	}
	old := map[string]bool{}
	for _, n := range names {
		if sum, ok := strings.CutSuffix(strings.TrimPrefix(n, folder), "/"); ok {
			old[sum] = true
		}
	}
	// The cheap ones first: mostly nothing is left to ask the others about.
	for _, spare := range []func(context.Context, string, map[string]bool) error{r.spareRollouts, r.spareDesired, r.spareActual} {
		if err := spare(ctx, config, old); err != nil || len(old) == 0 {
			return 0, err
		}
	}
	guard := &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: r.keys.Lock(config)}
	if lock != nil {
		guard = consulkv.CheckIndex(lock.Key, lock.ModifyIndex)
	}
	sums := make([]string, 0, len(old))
	for sum := range old {
		sums = append(sums, sum)
	}
	slices.Sort(sums)
	sums = sums[:min(len(sums), most)]
	deleted := 0
	for part := range slices.Chunk(sums, pruneBatch) {
		ops := []consulkv.Op{guard}
		for _, sum := range part {
			ops = append(ops, deleteTree(r.keys.Config(config, sum)))
		}
		_, err := r.consul.Txn(ctx, ops...)
		if _, refused := errors.AsType[*consulkv.Refused](err); refused {
			return deleted, nil // somebody took the lock
		}
		if err != nil {
			return deleted, err
		}
		deleted += len(part)
	}
	return deleted, nil
}

// spareRollouts takes out of old what the rollouts deliver that are kept, and
// everything while one of the config is unfinished.
func (r *Runner) spareRollouts(ctx context.Context, config string, old map[string]bool) error {
	heads, err := r.Headers(ctx)
	if err != nil {
		return err
	}
	var rendered []*orchestrator.Header
	for _, h := range heads {
		for _, c := range h.Configs {
			if c.Name != config {
				continue
			}
			if h.FinishedAt == nil {
				clear(old)
				return nil
			}
			delete(old, c.SHA256)
			if c.Renderings > 1 && h.PlanChunks > 0 {
				rendered = append(rendered, h)
			}
		}
	}
	for _, h := range rendered {
		if len(old) == 0 {
			return nil
		}
		plan, err := r.plan(ctx, h)
		if errors.Is(err, orchestrator.ErrPlanDamaged) {
			continue // dropped, or lost: nobody delivers from it any more
		}
		if err != nil {
			return err
		}
		for ci, c := range plan.Spec.Configs {
			if c.Name == config {
				for _, rev := range plan.Contents(ci) {
					delete(old, rev.SHA256)
				}
			}
		}
	}
	return nil
}

// spareDesired takes out of old what nodes are to have. What cannot be read may
// name anything.
func (r *Runner) spareDesired(ctx context.Context, config string, old map[string]bool) error {
	list, err := r.scan(ctx, "read the orders", r.keys.DesiredAll(config), every)
	if err != nil {
		return err
	}
	for _, kv := range list {
		var d records.Desired
		if err := records.Decode(kv.Key, kv.Value, &d); err != nil {
			return err
		}
		delete(old, d.SHA256)
	}
	return nil
}

// spareActual takes out of old what nodes have, and had before.
func (r *Runner) spareActual(ctx context.Context, config string, old map[string]bool) error {
	list, err := r.scan(ctx, readAnswers, r.keys.ActualAll(config), every)
	if err != nil {
		return err
	}
	begins := make(map[string]string, len(old))
	for sum := range old {
		begins[orchestrator.Rendering{SHA256: sum}.Revision()] = sum
	}
	for _, kv := range list {
		var a records.Actual
		if err := records.Decode(kv.Key, kv.Value, &a); err != nil {
			return err
		}
		delete(old, a.SHA256)
		delete(old, begins[a.Revision])
		delete(old, begins[a.Previous])
	}
	return nil
}
