package policies

import (
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/hclblock"
)

var breakSchema = &hcl.BodySchema{
	Attributes: []hcl.AttributeSchema{{Name: "approval"}, {Name: "quiesce"}},
	Blocks: []hcl.BlockHeaderSchema{
		{Type: "confirm"},
		{Type: "step", LabelNames: []string{"kind"}},
		{Type: "budget"},
		{Type: "freeze"},
	},
}

var (
	confirmSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "observations"}, {Name: "every"}}}
	budgetSchema  = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "max", Required: true}, {Name: "per", Required: true}}}
	freezeSchema  = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "when", Required: true}}}
)

// stepKinds says of each kind of step what it takes beside when, wait and
// on_error, how long it waits if nothing is said, and whether it may stand
// several times.
var stepKinds = map[string]struct {
	arg      string
	required bool
	wait     time.Duration
	repeat   bool
}{
	StepRequest:        {wait: 10 * time.Second},
	StepSignal:         {arg: "signal", wait: 5 * time.Second, repeat: true},
	StepNomadStop:      {wait: 10 * time.Second},
	StepExec:           {arg: "command", required: true, repeat: true},
	StepPlugin:         {arg: "plugin", required: true, repeat: true},
	StepDestroySession: {},
	StepTake:           {},
}

// stepSignals are the signals that a step can send, without SIG.
var stepSignals = []string{"TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "CONT"}

// MaxQuiesce is the longest pause that a next holder serves.
const MaxQuiesce = time.Hour

func (d *decoder) breaking(b *hcl.Block, compile *compiler) *Break {
	out := &Break{Approval: ApprovalManual, Confirm: Confirm{Observations: 1, Every: time.Second}, Range: b.DefRange}
	content := d.content(b.Body, breakSchema)
	if a := content.Attributes["approval"]; a != nil {
		if w, ok := d.wordAttr(a, ApprovalAuto, ApprovalManual, ApprovalNever); ok {
			out.Approval = w
		}
	}
	if a := content.Attributes["quiesce"]; a != nil {
		if q, ok := d.durationAttr(a); ok && q > MaxQuiesce {
			d.fail(a.Expr.Range(), "Quiesce is too long", "A quiesce is %s at most, whatever a record or a policy asks for.", MaxQuiesce)
		} else if ok {
			out.Quiesce = &q
		}
	}
	first := map[string]*hcl.Block{}
	for _, bb := range content.Blocks {
		if bb.Type == "step" {
			if s := d.step(bb, compile); s != nil {
				out.Steps = append(out.Steps, s)
			}
			continue
		}
		if prev := first[bb.Type]; prev != nil {
			d.fail(bb.DefRange, "Duplicate "+bb.Type+" block", "A break block has one %s block. The first is at %s.", bb.Type, prev.DefRange)
			continue
		}
		first[bb.Type] = bb
		switch bb.Type {
		case "confirm":
			d.confirm(bb, &out.Confirm)
		case "budget":
			out.Budget = d.budget(bb)
		case "freeze":
			out.Freeze = d.freeze(bb, compile)
		}
	}
	d.stepOrder(out.Steps)
	if len(content.Blocks.OfType("step")) == 0 {
		out.Steps = []*Step{{Kind: StepTake, OnError: OnErrorAbort, Range: b.DefRange}}
	}
	return out
}

func (d *decoder) confirm(b *hcl.Block, out *Confirm) {
	content := d.content(b.Body, confirmSchema)
	if a := content.Attributes["observations"]; a != nil {
		if n, ok := d.intAttr(a, 1000); ok {
			out.Observations = n
		}
	}
	if a := content.Attributes["every"]; a != nil {
		if e, ok := d.positive(a); ok {
			out.Every = e
		}
	}
}

func (d *decoder) budget(b *hcl.Block) *Budget {
	out := &Budget{}
	content := d.content(b.Body, budgetSchema)
	if a := content.Attributes["max"]; a != nil {
		out.Max, _ = d.intAttr(a, 1_000_000)
	}
	if a := content.Attributes["per"]; a != nil {
		out.Per, _ = d.positive(a)
	}
	return out
}

func (d *decoder) freeze(b *hcl.Block, compile *compiler) *Freeze {
	a := d.content(b.Body, freezeSchema).Attributes["when"]
	if a == nil {
		return nil
	}
	f := &Freeze{When: d.source(a.Expr.Range())}
	if f.when = d.condition(a, compile, "The freeze"); f.when == nil {
		return nil
	}
	return f
}

// positive is a duration above zero.
func (d *decoder) positive(a *hcl.Attribute) (time.Duration, bool) {
	v, ok := d.durationAttr(a)
	if ok && v <= 0 {
		d.fail(a.Expr.Range(), "Invalid duration", "%q must be more than zero.", a.Name)
		return 0, false
	}
	return v, ok
}

// stepSchema is what a step of a kind may have.
func stepSchema(name string) *hcl.BodySchema {
	kind := stepKinds[name]
	schema := &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "when"}, {Name: "wait"}, {Name: "on_error"}}}
	if kind.arg != "" {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: kind.arg, Required: kind.required})
	}
	if name == StepPlugin {
		schema.Blocks = []hcl.BlockHeaderSchema{{Type: "config"}}
	}
	return schema
}

func (d *decoder) step(b *hcl.Block, compile *compiler) *Step {
	kind, ok := stepKinds[b.Labels[0]]
	if !ok {
		names := sortedKeys(stepKinds)
		d.fail(b.LabelRanges[0], "Unknown step", "There is no step %q.%s", clip(b.Labels[0], 40),
			didYouMean(b.Labels[0], names, "The steps are "+strings.Join(names, ", ")+"."))
		return nil
	}
	s := &Step{Kind: b.Labels[0], Wait: kind.wait, Range: b.DefRange, OnError: OnErrorAbort}
	if !s.Destroys() {
		s.OnError = OnErrorContinue
	}
	content := d.content(b.Body, stepSchema(s.Kind))
	if a := content.Attributes["when"]; a != nil {
		s.When = d.source(a.Expr.Range())
		s.when = d.condition(a, compile, "The step")
	}
	if a := content.Attributes["wait"]; a != nil {
		s.Wait, _ = d.durationAttr(a)
	}
	if a := content.Attributes["on_error"]; a != nil {
		if w, ok := d.wordAttr(a, OnErrorAbort, OnErrorContinue); ok {
			s.OnError = w
		}
	}
	switch s.Kind {
	case StepSignal:
		s.Signal = "TERM"
		if a := content.Attributes["signal"]; a != nil {
			d.signal(a, s)
		}
	case StepPlugin:
		if a := content.Attributes["plugin"]; a != nil {
			s.Plugin, _ = d.stringAttr(a)
		}
		d.pluginConfig(s, content.Blocks, compile)
	case StepExec:
		if a := content.Attributes["command"]; a != nil {
			d.command(a, s, compile)
		}
	}
	return s
}

// pluginConfig keeps the config block of a plugin step, in which var.* and local.* are
// all that may be read.
func (d *decoder) pluginConfig(s *Step, blocks hcl.Blocks, compile *compiler) {
	if len(blocks) == 0 {
		return
	}
	if len(blocks) > 1 {
		d.fail(blocks[1].DefRange, "Duplicate config block", "A step has one config block. The first is at %s.", blocks[0].DefRange)
		return
	}
	s.PluginBody, s.PluginContext = blocks[0].Body, compile.constants()
	raw, diags := hclblock.JSON(blocks[0].Body, func(a *hcl.Attribute) (cty.Value, bool) {
		v, diags := a.Expr.Value(s.PluginContext)
		d.diags = append(d.diags, diags...)
		return v, !diags.HasErrors()
	})
	d.diags = append(d.diags, diags...)
	s.PluginConfig = raw
}

// constants are var.* and local.* for an expression that reads nothing else.
func (c *compiler) constants() *hcl.EvalContext {
	objects := map[string]map[string]cty.Value{}
	for name, v := range c.consts {
		root, rest, _ := strings.Cut(name, ".")
		if objects[root] == nil {
			objects[root] = map[string]cty.Value{}
		}
		objects[root][rest] = v
	}
	ctx := &hcl.EvalContext{Variables: map[string]cty.Value{}, Functions: functions}
	for root, values := range objects {
		ctx.Variables[root] = cty.ObjectVal(values)
	}
	return ctx
}

func (d *decoder) signal(a *hcl.Attribute, s *Step) {
	name, ok := d.stringAttr(a)
	if !ok {
		return
	}
	s.Signal = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	for _, known := range stepSignals {
		if s.Signal == known {
			return
		}
	}
	d.fail(a.Expr.Range(), "Invalid signal", "%q is not known here.%s", clip(name, 40),
		didYouMean(s.Signal, stepSignals, "It is one of "+strings.Join(stepSignals, ", ")+"."))
}

func (d *decoder) command(a *hcl.Attribute, s *Step, compile *compiler) {
	e := a.Expr.(hclsyntax.Expression)
	v, diags := d.check.check(e, false)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return
	}
	const want = `A list of at least one string is required here: the program and its arguments, such as ["fence-node", holder.host].`
	if t := v.Type(); t != cty.DynamicPseudoType && !t.IsTupleType() && !t.IsListType() || t.IsTupleType() && t.Length() == 0 {
		d.fail(e.Range(), "Invalid command", want)
		return
	}
	s.argv = compile.compile(e)
	if v.IsWhollyKnown() {
		argv, err := argvOf(v)
		if err != nil {
			d.fail(e.Range(), "Invalid command", want)
			return
		}
		s.Argv = argv
	}
}

// stepOrder reports steps that make no sense together.
func (d *decoder) stepOrder(steps []*Step) {
	first := map[string]*Step{}
	for _, s := range steps {
		if take := first[StepTake]; take != nil {
			d.fail(s.Range, "Step after take", "This step would never be run: the lock is gone after the take at %s. Put take last.", take.Range)
		} else if prev := first[s.Kind]; prev != nil && !stepKinds[s.Kind].repeat {
			d.fail(s.Range, "Duplicate step", "There is a step %q at %s already, and a second one does nothing more.", s.Kind, prev.Range)
		}
		if first[s.Kind] == nil {
			first[s.Kind] = s
		}
	}
}
