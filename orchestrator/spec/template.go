package spec

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"github.com/aim-control/aimlock/internal/hclsafe"
	"github.com/aim-control/aimlock/internal/secrets"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// Template is a config's source that is rendered for each node. What it comes
// to depends on the node's name and metadata and on the spec alone. It is safe
// for concurrent use.
type Template struct {
	path            string
	file            *hcl.File
	expr            hclsyntax.Expression
	config, rollout cty.Value
	// secret stands for the secrets, and forms is what is written for each:
	// the values are known on the nodes only.
	secret cty.Value
	forms  map[string]string
	// mark begins and, with a semicolon, ends what stands for a secret while
	// the template is evaluated. It is drawn by lot, so that nobody can write
	// it; the semicolon is no part of any composed character.
	mark string
}

// roots are what a template may refer to.
var roots = []string{"config", "node", "rollout", "secret"}

// newTemplate reads a template. Everything that can be wrong with it whatever
// the node is found here.
func newTemplate(path, rollout, config string, src []byte, list []orchestrator.Secret) (*Template, hcl.Diagnostics) {
	t := &Template{
		path: path, file: &hcl.File{Bytes: src}, mark: "aimlock-" + rand.Text() + "-", forms: map[string]string{},
		config:  cty.ObjectVal(map[string]cty.Value{"name": cty.StringVal(config)}),
		rollout: cty.ObjectVal(map[string]cty.Value{"name": cty.StringVal(rollout)}),
		secret:  cty.EmptyObjectVal,
	}
	if len(list) > 0 {
		vals := map[string]cty.Value{}
		for _, s := range list {
			vals[s.Name] = cty.StringVal(t.mark + s.Name + ";")
			t.forms[s.Name] = secrets.Placeholder(s.Name, s.Version)
		}
		t.secret = cty.ObjectVal(vals)
	}
	var diags hcl.Diagnostics
	if t.expr, diags = hclsafe.ParseTemplate(src, path); diags.HasErrors() {
		return nil, diags
	}
	diags = append(diags, t.check()...)
	boundLoops(t.expr)
	return t, diags
}

// File is the source, for the snippets of diagnostics.
func (t *Template) File() (string, *hcl.File) { return t.path, t.file }

// check finds references to what no node will have, and secrets where their
// value would have to be known.
func (t *Template) check() hcl.Diagnostics {
	var diags hcl.Diagnostics
	add := func(rng hcl.Range, summary, format string, args ...any) {
		diags = append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(format, args...), Subject: &rng,
		})
	}
	plain := map[hcl.Range]bool{}
	t.plainSecrets(t.expr, plain)
	for _, tr := range t.expr.Variables() {
		root, rng := tr.RootName(), tr.SourceRange()
		second := ""
		if len(tr) > 1 {
			if a, ok := tr[1].(hcl.TraverseAttr); ok {
				second = a.Name
			}
		}
		switch {
		case !slices.Contains(roots, root):
			add(rng, "Unknown variable", "There is no %q here: a template knows node.name, node.meta, config.name, rollout.name and secret.NAME.%s", root, meant(root, roots))
		case root == "node" && second != "name" && second != "meta":
			add(rng, "Unknown attribute", "A node has node.name and node.meta, a map of its metadata.%s", meant(second, []string{"name", "meta"}))
		case root == "secret" && second != "" && t.forms[second] == "":
			add(rng, "Unknown secret", "The config has no block secret %q.%s", second, meant(second, t.secretNames()))
		case root == "secret" && !plain[rng]:
			add(rng, "Secret is used in an expression", "The value of a secret is known on the nodes only, so that nothing can be computed from it: "+
				"write ${secret.NAME} by itself, and put into the secret what shall stand there.")
		}
	}
	return diags
}

func (t *Template) secretNames() []string {
	var out []string
	for n := range t.forms {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// plainSecrets notes where secrets stand so that their text goes into the
// result as it is.
func (t *Template) plainSecrets(e hclsyntax.Expression, found map[hcl.Range]bool) {
	switch e := e.(type) {
	case *hclsyntax.TemplateExpr:
		for _, p := range e.Parts {
			t.plainSecrets(p, found)
		}
	case *hclsyntax.TemplateWrapExpr:
		t.plainSecrets(e.Wrapped, found)
	case *hclsyntax.TemplateJoinExpr:
		if f, ok := e.Tuple.(*hclsyntax.ForExpr); ok {
			t.plainSecrets(f.ValExpr, found)
		}
	case *hclsyntax.ConditionalExpr:
		t.plainSecrets(e.TrueResult, found)
		t.plainSecrets(e.FalseResult, found)
	case *hclsyntax.ParenthesesExpr:
		t.plainSecrets(e.Expression, found)
	case *hclsyntax.ScopeTraversalExpr:
		if e.Traversal.RootName() == "secret" && len(e.Traversal) == 2 {
			found[e.Traversal.SourceRange()] = true
		}
	}
}

// Render renders the template for every node of a fleet and gives each
// rendering to add, in the order of the nodes. Where it cannot be rendered for
// some, the error is a *RenderError that says for which.
func (t *Template) Render(nodes []orchestrator.Node, add func(i int, content []byte) error) error {
	bad := &failures{t: t, total: len(nodes)}
	for i := range nodes {
		content, diags := t.render(&nodes[i])
		if diags.HasErrors() {
			bad.add(&nodes[i], diags)
			continue
		}
		if len(bad.list) > 0 {
			continue
		}
		if err := add(i, content); err != nil {
			return err
		}
	}
	return bad.error()
}

func (t *Template) render(n *orchestrator.Node) ([]byte, hcl.Diagnostics) {
	meta := cty.MapValEmpty(cty.String)
	if len(n.Meta) > 0 {
		m := make(map[string]cty.Value, len(n.Meta))
		for k, v := range n.Meta {
			m[k] = cty.StringVal(v)
		}
		meta = cty.MapVal(m)
	}
	var done loops
	v, diags := t.expr.Value(&hcl.EvalContext{
		Functions: functions,
		Variables: map[string]cty.Value{
			"node":   cty.ObjectVal(map[string]cty.Value{"name": cty.StringVal(n.Name), "meta": meta}),
			"config": t.config, "rollout": t.rollout, "secret": t.secret, loopsName: cty.CapsuleVal(loopsType, &done),
		},
	})
	switch {
	case done.over():
		return nil, hcl.Diagnostics{done.why}
	case diags.HasErrors():
		return nil, diags
	}
	rng := t.expr.Range()
	bad := func(summary, format string, args ...any) hcl.Diagnostics {
		return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(format, args...), Subject: &rng}}
	}
	if !v.IsWhollyKnown() || v.IsNull() {
		return nil, bad("No text", "The template comes to null, and not to a text.")
	}
	s, err := convert.Convert(v, cty.String)
	if err != nil {
		return nil, bad("No text", "The template comes to %s, and not to a text: use jsonencode, or join.", friendly(v))
	}
	out := t.form(s.AsString())
	if len(out) > MaxContent {
		return nil, bad("The content is too large", "The template comes to %d bytes, and %d (%d MiB) is the most that is taken.", len(out), MaxContent, MaxContent>>20)
	}
	return out, nil
}

// form is what was evaluated in the form that content with secrets has in
// Consul; without secrets it is the text.
func (t *Template) form(s string) []byte {
	if len(t.forms) == 0 {
		return []byte(s)
	}
	parts := strings.Split(s, t.mark)
	var out bytes.Buffer
	out.WriteString(secrets.Text(parts[0]))
	for _, p := range parts[1:] {
		name, text, _ := strings.Cut(p, ";")
		out.WriteString(t.forms[name])
		out.WriteString(secrets.Text(text))
	}
	return out.Bytes()
}

// RenderError is a template that cannot be rendered for some nodes. Its text
// has the places in the source.
type RenderError struct {
	Diags hcl.Diagnostics
	files map[string]*hcl.File
}

func (e *RenderError) Error() string {
	var b bytes.Buffer
	w := hcl.NewDiagnosticTextWriter(&b, e.files, 0, false)
	if err := w.WriteDiagnostics(e.Diags); err != nil {
		return e.Diags.Error()
	}
	return strings.TrimPrefix(strings.TrimSpace(b.String()), "Error: ")
}

// Bounds of what is said of failures.
const (
	maxFailures   = 10
	maxNodesNamed = 5
)

// failures gathers what fails on many nodes in the same way.
type failures struct {
	t     *Template
	total int
	list  []*failure
	more  bool
}

type failure struct {
	diag  *hcl.Diagnostic
	meta  string // the metadata key that is missing
	nodes int
	named []string
	last  string
}

func (f *failures) add(n *orchestrator.Node, diags hcl.Diagnostics) {
	for _, d := range diags {
		if d.Severity != hcl.DiagError || d.Subject == nil {
			continue
		}
		meta := missingMeta(d, n)
		i := slices.IndexFunc(f.list, func(o *failure) bool {
			// One word about a key, however often the template wants it.
			return o.meta == meta && (meta != "" || *o.diag.Subject == *d.Subject && o.diag.Summary == d.Summary)
		})
		if i < 0 {
			if len(f.list) == maxFailures {
				f.more = true
				continue
			}
			i = len(f.list)
			f.list = append(f.list, &failure{diag: d, meta: meta})
		}
		o := f.list[i]
		if o.last == n.Name {
			continue
		}
		o.last = n.Name
		if o.nodes++; len(o.named) < maxNodesNamed {
			o.named = append(o.named, n.Name)
		}
	}
}

// missingMeta is the key of node.meta that a diagnostic misses, if it does.
func missingMeta(d *hcl.Diagnostic, n *orchestrator.Node) string {
	e, ok := d.Expression.(*hclsyntax.ScopeTraversalExpr)
	if !ok || len(e.Traversal) < 3 || e.Traversal.RootName() != "node" {
		return ""
	}
	key := ""
	switch k := e.Traversal[2].(type) {
	case hcl.TraverseAttr:
		key = k.Name
	case hcl.TraverseIndex:
		if k.Key.Type() == cty.String && k.Key.IsKnown() && !k.Key.IsNull() {
			key = k.Key.AsString()
		}
	}
	if a, ok := e.Traversal[1].(hcl.TraverseAttr); !ok || a.Name != "meta" {
		return ""
	}
	if _, has := n.Meta[key]; has {
		return ""
	}
	return key
}

func (f *failures) error() error {
	if len(f.list) == 0 {
		return nil
	}
	e := &RenderError{files: map[string]*hcl.File{f.t.path: f.t.file}}
	for _, o := range f.list {
		d := &hcl.Diagnostic{Severity: hcl.DiagError, Summary: o.diag.Summary, Subject: o.diag.Subject, Context: o.diag.Context}
		on := fmt.Sprintf("%d of %s: %s", o.nodes, text.Count(f.total, "node"), strings.Join(o.named, ", "))
		if more := o.nodes - len(o.named); more > 0 {
			on += fmt.Sprintf(" and %d more", more)
		}
		if o.meta != "" {
			d.Summary = "Metadata is missing"
			d.Detail = fmt.Sprintf("There is no metadata %q on %s. Give it to them, or say what those get that have none: lookup(node.meta, %q, \"…\").", o.meta, on, o.meta)
		} else {
			d.Detail = o.diag.Detail + " This is so on " + on + "."
		}
		e.Diags = append(e.Diags, d)
	}
	if f.more {
		e.Diags = append(e.Diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "More errors", Detail: "There are more errors in " + f.t.path + "."})
	}
	return e
}

var _ error = (*RenderError)(nil)

// errBinary is for a template that is no text.
var errBinary = errors.New("a template must be text in UTF-8: leave out \"template\" to deliver the file as it is")
