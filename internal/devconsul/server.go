package devconsul

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

// Version is what the server says it is: the Consul whose behaviour it follows.
const Version = "1.14.11"

// Config says how to serve. The zero value serves on a free loopback port with
// Consul's own timings.
type Config struct {
	// Addr is where to listen, "127.0.0.1:0" if empty.
	Addr string
	// NodeName is the name of the only node, the host's name if empty.
	NodeName string
	// Datacenter is "dc1" if empty.
	Datacenter string
	// Log may be nil. Values, tokens and check outputs are never logged.
	Log hclog.Logger
	// Intercept may wrap the handler, to inject faults: see Faults.
	Intercept func(http.Handler) http.Handler
	// UUID makes the ids of sessions and of the node, and Spread a duration from 0 to
	// below the one that it is given, which is positive; nil: they are random.
	UUID   func() string
	Spread func(time.Duration) time.Duration
	// Committed is told of every write, in their order, while the next one waits: it
	// must not come back to the server. It may be nil.
	Committed func(state.Commit)

	// SessionTTLMin is the least TTL of a session, 10 s if 0.
	SessionTTLMin time.Duration
	// SessionTTLFactor is how many TTLs pass without a renewal before the session
	// ends, 2 if 0. A session never ends before its TTL.
	SessionTTLFactor float64
	// CheckUpdateInterval is about how long a check's new output may wait before
	// it shows in the catalog while the status stays, 5 min if 0.
	CheckUpdateInterval time.Duration
	// CheckReapInterval is how often the agent looks for services to deregister
	// because a check of theirs is critical for too long, 30 s if 0.
	CheckReapInterval time.Duration
	// CheckDeregisterMin is the least DeregisterCriticalServiceAfter, 1 min if 0.
	CheckDeregisterMin time.Duration
}

const (
	sessionTTLMax       = 24 * time.Hour
	antiEntropyInterval = time.Minute
	tombstoneTTL        = 15 * time.Minute
	shutdownGrace       = time.Second
)

func (c Config) withDefaults() Config {
	orDefault := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	orDefault(&c.SessionTTLMin, 10*time.Second)
	orDefault(&c.CheckUpdateInterval, 5*time.Minute)
	orDefault(&c.CheckReapInterval, 30*time.Second)
	orDefault(&c.CheckDeregisterMin, time.Minute)
	if c.SessionTTLFactor == 0 {
		c.SessionTTLFactor = 2
	}
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	if c.NodeName == "" {
		if c.NodeName, _ = os.Hostname(); c.NodeName == "" {
			c.NodeName = "localhost"
		}
	}
	if c.Datacenter == "" {
		c.Datacenter = "dc1"
	}
	if c.Log == nil {
		c.Log = hclog.NewNullLogger()
	}
	if c.UUID == nil {
		c.UUID = newUUID
	}
	if c.Spread == nil {
		c.Spread = rand.N[time.Duration]
	}
	return c
}

// Server is a running devconsul. Close it.
type Server struct {
	cfg     Config
	store   *state.Store
	agent   *agent
	timers  *timers
	handler http.Handler

	closing <-chan struct{} // closed when Close begins
	stop    context.CancelFunc
	wg      sync.WaitGroup

	listener net.Listener
	http     *http.Server
}

// New makes a server that listens nowhere: requests come through Handler only.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if cfg.SessionTTLFactor < 1 {
		return nil, fmt.Errorf("devconsul: session TTL factor %v is below 1: a session would end before its TTL", cfg.SessionTTLFactor)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{cfg: cfg, timers: newTimers(), closing: ctx.Done(), stop: stop}
	store, err := state.New(func(ids []string) {
		for _, id := range ids {
			s.timers.Stop(sessionTimer(id))
		}
	}, cfg.Committed)
	if err != nil {
		stop()
		return nil, fmt.Errorf("devconsul: %w", err)
	}
	s.store = store
	if s.agent, err = newAgent(cfg, store, s.timers); err != nil {
		stop()
		return nil, fmt.Errorf("devconsul: %w", err)
	}
	s.handler = s.routes()
	if cfg.Intercept != nil {
		s.handler = cfg.Intercept(s.handler)
	}
	s.wg.Go(s.housekeep)
	return s, nil
}

// Start makes a server and listens on cfg.Addr.
func Start(cfg Config) (*Server, error) {
	s, err := New(cfg)
	if err != nil {
		return nil, err
	}
	if s.listener, err = net.Listen("tcp", s.cfg.Addr); err != nil {
		return nil, errors.Join(fmt.Errorf("devconsul: listen on %s: %w", s.cfg.Addr, err), s.Close())
	}
	base, cancel := context.WithCancel(context.Background())
	stop := s.stop
	s.stop = func() { stop(); cancel() }
	s.http = &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 30 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          s.cfg.Log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	s.wg.Go(func() {
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Log.Error("devconsul stopped serving", "error", err)
		}
	})
	return s, nil
}

// Addr is host:port, "" if the server does not listen.
func (s *Server) Addr() string {
	if s.listener == nil {
		return ""
	}
	return s.listener.Addr().String()
}

// URL is http://host:port, "" if the server does not listen.
func (s *Server) URL() string {
	if s.listener == nil {
		return ""
	}
	return "http://" + s.Addr()
}

// Handler is what the server serves, Intercept included.
func (s *Server) Handler() http.Handler { return s.handler }

// Close wakes all blocking queries (they answer 500), ends every goroutine of
// the server and forgets its state. It may be called twice.
func (s *Server) Close() error {
	s.stop()
	var err error
	if s.http != nil {
		grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		if err = s.http.Shutdown(grace); errors.Is(err, context.DeadlineExceeded) {
			// An intercepted handler may hang on purpose: cut it off.
			err = s.http.Close()
		}
	}
	s.timers.Close()
	s.wg.Wait()
	if err != nil {
		return fmt.Errorf("devconsul: close: %w", err)
	}
	return nil
}

// housekeep does what a server and an agent do from time to time.
func (s *Server) housekeep() {
	reap := time.NewTicker(s.cfg.CheckReapInterval)
	defer reap.Stop()
	entropy := time.NewTicker(antiEntropyInterval)
	defer entropy.Stop()
	for {
		var err error
		select {
		case <-s.closing:
			return
		case <-reap.C:
			err = errors.Join(s.agent.reapServices(), s.store.Reap(tombstoneTTL))
		case <-entropy.C:
			err = s.agent.syncAll()
		}
		if err != nil {
			s.cfg.Log.Error("devconsul housekeeping", "error", err)
		}
	}
}
