package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"github.com/aim-control/aimlock/internal/hclsafe"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
)

// fleetFile reads nodes from JSON or HCL.
func (d *decoder) fleetFile(a *hcl.Attribute, name string, src []byte) []orchestrator.Node {
	fd := &fleetDecoder{decoder: d, path: name, seen: map[string]hcl.Range{}}
	d.file.Files[name] = &hcl.File{Bytes: src}
	if isJSON(name, src) {
		fd.json(src)
	} else {
		fd.hcl(src)
	}
	if len(fd.nodes) == 0 && fd.errors == 0 && a != nil {
		d.bad(a, "The fleet is empty", "%s names no node.", name)
	}
	return fd.nodes
}

// isJSON looks at the file itself: HCL does not begin with a bracket.
func isJSON(name string, src []byte) bool {
	s := bytes.TrimLeft(src, " \t\r\n\ufeff")
	return strings.HasSuffix(name, ".json") || len(s) > 0 && (s[0] == '[' || s[0] == '{')
}

// fleetDecoder reads one fleet file.
type fleetDecoder struct {
	*decoder
	path   string
	nodes  []orchestrator.Node
	seen   map[string]hcl.Range
	errors int

	src  []byte
	pos  hcl.Pos // how far lines are counted
	over bool
}

// maxFleetHCL bounds a fleet in HCL, in bytes. To parse it takes some hundred bytes
// for each of its words; JSON is read node by node.
const maxFleetHCL = 16 << 20

// maxFleetErrors bounds what is said about one fleet file.
const maxFleetErrors = 25

func (d *fleetDecoder) fail(rng hcl.Range, summary, format string, args ...any) {
	if d.errors++; d.errors <= maxFleetErrors {
		d.decoder.fail(rng, summary, format, args...)
	} else if !d.over {
		d.over = true
		d.decoder.fail(rng, "More errors", "There are more errors in %s.", d.path)
	}
}

func (d *fleetDecoder) node(rng hcl.Range, n orchestrator.Node) {
	if err := keys.CheckName("node", n.Name); err != nil {
		d.fail(rng, "Invalid node name", "%s", sentence(err))
		return
	}
	if first, twice := d.seen[n.Name]; twice {
		d.fail(rng, "Duplicate node", "Node %q is there already at %s.", n.Name, first)
		return
	}
	d.seen[n.Name] = rng
	d.nodes = append(d.nodes, n)
}

func (d *fleetDecoder) hcl(src []byte) {
	if len(src) > maxFleetHCL {
		d.fail(hcl.Range{Filename: d.path, Start: hcl.InitialPos, End: hcl.InitialPos}, "Fleet too large for HCL",
			"%s has %d bytes, and a fleet in HCL may have %d MiB. Write it in JSON, which may have %d MiB.", d.path, len(src), maxFleetHCL>>20, MaxFleetFile>>20)
		return
	}
	file, diags := hclsafe.ParseConfig(src, d.path)
	if diags.HasErrors() {
		d.errors += len(diags)
		d.diags = append(d.diags, diags...)
		return
	}
	d.file.Files[d.path] = file
	before := len(d.diags)
	c := d.content(file.Body, fleetFileSchema)
	for _, b := range c.Blocks {
		n := orchestrator.Node{Name: b.Labels[0]}
		nc := d.content(b.Body, nodeSchema)
		if a := nc.Attributes["meta"]; a != nil {
			if v, ok := d.value(a); ok {
				n.Meta = d.meta(a, v)
			}
		}
		d.node(b.LabelRanges[0], n)
	}
	d.errors += len(d.diags) - before
}

func (d *fleetDecoder) meta(a *hcl.Attribute, v cty.Value) map[string]string {
	m, err := convert.Convert(v, cty.Map(cty.String))
	if err != nil {
		d.bad(a, "Wrong type", "\"meta\" must be a map of strings, such as { zone = \"a\" }.")
		return nil
	}
	out := map[string]string{}
	for it := m.ElementIterator(); it.Next(); {
		k, e := it.Element()
		if e.IsNull() {
			d.bad(a, "Value is missing", "\"meta\" has null for %q: leave it out.", k.AsString())
			continue
		}
		out[k.AsString()] = e.AsString()
	}
	return out
}

// json reads [{"node": "n1", "meta": {"zone": "a"}}, …], with the place of each
// node.
func (d *fleetDecoder) json(src []byte) {
	d.src, d.pos = src, hcl.InitialPos
	dec := json.NewDecoder(bytes.NewReader(src))
	tok, err := dec.Token()
	if err != nil || tok != json.Delim('[') {
		d.jsonError(0, err, "it must be a list of nodes, [{\"node\": \"n1\", \"meta\": {\"zone\": \"a\"}}]")
		return
	}
	for dec.More() {
		from := int(dec.InputOffset())
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			d.jsonError(from, err, "")
			return
		}
		end := int(dec.InputOffset())
		d.jsonNode(d.span(end-len(raw), end), raw)
	}
	if _, err := dec.Token(); err != nil {
		d.jsonError(int(dec.InputOffset()), err, "the list does not end")
		return
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		d.jsonError(int(dec.InputOffset()), nil, "there is something behind the list of nodes")
	}
}

func (d *fleetDecoder) jsonNode(rng hcl.Range, raw []byte) {
	var n struct {
		Node *string           `json:"node"`
		Meta map[string]string `json:"meta"`
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&n); err != nil {
		var te *json.UnmarshalTypeError
		switch {
		case errors.As(err, &te) && te.Field != "":
			d.fail(rng, "Wrong type", "%q must be a string, and this is a %s.", te.Field, te.Value)
		case errors.As(err, &te):
			d.fail(rng, "Wrong type", "A node must be an object, {\"node\": \"n1\"}, and this is a %s.", te.Value)
		default:
			what := strings.TrimPrefix(err.Error(), "json: ")
			hint := ""
			if field, ok := strings.CutPrefix(what, "unknown field "); ok {
				hint = meant(strings.Trim(field, `"`), []string{"node", "meta"})
			}
			d.fail(rng, "Invalid node", "This node is not understood: %s.%s", what, hint)
		}
		return
	}
	if n.Node == nil {
		d.fail(rng, "Node without a name", "Each node needs its name: {\"node\": \"n1\"}.")
		return
	}
	d.node(rng, orchestrator.Node{Name: *n.Node, Meta: n.Meta})
}

func (d *fleetDecoder) jsonError(at int, err error, otherwise string) {
	what := otherwise
	var se *json.SyntaxError
	switch {
	case errors.As(err, &se):
		at, what = max(at, int(se.Offset)-1), se.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		at, what = len(d.src), "it ends too early"
	case err != nil && otherwise == "":
		what = err.Error()
	}
	at = min(max(at, 0), len(d.src))
	d.fail(d.span(at, min(at+1, len(d.src))), "Invalid fleet", "%s is no fleet in JSON: %s.", d.path, what)
}

// span is the range of src[from:to], cut at the end of its first line. Its
// calls come in the order of from, so lines are counted once.
func (d *fleetDecoder) span(from, to int) hcl.Range {
	for d.pos.Byte < from {
		if d.src[d.pos.Byte] == '\n' {
			d.pos.Line++
			d.pos.Column = 0
		}
		d.pos.Column++
		d.pos.Byte++
	}
	start := d.pos
	if i := bytes.IndexByte(d.src[min(from, len(d.src)):to], '\n'); i >= 0 {
		to = from + i
	}
	end := start
	end.Byte, end.Column = to, start.Column+to-from
	return hcl.Range{Filename: d.path, Start: start, End: end}
}

// ReadFleet reads a fleet file that no spec names, in JSON or HCL.
func ReadFleet(path string) ([]orchestrator.Node, error) {
	src, err := readFile(path, MaxFleetFile)
	if err != nil {
		return nil, err
	}
	d := &decoder{file: &File{Path: path, Files: map[string]*hcl.File{}}}
	nodes := d.fleetFile(nil, path, src)
	switch {
	case d.diags.HasErrors():
		return nil, d.diags
	case len(nodes) == 0:
		return nil, fmt.Errorf("%s names no node", path)
	}
	return nodes, nil
}
