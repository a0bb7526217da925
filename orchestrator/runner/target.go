package runner

import "context"

// fencedTarget tells whether a target refuses older orders itself. Then nobody who
// comes after has to wait for what may still be at work behind an agent, and the
// orders say so, for agents to hold their own plugin to it. A target that cannot be
// asked is not.
func (r *Runner) fencedTarget(ctx context.Context, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fenced, known := r.fenced[name]; known {
		return fenced
	}
	fenced := false
	if r.asks != nil {
		var err error
		if fenced, err = r.asks(ctx, name); err != nil {
			fenced = false
			r.log.Warn("whether a target is fenced is not known: whoever comes after this rollout waits, unless it ends cleanly", "target", name, "error", err)
		}
	}
	if r.fenced == nil {
		r.fenced = map[string]bool{}
	}
	r.fenced[name] = fenced
	return fenced
}
