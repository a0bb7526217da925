package locksmith

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// check is a service of this process with a TTL check, and what passes it every
// PassEvery. Sessions are bound to it: it says that this process lives and can
// reach its agent, whatever locks it holds.
//
// So one check may serve many sessions (Config.Reuse), each of which is as fresh
// as ever. What holds then:
//
//   - Consul counts the TTL from the last pass that it got, whoever was bound by
//     then; the lease of every session reckons with the start of the last pass
//     that is known to have arrived. A session that joins late has a shorter
//     lease until the next pass, and none if the check's time is short.
//   - A check whose time is over is over for good, also if its late pass would
//     still be taken: it is not passed again, no session joins it, and those
//     that did are dead in this process. The next session has a new check, with
//     a new id.
//   - A session that was let go and cannot be destroyed would be kept alive by
//     the check until its own TTL ends. Such a check takes no more sessions.
type check struct {
	c      *Client
	id     string
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// ended is closed when the service is out of Consul, or was tried to be.
	ended chan struct{}

	mu sync.Mutex
	// passed is the start of the last good pass.
	passed instant
	output string
	// users are the sessions that are bound to it, retired is that there will be
	// no more of them.
	users   int
	retired bool
	idle    *time.Timer
}

// idleFor is how long a check that may be used again stays without a session.
const idleFor = 30 * time.Second

// joinCheck returns the check to bind a new session to; leaveCheck undoes it.
func (c *Client) joinCheck(ctx context.Context, output string, meta map[string]string) (*check, error) {
	if !c.reuse {
		return c.newCheck(ctx, output, meta)
	}
	// One at a time makes a check, and the others use it.
	select {
	case c.checking <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-c.checking }()
	c.mu.Lock()
	k := c.check
	c.mu.Unlock()
	if k != nil && k.join(output) {
		return k, nil
	}
	// It stands for several holds, so its meta names none.
	k, err := c.newCheck(ctx, output, nil)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.check = k
	c.mu.Unlock()
	return k, nil
}

// join adds a session, unless the check is not good for one any more: two passes
// must still be possible before its time is over.
func (k *check) join(output string) bool {
	left := k.left()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.retired || left-LeaseMargin < 2*PassEvery-time.Second {
		k.retired = true
		return false
	}
	if k.idle != nil {
		k.idle.Stop()
		k.idle = nil
	}
	k.users++
	k.output = output
	return true
}

// leaveCheck takes a session off its check. The last one of a check that is of no
// more use takes the service out of Consul, and the error is about that.
func (c *Client) leaveCheck(ctx context.Context, k *check, retire bool) error {
	k.mu.Lock()
	k.users--
	k.retired = k.retired || retire || !c.reuse
	last := k.users == 0
	if last && !k.retired {
		k.idle = time.AfterFunc(idleFor, func() {
			ictx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			k.endIdle(ictx)
		})
	}
	ends := last && k.retired
	k.mu.Unlock()
	if !ends {
		return nil
	}
	return k.end(ctx)
}

// endIdle ends a check that no session uses.
func (k *check) endIdle(ctx context.Context) {
	k.mu.Lock()
	ends := k.users == 0 && !k.retired
	if ends {
		k.retired = true
	}
	if k.idle != nil {
		k.idle.Stop()
		k.idle = nil
	}
	k.mu.Unlock()
	if ends {
		_ = k.end(ctx) // it ends by itself
	}
}

// newCheck registers a service and begins to pass its check.
func (c *Client) newCheck(ctx context.Context, output string, meta map[string]string) (*check, error) {
	k := &check{c: c, id: HolderService + "-" + NewNonce(ctx), output: output, users: 1, ended: make(chan struct{})}
	if err := k.register(ctx, meta); err != nil {
		if ctx.Err() != nil || consulkv.Ambiguous(err) {
			// It may stand.
			dctx, cancel := detached(ctx, time.Second)
			defer cancel()
			_ = k.deregister(dctx)
		}
		return nil, err
	}
	kctx, cancel := context.WithCancel(outliving(ctx))
	k.cancel = cancel
	k.wg.Go(func() { c.keep(kctx, PassEvery, k.id, k.over, k.pass) })
	return k, nil
}

func (k *check) register(ctx context.Context, meta map[string]string) error {
	start := k.c.now()
	_, err := consulkv.Retry(ctx, k.c.consul, "register service "+k.id, func(ctx context.Context) (struct{}, error) {
		start = k.c.now()
		return struct{}{}, k.c.consul.API().Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
			ID:   k.id,
			Name: HolderService,
			Meta: meta,
			Check: &api.AgentServiceCheck{
				CheckID: k.id,
				Name:    "holder of a lock of aimlock",
				TTL:     CheckTTL.String(),
				Status:  api.HealthPassing,
				// The least that Consul takes; its reaper runs every 30 s.
				DeregisterCriticalServiceAfter: "1m",
			},
		}, api.ServiceRegisterOpts{}.WithContext(ctx))
	})
	k.passed = start
	return err
}

func (k *check) pass(ctx context.Context) error {
	k.mu.Lock()
	output := k.output
	k.mu.Unlock()
	start := k.c.now()
	err := k.c.consul.API().Agent().UpdateTTLOpts(k.id, output, api.HealthPassing, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return k.c.consul.Classify("pass check "+k.id, err)
	}
	// Over is over: Consul may have ended the sessions meanwhile.
	if k.over() != nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if start.mono.After(k.passed.mono) {
		k.passed = start
	}
	return nil
}

// left is what is left of the check's TTL.
func (k *check) left() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return CheckTTL - k.c.since(k.passed)
}

// over is an error when the lease of those who are bound to the check is over on
// its account.
func (k *check) over() error {
	if k.left() <= LeaseMargin {
		return errLeaseOver
	}
	return nil
}

func (k *check) say(output string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.output = output
}

// end stops the passing and takes the service out of Consul.
func (k *check) end(ctx context.Context) error {
	defer close(k.ended)
	k.cancel()
	k.wg.Wait()
	return k.deregister(ctx)
}

func (k *check) deregister(ctx context.Context) error {
	err := k.c.consul.API().Agent().ServiceDeregisterOpts(k.id, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		k.c.log.Debug("deregister service", "service", k.id, "error", err)
	}
	return err
}

// keep calls f every period until ctx ends or dead says so: a process that was
// stopped for too long sends nothing when it wakes. A try that failed is made
// again soon, and each has a bound well under the lease.
func (c *Client) keep(ctx context.Context, period time.Duration, what string, dead func() error, f func(context.Context) error) {
	wait := period
	for sleepAs(ctx, "keep "+what, wait) == nil && dead() == nil {
		tctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := f(tctx)
		cancel()
		wait = period
		if err != nil && ctx.Err() == nil {
			c.log.Debug("keeping a session alive", "what", what, "error", err)
			wait = min(period, 500*time.Millisecond)
		}
	}
}

// Close waits for the ends that were put off, a few seconds at most, and takes out
// of Consul what a client with Config.Reuse keeps there. Holds are to be released
// before.
func (c *Client) Close(ctx context.Context) error {
	if c.later == nil {
		return nil
	}
	_ = c.later.Wait() // what could not be ended ends by itself
	c.mu.Lock()
	k := c.check
	c.mu.Unlock()
	if k == nil {
		return nil
	}
	k.mu.Lock()
	users := k.users
	k.mu.Unlock()
	if users > 0 {
		return fmt.Errorf("close the client: %d locks are still held", users)
	}
	k.endIdle(ctx)
	<-k.ended
	return nil
}
