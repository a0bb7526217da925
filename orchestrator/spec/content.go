package spec

import (
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/secrets"
	"github.com/aim-control/aimlock/orchestrator"
)

// Bounds of a config's secrets: the entries of a node for all of its configs
// must fit into one transaction.
const (
	maxSecrets   = 32
	maxSecretKey = 512
	maxEnvName   = 128
)

// maxTemplate bounds a template's source: it is evaluated for each node.
const maxTemplate = 1 << 20

// secretMode is the mode of a file with secrets whose config names none.
const secretMode = "0600"

// templated reads what makes a config's content differ between nodes: whether
// its source is a template, and its secrets. src is the source's content, nil
// where it could not be read.
func (d *decoder) templated(cfg *orchestrator.Config, c *hcl.BodyContent, src []byte) {
	on, ta := false, c.Attributes["template"]
	if ta != nil {
		on, _ = d.boolean(ta)
	}
	cfg.Template = on
	seen := map[string]*hcl.Block{}
	for i, sb := range c.Blocks.OfType("secret") {
		if i == maxSecrets {
			d.fail(sb.DefRange, "Too many secrets", "A config has %d secrets at most.", maxSecrets)
		}
		if !d.unique(seen, sb) {
			continue
		}
		cfg.Secrets = append(cfg.Secrets, d.secret(sb))
	}
	if len(cfg.Secrets) > 0 {
		d.secretMode(cfg, c)
		if !on {
			d.fail(c.Blocks.OfType("secret")[0].DefRange, "Secret without a template", "The content of config %q is delivered as it is, so that no secret gets into it: set template = true and write ${secret.%s} into %s.",
				cfg.Name, cfg.Secrets[0].Name, cfg.Source)
		}
	}
	if !on || src == nil {
		return
	}
	delete(d.file.Contents, cfg.Name)
	switch {
	case len(src) > maxTemplate:
		d.bad(c.Attributes["source"], "The template is too large", "%s has %d bytes, and a template may have %d.", cfg.Source, len(src), maxTemplate)
		return
	case !utf8.Valid(src):
		d.bad(c.Attributes["source"], "The template is no text", "%s", sentence(errBinary))
		return
	}
	t, diags := newTemplate(cfg.Source, d.file.Spec.Name, cfg.Name, src, cfg.Secrets)
	d.file.Files[cfg.Source] = &hcl.File{Bytes: src}
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return
	}
	d.file.Templates[cfg.Name] = t
	d.unusedSecrets(t, seen)
}

func (d *decoder) unusedSecrets(t *Template, seen map[string]*hcl.Block) {
	used := map[string]bool{}
	for _, tr := range t.expr.Variables() {
		if tr.RootName() == "secret" && len(tr) > 1 {
			used[attrName(tr[1])] = true
		}
	}
	for _, n := range labels(seen) {
		if !used[n] {
			d.add(hcl.DiagWarning, seen[n].LabelRanges[0], seen[n].DefRange, "Secret is not used", "%s has no ${secret.%s}: it is read on the nodes and goes nowhere.", t.path, n)
		}
	}
}

func attrName(step hcl.Traverser) string {
	if a, ok := step.(hcl.TraverseAttr); ok {
		return a.Name
	}
	return ""
}

func (d *decoder) secret(b *hcl.Block) orchestrator.Secret {
	s := orchestrator.Secret{Name: b.Labels[0]}
	if err := secrets.CheckName(s.Name); err != nil {
		d.add(hcl.DiagError, b.LabelRanges[0], b.DefRange, "Invalid name", "%s", sentence(err))
	}
	c := d.content(b.Body, secretSchema)
	ka, ea := c.Attributes["consul_key"], c.Attributes["env"]
	switch {
	case ka != nil && ea != nil:
		d.bad(ea, "Two sources", "Secret %q has both consul_key and env: it is read from one place.", s.Name)
	case ka == nil && ea == nil:
		d.fail(b.DefRange, "Secret without a source", "Secret %q needs consul_key = \"…\" or env = \"…\": where a node reads it.", s.Name)
	}
	if v, a, ok := d.text(c, "consul_key"); ok {
		switch s.ConsulKey = v; {
		case len(v) > maxSecretKey:
			d.bad(a, "The key is too long", "\"consul_key\" may have %d bytes.", maxSecretKey)
		case strings.HasPrefix(v, "/"):
			d.bad(a, "Invalid key", "Keys in Consul do not begin with a slash: write %q.", strings.TrimLeft(v, "/"))
		case strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f }):
			d.bad(a, "Invalid key", "\"consul_key\" holds a control character.")
		}
	}
	if v, a, ok := d.text(c, "env"); ok {
		if s.Env = v; len(v) > maxEnvName || strings.ContainsAny(v, "= \x00") {
			d.bad(a, "Invalid variable", "\"env\" must be the name of an environment variable, such as \"DB_PASSWORD\".")
		}
	}
	if v, a, ok := d.text(c, "version"); ok {
		if s.Version = v; secrets.CheckVersion(v) != nil {
			d.bad(a, "Invalid version", "%s", sentence(secrets.CheckVersion(v)))
		}
	}
	return s
}

// secretMode keeps a file with secrets to its owner, unless the spec says
// otherwise.
func (d *decoder) secretMode(cfg *orchestrator.Config, c *hcl.BodyContent) {
	a := c.Attributes["mode"]
	switch {
	case a == nil:
		cfg.Mode = secretMode
	case modePattern.MatchString(cfg.Mode) && !strings.HasSuffix(cfg.Mode, "0"):
		d.add(hcl.DiagWarning, a.Expr.Range(), a.Range, "Everybody may read the secrets", "With mode %q every user of a node may read the file of config %q, which holds secrets: \"0640\" or %q keep it to a group or to its owner.", cfg.Mode, cfg.Name, secretMode)
	}
}

func (d *decoder) boolean(a *hcl.Attribute) (val, ok bool) {
	v, ok := d.value(a)
	if !ok {
		return false, false
	}
	if v.Type().FriendlyName() != "bool" {
		d.bad(a, "Wrong type", "%q must be true or false, and this is %s.", a.Name, friendly(v))
		return false, false
	}
	return v.True(), true
}
