package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	goplugin "github.com/hashicorp/go-plugin"

	"github.com/aim-control/aimlock/plugin"
	pb "github.com/aim-control/aimlock/plugin/proto"
)

// instance is one configuration of a plugin in use. It survives the processes that
// it is configured in.
type instance[T any] struct {
	p     *Plugin
	kind  plugin.Kind
	local json.RawMessage
	make  func(*plugin.Client, context.Context, plugin.Config) (T, error)

	mu sync.Mutex
	// v is an instance of proc.
	proc *process
	v    T
	has  bool
}

// get returns the instance in the running process.
func (i *instance[T]) get(ctx context.Context) (T, *process, error) {
	proc, err := i.p.running(ctx)
	if err != nil {
		return i.v, nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.has && i.proc == proc {
		return i.v, proc, nil
	}
	i.has = false
	info := proc.client.Info()
	cfg, err := i.p.config(info, i.kind, i.local)
	if err != nil {
		return i.v, proc, err
	}
	proc.log.hide(info.Kind(i.kind).Config.Secrets(cfg))
	v, err := i.make(proc.client, ctx, cfg)
	if err != nil {
		return i.v, proc, err
	}
	i.v, i.proc, i.has = v, proc, true
	return v, proc, nil
}

// forget makes the next call configure it anew.
func (i *instance[T]) forget(proc *process) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.proc == proc {
		i.has = false
	}
}

// release ends it in the plugin. The process ends with the host anyway.
func (i *instance[T]) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.has && i.proc.alive() {
		v := i.v
		i.p.h.later(func() { _ = plugin.Release(v) })
	}
	i.has = false
}

type releaser interface{ release() }

// maxInstances of one plugin are kept; each is a different block of a spec.
const maxInstances = 256

// instanceOf finds the instance of a kind and a block, or makes one. It does not
// start the plugin.
func instanceOf[T any](p *Plugin, k plugin.Kind, local json.RawMessage, configure func(*plugin.Client, context.Context, plugin.Config) (T, error)) *instance[T] {
	key := string(k) + " " + string(local)
	p.mu.Lock()
	defer p.mu.Unlock()
	if i, ok := p.instances[key].(*instance[T]); ok {
		return i
	}
	if len(p.instances) >= maxInstances {
		for _, i := range p.instances {
			p.h.later(i.release)
		}
		p.instances = nil
	}
	if p.instances == nil {
		p.instances = map[string]releaser{}
	}
	i := &instance[T]{p: p, kind: k, local: local, make: configure}
	p.instances[key] = i
	return i
}

// use calls a plugin once, bounded by the plugin's time-out and by ctx. again: the
// call has no effects, so that one which a dying process lost is made anew, once.
// The error names the plugin and op.
func use[T, R any](ctx context.Context, i *instance[T], op string, again bool, f func(context.Context, T) (R, error)) (R, error) {
	var none R
	p := i.p
	limit := p.spec.Timeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s (timeout)", limit))
	defer cancel()
	select {
	case p.calls <- struct{}{}:
		defer func() { <-p.calls }()
	case <-ctx.Done():
		return none, p.fail(op, fmt.Errorf("%d calls are under way: %w", maxCalls, context.Cause(ctx)))
	}
	for tries := 0; ; tries++ {
		begun := time.Now()
		v, proc, err := i.get(ctx)
		var out R
		if err == nil {
			out, err = f(ctx, v)
		}
		if err == nil || proc == nil {
			return out, p.fail(op, err)
		}
		if errors.Is(err, plugin.ErrNoInstance) && tries == 0 {
			i.forget(proc)
			continue
		}
		died, err := p.judge(ctx, proc, err)
		if died && again && tries == 0 && proc.since.Before(begun) && ctx.Err() == nil {
			continue
		}
		return none, p.fail(op, err)
	}
}

// judge finds out whether an error is the end of the process, or its silence.
func (p *Plugin) judge(ctx context.Context, proc *process, err error) (died bool, _ error) {
	switch {
	case ctx.Err() != nil:
		if cause := context.Cause(ctx); errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = &lateError{cause}
			p.h.later(func() { p.hung(proc) })
		}
		return false, err
	case errors.Is(err, plugin.ErrUnavailable) || errors.Is(err, context.Canceled):
		// It may have been said by the plugin, or be the connection's end.
		if !p.hung(proc) {
			return false, err
		}
		timer := time.NewTimer(killGrace)
		defer timer.Stop()
		select {
		case <-proc.ended:
			return true, fmt.Errorf("%w: it ended in the middle of the call: %s", plugin.ErrUnavailable, proc.cause)
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return false, err
}

// lateError is context.DeadlineExceeded, and says whose bound it was.
type lateError struct{ cause error }

func (e *lateError) Error() string {
	if errors.Is(e.cause, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return e.cause.Error()
}

func (e *lateError) Unwrap() error { return context.DeadlineExceeded }

// ping asks the process for a sign of life.
func (p *process) ping(ctx context.Context) error {
	c, err := p.gp.Client()
	if err != nil {
		return err
	}
	g, ok := c.(*goplugin.GRPCClient)
	if !ok {
		return errors.New("it does not speak gRPC")
	}
	_, err = pb.NewBaseClient(g.Conn).Info(ctx, &pb.InfoRequest{})
	return err
}
