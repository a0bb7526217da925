package keeper

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/aim-control/aimlock/orchestrator/agent"
)

// keeping is the state of Run.
type keeping struct {
	*Keeper
	// now is the newest of each config; with is what the command has taken.
	now, with map[string]agent.Left
	// adopt are configs that the fence has told of: when they are looked at next,
	// that is no news. untouched are those of which the command has learned
	// nothing, since their environment could not be read.
	adopt, untouched map[string]bool

	proc Process
	// up is when proc was started.
	up time.Time
	// ran: there was a first start.
	ran bool
	// problem is why the command could not be started, until it was.
	problem error

	// pending: the command is given Settle to show that it has taken a change;
	// waiter hears of it, if there is one.
	pending bool
	waiter  chan error
	since   string
	settle  *time.Timer
	// hup is due when a signal waits for the command to be up.
	hup *time.Timer

	crashes int
	pauses  *backoff.ExponentialBackOff
	// again is due when the command is to be started again; late when it should
	// have been started at last.
	again, late *time.Timer
}

// Run keeps the command until it ends well, crashes too often, or ctx ends,
// which ends it. The code is the command's own. The error is a *MissingError,
// what Options.Start said at last, what Stop and Code say, or ctx's cause where
// no command ran.
func (k *Keeper) Run(ctx context.Context) (code int, err error) {
	defer close(k.ended)
	s := &keeping{
		Keeper: k, now: map[string]agent.Left{}, with: map[string]agent.Left{}, adopt: map[string]bool{}, untouched: map[string]bool{},
		settle: unset(), hup: unset(), again: unset(), late: unset(), pauses: backoff.NewExponentialBackOff(),
	}
	s.pauses.InitialInterval, s.pauses.MaxInterval, s.pauses.Multiplier = k.First, k.Longest, 2
	// Nobody is left without an answer.
	defer func() { s.settled(err) }()
	s.await()
	for {
		requests, pokes := k.requests, k.pokes
		if s.pending {
			requests, pokes = nil, nil
		}
		var ended <-chan struct{}
		if s.proc != nil {
			ended = s.proc.Ended()
		}
		over := false
		select {
		case r := <-requests:
			code, over, err = s.take(r.left, r.reply)
		case <-pokes:
			if left, settled := k.Look(); settled {
				code, over, err = s.take(left, nil)
			}
		case <-ended:
			code, over, err = s.end()
		case <-s.again.C:
			code, over, err = s.restarted(s.start())
		case <-s.settle.C:
			s.settled(nil)
		case <-s.hup.C:
			s.signal()
		case <-s.late.C:
			return 1, &MissingError{Configs: s.missing(), Waited: k.Wait, Err: s.problem}
		case sig := <-k.signals:
			if s.proc == nil {
				k.Log.Debug("no command runs: the signal is dropped", "signal", sig.String())
			} else if err := s.proc.Signal(sig); err != nil {
				k.Log.Warn("the signal cannot be passed on", "error", err)
			}
		case <-ctx.Done():
			return s.quit(ctx)
		}
		if over {
			return code, err
		}
	}
}

func unset() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// await begins the wait for configs to start with.
func (s *keeping) await() {
	if s.Wait > 0 {
		s.late.Reset(s.Wait)
	}
}

func (s *keeping) missing() []string {
	return slices.DeleteFunc(slices.Clone(s.Configs), func(c string) bool { return s.now[c].Exists })
}

// take has the command take what stands. waiter, if there is one, is answered,
// now or when the command has settled.
func (s *keeping) take(left []agent.Left, waiter chan error) (code int, over bool, err error) {
	s.waiter = waiter
	var changed []string
	for _, l := range left {
		if s.isNews(l, waiter != nil) {
			changed = append(changed, l.Config)
		}
		if !l.Exists && s.proc != nil {
			// It has read the file, and runs.
			if s.now[l.Config].Exists && waiter != nil {
				s.Log.Warn("a file was taken away: the command runs on", "config", l.Config)
			}
			continue
		}
		s.now[l.Config] = l
	}
	switch {
	case s.ran && s.Once, s.proc != nil && len(changed) == 0:
		s.settled(nil)
		return 0, false, nil
	case len(s.missing()) > 0:
		// A first rollout was taken back: there is nothing to start with.
		if s.ran && s.again.Stop() {
			s.await()
		}
		s.settled(nil)
		return 0, false, nil
	case s.proc == nil && len(changed) == 0 && s.ran:
		// It has crashed, and is started again in time.
		s.settled(nil)
		return 0, false, nil
	case s.proc != nil && s.Signal != 0 && !slices.ContainsFunc(changed, func(c string) bool { return slices.Contains(s.Env, c) }):
		s.pending = true
		if wait := s.Settle - time.Since(s.up); wait > 0 {
			s.hup.Reset(wait)
		} else {
			s.signal()
		}
		return 0, false, nil
	}
	return s.renew(changed)
}

// isNews reports whether the command has not taken l yet.
func (s *keeping) isNews(l agent.Left, told bool) bool {
	last := s.with[l.Config]
	same := l.Same(last)
	if told {
		// A file that was put back as it was is told of, too: the command may
		// have read what stood in between.
		untouched := s.untouched[l.Config]
		delete(s.untouched, l.Config)
		s.adopt[l.Config] = true
		return l.Exists && !(untouched && same)
	}
	adopt := s.adopt[l.Config] && same
	delete(s.adopt, l.Config)
	if !l.Exists {
		return false
	}
	if adopt || same && l.Restored <= last.Restored {
		s.with[l.Config] = l
		return false
	}
	return true
}

// renew starts the command with what stands, after it has ended the one that
// runs.
func (s *keeping) renew(changed []string) (code int, over bool, err error) {
	env, err := s.ReadEnv(s.all())
	if err != nil {
		for _, c := range changed {
			s.untouched[c] = true
		}
		s.problem = err
		s.Log.Error("what was delivered cannot be used; what runs is left alone", "configs", changed, "error", err)
		s.settled(err)
		return 0, false, nil
	}
	s.again.Stop()
	s.crashes = 0
	s.pauses.Reset()
	if s.proc != nil {
		s.Log.Info("restarting the command", "changed", changed)
		if err := s.stop(s.kill(syscall.SIGTERM)); err != nil {
			return 1, true, err
		}
	}
	err = s.startWith(env)
	if err != nil && !s.ran {
		// Whatever is delivered, this will not do.
		return 1, true, err
	}
	if err != nil && s.waiter != nil {
		// What stood before comes back, and is started.
		s.Log.Error("the command cannot be started", "error", err)
		s.again.Reset(s.pauses.NextBackOff())
		s.settled(err)
		return 0, false, nil
	}
	if err != nil {
		return s.restarted(err)
	}
	s.pending, s.since = true, "of its start"
	s.settle.Reset(s.Settle)
	return 0, false, nil
}

func (s *keeping) kill(or syscall.Signal) syscall.Signal {
	if s.KillSignal != 0 {
		return s.KillSignal
	}
	return or
}

// settled answers who waits; the command runs on, or not.
func (s *keeping) settled(err error) {
	s.settle.Stop()
	s.hup.Stop()
	if s.waiter != nil {
		s.waiter <- err
	}
	s.waiter, s.pending, s.since = nil, false, ""
}

// signal tells the command of what has changed.
func (s *keeping) signal() {
	if s.proc == nil {
		return
	}
	s.Log.Info("telling the command of a change", "signal", s.Signal.String())
	if err := s.proc.Signal(s.Signal); err != nil {
		s.settled(err)
		return
	}
	s.taken()
	s.since = fmt.Sprintf("of signal %d", int(s.Signal))
	s.settle.Reset(s.Settle)
}

// all is what stands of all configs, in their order.
func (s *keeping) all() []agent.Left {
	all := make([]agent.Left, len(s.Configs))
	for i, c := range s.Configs {
		all[i] = s.now[c]
	}
	return all
}

// taken: the command has what stands now.
func (s *keeping) taken() {
	for c, l := range s.now {
		s.with[c] = l
	}
}

func (s *keeping) start() error {
	env, err := s.ReadEnv(s.all())
	if err != nil {
		return err
	}
	return s.startWith(env)
}

func (s *keeping) startWith(env []string) error {
	p, err := s.Start(env)
	if err != nil {
		return err
	}
	s.proc, s.up, s.ran, s.problem = p, time.Now(), true, nil
	s.late.Stop()
	s.taken()
	return nil
}

// restarted is what became of a start after a crash.
func (s *keeping) restarted(err error) (int, bool, error) {
	if err == nil || !s.crashed(err) {
		return 0, false, nil
	}
	return 1, true, err
}

func (s *keeping) stop(sig syscall.Signal) error {
	p := s.proc
	s.proc = nil
	return p.Stop(sig, s.KillTimeout)
}

// end is for a command that ended by itself.
func (s *keeping) end() (code int, over bool, err error) {
	code, err = s.proc.Code()
	s.proc = nil
	ran := time.Since(s.up)
	bad := &exitError{code, "after " + ran.Round(time.Millisecond).String()}
	if s.since == "" {
		s.since = "of its start"
	}
	within := &exitError{code, fmt.Sprintf("within %s %s", s.Settle, s.since)}
	switch {
	case code == 0 && err == nil:
		// A command that ends well has taken what it was given.
		s.settled(nil)
		return code, true, nil
	case err != nil, s.Once, s.Final != nil && s.Final(code):
		s.settled(within)
		return code, true, err
	case s.waiter != nil:
		// The fence puts back what stood, which starts it at once.
		s.Log.Warn(bad.Error())
		s.again.Reset(s.pauses.NextBackOff())
		s.settled(within)
		return 0, false, nil
	}
	s.settled(nil)
	if ran >= s.Calm {
		s.crashes = 0
		s.pauses.Reset()
	}
	return code, s.crashed(bad), nil
}

// crashed arranges for the next start; it reports whether there is to be none.
func (s *keeping) crashed(why error) bool {
	if s.Restarts >= 0 && s.crashes >= s.Restarts {
		if s.Restarts > 0 {
			s.Log.Error(why.Error()+": it is not started again", "restarts", s.crashes)
		}
		return true
	}
	s.crashes++
	pause := s.pauses.NextBackOff()
	s.Log.Warn(why.Error()+": it is started again", "wait", pause.Round(time.Millisecond).String(), "restarts", s.crashes)
	s.again.Reset(pause)
	return false
}

// quit ends the command because ctx has ended.
func (s *keeping) quit(ctx context.Context) (int, error) {
	s.settled(context.Cause(ctx))
	if s.proc == nil {
		return 1, context.Cause(ctx)
	}
	p, sig := s.proc, syscall.SIGTERM
	if s.StopSignal != nil {
		sig = s.StopSignal(ctx)
	}
	if err := s.stop(s.kill(sig)); err != nil {
		return 1, err
	}
	<-p.Ended()
	return p.Code()
}
