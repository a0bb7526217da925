package policies

import (
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// maxFilePath is Linux's PATH_MAX without the byte that ends a path.
const maxFilePath = 4095

// file compiles the path of the file whose kernel lock goes with a lock. It
// reads facts of the lock alone: the path must be known before any other fact
// is looked for.
func (d *decoder) file(p *Policy, a *hcl.Attribute, compile *compiler) {
	e := a.Expr.(hclsyntax.Expression)
	v, diags := d.check.check(e, false)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return
	}
	if t := v.Type(); t != cty.String && t != cty.DynamicPseudoType {
		d.fail(e.Range(), "Path required", "This is a %s. A file is named by its path, such as \"/run/lock/${lock.name}.lock\".", t.FriendlyName())
		return
	}
	if begin, ok := literalStart(e); ok && !strings.HasPrefix(begin, "/") {
		d.fail(e.Range(), "Path not absolute", "A path begins with a slash here: whoever judges may have been started anywhere.")
		return
	}
	for _, t := range hclsyntax.Variables(e) {
		if root := t.RootName(); root != "lock" && !isConstRoot(root) {
			d.fail(t.SourceRange(), "Fact not allowed here", "A file's path is made of facts of the lock alone, such as lock.name, and not of %s.", root)
			return
		}
	}
	p.File = d.source(e.Range())
	p.file = compile.compile(e)
}

// literalStart is the text that e surely begins with; ok is false where that
// is not plain to see.
func literalStart(e hclsyntax.Expression) (string, bool) {
	tpl, ok := e.(*hclsyntax.TemplateExpr)
	if !ok || len(tpl.Parts) == 0 {
		return "", false
	}
	lit, ok := tpl.Parts[0].(*hclsyntax.LiteralValueExpr)
	if !ok || lit.Val.Type() != cty.String || lit.Val.IsNull() || !lit.Val.IsKnown() {
		return "", false
	}
	return lit.Val.AsString(), true
}

// unnamedFile warns of facts of a file in a policy that names none.
func (d *decoder) unnamedFile(p *Policy, e *expr) {
	for _, r := range e.reads {
		if r.object == "file" {
			d.warn(e.rng, "No file named", "%s is always null here, because policy %q names no file. Add file = \"/run/lock/${lock.name}.lock\", or wherever the lock's file is.", r.name, p.Name)
			return
		}
	}
}

// testFile is the path that a test's lock has, or what is wrong with it. The
// test's own facts of the lock stand before its name and key.
func (p *Policy) testFile(t *Test) string {
	lock := map[string]Fact{"name": {Value: cty.StringVal(t.Lock.Name)}, "key": {Value: cty.StringVal(t.Lock.Key)}}
	maps.Copy(lock, t.Facts["lock"])
	name, err := p.FilePath(Facts{"lock": lock})
	if err != nil {
		return err.Error()
	}
	return name
}

// ReadsFile reports whether anything of the policy reads a fact of its file.
func (p *Policy) ReadsFile() bool {
	if p == nil || p.file == nil {
		return false
	}
	read := func(refs []*factRef) bool {
		for _, r := range refs {
			if r.object == "file" {
				return true
			}
		}
		return false
	}
	if read(p.reads) {
		return true
	}
	if p.Break == nil {
		return false
	}
	if f := p.Break.Freeze; f != nil && read(f.when.reads) {
		return true
	}
	for _, s := range p.Break.Steps {
		for _, e := range []*expr{s.when, s.argv} {
			if e != nil && read(e.reads) {
				return true
			}
		}
	}
	return false
}

// FilePath returns the path of the file that goes with the lock of these
// facts, which are those of the object lock at least. It is an error if a part
// of it is null or unknown, or if what comes out is no clean absolute path: a
// lock's name may hold anything, and must not lead elsewhere. Without a
// file attribute there is no path, and that is no error.
func (p *Policy) FilePath(f Facts) (string, error) {
	if p == nil || p.file == nil {
		return "", nil
	}
	s := p.file.scope(f)
	v, diags := p.file.value(s.ctx)
	if diags.HasErrors() {
		return "", fmt.Errorf("the path of the lock's file cannot be made: %s", p.file.explain(s, diagText(diags)))
	}
	v, err := convert.Convert(v, cty.String)
	switch {
	case err != nil:
		return "", fmt.Errorf("the path of the lock's file is no text: %w", err)
	case !v.IsKnown():
		return "", fmt.Errorf("the path of the lock's file is not known: %s", p.file.explain(s, ""))
	case v.IsNull():
		return "", fmt.Errorf("the path of the lock's file is null: %s", p.File)
	}
	name := v.AsString()
	switch {
	case !path.IsAbs(name):
		return "", fmt.Errorf("the path of the lock's file is not absolute: %q", clip(name, 100))
	case path.Clean(name) != name:
		return "", fmt.Errorf("the path of the lock's file is not clean, so that it may lead elsewhere: %q", clip(name, 100))
	case strings.ContainsRune(name, 0) || len(name) > maxFilePath:
		return "", fmt.Errorf("no file can have the path that the lock's name makes: %q", clip(name, 100))
	}
	return name, nil
}
