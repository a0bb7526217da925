package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/schema"
)

// config makes the configuration of one instance: that of the plugin's own block,
// and over it what the place of use says, argument by argument.
func (p *Plugin) config(info *plugin.Info, k plugin.Kind, local json.RawMessage) (plugin.Config, error) {
	ki := info.Kind(k)
	if ki == nil {
		return nil, fmt.Errorf("it is no %s, it is %s: %w", k, kinds(info), plugin.ErrUnsupported)
	}
	values, err := p.base(info, ki)
	if err != nil {
		return nil, err
	}
	own, err := fromJSON(&ki.Config, local)
	if err != nil {
		return nil, err
	}
	maps.Copy(values, own)
	return plugin.NewConfig(values)
}

// base is what the plugin's own block configures of a kind.
func (p *Plugin) base(info *plugin.Info, ki *plugin.KindInfo) (map[string]any, error) {
	values := map[string]any{}
	if p.spec.Config == nil {
		return values, nil
	}
	b, diags := p.readBase(info, ki)
	if diags.HasErrors() {
		return nil, diags
	}
	if err := json.Unmarshal(b.Config, &values); err != nil {
		return nil, err
	}
	return values, nil
}

// Diagnose checks the plugin's own block against what it declares.
func (p *Plugin) Diagnose(info *plugin.Info) hcl.Diagnostics {
	if p.spec.Config == nil {
		return nil
	}
	var all hcl.Diagnostics
	for n := range info.Kinds {
		_, diags := p.readBase(info, &info.Kinds[n])
		for _, d := range diags {
			if !slices.ContainsFunc(all, func(o *hcl.Diagnostic) bool { return o.Detail == d.Detail }) {
				all = append(all, d)
			}
		}
	}
	return all
}

// readBase reads the block for one kind. Arguments of the plugin's other kinds may
// stand there too, and those that a kind requires may be left to the place of use.
func (p *Plugin) readBase(info *plugin.Info, ki *plugin.KindInfo) (*schema.Block, hcl.Diagnostics) {
	var others hcl.BodySchema
	for n := range info.Kinds {
		if other := &info.Kinds[n]; other.Kind != ki.Kind {
			addNames(&others, &other.Config, &ki.Config)
		}
	}
	s := ki.Config
	if ki.Kind != plugin.KindEvidence {
		s = optional(s, nil)
	}
	ctx, diags := p.evalContext()
	if diags.HasErrors() {
		return nil, diags
	}
	return schema.Decode(beside{p.spec.Config, &others}, &s, ctx)
}

func addNames(to *hcl.BodySchema, s, but *plugin.Schema) {
	for _, a := range s.Attributes {
		if but.Attribute(a.Name) == nil && but.Block(a.Name) == nil && !slices.ContainsFunc(to.Attributes, func(h hcl.AttributeSchema) bool { return h.Name == a.Name }) {
			to.Attributes = append(to.Attributes, hcl.AttributeSchema{Name: a.Name})
		}
	}
	for _, b := range s.Blocks {
		if but.Attribute(b.Name) == nil && but.Block(b.Name) == nil && !slices.ContainsFunc(to.Blocks, func(h hcl.BlockHeaderSchema) bool { return h.Type == b.Name }) {
			to.Blocks = append(to.Blocks, hcl.BlockHeaderSchema{Type: b.Name})
		}
	}
}

// beside is a body in which what others may read is no error.
type beside struct {
	hcl.Body
	others *hcl.BodySchema
}

// Content implements hcl.Body.
func (b beside) Content(s *hcl.BodySchema) (*hcl.BodyContent, hcl.Diagnostics) {
	content, rest, diags := b.Body.PartialContent(s)
	_, more := rest.Content(b.others)
	return content, append(diags, more...)
}

// optional is a schema of which nothing has to be there that has says is, or, where
// it is nil, nothing at all.
func optional(s plugin.Schema, has map[string]any) plugin.Schema {
	given := func(name string) bool {
		_, ok := has[name]
		return ok || has == nil
	}
	s.Attributes, s.Blocks = slices.Clone(s.Attributes), slices.Clone(s.Blocks)
	for i := range s.Attributes {
		if given(s.Attributes[i].Name) {
			s.Attributes[i].Required = false
		}
	}
	for i := range s.Blocks {
		if given(s.Blocks[i].Name) {
			s.Blocks[i].Min = 0
		}
	}
	return s
}

// maxSecretFile bounds what file() reads.
const maxSecretFile = 64 << 10

// evalContext is what a block in aimlock.hcl may use, so that no secret has to stand
// in it: env.NAME, and file("PATH") without the last newline. A variable that is not
// set is an error.
func (p *Plugin) evalContext() (*hcl.EvalContext, hcl.Diagnostics) {
	vars := map[string]cty.Value{}
	var diags hcl.Diagnostics
	if body, ok := p.spec.Config.(*hclsyntax.Body); ok {
		for _, t := range variables(body) {
			if t.RootName() != "env" || len(t) < 2 {
				continue
			}
			step, ok := t[1].(hcl.TraverseAttr)
			if !ok {
				continue
			}
			v, ok := p.h.cfg.LookupEnv(step.Name)
			if !ok {
				diags = append(diags, &hcl.Diagnostic{
					Severity: hcl.DiagError, Summary: "Variable is not set", Subject: t.SourceRange().Ptr(),
					Detail: fmt.Sprintf("Plugin %s is configured by the environment variable %s, which is not set where aimlock runs.", p.spec.Name, step.Name),
				})
			}
			vars[step.Name] = cty.StringVal(v)
		}
	}
	dir := filepath.Dir(p.spec.Range.Filename)
	read := function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			path := args[0].AsString()
			if !filepath.IsAbs(path) {
				path = filepath.Join(dir, path)
			}
			raw, err := os.ReadFile(path)
			switch {
			case err != nil:
				return cty.NilVal, err
			case len(raw) > maxSecretFile:
				return cty.NilVal, fmt.Errorf("%q is larger than %d KiB", path, maxSecretFile>>10)
			}
			return cty.StringVal(strings.TrimRight(string(raw), "\r\n")), nil
		},
	})
	return &hcl.EvalContext{
		Variables: map[string]cty.Value{"env": cty.ObjectVal(vars)},
		Functions: map[string]function.Function{"file": read},
	}, diags
}

// variables are those that a body and its blocks read.
func variables(body *hclsyntax.Body) []hcl.Traversal {
	var out []hcl.Traversal
	for _, a := range body.Attributes {
		out = append(out, hclsyntax.Variables(a.Expr)...)
	}
	for _, b := range body.Blocks {
		out = append(out, variables(b.Body)...)
	}
	return out
}

// fromJSON is what the place of use says. It was kept as JSON without a schema, so
// that a text may stand for a number or a duration, as in HCL.
func fromJSON(s *plugin.Schema, raw json.RawMessage) (map[string]any, error) {
	if len(raw) == 0 {
		return map[string]any{}, nil
	}
	var in map[string]json.RawMessage
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, plugin.Invalid("", "it is no JSON object")
	}
	var problems plugin.Problems
	out := object(s, in, "", &problems)
	return out, problems.Err()
}

func object(s *plugin.Schema, in map[string]json.RawMessage, at string, problems *plugin.Problems) map[string]any {
	out := make(map[string]any, len(in))
	for _, name := range slices.Sorted(maps.Keys(in)) {
		if a := s.Attribute(name); a != nil {
			if v, err := value(in[name], a.Type); err == nil {
				out[name] = v
			} else if a.Secret {
				problems.Add(at+name, "a %s is needed", a.Type)
			} else {
				problems.Add(at+name, "%v", err)
			}
			continue
		}
		b := s.Block(name)
		var list []map[string]json.RawMessage
		switch {
		case b == nil:
			problems.Add(strings.TrimSuffix(at, "."), "there is no argument %q", text.Clip(text.Printable(name), 80))
			continue
		case json.Unmarshal(in[name], &list) != nil:
			problems.Add(at+name, "it is a block")
			continue
		}
		blocks := make([]any, len(list))
		for i := range list {
			blocks[i] = object(&b.Config, list[i], fmt.Sprintf("%s%s[%d].", at, name, i), problems)
		}
		out[name] = blocks
	}
	return out
}

func value(raw json.RawMessage, t plugin.Type) (any, error) {
	typ, err := ctyjson.ImpliedType(raw)
	if err != nil {
		return nil, err
	}
	v, err := ctyjson.Unmarshal(raw, typ)
	if err != nil {
		return nil, err
	}
	return schema.FromCty(v, t)
}

// CheckBlock checks a block of a spec or a policy against what the plugin declares,
// and by the plugin itself, with the places of what is wrong. ctx has what its
// expressions may use. kept says where the block will be kept: a secret has no place
// there. The error is why it could not be checked.
func (h *Host) CheckBlock(ctx context.Context, k plugin.Kind, name string, body hcl.Body, in *hcl.EvalContext, kept string) (hcl.Diagnostics, error) {
	p, err := h.Plugin(name)
	if err != nil {
		return nil, err
	}
	info, err := p.Info(ctx)
	if err != nil {
		return nil, err
	}
	at := body.MissingItemRange()
	ki := info.Kind(k)
	if ki == nil {
		return hcl.Diagnostics{{
			Severity: hcl.DiagError, Summary: "Wrong plugin", Subject: &at,
			Detail: fmt.Sprintf("Plugin %s is no %s, it is %s.", name, k, kinds(info)),
		}}, nil
	}
	base, err := p.base(info, ki)
	if err != nil {
		return nil, p.fail("", err)
	}
	s := optional(ki.Config, base)
	b, diags := schema.Decode(body, &s, in)
	if diags.HasErrors() {
		return diags, nil
	}
	if path := secretIn(&ki.Config, b.Config); path != "" {
		// A range would be shown with its line, which holds the secret.
		return append(diags, &hcl.Diagnostic{
			Severity: hcl.DiagError, Summary: "A secret does not belong here",
			Detail: fmt.Sprintf("%s: %q is a secret, and %s. Put it into the config block of plugin %q in the config file, as env.NAME or file(\"PATH\").", b.Range(path), path, kept, name),
		}), nil
	}
	own := map[string]any{}
	if err := json.Unmarshal(b.Config, &own); err != nil {
		return diags, p.fail("", err)
	}
	maps.Copy(base, own)
	cfg, err := plugin.NewConfig(base)
	if err != nil {
		return diags, p.fail("", err)
	}
	err = p.validate(ctx, k, cfg)
	var problems plugin.Problems
	if errors.As(err, &problems) {
		return append(diags, b.Diagnose(problems)...), nil
	}
	return diags, err
}

// secretIn finds the first secret that a block gives; "" is none.
func secretIn(s *plugin.Schema, c plugin.Config) string {
	var in map[string]json.RawMessage
	if json.Unmarshal(c, &in) != nil {
		return ""
	}
	for _, a := range s.Attributes {
		if v, ok := in[a.Name]; ok && a.Secret && string(v) != "null" {
			return a.Name
		}
	}
	for i := range s.Blocks {
		b := &s.Blocks[i]
		var list []json.RawMessage
		raw := in[b.Name]
		if len(raw) > 0 && json.Unmarshal(raw, &list) != nil {
			list = []json.RawMessage{raw}
		}
		for n, e := range list {
			if path := secretIn(&b.Config, plugin.Config(e)); path != "" {
				if b.Max != 1 {
					return fmt.Sprintf("%s[%d].%s", b.Name, n, path)
				}
				return b.Name + "." + path
			}
		}
	}
	return ""
}
