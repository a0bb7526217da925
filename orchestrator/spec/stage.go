package spec

import (
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/selector"
)

// Bounds of a stage.
const (
	// maxSelect bounds a selector.
	maxSelect = 1 << 10
	// maxOrder bounds the names in a stage's order: they are part of the
	// persisted plan's first chunk.
	maxOrder = 2000
	// maxDelay bounds the wait before a retry.
	maxDelay = time.Hour
)

// stageReader reads the stages of one rollout in their order.
type stageReader struct {
	*decoder
	gates map[string]*hcl.Block
	seen  map[string]*hcl.Block
	// used are the gates that a stage names, and ordered the stages that name
	// a node in their order.
	used    map[string]bool
	ordered map[string]string
	// percent is the highest of the stages so far, by their select.
	percent map[string]int
	// whole: a stage takes all that are left.
	whole bool
}

func (d *decoder) stages(rollout *hcl.Block, c *hcl.BodyContent, gates map[string]*hcl.Block) {
	r := &stageReader{
		decoder: d, gates: gates, seen: map[string]*hcl.Block{}, used: map[string]bool{},
		ordered: map[string]string{}, percent: map[string]int{},
	}
	list := c.Blocks.OfType("stage")
	for i, b := range list {
		if i == orchestrator.MaxStages {
			d.fail(b.DefRange, "Too many stages", "A rollout has %d stages at most.", orchestrator.MaxStages)
		}
		d.name("stage", b)
		d.unique(r.seen, b)
		d.file.Spec.Stages = append(d.file.Spec.Stages, r.stage(b))
	}
	if len(list) == 0 {
		d.file.Spec.Stages = []orchestrator.Stage{{Name: "all", Percent: 100}}
		d.warn(rollout.DefRange, "No stages", "Without a stage block the config goes to the whole fleet at once.")
		return
	}
	for _, b := range c.Blocks.OfType("gate") {
		if !r.used[b.Labels[0]] {
			d.add(hcl.DiagWarning, b.LabelRanges[0], b.DefRange, "Gate is not used", "No stage names gate %q: it is never asked.", b.Labels[0])
		}
	}
	d.reach(list, r.whole)
}

func (r *stageReader) stage(b *hcl.Block) orchestrator.Stage {
	st := orchestrator.Stage{Name: b.Labels[0]}
	c := r.content(b.Body, stageSchema)
	r.who(b, c, &st)
	st.MaxParallel, _, _ = r.number(c, "max_parallel", 1, maxNodes)
	st.Bake, _, _ = r.duration(c, "bake", 0, 30*day)
	names, a, _ := r.strings(c, "gate")
	for _, g := range names {
		switch {
		case r.gates[g] == nil:
			r.bad(a, "Unknown gate", "There is no gate %q in this rollout.%s", g, meant(g, labels(r.gates)))
		case slices.Contains(st.Gate, g):
			r.bad(a, "Duplicate gate", "Gate %q is named twice.", g)
		default:
			st.Gate = append(st.Gate, g)
		}
		r.used[g] = true
	}
	if s, a, ok := r.str(c, "promote"); ok {
		switch s {
		case orchestrator.PromoteManual:
			st.Promote = s
		case "auto":
		default:
			r.bad(a, "Unknown promotion", "\"promote\" must be \"auto\", or \"manual\" to wait for `aimlock rollout promote`.%s", meant(s, []string{"auto", "manual"}))
		}
	}
	st.Failure = r.stageFailure(r.single(c, "failure"))
	return st
}

// who reads which nodes a stage takes.
func (r *stageReader) who(b *hcl.Block, c *hcl.BodyContent, st *orchestrator.Stage) {
	st.Nodes, _, _ = r.number(c, "nodes", 1, maxNodes)
	if s, a, ok := r.text(c, "select"); ok {
		st.Select = s
		if _, err := selector.Parse(s); err != nil {
			each(err, func(err error) { r.bad(a, "Invalid select", "%s", sentence(err)) })
		} else if len(s) > maxSelect {
			r.bad(a, "Select is too long", "\"select\" may have %d bytes: give the nodes a key in their metadata for it.", maxSelect)
		}
	}
	if n, a, ok := r.number(c, "percent", 1, 100); ok {
		of := "the whole fleet"
		if st.Select != "" {
			of = "the nodes that match its select"
		}
		if most := r.percent[st.Select]; n < most {
			r.bad(a, "Percent falls", "A stage before this one ends at %d percent: percent is the share of %s that is done when the stage ends.", most, of)
		}
		st.Percent, r.percent[st.Select] = n, max(n, r.percent[st.Select])
		r.whole = r.whole || n == 100 && st.Select == ""
	}
	r.order(c, st)
	n, p := c.Attributes["nodes"], c.Attributes["percent"]
	switch {
	case n != nil && p != nil:
		r.bad(p, "Nodes and percent", "Stage %q has both nodes and percent: nodes adds that many, percent is a share of the whole fleet.", st.Name)
	case n == nil && p == nil && c.Attributes["select"] == nil && c.Attributes["order"] == nil:
		r.fail(b.DefRange, "Stage without nodes", "Stage %q needs nodes, percent, select or order: how far it goes.", st.Name)
	}
}

func (r *stageReader) order(c *hcl.BodyContent, st *orchestrator.Stage) {
	names, a, ok := r.strings(c, "order")
	switch {
	case !ok:
		return
	case len(names) == 0:
		r.bad(a, "Empty order", "\"order\" names no node: leave it out to let the stage choose.")
	case len(names) > maxOrder:
		r.bad(a, "Order is too long", "\"order\" may name %d nodes: give the others a key in their metadata, and select by that.", maxOrder)
	}
	for _, n := range names {
		if err := keys.CheckName("node", n); err != nil {
			r.bad(a, "Invalid node name", "%s", sentence(err))
			continue
		}
		if first, twice := r.ordered[n]; twice {
			r.bad(a, "Duplicate node", "Node %q is in the order of stage %q already.", n, first)
			continue
		}
		r.ordered[n] = st.Name
		st.Order = append(st.Order, n)
	}
}

// thens are what can be done when a budget is exceeded.
var thens = []string{orchestrator.ThenPause, orchestrator.ThenRollback, orchestrator.ThenAbort}

func (d *decoder) then(c *hcl.BodyContent) string {
	s, a, ok := d.str(c, "then")
	if ok && !slices.Contains(thens, s) {
		d.bad(a, "Unknown action", "\"then\" must be %q, %q or %q.%s", thens[0], thens[1], thens[2], meant(s, thens))
		return ""
	}
	return s
}

func (r *stageReader) stageFailure(b *hcl.Block) *orchestrator.StageFailure {
	if b == nil {
		return nil
	}
	c := r.content(b.Body, failureSchema)
	f := &orchestrator.StageFailure{Then: r.then(c)}
	if n, _, ok := r.number(c, "max_failed", 0, maxNodes); ok {
		f.MaxFailed = &n
	}
	if n, _, ok := r.number(c, "max_unreachable_percent", 0, 100); ok {
		f.MaxUnreachablePercent = &n
	}
	if c.Attributes["max_failed"] == nil && c.Attributes["max_unreachable_percent"] == nil && c.Attributes["then"] == nil {
		r.fail(b.DefRange, "Empty failure block", "A stage's failure block needs max_failed, max_unreachable_percent or then: without them it says nothing.")
	}
	return f
}

// stageThens gives the stages' failure blocks without a then the rollout's.
func (d *decoder) stageThens() {
	for _, st := range d.file.Spec.Stages {
		if st.Failure != nil && st.Failure.Then == "" {
			st.Failure.Then = d.file.Spec.Failure.Then
		}
	}
}

func (d *decoder) retry(b *hcl.Block) {
	if b == nil {
		return
	}
	c := d.content(b.Body, retrySchema)
	r := &orchestrator.Retry{Delay: 10 * time.Second, MaxDelay: 5 * time.Minute}
	r.Attempts, _, _ = d.number(c, "attempts", 1, orchestrator.MaxAttempts)
	delay, a, given := d.duration(c, "delay", time.Second, maxDelay)
	if given {
		r.Delay = delay
	}
	if v, _, ok := d.duration(c, "max_delay", time.Second, maxDelay); ok {
		r.MaxDelay = v
		if r.Delay > v && given {
			d.bad(a, "Delay is above max_delay", "\"delay\" is %s and \"max_delay\" %s: the wait would never be that long.", text.Duration(r.Delay), text.Duration(v))
		}
	} else if r.Delay > r.MaxDelay {
		r.MaxDelay = r.Delay
	}
	r.Delay = min(r.Delay, r.MaxDelay)
	d.file.Spec.Retry = r
}

// reach says where the stages do not fit the fleet, or end before the whole of
// it does. Of a fleet that is not known here only percent = 100 is sure to
// reach all.
func (d *decoder) reach(stages hcl.Blocks, whole bool) {
	last := stages[len(stages)-1]
	nodes := d.file.Fleet.Nodes
	if len(nodes) == 0 {
		if !whole {
			d.warn(last.DefRange, "Stages may not reach the whole fleet", "No stage has percent = 100: nodes that no stage reaches are skipped.")
		}
		return
	}
	if d.diags.HasErrors() {
		return
	}
	match, err := selector.Of(&d.file.Spec)
	if err != nil {
		return // said with its range by stage
	}
	plan, err := orchestrator.NewPlan("", d.file.Spec, nodes, time.Time{}, orchestrator.Selecting(match))
	if se, ok := errors.AsType[*orchestrator.StageError](err); ok {
		d.fail(stages[se.Stage].DefRange, "The stage does not fit the fleet", "%s", sentence(se))
		return
	}
	if err != nil {
		return // said elsewhere
	}
	if end := plan.Ends[len(plan.Ends)-1]; end < len(nodes) {
		d.warn(last.DefRange, "Stages do not reach the whole fleet", "They end after %d of %s: the rest is skipped. A last stage with percent = 100 reaches all.", end, text.Count(len(nodes), "node"))
	}
}

func labels(m map[string]*hcl.Block) []string {
	var out []string
	for n := range m {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (d *decoder) failure(b *hcl.Block) {
	f := &d.file.Spec.Failure
	*f = orchestrator.Failure{MaxUnreachablePercent: 100, Then: orchestrator.ThenPause}
	if b == nil {
		return
	}
	c := d.content(b.Body, failureSchema)
	f.MaxFailed, _, _ = d.number(c, "max_failed", 0, maxNodes)
	if n, _, ok := d.number(c, "max_unreachable_percent", 0, 100); ok {
		f.MaxUnreachablePercent = n
	}
	if s := d.then(c); s != "" {
		f.Then = s
	}
}
