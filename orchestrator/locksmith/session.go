package locksmith

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// session is a Consul session of this process and what keeps it alive: a TTL
// check of a service of its own, passed every PassEvery, and renewals. It
// serves one acquisition.
type session struct {
	c    *Client
	id   string
	ttl  time.Duration
	node string
	// service and check are the same id; empty where no local agent takes
	// checks and the session's TTL alone serves.
	service string
	meta    map[string]string // of the service

	mu sync.Mutex
	// passed and renewed are the starts of the last good pass and renewal:
	// the server counts from some moment after them.
	passed, renewed instant
	output          string
	gone            error

	// died is closed, with gone set, when Consul says that the session is
	// gone or the lease is over. life ends with it: what is being sent under
	// the lease is given up.
	died   chan struct{}
	life   context.Context //nolint:containedctx // the life of the lease is a context, by design
	end    context.CancelFunc
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// instant is a moment on two clocks: the monotonic one, and the one that also
// goes on while the machine is suspended.
type instant struct {
	mono time.Time
	boot float64
}

func (c *Client) now() instant { return instant{time.Now(), c.boot()} }

// since is how long ago t was, by the clock that says more.
func (c *Client) since(t instant) time.Duration {
	return max(time.Since(t.mono), seconds(c.boot()-t.boot))
}

// openSession registers the service, makes the session bound to it, and keeps
// both alive until close is called. nonce makes the service's id unique, and meta
// goes with it.
func (c *Client) openSession(ctx context.Context, nonce string, ttl, lockDelay time.Duration, name string, meta map[string]string) (*session, error) {
	s := &session{c: c, ttl: ttl, meta: meta, died: make(chan struct{}), output: name}
	kctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.life, s.end = context.WithCancel(kctx)
	// Until there is a session, no renewal bounds the lease.
	s.renewed = c.now()
	s.service = HolderService + "-" + nonce
	if err := s.register(ctx); err != nil {
		if !agentless(err) {
			s.cancel()
			return nil, err
		}
		c.log.Warn("the local agent takes no checks; the session's TTL alone serves", "error", err)
		s.service = ""
	}
	had := s.service
	if had != "" {
		// From now on, since making the session may take its time.
		s.wg.Go(func() { s.keep(kctx, PassEvery, s.pass) })
	}
	if err := s.create(ctx, lockDelay, name); err != nil {
		s.cancel()
		s.wg.Wait()
		s.service = had
		cctx, cancel := detached(ctx, 3*time.Second)
		defer cancel()
		s.deregister(cctx)
		return nil, err
	}
	s.wg.Go(func() { s.keep(kctx, ttl/3, s.renew) })
	s.wg.Go(func() { s.guard(kctx) })
	return s, nil
}

// agentless tells an agent that takes no registrations (a bare server behind a
// proxy, a token without service:write) from one that cannot be reached.
func agentless(err error) bool {
	switch consulkv.KindOf(err) {
	case consulkv.Denied, consulkv.BadRequest:
		return true
	}
	return false
}

func (s *session) register(ctx context.Context) error {
	start := s.c.now()
	_, err := consulkv.Retry(ctx, s.c.consul, "register service "+s.service, func(ctx context.Context) (struct{}, error) {
		start = s.c.now()
		return struct{}{}, s.c.consul.API().Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
			ID:   s.service,
			Name: HolderService,
			Meta: s.meta,
			Check: &api.AgentServiceCheck{
				CheckID: s.service,
				Name:    "holder of a lock of aimlock",
				TTL:     CheckTTL.String(),
				Status:  api.HealthPassing,
				// The least that Consul takes; its reaper runs every 30 s.
				DeregisterCriticalServiceAfter: "1m",
			},
		}, api.ServiceRegisterOpts{}.WithContext(ctx))
	})
	s.passed = start
	return err
}

// sessionPatience bounds the wait for the agent to tell the servers of the
// check that it has just registered.
const sessionPatience = 5 * time.Second

// create makes the session. A check is bound only once the servers know it:
// "Missing check" is tried again within sessionPatience.
func (s *session) create(ctx context.Context, lockDelay time.Duration, name string) error {
	if lockDelay <= 0 {
		lockDelay = fencedLockDelay
	}
	entry := &api.SessionEntry{
		Name:       name,
		TTL:        s.ttl.String(),
		LockDelay:  lockDelay,
		Behavior:   api.SessionBehaviorRelease,
		NodeChecks: []string{"serfHealth"},
	}
	if s.service != "" {
		entry.ServiceChecks = []api.ServiceCheck{{ID: s.service}}
	}
	deadline, delay := time.Now().Add(sessionPatience), 5*time.Millisecond
	for {
		id, start, err := s.tryCreate(ctx, entry)
		if err == nil {
			s.mu.Lock()
			s.id, s.renewed = id, start
			s.mu.Unlock()
			return nil
		}
		if !strings.Contains(err.Error(), "Missing check") || ctx.Err() != nil {
			return err
		}
		if time.Now().After(deadline) {
			// Neither the service's check nor the node's is to be had through
			// this agent.
			if s.service == "" && len(entry.NodeChecks) == 0 {
				return err
			}
			s.c.log.Warn("Consul does not take the holder's checks; the session's TTL alone serves", "error", err)
			s.deregister(ctx)
			s.mu.Lock()
			s.service = ""
			s.mu.Unlock()
			entry.ServiceChecks, entry.NodeChecks = nil, nil
			deadline = time.Now().Add(sessionPatience)
			continue
		}
		if err := sleep(ctx, delay); err != nil {
			return err
		}
		delay = min(2*delay, 250*time.Millisecond)
	}
}

// tryCreate also returns when the try that succeeded began.
func (s *session) tryCreate(ctx context.Context, entry *api.SessionEntry) (string, instant, error) {
	// A session whose answer was lost lives until its TTL ends and holds
	// nothing, so making one is safe to repeat.
	start := s.c.now()
	id, err := consulkv.Retry(ctx, s.c.consul, "make a session", func(ctx context.Context) (string, error) {
		start = s.c.now()
		w := (&api.WriteOptions{}).WithContext(ctx)
		create := s.c.consul.API().Session().Create
		if len(entry.NodeChecks) == 0 {
			create = s.c.consul.API().Session().CreateNoChecks
		}
		id, _, err := create(entry, w)
		if err != nil && strings.Contains(err.Error(), "Missing check") {
			// Not for Retry: the caller waits for the agent's sync.
			return "", &consulkv.Error{Kind: consulkv.BadRequest, Op: "make a session", Addr: s.c.consul.Addr(), Err: err, Tries: 1}
		}
		return id, err
	})
	return id, start, err
}

// keep calls f every period until ctx ends or the lease is over: a process that
// was stopped for too long sends nothing when it wakes. A try that failed is
// made again soon, and each has a bound well under the lease.
func (s *session) keep(ctx context.Context, period time.Duration, f func(context.Context) error) {
	wait := period
	for sleep(ctx, wait) == nil && s.dead() == nil {
		tctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := f(tctx)
		cancel()
		wait = period
		if err != nil && ctx.Err() == nil {
			s.c.log.Debug("keeping the session alive", "session", s.id, "error", err)
			wait = min(period, 500*time.Millisecond)
		}
	}
}

func (s *session) pass(ctx context.Context) error {
	s.mu.Lock()
	output, service := s.output, s.service
	s.mu.Unlock()
	if service == "" {
		return nil
	}
	start := s.c.now()
	err := s.c.consul.API().Agent().UpdateTTLOpts(service, output, api.HealthPassing, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return s.c.consul.Classify("pass check "+service, err)
	}
	s.extend(&s.passed, start)
	return nil
}

// extend moves one side of the lease, unless the lease is over by now: over is
// over, since Consul may have ended the session and given the lock away, also
// while this very answer was on its way.
func (s *session) extend(what *instant, start instant) {
	if s.dead() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if start.mono.After(what.mono) {
		*what = start
	}
}

var errLeaseOver = errors.New("the lease is over: this process was stopped or cut off for too long")

func (s *session) renew(ctx context.Context) error {
	start := s.c.now()
	entry, _, err := s.c.consul.API().Session().Renew(s.id, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return s.c.consul.Classify("renew session "+s.id, err)
	}
	if entry == nil {
		s.die(errors.New("Consul ended the session"))
		return nil
	}
	s.extend(&s.renewed, start)
	return nil
}

// leaseLeft is for how long work may still go on: until just before Consul may
// end the session for lack of a pass or of a renewal.
func (s *session) leaseLeft() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := s.ttl - s.c.since(s.renewed)
	if s.service != "" {
		left = min(left, CheckTTL-s.c.since(s.passed))
	}
	return left - LeaseMargin
}

// leaseEnd is when work must have stopped.
func (s *session) leaseEnd() time.Time { return time.Now().Add(s.leaseLeft()) }

// guard ends the session's life in this process when the lease is over.
func (s *session) guard(ctx context.Context) {
	for {
		left := s.leaseLeft()
		if left <= 0 {
			s.die(fmt.Errorf("could not be kept alive: no answer from Consul at %s within the lease", s.c.consul.Addr()))
			return
		}
		if sleep(ctx, left) != nil {
			return
		}
	}
}

func (s *session) die(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone == nil {
		s.gone = why
		s.end()
		close(s.died)
	}
}

// dead returns why the session no longer counts, or nil. It looks at the
// clock itself: a process that was stopped asks before its timers have run.
func (s *session) dead() error {
	if s.leaseLeft() <= 0 {
		s.die(errLeaseOver)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

func (s *session) setOutput(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.output = text
}

func (s *session) deregister(ctx context.Context) {
	if s.service == "" {
		return
	}
	if err := s.c.consul.API().Agent().ServiceDeregisterOpts(s.service, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		s.c.log.Debug("deregister service", "service", s.service, "error", err)
	}
}

// close stops the keepers and takes session and service out of Consul. It may
// fail quietly: both end by themselves.
func (s *session) close(ctx context.Context) {
	s.cancel()
	s.wg.Wait()
	dctx, cancel := detached(ctx, 3*time.Second)
	defer cancel()
	if err := s.c.destroySession(dctx, s.id); err != nil {
		s.c.log.Debug("destroy session", "session", s.id, "error", err)
	}
	s.deregister(dctx)
}

func (c *Client) destroySession(ctx context.Context, id string) error {
	_, err := consulkv.Retry(ctx, c.consul, "destroy session "+id, func(ctx context.Context) (struct{}, error) {
		_, err := c.consul.API().Session().Destroy(id, (&api.WriteOptions{}).WithContext(ctx))
		return struct{}{}, err
	})
	return err
}
