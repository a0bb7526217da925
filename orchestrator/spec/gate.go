package spec

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-bexpr"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/hclblock"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates/condition"
)

// Bounds of a gate.
const (
	maxGateLimit = 1000
	// maxGateHeaders bounds the headers and the environment of one gate.
	maxGateHeaders = 50
	maxQuery       = 4 << 10
)

// gateKinds are the blocks of which a gate has one.
var gateKinds = []string{
	orchestrator.GateConsulChecks, orchestrator.GateKindHTTP, orchestrator.GateKindPrometheus,
	orchestrator.GateKindExec, orchestrator.GateKindNomadDeploy, orchestrator.GateKindPlugin + " name",
}

func (d *decoder) gates(c *hcl.BodyContent) map[string]*hcl.Block {
	seen := map[string]*hcl.Block{}
	for i, b := range c.Blocks.OfType("gate") {
		if i == orchestrator.MaxGates {
			d.fail(b.DefRange, "Too many gates", "A rollout has %d gates at most.", orchestrator.MaxGates)
		}
		d.name("gate", b)
		d.unique(seen, b)
		d.file.Spec.Gates = append(d.file.Spec.Gates, d.gate(b))
	}
	return seen
}

func (d *decoder) gate(b *hcl.Block) orchestrator.Gate {
	g, before := orchestrator.Gate{Name: b.Labels[0]}, len(d.diags)
	c := d.content(b.Body, gateSchema)
	g.Interval, _, _ = d.duration(c, "interval", time.Second, day)
	g.Timeout, _, _ = d.duration(c, "timeout", time.Second, time.Hour)
	g.SuccessLimit, _, _ = d.number(c, "success_limit", 1, maxGateLimit)
	g.FailureLimit, _, _ = d.number(c, "failure_limit", 0, maxGateLimit)
	g.UnknownLimit, _, _ = d.number(c, "unknown_limit", 0, maxGateLimit)
	if n, _, ok := d.number(c, "consecutive_error_limit", 0, maxGateLimit); ok {
		if g.ConsecutiveErrorLimit = n; n == 0 {
			g.ConsecutiveErrorLimit = -1
		}
	}
	if s, a, ok := d.text(c, "during"); ok && s != "after" {
		if g.During = s; s != orchestrator.DuringBake {
			d.bad(a, "Unknown time", "%q must be \"bake\", for a gate that is asked all through the bake, or \"after\", which it is otherwise.", "during")
		}
	}
	switch {
	case len(c.Blocks) == 0:
		if len(d.diags) == before { // a kind that is misspelt was said
			d.fail(b.DefRange, "No kind of gate", "Gate %q needs one block that says what is asked: %s.", g.Name, kindList())
		}
		return g
	case len(c.Blocks) > 1:
		d.fail(c.Blocks[1].DefRange, "Second kind of gate", "A gate asks one thing: make another gate of this, and name both in the stage.")
		return g
	}
	kind := c.Blocks[0]
	switch g.Kind = kind.Type; g.Kind {
	case orchestrator.GateConsulChecks:
		d.consulChecks(&g, kind)
	case orchestrator.GateKindHTTP:
		g.HTTP = d.httpGate(kind)
	case orchestrator.GateKindPrometheus:
		g.Prometheus = d.prometheusGate(&g, kind)
	case orchestrator.GateKindExec:
		g.Exec = d.execGate(kind)
	case orchestrator.GateKindNomadDeploy:
		g.NomadDeployment = d.nomadGate(&g, kind)
	case orchestrator.GateKindPlugin:
		g.Plugin = d.pluginGate(kind)
	}
	return g
}

func kindList() string {
	var out []string
	for _, k := range gateKinds {
		typ, label, ok := strings.Cut(k, " ")
		if ok {
			typ += fmt.Sprintf(" %q", label)
		}
		out = append(out, typ+" { … }")
	}
	return strings.Join(out[:len(out)-1], ", ") + " or " + out[len(out)-1]
}

func (d *decoder) consulChecks(g *orchestrator.Gate, b *hcl.Block) {
	c := d.content(b.Body, consulChecksSchema)
	g.MinPassingPercent = 100
	g.Service, _, _ = d.text(c, "service")
	if n, _, ok := d.number(c, "min_passing_percent", 1, 100); ok {
		g.MinPassingPercent = n
	}
	if s, a, ok := d.text(c, "filter"); ok {
		if g.Filter = s; len(s) > maxSelect {
			d.bad(a, "Filter is too long", "It may have %d bytes.", maxSelect)
		} else if _, err := bexpr.CreateFilter(s); err != nil {
			d.bad(a, "Invalid filter", "It is an expression of Consul, such as Service.Meta.zone == \"a\": %v.", err)
		}
	}
	if a := c.Attributes["compare"]; a != nil {
		g.Compare, _ = d.boolean(a)
	}
}

func (d *decoder) httpGate(b *hcl.Block) *orchestrator.GateHTTP {
	c := d.content(b.Body, httpSchema)
	g := &orchestrator.GateHTTP{}
	g.URL = d.url(c, "url")
	if s, a, ok := d.text(c, "method"); ok {
		if g.Method = strings.ToUpper(s); !slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut}, g.Method) {
			d.bad(a, "Unknown method", "%q must be GET, HEAD, POST or PUT.", "method")
		}
	}
	g.Headers = d.headers(c)
	g.Status = d.statuses(c)
	g.Body = d.condition(c, "body", condition.BodyVars())
	if g.Body != "" && g.Method == http.MethodHead {
		d.bad(c.Attributes["body"], "No body", "The answer to HEAD has no body: leave out the method.")
	}
	g.CAFile, _, _ = d.text(c, "ca_file")
	return g
}

// url reads the address of a server. Who asks does not stand in it, since it is
// kept in Consul and shown.
func (d *decoder) url(c *hcl.BodyContent, name string) string {
	s, a, ok := d.text(c, name)
	if !ok {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		d.bad(a, "Invalid URL", "%q must be a URL such as https://example.com/health.", name)
	case u.User != nil:
		d.bad(a, "Password in a URL", "A spec is kept in Consul, and its URLs are shown: write headers = { Authorization = \"Basic ${env.NAME}\" }, and set NAME where the orchestrator runs.")
	case u.Fragment != "":
		d.bad(a, "Invalid URL", "%q has a fragment, which no server sees.", name)
	}
	return s
}

// statuses reads a status of HTTP or a list of them.
func (d *decoder) statuses(c *hcl.BodyContent) []int {
	a := c.Attributes["status"]
	if a == nil {
		return nil
	}
	v, ok := d.value(a)
	if !ok {
		return nil
	}
	list := []cty.Value{v}
	if t := v.Type(); t.IsTupleType() || t.IsListType() || t.IsSetType() {
		list = v.AsValueSlice()
	}
	var out []int
	for _, v := range list {
		n := 0
		if v.Type() == cty.Number && !v.IsNull() {
			if f := v.AsBigFloat(); f.IsInt() {
				i, _ := f.Int64()
				n = int(max(0, min(i, 1000)))
			}
		}
		if n < 100 || n > 599 {
			d.bad(a, "Invalid status", "%q must be a status of HTTP such as 200, or a list of them.", "status")
			return nil
		}
		out = append(out, n)
	}
	if len(out) == 0 {
		d.bad(a, "Invalid status", "%q is an empty list: leave it out for 200 to 299.", "status")
	}
	return out
}

func (d *decoder) prometheusGate(g *orchestrator.Gate, b *hcl.Block) *orchestrator.GatePrometheus {
	c := d.content(b.Body, prometheusSchema)
	p := &orchestrator.GatePrometheus{MaxAge: 5 * time.Minute}
	p.Address = d.url(c, "address")
	if a := c.Attributes["query"]; a != nil {
		v, ok := d.valueIn(a, map[string]cty.Value{"canary": cty.StringVal("${canary}"), "rest": cty.StringVal("${rest}")})
		switch {
		case !ok:
		case v.Type() != cty.String || strings.TrimSpace(v.AsString()) == "":
			d.bad(a, "Invalid query", "%q must be a query of Prometheus in quotes.", "query")
		case len(v.AsString()) > maxQuery:
			d.bad(a, "Query is too long", "%q may have %d bytes: make a recording rule of it.", "query", maxQuery)
		default:
			p.Query = v.AsString()
			g.Compare = strings.Contains(p.Query, "${rest}")
		}
	}
	p.Threshold = d.condition(c, "threshold", condition.ThresholdVars())
	if s, a, ok := d.text(c, "reduce"); ok {
		known := []string{"min", "max", "avg", "sum"}
		if p.Reduce = s; !slices.Contains(known, s) {
			d.bad(a, "Unknown reduction", "%q must be one of %s.%s", "reduce", strings.Join(known, ", "), meant(s, known))
		}
	}
	if v, _, ok := d.duration(c, "max_age", time.Second, day); ok {
		p.MaxAge = v
	}
	p.Headers = d.headers(c)
	p.CAFile, _, _ = d.text(c, "ca_file")
	return p
}

func (d *decoder) execGate(b *hcl.Block) *orchestrator.GateExec {
	c := d.content(b.Body, execSchema)
	g := &orchestrator.GateExec{}
	if cmd := d.command(c, "command", 0); cmd != nil {
		g.Command = cmd.Argv
	}
	if a := c.Attributes["env"]; a != nil {
		g.Env = d.secretMap(a, func(name, _ string) string {
			switch {
			case name == "" || strings.ContainsAny(name, "=\x00"):
				return "is no name of a variable"
			case strings.HasPrefix(name, "AIMLOCK_"):
				return "is one that aimlock sets itself"
			}
			return ""
		})
	}
	return g
}

func (d *decoder) nomadGate(g *orchestrator.Gate, b *hcl.Block) *orchestrator.GateNomadDeployment {
	c := d.content(b.Body, nomadDeploymentSchema)
	n := &orchestrator.GateNomadDeployment{}
	n.Job, _, _ = d.text(c, "job")
	n.Namespace, _, _ = d.text(c, "namespace")
	n.Region, _, _ = d.text(c, "region")
	g.Wait, _, _ = d.duration(c, "wait", time.Second, day)
	return n
}

func (d *decoder) pluginGate(b *hcl.Block) *orchestrator.GatePlugin {
	p := &orchestrator.GatePlugin{Name: b.Labels[0]}
	d.name("plugin", b)
	p.Config = d.pluginConfig("gate", b)
	return p
}

// pluginConfig keeps the block of a plugin as JSON. What the plugin takes is known
// only where it can be started: see File.Plugins.
func (d *decoder) pluginConfig(kind string, b *hcl.Block) json.RawMessage {
	raw, diags := hclblock.JSON(b.Body, d.value)
	d.diags = append(d.diags, diags...)
	d.file.Plugins = append(d.file.Plugins, PluginBlock{Kind: kind, Name: b.Labels[0], Body: b.Body, Range: b.DefRange})
	return raw
}

// headers reads the headers of a request.
func (d *decoder) headers(c *hcl.BodyContent) map[string]string {
	a := c.Attributes["headers"]
	if a == nil {
		return nil
	}
	return d.secretMap(a, func(name, v string) string {
		switch {
		case !headerName.MatchString(name):
			return "is no name of a header"
		case strings.EqualFold(name, "Content-Length") || strings.EqualFold(name, "Transfer-Encoding") || strings.EqualFold(name, "Connection"):
			return "is not for you to set"
		case isSecret(name) && !strings.Contains(v, "${env."):
			return "is a secret, and a spec is kept in Consul: write ${env.NAME} for its value, and set NAME where the orchestrator runs"
		case strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			return "has a value that no header may have"
		}
		return ""
	})
}

// headerName is a token of RFC 9110.
var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// isSecret reports whether a header is one that carries secrets.
func isSecret(header string) bool {
	h := strings.ToLower(header)
	return slices.ContainsFunc([]string{"authorization", "cookie", "token", "secret", "password", "api-key", "apikey"}, func(s string) bool {
		return strings.Contains(h, s)
	})
}

// secretMap reads strings by name, which may hold ${env.NAME}. wrong says what
// is wrong with one.
func (d *decoder) secretMap(a *hcl.Attribute, wrong func(name, value string) string) map[string]string {
	vars := map[string]cty.Value{}
	for _, t := range a.Expr.Variables() {
		if t.RootName() != "env" || len(t) != 2 {
			continue
		}
		if attr, ok := t[1].(hcl.TraverseAttr); ok {
			vars[attr.Name] = cty.StringVal("${env." + attr.Name + "}")
		}
	}
	v, ok := d.valueIn(a, map[string]cty.Value{"env": cty.ObjectVal(vars)})
	if !ok {
		return nil
	}
	if t := v.Type(); !t.IsObjectType() && !t.IsMapType() {
		d.bad(a, "Wrong type", "%q must be names with values, such as { NAME = \"value\" }, and this is %s.", a.Name, friendly(v))
		return nil
	}
	out := map[string]string{}
	for it := v.ElementIterator(); it.Next(); {
		k, e := it.Element()
		name := k.AsString()
		if e.IsNull() || e.Type() != cty.String {
			d.bad(a, "Wrong type", "%q must be a string in quotes, and this is %s.", name, friendly(e))
			continue
		}
		if why := wrong(name, e.AsString()); why != "" {
			d.bad(a, "Invalid "+a.Name, "%q %s.", name, why)
		}
		if len(e.AsString()) > maxCommand {
			d.bad(a, "Too long", "%q may have %d bytes.", name, maxCommand)
		}
		out[name] = e.AsString()
	}
	if len(out) > maxGateHeaders {
		d.bad(a, "Too many", "%q may have %d entries.", a.Name, maxGateHeaders)
	}
	return out
}

// valueIn is value with something to refer to.
func (d *decoder) valueIn(a *hcl.Attribute, vars map[string]cty.Value) (cty.Value, bool) {
	v, diags := a.Expr.Value(&hcl.EvalContext{Variables: vars})
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return cty.NilVal, false
	}
	if v.IsNull() || !v.IsWhollyKnown() {
		d.bad(a, "Value is missing", "%q is null: give it a value, or leave it out.", a.Name)
		return cty.NilVal, false
	}
	return v, true
}

// condition reads an expression that is judged later, as it is written, with or
// without quotes around it.
func (d *decoder) condition(c *hcl.BodyContent, name string, vars condition.Vars) string {
	a := c.Attributes[name]
	if a == nil {
		return ""
	}
	rng := a.Expr.Range()
	src, start := "", rng.Start
	if f := d.file.Files[rng.Filename]; f != nil {
		src = string(rng.SliceBytes(f.Bytes))
	}
	if v, diags := a.Expr.Value(nil); !diags.HasErrors() && v.Type() == cty.String && !v.IsNull() {
		src = v.AsString()
		start.Byte, start.Column = start.Byte+1, start.Column+1
	}
	_, diags := condition.Parse(src, rng.Filename, start, vars)
	d.diags = append(d.diags, diags...)
	return src
}

// gatesInStages warns of gates that cannot answer where they are asked.
func (d *decoder) gatesInStages(c *hcl.BodyContent) {
	for i, b := range c.Blocks.OfType("stage") {
		if i >= len(d.file.Spec.Stages) {
			return
		}
		st := &d.file.Spec.Stages[i]
		for _, g := range d.file.Spec.Gates {
			if !slices.Contains(st.Gate, g.Name) {
				continue
			}
			if g.Kind == orchestrator.GateKindPrometheus && g.Compare && st.Percent == 100 && st.Select == "" {
				d.warn(b.DefRange, "Nothing to compare with", "Gate %q compares with the nodes that are still to come, and after stage %q there are none: it will be unknown, and pause.", g.Name, st.Name)
			}
			if g.During == orchestrator.DuringBake && st.Bake == 0 {
				d.warn(b.DefRange, "Nothing to watch", "Gate %q is asked during the bake, and stage %q has none: it is asked once its nodes are done.", g.Name, st.Name)
			}
		}
	}
}
