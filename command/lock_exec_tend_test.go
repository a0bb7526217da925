package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/internal/supervise"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// heldLock is a hold that is kept alive until it is lost.
type heldLock struct {
	life, ctx context.Context
	lose, ask context.CancelCauseFunc
	mu        sync.Mutex
	end       time.Time
	lease     time.Duration
}

func newHeldLock(ctx context.Context, lease time.Duration) *heldLock {
	h := &heldLock{lease: lease, end: time.Now().Add(lease)}
	h.life, h.lose = context.WithCancelCause(ctx)
	h.ctx, h.ask = context.WithCancelCause(h.life)
	return h
}

func (h *heldLock) Names() []string          { return []string{"deploy"} }
func (h *heldLock) Context() context.Context { return h.ctx }
func (h *heldLock) Life() context.Context    { return h.life }
func (h *heldLock) LeaseLeft() time.Duration { return time.Until(h.LeaseEnd()) }
func (h *heldLock) LeaseEnd() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life.Err() == nil {
		h.end = time.Now().Add(h.lease)
	}
	return h.end
}

// stubborn is a command that ends when it is killed: after a grace, or when its
// lease ends.
type stubborn struct {
	ended   chan childEnd
	mu      sync.Mutex
	kill    *time.Timer
	lease   *time.Timer
	killAt  time.Time
	signals []os.Signal
	left    error
}

func newStubborn(lease time.Duration) *stubborn {
	s := &stubborn{ended: make(chan childEnd, 1)}
	s.lease = time.AfterFunc(lease, s.die)
	return s
}

func (s *stubborn) die() {
	select {
	case s.ended <- childEnd{code: 128 + int(syscall.SIGKILL)}:
	default:
	}
}

func (s *stubborn) ExtendTo(deadline time.Time) error {
	s.lease.Reset(time.Until(deadline))
	return nil
}

func (s *stubborn) Signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signals = append(s.signals, sig)
	return nil
}

func (s *stubborn) Stop(grace time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left != nil {
		return s.left
	}
	at := time.Now().Add(grace)
	if s.kill == nil || at.Before(s.killAt) {
		s.killAt = at
		if s.kill != nil {
			s.kill.Stop()
		}
		s.kill = time.AfterFunc(grace, s.die)
	}
	return nil
}

func TestTend(t *testing.T) {
	t.Parallel()
	const lease = 9 * time.Second
	for name, c := range map[string]struct {
		grace time.Duration
		do    func(*heldLock, *stubborn, context.CancelCauseFunc)
		// at is when the command has ended, late by at most a moment.
		at   time.Duration
		want error
	}{
		"asked for: the whole grace is given, and the lock held meanwhile": {
			grace: time.Minute,
			do:    func(h *heldLock, _ *stubborn, _ context.CancelCauseFunc) { h.ask(locksmith.ErrRequested) },
			at:    time.Minute, want: locksmith.ErrRequested,
		},
		"lost in the grace: no more of it than half the lease": {
			grace: time.Minute,
			do: func(h *heldLock, _ *stubborn, _ context.CancelCauseFunc) {
				h.ask(locksmith.ErrRequested)
				time.Sleep(20500 * time.Millisecond) // half a second after the lease was extended
				h.lose(locksmith.ErrLost)
			},
			at: 20500*time.Millisecond + (lease-time.Second/2)/2, want: locksmith.ErrLost,
		},
		"lost": {
			grace: 2 * time.Second,
			do:    func(h *heldLock, _ *stubborn, _ context.CancelCauseFunc) { h.lose(locksmith.ErrLost) },
			at:    2 * time.Second, want: locksmith.ErrLost,
		},
		"it ends by itself in time": {
			grace: time.Minute,
			do:    func(_ *heldLock, s *stubborn, _ context.CancelCauseFunc) { time.Sleep(time.Hour); s.die() },
			at:    time.Hour,
		},
		"a signal, and again one in the grace": {
			grace: time.Minute,
			do: func(h *heldLock, _ *stubborn, interrupt context.CancelCauseFunc) {
				h.ask(locksmith.ErrRequested)
				time.Sleep(time.Second)
				interrupt(signals.Error{Signal: syscall.SIGINT})
			},
			at: time.Minute, want: locksmith.ErrRequested,
		},
		"something survives": {
			grace: time.Minute,
			do: func(h *heldLock, s *stubborn, _ context.CancelCauseFunc) {
				s.mu.Lock()
				s.left = fmt.Errorf("%w: pid 7", supervise.ErrSurvivors)
				s.mu.Unlock()
				h.ask(locksmith.ErrRequested)
			},
			want: supervise.ErrSurvivors,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h, s, start := newHeldLock(t.Context(), lease), newStubborn(lease), time.Now()
				ctx, interrupt := context.WithCancelCause(t.Context())
				defer interrupt(nil)
				go c.do(h, s, interrupt)
				_, err := (&Meta{Log: hclog.NewNullLogger()}).tend(ctx, h, s, c.grace, childSignals{}, s.ended)
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if took := time.Since(start); took < c.at || took > c.at+time.Millisecond {
					t.Errorf("it took %s, want %s", took, c.at)
				}
				if name == "a signal, and again one in the grace" && (len(s.signals) != 1 || s.signals[0] != syscall.SIGINT) {
					t.Errorf("signals %v", s.signals)
				}
				s.lease.Stop()
				h.lose(locksmith.ErrReleased)
			})
		})
	}
}
