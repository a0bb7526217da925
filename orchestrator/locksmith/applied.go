package locksmith

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/policies"
)

// KeepPolicyVersions is how many applications of policies stay on record.
const KeepPolicyVersions = 20

// maxPolicyVersion is how large the record of one application may be. What does
// not fit is left out, the sources first.
const maxPolicyVersion = 256 << 10

// ApplyRequest asks for this client's policies to be put in force.
type ApplyRequest struct {
	Reason string
	// Values are those that were given to variables, for the record.
	Values map[string]string
	// DryRun compares, and changes nothing.
	DryRun bool
}

// Applied is how an Apply came out.
type Applied struct {
	// Before is what was in force; nil: nothing was ever applied.
	Before *records.PolicyVersion
	// BeforeWhy says why it is not known what Before says.
	BeforeWhy string
	After     *records.PolicyVersion
	// Unchanged: these policies were in force already. Nothing was written.
	Unchanged bool
	Changes   []PolicyChange
	// Reordered: policies that stay are tried in another order, so that another
	// one may be the first that matches a lock.
	Reordered bool
}

// PolicyChange is one difference between two versions of the policies.
type PolicyChange struct {
	Policy string `json:"policy"`
	// Part is empty where the whole policy was added or removed.
	Part   string `json:"part"`
	Change string `json:"change"` // added, removed, changed
	Before string `json:"before"` // hash, or empty
	After  string `json:"after"`
}

// ErrAppliedMeanwhile: somebody else applied policies at the same moment.
var ErrAppliedMeanwhile = errors.New("somebody else applied policies at the same moment: look with `aimlock policy show -active`, and apply again")

// Apply puts this client's policies in force: from then on only those who have
// the same ones break. It compares and swaps policies/active, and keeps what was
// applied under policies/versions/.
func (c *Client) Apply(ctx context.Context, req ApplyRequest) (*Applied, error) {
	cur, err := c.consul.Get(ctx, c.keys.PolicyActive())
	if err != nil {
		return nil, err
	}
	out := &Applied{}
	serials, err := c.policySerials(ctx)
	if err != nil {
		return nil, err
	}
	if cur != nil {
		if out.Before, out.BeforeWhy, err = c.inForceNow(ctx, cur); err != nil {
			return nil, err
		}
		serials = append(serials, out.Before.Serial)
	}
	out.After = &records.PolicyVersion{
		PolicyActive: records.PolicyActive{Version: records.Version, Hash: c.set.Hash, Serial: slices.Max(append(serials, 0)) + 1, By: c.by, Who: c.Who(ctx), At: time.Now().UTC()},
		Nonce:        NewNonce(ctx), Reason: req.Reason, Values: req.Values,
	}
	fill(out.After, c.set)
	out.compare()
	if out.Before != nil && out.Before.Hash == c.set.Hash {
		out.Unchanged, out.After = true, out.Before
		return out, nil
	}
	if req.DryRun {
		return out, nil
	}
	return out, c.apply(ctx, cur, out.After, serials)
}

func (c *Client) apply(ctx context.Context, cur *api.KVPair, v *records.PolicyVersion, serials []uint64) error {
	index := uint64(0)
	if cur != nil {
		index = cur.ModifyIndex
	}
	key := c.keys.PolicyVersion(v.Serial)
	ops := []consulkv.Op{
		consulkv.CAS(c.keys.PolicyActive(), records.Encode(&v.PolicyActive), index),
		consulkv.CAS(key, records.Encode(v), 0),
	}
	for _, s := range serials {
		if s+KeepPolicyVersions <= v.Serial && len(ops) < 60 {
			ops = append(ops, consulkv.Delete(c.keys.PolicyVersion(s)))
		}
	}
	_, err := c.consul.Txn(ctx, ops...)
	if _, refused := isRefused(err); refused {
		return fmt.Errorf("%w (%w)", ErrAppliedMeanwhile, err)
	}
	if !consulkv.Ambiguous(err) {
		return err
	}
	// The serial is used once and its record never rewritten: who finds the own
	// nonce there was the one that applied.
	dctx, cancel := detached(ctx, c.consul.RetryFor())
	defer cancel()
	p, rerr := c.consul.Get(dctx, key)
	if rerr != nil {
		return fmt.Errorf("whether the policies were applied cannot be read: %w", errors.Join(err, rerr))
	}
	var found records.PolicyVersion
	if p != nil && records.Decode(key, p.Value, &found) == nil && found.Nonce == v.Nonce {
		return nil
	}
	return fmt.Errorf("the policies were not applied, so far as can be read: %w", err)
}

// policySerials are those of all applications on record.
func (c *Client) policySerials(ctx context.Context) ([]uint64, error) {
	names, err := c.consul.Keys(ctx, c.keys.PolicyVersions(), "")
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, k := range names {
		var n uint64
		if _, err := fmt.Sscanf(k[len(c.keys.PolicyVersions()):], "%d", &n); err == nil && c.keys.PolicyVersion(n) == k {
			out = append(out, n)
		}
	}
	return out, nil
}

// inForceNow reads what is in force: the record of its application, or what
// policies/active says of it and why there is no more.
func (c *Client) inForceNow(ctx context.Context, cur *api.KVPair) (*records.PolicyVersion, string, error) {
	v := &records.PolicyVersion{}
	if err := records.Decode(cur.Key, cur.Value, &v.PolicyActive); err != nil {
		return v, err.Error(), nil //nolint:nilerr // it is an answer
	}
	found, err := c.PolicyVersion(ctx, v.Serial)
	switch {
	case errors.Is(err, ErrNoPolicyVersion):
		return v, err.Error(), nil
	case err != nil:
		return nil, "", err
	case found.Hash != v.Hash:
		return v, fmt.Sprintf("%s is about other policies", c.keys.PolicyVersion(v.Serial)), nil
	}
	return found, "", nil
}

// ErrNoPolicyVersion: there is no readable record of an application.
var ErrNoPolicyVersion = errors.New("what was applied is not on record")

// PolicyVersion reads one application of policies.
func (c *Client) PolicyVersion(ctx context.Context, serial uint64) (*records.PolicyVersion, error) {
	key := c.keys.PolicyVersion(serial)
	p, err := c.consul.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, fmt.Errorf("%w: there is no key %s", ErrNoPolicyVersion, key)
	}
	var v records.PolicyVersion
	if err := records.Decode(key, p.Value, &v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoPolicyVersion, err)
	}
	return &v, nil
}

// ActivePolicies is what is in force, and why no more is known of it. It is nil
// where nothing was ever applied.
func (c *Client) ActivePolicies(ctx context.Context) (*records.PolicyVersion, string, error) {
	cur, err := c.consul.Get(ctx, c.keys.PolicyActive())
	if err != nil || cur == nil {
		return nil, "", err
	}
	return c.inForceNow(ctx, cur)
}

// PolicyHistory are the applications on record, the last one first.
func (c *Client) PolicyHistory(ctx context.Context) ([]*records.PolicyVersion, error) {
	list, err := c.consul.List(ctx, c.keys.PolicyVersions())
	if err != nil {
		return nil, err
	}
	var out []*records.PolicyVersion
	for _, p := range slices.Backward(list) {
		var v records.PolicyVersion
		if err := records.Decode(p.Key, p.Value, &v); err != nil {
			return nil, err
		}
		out = append(out, &v)
	}
	return out, nil
}

// fill puts into the record what the policies say, as far as there is room.
func fill(v *records.PolicyVersion, set *policies.Set) {
	for _, o := range set.Outline() {
		rec := records.PolicyOutline{Name: o.Name, Hash: o.Hash}
		for _, p := range o.Parts {
			rec.Parts = append(rec.Parts, records.PolicyPart(p))
		}
		v.Policies = append(v.Policies, rec)
	}
	// The first policy that matches a lock judges it.
	for _, name := range set.Sources {
		b := set.Files[name].Bytes
		v.FilesSize += len(b)
		v.Files = append(v.Files, records.PolicyFile{Name: name, Text: string(b)})
	}
	if fits(v) {
		return
	}
	v.Files = nil
	if fits(v) {
		return
	}
	for i := range v.Policies {
		v.Policies[i].Parts = nil
	}
	if !fits(v) {
		v.Policies = nil
	}
}

func fits(v *records.PolicyVersion) bool { return len(records.Encode(v)) <= maxPolicyVersion }

// compare fills in what changes from Before to After.
func (a *Applied) compare() {
	if a.Before == nil || a.BeforeWhy != "" {
		return
	}
	before, after := outlines(a.Before), outlines(a.After)
	for _, p := range a.After.Policies {
		old, ok := before[p.Name]
		switch {
		case !ok:
			a.Changes = append(a.Changes, PolicyChange{Policy: p.Name, Change: "added", After: p.Hash})
		case old.Hash != p.Hash:
			a.parts(old, p)
		}
	}
	for _, p := range a.Before.Policies {
		if _, ok := after[p.Name]; !ok {
			a.Changes = append(a.Changes, PolicyChange{Policy: p.Name, Change: "removed", Before: p.Hash})
		}
	}
	stay := func(list []records.PolicyOutline, in map[string]records.PolicyOutline) []string {
		var names []string
		for _, p := range list {
			if _, ok := in[p.Name]; ok {
				names = append(names, p.Name)
			}
		}
		return names
	}
	a.Reordered = !slices.Equal(stay(a.Before.Policies, after), stay(a.After.Policies, before))
}

func outlines(v *records.PolicyVersion) map[string]records.PolicyOutline {
	out := map[string]records.PolicyOutline{}
	for _, p := range v.Policies {
		out[p.Name] = p
	}
	return out
}

// parts compares a policy that stands in both.
func (a *Applied) parts(old, now records.PolicyOutline) {
	n := len(a.Changes)
	hashes := map[string]string{}
	for _, p := range old.Parts {
		hashes[p.Name] = p.Hash
	}
	for _, p := range now.Parts {
		was, ok := hashes[p.Name]
		delete(hashes, p.Name)
		switch {
		case !ok:
			a.Changes = append(a.Changes, PolicyChange{Policy: now.Name, Part: p.Name, Change: "added", After: p.Hash})
		case was != p.Hash:
			a.Changes = append(a.Changes, PolicyChange{Policy: now.Name, Part: p.Name, Change: "changed", Before: was, After: p.Hash})
		}
	}
	for _, p := range old.Parts {
		if was, gone := hashes[p.Name]; gone {
			a.Changes = append(a.Changes, PolicyChange{Policy: now.Name, Part: p.Name, Change: "removed", Before: was})
		}
	}
	if len(a.Changes) == n {
		// The order of its rules, or what there is no room for in the records.
		a.Changes = append(a.Changes, PolicyChange{Policy: now.Name, Change: "changed", Before: old.Hash, After: now.Hash})
	}
}

// FollowPolicies calls changed when what is applied, or whether breaking is
// suspended, may have changed, first at once, by one blocking query until ctx
// ends.
func (c *Client) FollowPolicies(ctx context.Context, changed func()) {
	prefix := c.keys.Policies()
	w := consulkv.NewWatcher(c.consul, consulkv.WatchOptions{Name: prefix, MinInterval: time.Second},
		func(q *api.QueryOptions) (struct{}, *api.QueryMeta, error) {
			_, meta, err := c.consul.API().KV().Keys(prefix, "/", q)
			return struct{}{}, meta, err
		})
	for ctx.Err() == nil {
		if _, err := w.Next(ctx); err != nil && sleep(ctx, time.Second) != nil {
			return
		}
		changed()
	}
}

// Prefix is what all of the client's keys begin with.
func (c *Client) Prefix() string { return string(c.keys) }
