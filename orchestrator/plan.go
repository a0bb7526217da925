package orchestrator

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"
)

// PlanVersion is the newest version of the plan's encoding. Version 3 has targets and
// the nodes' metadata, version 2 renderings and secrets; a plan is written as the
// oldest that has all of it.
const (
	PlanVersion  = 3
	planRendered = 2
	planPlain    = 1
)

// Bounds of a spec that keep what is persisted within Consul's limits.
const (
	// MaxConfigs is how many configs one rollout may deliver: one transaction
	// holds the guards of all their locks and all orders of one node.
	MaxConfigs = 16
	// MaxStages and MaxGates bound the header.
	MaxStages = 100
	MaxGates  = 100
)

// Plan is a spec applied to one fleet. It is immutable.
type Plan struct {
	// ID names the rollout.
	ID   string
	Spec Spec
	// Nodes in the order in which they get their turn. A node's place here is
	// its index everywhere else.
	Nodes []string
	// Ends is where each stage ends: stage i is Nodes[Ends[i-1]:Ends[i]].
	// Invariant: Ends never falls, and its last is at most len(Nodes). Nodes
	// behind the last end belong to no stage and end as skipped.
	Ends      []int
	CreatedAt time.Time
	// Follows names the finished rollout whose late joiners this one serves.
	Follows string
	// Warnings are what its author should know of the choice, one sentence
	// each. They are not persisted.
	Warnings []string
	// Rendered is what the templates came to, by config; nil where there are
	// none. Nothing is ever rendered again for this plan. See SetRendered.
	Rendered []Rendered
	// Metas is each node's metadata, by node of the plan, where a target is told of
	// it; nil otherwise.
	Metas []map[string]string
	// Unchanged are the nodes that get no order, because they have all of it
	// already. See SetUnchanged.
	Unchanged IndexSet
	// Before are nodes that other follow-ups of the same rollout have served,
	// where this one tells of them in their stead: then Root names the rollout
	// whose late joiners all of them are.
	Before []Served
	Root   string
}

// Served is a node of an earlier follow-up.
type Served struct {
	Node string `json:"n"`
	// Contents are what it was given, by config; nil where all nodes get the same.
	Contents []Rendering `json:"c,omitempty"`
}

// NewPlan decides who is in which stage. The choice depends on the spec and
// on the set of nodes only: neither on the order in which a fleet source lists
// them nor on the time.
//
// It is stable: between two fleets that differ by one node, at most one other
// node crosses the end of each stage; with Spread or Select at most one in
// each direction, and with Order one more for each node named. Errors about one stage are a *StageError.
func NewPlan(id string, spec Spec, fleet []Node, at time.Time, opts ...PlanOption) (*Plan, error) {
	if err := plannable(&spec, fleet); err != nil {
		return nil, err
	}
	d, err := newDealer(&spec, fleet, options(opts).match)
	if err != nil {
		return nil, err
	}
	if err := d.deal(); err != nil {
		return nil, err
	}
	p := &Plan{ID: id, Spec: spec, Nodes: d.names(), Ends: d.ends, CreatedAt: at, Warnings: d.warnings}
	if err := p.keepMeta(fleet); err != nil {
		return nil, err
	}
	return p, nil
}

func plannable(spec *Spec, fleet []Node) error {
	if len(fleet) == 0 {
		return errors.New("the fleet is empty: there is no node to roll out to")
	}
	if n := len(spec.Stages); n == 0 || n > MaxStages {
		return fmt.Errorf("the rollout has %d stages: it must have 1 to %d", n, MaxStages)
	}
	if n := len(spec.Configs); n == 0 || n > MaxConfigs {
		return fmt.Errorf("the rollout has %d configs: it must have 1 to %d", n, MaxConfigs)
	}
	return nil
}

// NewFollowUp plans the late joiners of a finished rollout: its stages are
// done, so they get its revision in the last one.
func NewFollowUp(id, follows string, spec Spec, joiners []Node, at time.Time) (*Plan, error) {
	if err := plannable(&spec, joiners); err != nil {
		return nil, err
	}
	d, err := newDealer(&spec, joiners, nil)
	if err != nil {
		return nil, err
	}
	p := &Plan{ID: id, Spec: spec, Nodes: d.names(), Ends: make([]int, len(spec.Stages)), CreatedAt: at, Follows: follows}
	p.Ends[len(p.Ends)-1] = len(p.Nodes)
	if err := p.keepMeta(joiners); err != nil {
		return nil, err
	}
	return p, nil
}

// Stage returns the nodes of stage i: Nodes[from:to].
func (p *Plan) Stage(i int) (from, to int) {
	if i > 0 {
		from = p.Ends[i-1]
	}
	return from, p.Ends[i]
}

// StageOf returns the stage of a node, and -1 for one behind the last stage.
func (p *Plan) StageOf(node int) int {
	i := sort.SearchInts(p.Ends, node+1)
	if i == len(p.Ends) {
		return -1
	}
	return i
}

// Index maps names to indexes.
func (p *Plan) Index() map[string]int {
	m := make(map[string]int, len(p.Nodes))
	for i, n := range p.Nodes {
		m[n] = i
	}
	return m
}

// planHead is chunk 0 of an encoded plan.
type planHead struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	Spec      Spec      `json:"spec"`
	Ends      []int     `json:"ends"`
	Total     int       `json:"total"`
	Chunks    int       `json:"chunks"`
	SHA256    string    `json:"sha256"`
	CreatedAt time.Time `json:"created_at"`
	Follows   string    `json:"follows,omitempty"`
	// Rendered is the digest of the renderings.
	Rendered string `json:"rendered,omitempty"`
	// Metas is the digest of the nodes' metadata.
	Metas string `json:"metas,omitempty"`
	// Unchanged nodes would be given an order by an aimlock that does not know
	// of them, which does no harm.
	Unchanged IndexSet `json:"unchanged,omitempty"`
	// Before is how many nodes the parts name that were served before.
	Before int    `json:"before,omitempty"`
	Root   string `json:"root,omitempty"`
}

// planPart is every further chunk: names of nodes, then renderings.
type planPart struct {
	Version  int           `json:"version"`
	Nodes    []string      `json:"nodes"`
	Rendered *renderedPart `json:"rendered,omitempty"`
	Before   []Served      `json:"before,omitempty"`
	// Metas are the next nodes' metadata; null for a node without.
	Metas []map[string]string `json:"metas,omitempty"`
}

// Encode returns the plan in chunks of about size bytes (chunk 0, with the
// spec, may be larger). A chunk is written once and never again.
func (p *Plan) Encode(size int) ([][]byte, error) {
	chunks := [][]byte{nil}
	for at := 0; at < len(p.Nodes); {
		var part planPart
		part.Version = p.version()
		for n := 0; at < len(p.Nodes) && (len(part.Nodes) == 0 || n+len(p.Nodes[at])+3 <= size); at++ {
			part.Nodes = append(part.Nodes, p.Nodes[at])
			n += len(p.Nodes[at]) + 3
		}
		b, err := json.Marshal(part)
		if err != nil {
			return nil, fmt.Errorf("plan of %s: %w", p.ID, err)
		}
		chunks = append(chunks, b)
	}
	for _, r := range p.renderedParts(size) {
		b, err := json.Marshal(planPart{Version: p.version(), Rendered: &r})
		if err != nil {
			return nil, fmt.Errorf("plan of %s: %w", p.ID, err)
		}
		chunks = append(chunks, b)
	}
	perServed := 20
	if len(p.Before) > 0 {
		perServed += 90*len(p.Before[0].Contents) + len(p.Before[0].Node)
	}
	for part := range slices.Chunk(p.Before, max(1, size/perServed)) {
		b, err := json.Marshal(planPart{Version: p.version(), Before: part})
		if err != nil {
			return nil, fmt.Errorf("plan of %s: %w", p.ID, err)
		}
		chunks = append(chunks, b)
	}
	for _, part := range p.metaParts(size) {
		b, err := json.Marshal(planPart{Version: p.version(), Metas: part})
		if err != nil {
			return nil, fmt.Errorf("plan of %s: %w", p.ID, err)
		}
		chunks = append(chunks, b)
	}
	metas, err := p.metaDigest()
	if err != nil {
		return nil, fmt.Errorf("plan of %s: %w", p.ID, err)
	}
	head, err := json.Marshal(planHead{
		Version: p.version(), ID: p.ID, Spec: p.Spec, Ends: p.Ends, Total: len(p.Nodes),
		Chunks: len(chunks), SHA256: digest(p.Nodes), CreatedAt: p.CreatedAt, Follows: p.Follows,
		Rendered: p.renderedDigest(), Metas: metas, Unchanged: p.Unchanged, Before: len(p.Before), Root: p.Root,
	})
	if err != nil {
		return nil, fmt.Errorf("plan of %s: %w", p.ID, err)
	}
	chunks[0] = head
	return chunks, nil
}

// ErrPlanDamaged is returned for a plan whose chunks do not fit together.
var ErrPlanDamaged = errors.New("the rollout's plan in Consul is incomplete or was changed")

// DecodePlan is the inverse of Encode. It returns an error that wraps
// ErrPlanDamaged unless every chunk is there and whole.
func DecodePlan(chunks [][]byte) (*Plan, error) {
	if len(chunks) == 0 {
		return nil, fmt.Errorf("%w: chunk 0 is missing", ErrPlanDamaged)
	}
	var head planHead
	if err := json.Unmarshal(chunks[0], &head); err != nil {
		return nil, fmt.Errorf("%w: chunk 0: %w", ErrPlanDamaged, err)
	}
	if head.Version > PlanVersion {
		return nil, fmt.Errorf("the rollout's plan was written by a newer aimlock (version %d, this one reads up to %d): upgrade this aimlock", head.Version, PlanVersion)
	}
	if head.Chunks != len(chunks) {
		return nil, fmt.Errorf("%w: it has %d chunks of %d", ErrPlanDamaged, len(chunks), head.Chunks)
	}
	p := &Plan{ID: head.ID, Spec: head.Spec, Ends: head.Ends, CreatedAt: head.CreatedAt, Follows: head.Follows, Unchanged: head.Unchanged, Root: head.Root}
	for i, c := range chunks[1:] {
		var part planPart
		if err := json.Unmarshal(c, &part); err != nil {
			return nil, fmt.Errorf("%w: chunk %d: %w", ErrPlanDamaged, i+1, err)
		}
		p.Nodes, p.Before, p.Metas = append(p.Nodes, part.Nodes...), append(p.Before, part.Before...), append(p.Metas, part.Metas...)
		if part.Rendered != nil {
			if err := p.addRendered(part.Rendered); err != nil {
				return nil, fmt.Errorf("%w: chunk %d: %w", ErrPlanDamaged, i+1, err)
			}
		}
	}
	switch {
	case len(p.Nodes) != head.Total || digest(p.Nodes) != head.SHA256:
		return nil, fmt.Errorf("%w: its nodes are not those that were planned", ErrPlanDamaged)
	case len(p.Spec.Stages) == 0 || len(p.Ends) != len(p.Spec.Stages) || !slices.IsSorted(p.Ends) ||
		p.Ends[0] < 0 || p.Ends[len(p.Ends)-1] > len(p.Nodes):
		return nil, fmt.Errorf("%w: its stages do not fit its nodes", ErrPlanDamaged)
	case len(p.Before) != head.Before:
		return nil, fmt.Errorf("%w: it names %d nodes served before of %d", ErrPlanDamaged, len(p.Before), head.Before)
	case len(p.Spec.Configs) == 0 || len(p.Spec.Configs) > MaxConfigs:
		return nil, fmt.Errorf("%w: it has %d configs", ErrPlanDamaged, len(p.Spec.Configs))
	}
	if err := p.checkUnchanged(); err != nil {
		return nil, err
	}
	if err := errors.Join(p.checkRendered(head.Rendered), p.checkMeta(head.Metas)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlanDamaged, err)
	}
	return p, nil
}

func digest(names []string) string {
	h := sha256.New()
	var buf bytes.Buffer
	for _, n := range names {
		buf.WriteString(n)
		buf.WriteByte('\n')
		if buf.Len() > 1<<15 {
			_, _ = h.Write(buf.Bytes())
			buf.Reset()
		}
	}
	_, _ = h.Write(buf.Bytes())
	return hex.EncodeToString(h.Sum(nil))
}

// countNodes says so many nodes in words.
func countNodes(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}
