package runner

import (
	"context"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// looked is what one decision has read of the whole fleet. None of it is read twice: of a
// large fleet it is nearly all that a tick which has nothing to do exchanges with Consul.
type looked struct {
	r *Runner
	// answers are those in actual/, by config; a config that is not in it was not read.
	answers map[string]api.KVPairs
	listed  []*api.CatalogService
	isRead  bool // listed
}

func (r *Runner) look() *looked { return &looked{r: r, answers: map[string]api.KVPairs{}} }

// answersOf are the answers of all nodes to the orders of a config.
func (l *looked) answersOf(ctx context.Context, config string) (api.KVPairs, error) {
	list, read := l.answers[config]
	if read {
		return list, nil
	}
	list, err := l.r.scan(ctx, readAnswers, l.r.keys.ActualAll(config), every)
	if err == nil {
		l.answers[config] = list
	}
	return list, err
}

// agents are those that are registered.
func (l *looked) agents(ctx context.Context) (list []*api.CatalogService, err error) {
	if !l.isRead {
		l.listed, err = l.r.agents(ctx)
		l.isRead = err == nil
	}
	return l.listed, err
}

// agents lists the agents that are registered.
func (r *Runner) agents(ctx context.Context) ([]*api.CatalogService, error) {
	return consulkv.Retry(ctx, r.consul.ForScan(), "list the agents", func(ctx context.Context) ([]*api.CatalogService, error) {
		l, _, err := r.consul.Services(ctx, AgentService, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return l, err
	})
}
