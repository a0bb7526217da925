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

	// check is what passes the service's check; nil without one.
	check *check

	mu sync.Mutex
	// renewed is the start of the last good renewal: the server counts from
	// some moment after it.
	renewed instant
	gone    error

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

func (c *Client) now() instant { return instant{time.Now(), c.lease()} }

// since is how long ago t was, by the clock that says more.
func (c *Client) since(t instant) time.Duration {
	return max(time.Since(t.mono), seconds(c.lease()-t.boot))
}

// openSession makes a session that is bound to the check of this process that
// join returns, and keeps both alive until close is called.
func (c *Client) openSession(ctx context.Context, ttl, lockDelay time.Duration, name string, join func() (*check, error)) (*session, error) {
	s := &session{c: c, ttl: ttl, died: make(chan struct{})}
	kctx, cancel := context.WithCancel(outliving(ctx))
	s.cancel = cancel
	s.life, s.end = context.WithCancel(kctx)
	// Until there is a session, no renewal bounds the lease.
	s.renewed = c.now()
	k, err := join()
	switch {
	case err == nil:
		s.check, s.service = k, k.id
	case agentless(err):
		c.log.Warn("the local agent takes no checks; the session's TTL alone serves", "error", err)
	default:
		s.cancel()
		return nil, err
	}
	if err := s.create(ctx, lockDelay, name); err != nil {
		s.cancel()
		if s.check != nil {
			cctx, cancel := detached(ctx, 3*time.Second)
			defer cancel()
			_ = c.leaveCheck(cctx, s.check, true)
		}
		return nil, err
	}
	s.wg.Go(func() { c.keep(kctx, ttl/3, s.id, s.dead, s.renew) })
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
			s.c.log.Warn("Consul does not take the holder's checks; the session's TTL alone serves", "error", s.c.withheld(ctx, err))
			if s.check != nil {
				_ = s.c.leaveCheck(ctx, s.check, true)
			}
			s.check, s.service = nil, ""
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

// withheld adds to err, that a check is missing, the one cause that lasts, where it
// is to be seen.
func (c *Client) withheld(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	self, serr := c.consul.Self(ctx)
	if serr != nil {
		return err
	}
	if id, rerr := c.consul.ReservedFor(ctx, self); rerr == nil && id != "" {
		return fmt.Errorf("%w; Consul takes nothing that its agent %s registers, whose node ID is %s: the name is reserved by node %s; `aimlock doctor` says how this is mended", err, printable(self.NodeName), printable(self.NodeID), printable(id))
	}
	return err
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
	// Over is over, also while this very answer was on its way: Consul may have
	// ended the session and given the lock away.
	if s.dead() != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if start.mono.After(s.renewed.mono) {
		s.renewed = start
	}
	return nil
}

// leaseLeft is for how long work may still go on: until just before Consul may
// end the session for lack of a pass or of a renewal.
func (s *session) leaseLeft() time.Duration {
	s.mu.Lock()
	left := s.ttl - s.c.since(s.renewed)
	s.mu.Unlock()
	if s.check != nil {
		left = min(left, s.check.left())
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
			s.die(fmt.Errorf("could not be kept alive: within the lease Consul at %s did not answer, or this process did not run", s.c.consul.Addr()))
			return
		}
		if sleepAs(ctx, "lease", left) != nil {
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

// setOutput is what the check says from its next pass on.
func (s *session) setOutput(text string) {
	if s.check != nil {
		s.check.say(text)
	}
}

// close stops the keepers and takes session and service out of Consul. It may
// fail quietly: both end by themselves.
func (s *session) close(ctx context.Context) {
	s.cancel()
	s.wg.Wait()
	dctx, cancel := detached(ctx, 3*time.Second)
	defer cancel()
	s.takeOut(dctx)
}

// closeClean is close for a session that holds nothing any more, and under which
// nothing is on its way. Its end is not urgent then: Consul ends it when its check
// goes, and a client that must be closed does even that by itself, and Close waits
// for it.
func (s *session) closeClean(ctx context.Context) {
	s.cancel()
	s.wg.Wait()
	dctx, cancel := detached(ctx, 3*time.Second)
	end := func() error {
		defer cancel()
		switch {
		case s.check == nil || s.c.reuse:
			s.takeOut(dctx)
		case s.c.leaveCheck(dctx, s.check, true) != nil:
			_ = s.destroy(dctx) // it ends by itself
		}
		return nil
	}
	if s.c.later == nil {
		_ = end()
		return
	}
	s.c.later.Go(end)
}

func (s *session) takeOut(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if s.check != nil && !s.c.reuse {
		// Neither waits for the other: to end the check ends the session too.
		wg.Go(func() { _ = s.c.leaveCheck(ctx, s.check, true) }) // it ends by itself
	}
	err := s.destroy(ctx)
	if s.check != nil && s.c.reuse {
		_ = s.c.leaveCheck(ctx, s.check, err != nil)
	}
}

func (s *session) destroy(ctx context.Context) error {
	err := s.c.destroySession(ctx, s.id)
	if err != nil {
		s.c.log.Debug("destroy session", "session", s.id, "error", err)
	}
	return err
}

func (c *Client) destroySession(ctx context.Context, id string) error {
	_, err := consulkv.Retry(ctx, c.consul, "destroy session "+id, func(ctx context.Context) (struct{}, error) {
		_, err := c.consul.API().Session().Destroy(id, (&api.WriteOptions{}).WithContext(ctx))
		return struct{}{}, err
	})
	return err
}
