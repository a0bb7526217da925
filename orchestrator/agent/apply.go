package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Result is what Apply did.
type Result struct {
	Config string
	// Report is the answer to the order, given now or before.
	Report *records.Actual
	// Changed: the file on disk was changed now.
	Changed bool
}

// WaitError is a staged file whose entry belongs with others' that are not
// there, or not of the same order: nothing of it is taken.
type WaitError struct {
	Config string
	Order  orchestrator.Order
	// Configs are those that belong together.
	Configs []string
	// Why says what is missing.
	Why string
}

func (e *WaitError) Error() string {
	with := slices.DeleteFunc(slices.Clone(e.Configs), func(c string) bool { return c == e.Config })
	return fmt.Sprintf("%s: order %s waits, and nothing is changed: %s. It is applied with %s all or none: give the staged files of all in one command, with a -staged for each",
		e.Config, e.Order, e.Why, strings.Join(with, ", "))
}

// Apply brings the node to staged files, from the fence on as Run does, and
// reports. Files of entries that belong together are applied all or none. The
// error has an *OlderError for an order that is older than one accepted before,
// and a *WaitError for a file of a group that is not whole. A result of "failed"
// is no error: the report says so.
func (a *Agent) Apply(ctx context.Context, ss ...*Staged) ([]Result, error) {
	by := map[string]*Staged{}
	for _, s := range ss {
		if s.Node != a.cfg.Node {
			return nil, fmt.Errorf("%s: it is staged for node %q, this is node %q", s.Config, s.Node, a.cfg.Node)
		}
		if by[s.Config] != nil {
			return nil, fmt.Errorf("%s is staged twice", s.Config)
		}
		by[s.Config] = s
	}
	var all []Result
	var errs []error
	did := map[string]bool{}
	for _, s := range ss {
		if did[s.Config] {
			continue
		}
		group, why := mates(s, by)
		for _, m := range group {
			did[m.Config] = true
		}
		rs, err := a.applyStaged(ctx, group, why)
		all, errs = append(all, rs...), append(errs, err)
	}
	// Of configs beside these, whose group had to be ended first.
	errs = append(errs, a.reports.flush(ctx))
	return all, errors.Join(errs...)
}

// mates are the staged files that belong with s, itself among them, in their
// group's order; why says what keeps them from being a group, and then s is
// alone.
func mates(s *Staged, by map[string]*Staged) (group []*Staged, why string) {
	if !together(&s.Desired) {
		return []*Staged{s}, ""
	}
	for _, c := range s.Desired.Configs {
		m := by[c]
		if m == nil {
			return []*Staged{s}, fmt.Sprintf("the staged file of %s is not given, or not rendered yet", c)
		}
		if why := apart(&s.Desired, c, &m.Desired, nil); why != "" {
			return []*Staged{s}, why
		}
		group = append(group, m)
	}
	return group, ""
}

func (a *Agent) applyStaged(ctx context.Context, ss []*Staged, why string) ([]Result, error) {
	s := ss[0]
	var outs outcomes
	var out outcome
	var err error
	switch {
	case why != "":
		out, err = a.fence.wait(ctx, s.Config, &s.Desired, why)
		outs = outcomes{out}
	case len(ss) == 1:
		out, err = a.fence.apply(ctx, s.Config, &s.Desired, s.source)
		outs = outcomes{out}
	default:
		ds, contents := make([]*records.Desired, len(ss)), make([]source, len(ss))
		for i, m := range ss {
			ds[i], contents[i] = &m.Desired, m.source
		}
		outs, err = a.fence.applyGroup(ctx, s.Desired.Configs, ds, contents)
	}
	if err != nil {
		return nil, err
	}
	var all []Result
	var errs []error
	for i, out := range outs {
		res := Result{Config: ss[i].Config, Report: out.Report, Changed: out.Changed}
		if res.Report == nil {
			res.Report = out.Standing
		}
		if res.Report == nil {
			continue
		}
		all = append(all, res)
		if out.Refused != nil {
			errs = append(errs, out.Refused)
		}
		if res.Report.Waiting != "" {
			errs = append(errs, &WaitError{Config: s.Config, Order: s.Desired.Order, Configs: s.Desired.Configs, Why: why})
		}
		if err := a.reports.put(ctx, res.Config, res.Report, out.Report == nil); err != nil {
			errs = append(errs, fmt.Errorf("%s: the node is %s, but the report cannot be written: %w", res.Config, res.Report.Result, err))
		}
	}
	return all, errors.Join(errs...)
}
