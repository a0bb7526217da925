package command

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/internal/supervise"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// extendEvery is how often the supervisor is told how long the lease still is.
const extendEvery = time.Second

// childEnd is how a command ended, as supervise.Supervisor.Wait tells it.
type childEnd struct {
	code int
	err  error
}

// tended is the hold that a command runs under.
type tended interface {
	Names() []string
	Context() context.Context
	Life() context.Context
	LeaseLeft() time.Duration
	LeaseEnd() time.Time
}

// child is what is done to the command.
type child interface {
	ExtendTo(deadline time.Time) error
	Signal(sig os.Signal) error
	Stop(grace time.Duration) error
}

// childSignals are what this process is sent on the command's account, besides
// INT and TERM, which end its context.
type childSignals struct {
	// others go to the command.
	others chan os.Signal
	// suspend is ^Z, while this process is what the terminal has: stopped it would
	// lose the lease, and the command its life.
	suspend chan os.Signal
}

// catchSignals returns them, and what gives the signals their meaning back.
func catchSignals() (s childSignals, stop func()) {
	s = childSignals{others: make(chan os.Signal, 4), suspend: make(chan os.Signal, 1)}
	signal.Notify(s.others, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH)
	if !signal.Ignored(syscall.SIGTSTP) {
		signal.Notify(s.suspend, syscall.SIGTSTP)
	}
	return s, func() {
		signal.Stop(s.others)
		signal.Stop(s.suspend)
	}
}

var (
	_ tended = (*locksmith.Hold)(nil)
	_ child  = (*supervise.Supervisor)(nil)
)

// tend keeps the lease of a command that runs, passes signals on, and ends it when
// the hold does: within grace where somebody asked for the lock, which is held on
// meanwhile, and at once when it is lost, also during that grace. ended tells of the
// command's end. The error says why the hold ended, and wraps supervise.ErrSurvivors
// if something of the command is left.
func (m *Meta) tend(ctx context.Context, h tended, sup child, grace time.Duration, sent childSignals, ended <-chan childEnd) (int, error) {
	tick := time.NewTicker(extendEvery)
	defer tick.Stop()
	asked, lost, interrupted := h.Context().Done(), h.Life().Done(), ctx.Done()
	// Both of its two orders to stop can be answered when nobody listens any more.
	stopped, stopping := make(chan error, 2), false
	stop := func(grace time.Duration) {
		stopping = true
		// No notice: the refusal that ends with ERROR: says it all, and is first.
		m.Log.Debug("stop the command", "lock", h.Names()[0], "why", endOf(h), "wait", grace.String())
		go func() { stopped <- sup.Stop(grace) }()
	}
	for {
		select {
		case e := <-ended:
			if !stopping {
				return e.code, e.err
			}
			return told(h, e)
		case <-tick.C:
			if h.Life().Err() != nil {
				continue
			}
			if err := sup.ExtendTo(h.LeaseEnd()); err != nil {
				m.Log.Debug("extend the command's lease", "error", err)
			}
		case sig := <-sent.others:
			if err := sup.Signal(sig); err != nil {
				m.Log.Debug("pass the signal on", "error", err)
			}
		case <-sent.suspend:
			m.Log.Warn("not suspended: the command runs under a lock")
		case <-interrupted:
			// The command decides what the signal means; it ends by it or not.
			interrupted = nil
			if err := sup.Signal(signalOf(ctx)); err != nil {
				m.Log.Debug("pass the signal on", "error", err)
			}
		case <-lost:
			// Another may hold the lock already: no time is left to give.
			asked, lost = nil, nil
			stop(min(grace, max(0, h.LeaseLeft()/2)))
		case <-asked:
			asked = nil
			if h.Life().Err() == nil {
				stop(grace)
			}
		case err := <-stopped:
			if err != nil {
				// Something is left, and may stay: it is not waited for.
				m.Log.Error("stop the command", "error", err)
				return ExitLost, errors.Join(endOf(h), err)
			}
		}
	}
}

// endOf is why the work under a hold must end, or nil: its loss, if it is lost.
func endOf(h tended) error {
	if cause := context.Cause(h.Life()); cause != nil {
		return cause
	}
	return context.Cause(h.Context())
}

// told is what is told of a command that was ended because of its hold.
func told(h tended, e childEnd) (int, error) {
	cause := endOf(h)
	if errors.Is(e.err, supervise.ErrSurvivors) {
		cause = errors.Join(cause, e.err)
	}
	return e.code, cause
}

// signalOf is the signal that ended ctx, SIGTERM if it was none.
func signalOf(ctx context.Context) os.Signal {
	if sig, ok := errors.AsType[signals.Error](context.Cause(ctx)); ok {
		return sig.Signal
	}
	return syscall.SIGTERM
}
