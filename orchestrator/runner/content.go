package runner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// Template is a config's source that is rendered for each node; orchestrator/spec
// has the one for HCL.
type Template interface {
	// Render gives add the content for each node, in their order, or nothing
	// but an error that says what is wrong for which nodes. The same node, spec
	// and source come to the same content at any time.
	Render(nodes []orchestrator.Node, add func(i int, content []byte) error) error
}

// maxRendered bounds what all templates of one rollout come to, each distinct
// content counted once: the orchestrator has it in memory while it plans, and
// every server of Consul for as long as the revisions are kept.
const maxRendered = 128 << 20

// contents are a rollout's rendered contents, by config and SHA-256.
type contents map[string]map[string][]byte

// render fixes in a new plan what each node gets of the configs that have
// templates. fleet has at least the plan's nodes.
func (in *Input) render(plan *orchestrator.Plan, fleet []orchestrator.Node) (contents, error) {
	if len(in.Templates) == 0 {
		return nil, nil
	}
	index := plan.Index()
	nodes := make([]orchestrator.Node, len(plan.Nodes))
	for _, n := range fleet {
		if i, ok := index[n.Name]; ok {
			nodes[i] = n
		}
	}
	out, total := contents{}, 0
	for ci, c := range plan.Spec.Configs {
		t := in.Templates[c.Name]
		if t == nil {
			continue
		}
		rendered, distinct := make([]orchestrator.Rendering, len(nodes)), map[string][]byte{}
		err := t.Render(nodes, func(i int, content []byte) error {
			sum := sha256Hex(content)
			rendered[i] = orchestrator.Rendering{SHA256: sum, Size: int64(len(content))}
			if _, known := distinct[sum]; known {
				return nil
			}
			distinct[sum] = content
			if total += len(content); total > maxRendered {
				return fmt.Errorf("config %s: after %d of %s the distinct renderings come to more than %d MiB, which is the most that a rollout takes: make the template smaller, or let fewer of its parts differ between nodes", c.Name, i+1, text.Count(len(nodes), "node"), maxRendered>>20)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if err := plan.SetRendered(ci, rendered); err != nil {
			return nil, err
		}
		out[c.Name] = distinct
	}
	return out, nil
}

// newPlan plans a rollout of a fleet and renders its templates.
func (in *Input) newPlan(j *job, id string, fleet []orchestrator.Node) (err error) {
	if j.plan, err = newPlan(id, in.Spec, fleet, j.now); err == nil {
		j.contents, err = in.render(j.plan, fleet)
	}
	return err
}

// newFollowUp is newPlan for late joiners.
func (in *Input) newFollowUp(j *job, id, follows string, joiners []orchestrator.Node) (err error) {
	if j.plan, err = orchestrator.NewFollowUp(id, follows, in.Spec, joiners, j.now); err == nil {
		j.contents, err = in.render(j.plan, joiners)
	}
	return err
}

// rendersAnew counts the nodes that the chain's rollouts gave another content
// than the plan would: their metadata has changed since. The chain is the
// newest first.
func (r *Runner) rendersAnew(ctx context.Context, plan *orchestrator.Plan, chain []*orchestrator.Header) (int, error) {
	if plan.Rendered == nil {
		return 0, nil
	}
	plans, err := r.plans(ctx, chain)
	if err != nil {
		return 0, err
	}
	had := map[string]func(config int) orchestrator.Rendering{}
	for _, p := range slices.Backward(plans) {
		for i := range p.Before {
			if s := &p.Before[i]; len(s.Contents) == len(plan.Spec.Configs) {
				had[s.Node] = func(ci int) orchestrator.Rendering { return s.Contents[ci] }
			}
		}
		for i, n := range p.Nodes {
			had[n] = func(ci int) orchestrator.Rendering { return p.Content(i, ci) }
		}
	}
	moved := 0
	for i, n := range plan.Nodes {
		given, ok := had[n]
		for ci := range plan.Spec.Configs {
			if ok && given(ci) != plan.Content(i, ci) {
				moved++
				break
			}
		}
	}
	return moved, nil
}

// writeContents puts the contents of a rollout into Consul, where they are not
// there yet. A revision's chunks never change, so those there are left. Of a
// resumed rollout nothing is rendered: its contents were written before the
// header that resumes it.
func (r *Runner) writeContents(ctx context.Context, h Hold, in *Input, j *job) error {
	b := newBatcher(ctx, h)
	for ci, c := range j.plan.Spec.Configs {
		list := j.plan.Contents(ci)
		folder := r.keys.Config(c.Name, c.SHA256)
		if len(list) > 1 {
			folder = r.keys.ConfigFolder(c.Name)
		}
		names, err := r.consul.Keys(ctx, folder, "")
		if err != nil {
			return err
		}
		have := make(map[string]bool, len(names))
		for _, k := range names {
			have[k] = true
		}
		for _, rev := range list {
			if err := r.writeContent(b, have, c, rev, in, j); err != nil {
				_ = b.flush()
				return err
			}
		}
	}
	if err := b.flush(); err != nil {
		return fmt.Errorf("write the configs' contents: %w", err)
	}
	return nil
}

func (r *Runner) writeContent(b *batcher, have map[string]bool, c orchestrator.Config, rev orchestrator.Rendering, in *Input, j *job) error {
	content, known := j.contents[c.Name][rev.SHA256]
	if !c.Template {
		content, known = in.Contents[c.Name]
	}
	for n := range chunks(rev.Size) {
		key := r.keys.ConfigChunk(c.Name, rev.SHA256, n)
		if have[key] {
			continue
		}
		if !known {
			return fmt.Errorf("rollout %s: the content of revision %s of config %s is not in Consul any more (%s), and a resumed rollout renders nothing anew: `%s`, and start it again", j.plan.ID, rev.Revision(), c.Name, key, r.typed("abort", j.plan.ID))
		}
		b.add(consulkv.Set(key, content[n*chunkSize:min((n+1)*chunkSize, len(content))]))
	}
	return nil
}

// Rendering is one content of a config for a look at it.
type Rendering struct {
	orchestrator.Rendering
	// Nodes is how many nodes get it, and Named the first of them.
	Nodes int
	Named []string
	// Content is as it is in Consul: a secret is a placeholder in it. It is
	// nil where it cannot be had.
	Content []byte
	// Have is how many of these nodes have it already, and Now what most of the
	// others have; nil where that is not known.
	Have int
	Now  []byte
}

// maxNamed bounds Rendering.Named.
const maxNamed = 5

// renderings are what the templates of a plan come to, those of most nodes
// first.
func (r *Runner) renderings(ctx context.Context, plan *orchestrator.Plan, known contents) (map[string][]Rendering, error) {
	out := map[string][]Rendering{}
	for ci, c := range plan.Spec.Configs {
		if !c.Template {
			continue
		}
		list := plan.Contents(ci)
		views, index := make([]Rendering, len(list)), make(map[string]int, len(list))
		for i, rev := range list {
			views[i] = Rendering{Rendering: rev, Content: known[c.Name][rev.SHA256]}
			index[rev.SHA256] = i
			if views[i].Content == nil && i < maxReadBack {
				content, err := r.content(ctx, c.Name, rev.SHA256)
				if err != nil {
					return nil, err
				}
				views[i].Content = content
			}
		}
		for i, n := range plan.Nodes {
			v := &views[index[plan.Content(i, ci).SHA256]]
			if v.Nodes++; len(v.Named) < maxNamed {
				v.Named = append(v.Named, n)
			}
		}
		out[c.Name] = views
	}
	return out, nil
}

// nowOf fills in what the nodes of each rendering have now. sums are the
// nodes' SHA-256s.
func (r *Runner) nowOf(ctx context.Context, plan *orchestrator.Plan, ci int, views []Rendering, sums []string) error {
	index := make(map[string]int, len(views))
	for i, v := range views {
		index[v.SHA256] = i
	}
	have := make([]map[string]int, min(len(views), maxReadBack))
	for node, sum := range sums {
		want := plan.Content(node, ci).SHA256
		i, ok := index[want]
		if !ok || sum == "" {
			continue
		}
		if sum == want {
			views[i].Have++
		} else if i < len(have) {
			if have[i] == nil {
				have[i] = map[string]int{}
			}
			have[i][sum]++
		}
	}
	read := map[string][]byte{}
	for i, count := range have {
		most := ""
		for sum, n := range count {
			if most == "" || n > count[most] || n == count[most] && sum < most {
				most = sum
			}
		}
		switch {
		case most == "" && views[i].Have > 0:
			views[i].Now = views[i].Content
			continue
		case most == "":
			continue
		}
		if _, done := read[most]; !done {
			content, err := r.content(ctx, plan.Spec.Configs[ci].Name, most)
			if err != nil {
				return err
			}
			read[most] = content
		}
		views[i].Now = read[most]
	}
	return nil
}

// maxReadBack bounds how many contents of a resumed rollout are read to be
// looked at.
const maxReadBack = 20

// content reads a revision's content, or nil where it is not there.
func (r *Runner) content(ctx context.Context, config, sum string) ([]byte, error) {
	parts, err := r.consul.List(ctx, r.keys.Config(config, sum))
	if err != nil || len(parts) == 0 {
		return nil, err
	}
	all := []byte{}
	for _, kv := range parts {
		all = append(all, kv.Value...)
	}
	return all, nil
}

// templates names the configs that have one, for messages.
func templates(spec *orchestrator.Spec) string {
	var out []string
	for _, c := range spec.Configs {
		if c.Template {
			out = append(out, c.Name)
		}
	}
	return strings.Join(out, ", ")
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
