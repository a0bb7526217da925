package plugin

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// guardedBreaker does each request once.
type guardedBreaker struct {
	guarded
	inner Breaker

	mu    sync.Mutex
	calls map[string]*breakCall
	order []string // of calls, the oldest first
}

// breakCall is one request. done is closed when the rest is set.
type breakCall struct {
	done chan struct{}
	res  *BreakResult
	err  error
}

// maxBreaks bounds the answers that are remembered.
const maxBreaks = 1024

// Break does a request that was not done yet. One that failed is forgotten, so that
// it can be tried again.
func (g *guardedBreaker) Break(ctx context.Context, q *BreakRequest) (*BreakResult, error) {
	if q.DryRun || q.ID == "" {
		return g.do(ctx, q)
	}
	g.mu.Lock()
	c, there := g.calls[q.ID]
	if !there {
		c = &breakCall{done: make(chan struct{})}
		g.calls[q.ID] = c
		g.order = append(g.order, q.ID)
		g.forget()
	}
	g.mu.Unlock()
	if there {
		select {
		case <-c.done:
			return c.res, c.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	c.res, c.err = g.do(ctx, q)
	close(c.done)
	if c.err != nil || c.res.Outcome == Failed {
		g.mu.Lock()
		delete(g.calls, q.ID)
		g.order = slices.DeleteFunc(g.order, func(id string) bool { return id == q.ID })
		g.mu.Unlock()
	}
	return c.res, c.err
}

// forget drops the oldest answers. A call that goes on is not dropped.
func (g *guardedBreaker) forget() {
	for i := 0; len(g.order) > maxBreaks && i < len(g.order); {
		select {
		case <-g.calls[g.order[i]].done:
		default:
			i++
			continue
		}
		delete(g.calls, g.order[i])
		g.order = append(g.order[:i], g.order[i+1:]...)
	}
}

func (g *guardedBreaker) do(ctx context.Context, q *BreakRequest) (res *BreakResult, err error) {
	err = g.r.guard(ctx, "break", func(ctx context.Context) error {
		res, err = g.inner.Break(ctx, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	return checkResult(res)
}

// checkResult makes failed of what is no outcome.
func checkResult(res *BreakResult) (*BreakResult, error) {
	if res == nil {
		return nil, errors.New("the plugin gave no answer")
	}
	out := *res
	if out.Outcome != Done && out.Outcome != NotApplicable {
		out.Outcome = Failed
	}
	return &out, nil
}
