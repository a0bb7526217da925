package locksmith

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
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
	// Anyway says when Consul frees the lock by itself, where Why is a budget that is
	// spent; it follows Why.
	Anyway string

	// Powerless: it is known that this client's token breaks nothing before policies are
	// applied. Only Outlook asks.
	Powerless bool

	guards []consulkv.Op
	// unapplied: no policies are applied.
	unapplied bool
	// brake names what refused, where Why changes from moment to moment.
	brake string
	// budget is the policy's budget record as it was read.
	budget      []byte
	budgetIndex uint64
}

// Brakes whose texts change while they hold.
const (
	brakeFreeze  = "freeze"
	brakeUnknown = "unknown freeze"
	brakeBudget  = "budget"
)

// Outlook is Permit for who tells people what happens next, and breaks nothing.
func (c *Client) Outlook(ctx context.Context, v *Verdict) (*Permit, error) {
	p, err := c.Permit(ctx, v)
	if err == nil && p.OK {
		p.Powerless = c.powerless(ctx, p, 2*time.Second)
	}
	return p, err
}

// Permit asks whether the policy lets the HOT lock of v be broken now. It
// changes nothing. The error is about Consul.
func (c *Client) Permit(ctx context.Context, v *Verdict) (*Permit, error) {
	p := &Permit{}
	if v.State != Hot {
		p.Why = "the lock is " + v.State + ", not HOT"
		return p, nil
	}
	if p.Why = c.unfit(v); p.Why != "" {
		return p, nil
	}
	s, b := v.Snapshot, v.Policy.Break
	if b == nil {
		p.Why = fmt.Sprintf("policy %s has no break block: its locks are judged and never broken", v.Policy.Name)
		return p, nil
	}
	if s.FenceErr != nil {
		p.Why = s.FenceErr.Error()
		return p, nil //nolint:nilerr // it is the reason of the answer
	}
	kActive, kSuspended, kBudget, kSilence := c.keys.PolicyActive(), c.keys.PolicySuspended(), c.keys.Budget(v.Policy.Name), c.keys.Silence(s.Name)
	res, err := consulkv.Retry(ctx, c.consul, "read the brakes of policy "+v.Policy.Name, func(ctx context.Context) (consulkv.Results, error) {
		return c.consul.Txn(ctx, consulkv.GetOrEmpty(kActive), consulkv.GetOrEmpty(kSuspended), consulkv.GetOrEmpty(kBudget), consulkv.GetOrEmpty(kSilence))
	})
	if err != nil {
		return nil, err
	}
	active, suspended, budget, silence := res.Find(kActive), res.Find(kSuspended), res.Find(kBudget), res.Find(kSilence)
	p.unapplied = active.ModifyIndex == 0
	p.guards = append(p.guards, consulkv.CheckIndex(kActive, active.ModifyIndex), consulkv.CheckIndex(kSuspended, suspended.ModifyIndex),
		consulkv.CheckIndex(kSilence, silence.ModifyIndex))

	if p.Why = c.inForce(v, active); p.Why != "" {
		if p.Next = c.flags.Judging("policy apply"); active.ModifyIndex != 0 {
			// Not apply: these may be the stale ones.
			p.Next = c.flags.Looking("policy show", "-active") + " > applied.hcl"
		}
		return p, nil
	}
	if suspended.ModifyIndex != 0 {
		p.Why, p.Next = suspendedText(kSuspended, suspended.Value), c.flags.Looking("policy resume")
		return p, nil
	}
	if silence.ModifyIndex != 0 {
		if p.Why = silencedText(records.DecodeSilence(kSilence, s.Name, silence.Value), time.Now()); p.Why != "" {
			p.Next = c.flags.Looking("lock silence", "-end", s.Name)
			return p, nil
		}
	}
	switch b.Approval {
	case policies.ApprovalNever:
		p.Why = fmt.Sprintf("policy %s says approval = %q", v.Policy.Name, b.Approval)
		return p, nil
	case policies.ApprovalManual:
		applied := ""
		if active.ModifyIndex != 0 {
			applied = c.set.Hash // inForce has compared them
		}
		if why := approved(v, applied, time.Now()); why != "" {
			p.Why, p.Next = why, c.flags.Judging("lock approve", s.Name)
			return p, nil
		}
		p.guards = append(p.guards, consulkv.CheckIndex(c.keys.Approval(s.Name), s.Deps[c.keys.Approval(s.Name)]))
	}
	if !v.Proof() {
		if frozen, why := b.Frozen(v.Facts); frozen != policies.False {
			p.Why, p.brake = "breaking is frozen: "+why, brakeFreeze
			if frozen == policies.Unknown {
				p.Why, p.brake = "it is not known whether breaking is frozen: "+why, brakeUnknown
			}
			return p, nil
		}
	}
	p.budget, p.budgetIndex = budget.Value, budget.ModifyIndex
	if _, why := c.spend(v.Policy, p, []*Verdict{v}, records.Who{}, time.Now()); why != "" {
		p.Why, p.brake = why, brakeBudget
		p.Anyway = endsAnyway(s, p)
		return p, nil
	}
	p.OK = true
	return p, nil
}

// inForce says why these policies may not break the lock; "" if they may.
func (c *Client) inForce(v *Verdict, active *api.KVPair) string {
	if active.ModifyIndex == 0 {
		if v.Snapshot.Tool != "aimlock" {
			return "the lock is not aimlock's: only an applied policy may break it, and none is applied"
		}
		return ""
	}
	return c.othersApplied(active)
}

// othersApplied says what is applied in place of these policies; "" if they are.
func (c *Client) othersApplied(active *api.KVPair) string {
	var rec records.PolicyActive
	if err := records.Decode(c.keys.PolicyActive(), active.Value, &rec); err != nil {
		return err.Error()
	}
	if rec.Hash != c.set.Hash {
		return fmt.Sprintf("these policies (%.12s) are not the ones applied (%.12s, serial %d%s); save those to a file, and name it by -policy", c.set.Hash, printable(rec.Hash), rec.Serial, byText(rec.By))
	}
	return ""
}

// NotInForce says why the client's policies may not break the lock now, whatever
// its state is; "" if they may.
func (c *Client) NotInForce(ctx context.Context, v *Verdict) (string, error) {
	key := c.keys.PolicyActive()
	active, err := c.consul.Get(ctx, key)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	if active == nil {
		active = &api.KVPair{Key: key}
	}
	return c.inForce(v, active), nil
}

// OthersApplied says that other policies than the client's are applied, which may judge
// otherwise; "" if that is not so, or not known.
func (c *Client) OthersApplied(ctx context.Context) string {
	active, err := c.consul.Get(ctx, c.keys.PolicyActive())
	if err != nil || active == nil {
		return ""
	}
	return c.othersApplied(active)
}

// approved says why a manual approval is missing; "" if it is there.
//
// While nothing is applied anybody's policies may break the lock, so that the
// hash of those under which it was approved says nothing.
func approved(v *Verdict, applied string, now time.Time) string {
	s, a := v.Snapshot, v.Snapshot.Approval
	switch {
	case a == nil:
		return fmt.Sprintf("policy %s wants a person's approval", v.Policy.Name)
	case a.Session != s.SessionID() || a.Token != s.Index():
		return "the approval is for an earlier holder"
	case !now.Before(a.Expires):
		return "the approval expired at " + text.Time(a.Expires)
	case applied != "" && a.PolicyHash != applied:
		return fmt.Sprintf("the approval was given under other policies (%.12s) than those applied since (%.12s)", printable(a.PolicyHash), printable(applied))
	case a.Rule != "" && a.Rule != v.Judgement.Rule.Name:
		return fmt.Sprintf("the approval is for rule %s, and %s decides now", printable(a.Rule), v.Judgement.Rule.Name)
	}
	return ""
}

// charge takes the break of all targets out of the budgets of their policies.
func (c *Client) charge(targets []*target, who records.Who, now time.Time) ([]consulkv.Op, error) {
	var ops []consulkv.Op
	done := map[*policies.Policy]bool{}
	for _, t := range targets {
		p := t.v.Policy
		if done[p] {
			continue
		}
		done[p] = true
		var verdicts []*Verdict
		for _, o := range targets {
			if o.v.Policy == p {
				verdicts = append(verdicts, o.v)
			}
		}
		op, why := c.spend(p, t.permit, verdicts, who, now)
		if why != "" {
			refused := &Permit{Why: why, brake: brakeBudget}
			refused.Anyway = endsAnyway(t.v.Snapshot, refused)
			return nil, &NotPermittedError{Lock: t.name, Permit: refused}
		}
		if op != nil {
			ops = append(ops, op)
		}
	}
	return ops, nil
}

// spend takes the breaks of holds out of a policy's budget as it was read for a
// permit. A hold counts once, however many locks it is of and however often it
// is tried to break it. The op is nil if nothing is to be paid.
//
// The clocks are the wall clocks of those who break: the span of a budget is
// hours, and a skewed clock only shifts it. A break of the future counts, too:
// whose clock is wrong cannot be told, and the way out is said.
func (c *Client) spend(p *policies.Policy, permit *Permit, verdicts []*Verdict, who records.Who, now time.Time) (consulkv.Op, string) {
	b := p.Break.Budget
	if b == nil {
		return nil, ""
	}
	key := c.keys.Budget(p.Name)
	rec := records.Budget{}
	if len(permit.budget) > 0 {
		if err := records.Decode(key, permit.budget, &rec); err != nil {
			return nil, "the budget cannot be read: " + err.Error()
		}
	}
	rec.Version = records.Version
	rec.Breaks = slices.DeleteFunc(rec.Breaks, func(i records.BudgetItem) bool { return now.Sub(i.At) >= b.Per })
	oldest, future := now, ""
	for _, i := range rec.Breaks {
		if i.At.Before(oldest) {
			oldest = i.At
		}
		if i.At.After(now.Add(time.Minute)) {
			future = fmt.Sprintf("; %s holds a break of the future, %s: if a clock was wrong, delete the key", key, text.Time(i.At))
		}
	}
	before := len(rec.Breaks)
	for _, v := range verdicts {
		token := v.Snapshot.Index()
		if !slices.ContainsFunc(rec.Breaks, func(i records.BudgetItem) bool { return i.Token == token }) {
			rec.Breaks = append(rec.Breaks, records.BudgetItem{Lock: v.Snapshot.Name, At: now.UTC(), By: c.by, Who: who, Token: token})
		}
	}
	switch {
	case len(rec.Breaks) == before:
		return nil, ""
	case len(rec.Breaks) > b.Max:
		return nil, fmt.Sprintf("the budget of policy %s is spent: %s in %s; one more is allowed in %s%s",
			p.Name, text.Count(before, "break"), text.Duration(b.Per), round(b.Per-now.Sub(oldest)), future)
	}
	return consulkv.CAS(key, records.Encode(&rec), permit.budgetIndex), ""
}
