package locksmith

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/policies"
)

// Permit says whether a HOT lock may be broken now, and why not. Its guards
// make the intent fail if anything that it rests on changes.
type Permit struct {
	OK bool
	// Why is empty if OK.
	Why string
	// Next is the command that would change it, if there is one.
	Next string

	guards []consulkv.Op
	budget consulkv.Op
}

// Permit asks whether the policy lets the HOT lock of v be broken now. It
// changes nothing. The error is about Consul.
func (c *Client) Permit(ctx context.Context, v *Verdict) (*Permit, error) {
	p := &Permit{}
	if v.State != Hot {
		p.Why = "the lock is " + v.State + ", not HOT"
		return p, nil
	}
	s, b := v.Snapshot, v.Policy.Break
	if b == nil {
		p.Why = fmt.Sprintf("policy %s has no break block: its locks are judged and never broken", v.Policy.Name)
		return p, nil
	}
	kActive, kSuspended, kBudget := c.keys.PolicyActive(), c.keys.PolicySuspended(), c.keys.Budget(v.Policy.Name)
	res, err := consulkv.Retry(ctx, c.consul, "read the brakes of policy "+v.Policy.Name, func(ctx context.Context) (consulkv.Results, error) {
		return c.consul.Txn(ctx, consulkv.GetOrEmpty(kActive), consulkv.GetOrEmpty(kSuspended), consulkv.GetOrEmpty(kBudget))
	})
	if err != nil {
		return nil, err
	}
	active, suspended, budget := res.Find(kActive), res.Find(kSuspended), res.Find(kBudget)
	p.guards = append(p.guards, consulkv.CheckIndex(kActive, active.ModifyIndex), consulkv.CheckIndex(kSuspended, suspended.ModifyIndex))

	if p.Why = c.inForce(v, active.Value); p.Why != "" {
		p.Next = "aimlock policy apply"
		return p, nil
	}
	if suspended.ModifyIndex != 0 {
		var rec records.PolicySuspended
		p.Why = "all automatic breaking is suspended"
		if records.Decode(kSuspended, suspended.Value, &rec) == nil && rec.By != "" {
			p.Why += fmt.Sprintf(" by %s: %s", printable(rec.By), printable(rec.Reason))
		}
		return p, nil
	}
	switch b.Approval {
	case policies.ApprovalNever:
		p.Why = fmt.Sprintf("policy %s says approval = %q", v.Policy.Name, b.Approval)
		return p, nil
	case policies.ApprovalManual:
		if why := approved(v, time.Now()); why != "" {
			p.Why, p.Next = why, "aimlock lock approve "+s.Name
			return p, nil
		}
		p.guards = append(p.guards, consulkv.CheckIndex(c.keys.Approval(s.Name), s.Deps[c.keys.Approval(s.Name)]))
	}
	if !v.Proof() {
		if frozen, why := b.Frozen(v.Facts); frozen != policies.False {
			p.Why = "breaking is frozen: " + why
			if frozen == policies.Unknown {
				p.Why = "it is not known whether breaking is frozen: " + why
			}
			return p, nil
		}
	}
	if b.Budget != nil {
		op, why := c.spend(v, b.Budget, budget.Value, budget.ModifyIndex, time.Now())
		if why != "" {
			p.Why = why
			return p, nil
		}
		p.budget = op
	}
	p.OK = true
	return p, nil
}

// inForce says why these policies may not break the lock; "" if they may.
func (c *Client) inForce(v *Verdict, active []byte) string {
	if len(active) == 0 {
		if v.Snapshot.Tool != "aimlock" {
			return "the lock is not aimlock's: only an applied policy may break it, and none is applied"
		}
		return ""
	}
	var rec records.PolicyActive
	if err := records.Decode(c.keys.PolicyActive(), active, &rec); err != nil {
		return err.Error()
	}
	if rec.Hash != c.set.Hash {
		return fmt.Sprintf("these policies (%.12s) are not the ones applied (%.12s)", c.set.Hash, rec.Hash)
	}
	return ""
}

// approved says why a manual approval is missing; "" if it is there.
func approved(v *Verdict, now time.Time) string {
	s, a := v.Snapshot, v.Snapshot.Approval
	switch {
	case a == nil:
		return fmt.Sprintf("policy %s wants a person's approval", v.Policy.Name)
	case a.Session != s.SessionID() || a.Token != s.Index():
		return "the approval is for an earlier holder"
	case !now.Before(a.Expires):
		return "the approval expired at " + a.Expires.Format(time.RFC3339)
	case a.Rule != "" && a.Rule != v.Judgement.Rule.Name:
		return fmt.Sprintf("the approval is for rule %s, and %s decides now", printable(a.Rule), v.Judgement.Rule.Name)
	}
	return ""
}

// spend takes one break out of the budget, by the wall clocks of those who
// break: the span of a budget is hours, and a skewed clock only shifts it.
func (c *Client) spend(v *Verdict, b *policies.Budget, raw []byte, index uint64, now time.Time) (consulkv.Op, string) {
	key := c.keys.Budget(v.Policy.Name)
	rec := records.Budget{Version: records.Version}
	if len(raw) > 0 {
		if err := records.Decode(key, raw, &rec); err != nil {
			return nil, "the budget cannot be read: " + err.Error()
		}
	}
	rec.Breaks = slices.DeleteFunc(rec.Breaks, func(i records.BudgetItem) bool { return now.Sub(i.At) >= b.Per })
	if len(rec.Breaks) >= b.Max {
		return nil, fmt.Sprintf("the budget of policy %s is spent: %d breaks in %s; the next one is free in %s",
			v.Policy.Name, len(rec.Breaks), b.Per, round(b.Per-now.Sub(rec.Breaks[0].At)))
	}
	rec.Version = records.Version
	rec.Breaks = append(rec.Breaks, records.BudgetItem{Lock: v.Snapshot.Name, At: now.UTC(), By: c.by})
	return consulkv.CAS(key, records.Encode(&rec), index), ""
}
