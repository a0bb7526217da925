package orchestrator

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// MaxMeta bounds the metadata of one node, names and values together in bytes, in a
// rollout through a target: every order of the node has it.
const MaxMeta = 4 << 10

// HasTarget reports whether a target writes one of the configs.
func (s *Spec) HasTarget() bool {
	return slices.ContainsFunc(s.Configs, func(c Config) bool { return c.Target != nil })
}

// keepMeta fixes the metadata of the nodes in a plan with a target: where a target
// wrote is where it has to restore, whatever the fleet's source says by then.
func (p *Plan) keepMeta(fleet []Node) error {
	if !p.Spec.HasTarget() {
		return nil
	}
	index := p.Index()
	metas, some := make([]map[string]string, len(p.Nodes)), false
	for _, n := range fleet {
		i, planned := index[n.Name]
		if !planned || len(n.Meta) == 0 {
			continue
		}
		size := 0
		for k, v := range n.Meta {
			size += len(k) + len(v)
		}
		if size > MaxMeta {
			return fmt.Errorf("node %s has %d bytes of metadata, and a rollout through a target takes %d: let the fleet's source tell less of it", n.Name, size, MaxMeta)
		}
		metas[i], some = n.Meta, true
	}
	if some {
		p.Metas = metas
	}
	return nil
}

// Meta is what a target is told of a node; nil: nothing.
func (p *Plan) Meta(node int) map[string]string {
	if p.Metas == nil {
		return nil
	}
	return p.Metas[node]
}

// metaParts are the nodes' metadata in parts of about size bytes.
func (p *Plan) metaParts(size int) [][]map[string]string {
	var out [][]map[string]string
	n := size
	for _, m := range p.Metas {
		more := 5
		for k, v := range m {
			more += len(k) + len(v) + 6
		}
		if n+more > size {
			out, n = append(out, nil), 0
		}
		last := len(out) - 1
		out[last] = append(out[last], m)
		n += more
	}
	return out
}

// metaDigest is empty where no node has metadata.
func (p *Plan) metaDigest() (string, error) {
	if p.Metas == nil {
		return "", nil
	}
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, m := range p.Metas {
		if err := enc.Encode(m); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// checkMeta refuses metadata that does not fit the plan. sum is its digest when it
// was written.
func (p *Plan) checkMeta(sum string) error {
	switch got, err := p.metaDigest(); {
	case err != nil:
		return err
	case got != sum || p.Metas != nil && len(p.Metas) != len(p.Nodes):
		return errors.New("its nodes' metadata is not what was planned")
	}
	return nil
}
