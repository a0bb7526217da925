package orchestrator

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// Rendering is one content that a config's template comes to.
type Rendering struct {
	// SHA256 of the content in hex, and its size in bytes.
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// Revision names the content: the first 12 hex digits of SHA256.
func (r Rendering) Revision() string { return r.SHA256[:min(12, len(r.SHA256))] }

// Rendered is what the template of one config came to when the rollout was
// planned. The zero value is of a config without a template: every node gets
// the same.
type Rendered struct {
	// Contents are the distinct ones, those that most nodes have first.
	Contents []Rendering
	// Of has, for each node of the plan, the index of its content. nil: all
	// nodes have the first.
	Of []int32
}

// SetRendered says what each node gets of a config, by node of the plan. It
// is part of making a plan: it must be done before the plan is used.
//
// The config's own revision in the plan becomes the one that most nodes have.
func (p *Plan) SetRendered(config int, nodes []Rendering) error {
	if len(nodes) != len(p.Nodes) {
		return fmt.Errorf("%d nodes are rendered, and the plan has %d", len(nodes), len(p.Nodes))
	}
	count, index := map[Rendering]int{}, map[Rendering]int32{}
	for _, r := range nodes {
		count[r]++
	}
	out := Rendered{Contents: make([]Rendering, 0, len(count))}
	for r := range count {
		out.Contents = append(out.Contents, r)
	}
	slices.SortFunc(out.Contents, func(a, b Rendering) int {
		switch {
		case count[a] != count[b]:
			return count[b] - count[a]
		case a.SHA256 < b.SHA256:
			return -1
		}
		return 1
	})
	for i, r := range out.Contents {
		index[r] = int32(i)
	}
	if len(out.Contents) > 1 {
		out.Of = make([]int32, len(nodes))
		for i, r := range nodes {
			out.Of[i] = index[r]
		}
	}
	if p.Rendered == nil {
		p.Rendered = make([]Rendered, len(p.Spec.Configs))
	}
	p.Rendered[config] = out
	// The spec may be shared with other plans.
	p.Spec.Configs = slices.Clone(p.Spec.Configs)
	c, first := &p.Spec.Configs[config], out.Contents[0]
	c.SHA256, c.Revision, c.Size, c.Renderings = first.SHA256, first.Revision(), first.Size, len(out.Contents)
	return nil
}

// Content is what a node gets of a config.
func (p *Plan) Content(node, config int) Rendering {
	if config < len(p.Rendered) && len(p.Rendered[config].Contents) > 0 {
		r := &p.Rendered[config]
		if r.Of == nil {
			return r.Contents[0]
		}
		return r.Contents[r.Of[node]]
	}
	c := &p.Spec.Configs[config]
	return Rendering{SHA256: c.SHA256, Size: c.Size}
}

// Contents are all distinct contents of a config.
func (p *Plan) Contents(config int) []Rendering {
	if config < len(p.Rendered) && len(p.Rendered[config].Contents) > 0 {
		return p.Rendered[config].Contents
	}
	return []Rendering{p.Content(0, config)}
}

// version is that of a plan's encoding: one with renderings or a target must not be
// taken for one without by an aimlock that does not know them.
func (p *Plan) version() int {
	switch {
	case p.Spec.HasTarget():
		return PlanVersion
	case p.Rendered != nil || slices.ContainsFunc(p.Spec.Configs, func(c Config) bool { return len(c.Secrets) > 0 }):
		return planRendered
	}
	return planPlain
}

// renderedPart is what a chunk of a plan holds of one config's renderings:
// contents, or which of them the next nodes have.
type renderedPart struct {
	Config   int         `json:"config"`
	Contents []Rendering `json:"contents,omitempty"`
	Of       []int32     `json:"of,omitempty"`
}

// renderedParts are the renderings in parts of about size bytes.
func (p *Plan) renderedParts(size int) []renderedPart {
	const perContent, perNode = 95, 7
	var out []renderedPart
	for ci, r := range p.Rendered {
		for part := range slices.Chunk(r.Contents, max(1, size/perContent)) {
			out = append(out, renderedPart{Config: ci, Contents: part})
		}
		for part := range slices.Chunk(r.Of, max(1, size/perNode)) {
			out = append(out, renderedPart{Config: ci, Of: part})
		}
	}
	return out
}

func (p *Plan) addRendered(part *renderedPart) error {
	if part.Config < 0 || part.Config >= len(p.Spec.Configs) {
		return errors.New("it renders a config that is not there")
	}
	if p.Rendered == nil {
		p.Rendered = make([]Rendered, len(p.Spec.Configs))
	}
	r := &p.Rendered[part.Config]
	r.Contents, r.Of = append(r.Contents, part.Contents...), append(r.Of, part.Of...)
	return nil
}

// checkRendered refuses renderings that do not fit the plan. sum is their
// digest when they were written.
func (p *Plan) checkRendered(sum string) error {
	if p.renderedDigest() != sum {
		return errors.New("its renderings are not those that were planned")
	}
	for i, r := range p.Rendered {
		if want := p.Spec.Configs[i].Renderings; len(r.Contents) != want {
			return fmt.Errorf("config %s has %d renderings of %d", p.Spec.Configs[i].Name, len(r.Contents), want)
		}
		if r.Of != nil && len(r.Of) != len(p.Nodes) || r.Of == nil && len(r.Contents) > 1 {
			return fmt.Errorf("the renderings of config %s do not fit its nodes", p.Spec.Configs[i].Name)
		}
		for _, x := range r.Of {
			if x < 0 || int(x) >= len(r.Contents) {
				return fmt.Errorf("config %s names a rendering that is not there", p.Spec.Configs[i].Name)
			}
		}
	}
	return nil
}

// renderedDigest is empty where nothing is rendered.
func (p *Plan) renderedDigest() string {
	if p.Rendered == nil {
		return ""
	}
	h := sha256.New()
	var buf []byte
	for i, r := range p.Rendered {
		buf = strconv.AppendInt(append(buf, '#'), int64(i), 10)
		for _, c := range r.Contents {
			buf = strconv.AppendInt(append(append(buf, ' '), c.SHA256...), c.Size, 10)
		}
		for _, x := range r.Of {
			buf = strconv.AppendInt(append(buf, ','), int64(x), 10)
			if len(buf) > 1<<15 {
				_, _ = h.Write(buf)
				buf = buf[:0]
			}
		}
	}
	_, _ = h.Write(buf)
	return hex.EncodeToString(h.Sum(nil))
}
