package policies

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Outline tells what a policy says by hashes: two policies of the same hash
// judge and break alike. Layout and comments do not count, the variables and
// local values that are named do.
type Outline struct {
	Name, Hash string
	// Parts are the arguments of the policy and its blocks, such as "locks",
	// "hot stalled" and "break", in the order of the file.
	Parts []OutlinePart
}

// OutlinePart is one part of a policy.
type OutlinePart struct{ Name, Hash string }

// Outline outlines every policy, in the order in which they are tried.
func (s *Set) Outline() []Outline {
	out := make([]Outline, 0, len(s.Policies))
	for _, p := range s.Policies {
		out = append(out, s.outline(p))
	}
	return out
}

func (s *Set) outline(p *Policy) Outline {
	o := Outline{Name: p.Name}
	src := []byte(p.Source)
	file, diags := hclsyntax.ParseConfig(src, "", hcl.Pos{Line: 1, Column: 1})
	all := sha256.New()
	part := func(name string, r hcl.Range) {
		sum := s.partHash(r.SliceBytes(src))
		o.Parts = append(o.Parts, OutlinePart{Name: name, Hash: sum})
		item(all, name)
		item(all, sum)
	}
	if body, ok := bodyOf(file); ok && !diags.HasErrors() {
		type found struct {
			name string
			r    hcl.Range
		}
		var parts []found
		for name, a := range body.Attributes {
			parts = append(parts, found{name, a.SrcRange})
		}
		for _, b := range body.Blocks {
			parts = append(parts, found{strings.Join(append([]string{b.Type}, b.Labels...), " "), hcl.RangeBetween(b.TypeRange, b.CloseBraceRange)})
		}
		slices.SortFunc(parts, func(a, b found) int { return cmp.Compare(a.r.Start.Byte, b.r.Start.Byte) })
		for _, f := range parts {
			part(f.name, f.r)
		}
	} else {
		item(all, p.Source) // it was parsed before: cannot happen
	}
	o.Hash = hex.EncodeToString(all.Sum(nil))
	return o
}

// bodyOf is the body of the one block of a policy's source.
func bodyOf(file *hcl.File) (*hclsyntax.Body, bool) {
	if file == nil {
		return nil, false
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok || len(body.Blocks) != 1 {
		return nil, false
	}
	return body.Blocks[0].Body, true
}

func (s *Set) partHash(src []byte) string {
	h := sha256.New()
	tokens, _ := hclsyntax.LexConfig(src, "", hcl.Pos{Line: 1, Column: 1})
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenEOF, hclsyntax.TokenComment, hclsyntax.TokenNewline:
			continue
		}
		item(h, string(t.Bytes))
	}
	text := string(src)
	for _, name := range sortedKeys(s.Values) {
		if strings.Contains(text, name) {
			item(h, name)
			item(h, string(ValueJSON(s.Values[name])))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func item(h io.Writer, s string) { _, _ = fmt.Fprintf(h, "%d:%s\n", len(s), s) }
