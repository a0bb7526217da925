//go:build unix

package supervise

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
)

// watch hears the supervisor's events until its end, and reaps it. It owns the
// state that the methods wait for.
func (s *Supervisor) watch() {
	defer close(s.done)
	for {
		var e event
		if err := s.link.receive(&e); err != nil {
			break
		}
		s.hear(e)
	}
	// Either the supervisor ended, or this side closed the link and let it be.
	s.link.close()
	s.mu.Lock()
	if !s.ready {
		// It is ready before it reads what to start.
		s.gone = true
	}
	rescue := !s.gone && !s.letBe
	s.mu.Unlock()
	if rescue {
		// Before the wait, so that no time is lost.
		s.rescue()
	}
	if _, err := s.proc.Wait(); err != nil {
		s.log.Debug("the supervisor of the command was reaped by somebody else", "error", err)
	}
	s.settle()
}

func (s *Supervisor) settle() {
	s.settleOne.Do(func() {
		closeOnce(s.up)
		closeOnce(s.started)
		close(s.settled)
	})
}

// closeOnce is for channels that only watch's goroutine closes.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (s *Supervisor) hear(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Kind {
	case eventStarted:
		s.child = hostproc.Process{PID: e.PID, StartTicks: e.Ticks}
		closeOnce(s.started)
	case eventFailed:
		if s.failed = (&StartError{Code: e.Code, Reason: e.Text}); e.Why == becauseLease {
			s.failed, s.ending = nil, becauseLease
		}
		closeOnce(s.started)
	case eventEnding:
		if s.ending == "" {
			s.ending = e.Why
		}
		s.log.Debug("ending the processes of the command", "why", string(e.Why), "signal", e.Text)
	case eventExit:
		s.code, s.keyboard = e.Code, e.Keyboard
	case eventStuck:
		s.stuck = e.Text
		s.log.Error("processes of the command cannot be killed", "what", e.Text)
		s.settle()
	case eventGone:
		s.gone, s.stuck = true, ""
		s.settle()
	case eventWarn:
		s.log.Warn("the command: " + e.Text)
	case eventReady:
		s.ready = true
		closeOnce(s.up)
	}
}

// rescue is for a supervisor that ended before its tree. The command itself
// dies by its parent-death signal; the rest is looked for.
func (s *Supervisor) rescue() {
	s.mu.Lock()
	child := s.child
	s.died = true
	s.mu.Unlock()
	s.log.Warn("the supervisor of the command died, killing what it left", "pid", s.id.PID)
	// First what stands in the command's group, whatever its environment. The
	// group's number is fresh: it is not reused within the blink of an eye.
	if child.PID != 0 {
		group, err := hostproc.Group(child.PID, child.StartTicks)
		if err != nil {
			s.log.Warn("cannot look for the process group of the command", "error", err)
		}
		for _, p := range group {
			s.killOne(p.Process)
		}
	}
	cgroup := ""
	if self, err := hostproc.Self(); err == nil {
		cgroup = self.CGroup
	}
	deadline := time.NewTimer(rescueTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	why := ""
	for {
		left, err := hostproc.Marked(s.cfg.Nonce, s.id.StartTicks)
		if err != nil {
			why = err.Error()
		}
		for _, p := range left {
			s.killOne(p)
			ds, err := hostproc.Descendants(p.PID)
			if err != nil {
				why = err.Error()
			}
			for _, d := range ds {
				s.killOne(d.Process)
			}
		}
		if len(left) == 0 && err == nil {
			var gone hostproc.Tri
			if gone, why = hostproc.TreeGone(s.cfg.Nonce, s.id.StartTicks, cgroup); gone == hostproc.True {
				why = "its supervisor was killed, and who cleaned its environment cannot be found"
				break
			}
		}
		select {
		case <-tick.C:
			continue
		case <-deadline.C:
		}
		break
	}
	s.mu.Lock()
	s.stuck = why
	s.mu.Unlock()
}

func (s *Supervisor) killOne(p hostproc.Process) {
	err := hostproc.SignalProcess(p.PID, p.StartTicks, syscall.SIGKILL)
	if err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, hostproc.ErrReused) {
		s.log.Debug("cannot kill a process of the command", "error", err)
	}
}

// outcome is what is known at one moment.
type outcome struct {
	code    int
	started bool
	failed  *StartError
	ending  reason
	gone    bool
	died    bool
	stuck   string
}

func (s *Supervisor) outcome() outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return outcome{s.code, s.child.PID != 0, s.failed, s.ending, s.gone, s.died, s.stuck}
}

func (o outcome) startErr() error {
	switch {
	case o.started:
		return nil
	case o.failed != nil:
		return o.failed
	case o.ending == becauseLease:
		return ErrLease
	case o.died:
		return ErrSupervisorDied
	}
	return ErrClosed
}

func (o outcome) survivors() error {
	if o.gone {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrSurvivors, o.stuck)
}

func (o outcome) result() (code int, err error) {
	switch {
	case !o.started:
		err = o.startErr()
		if o.failed != nil {
			return o.failed.Code, err
		}
		code = 1
	case o.died:
		// Its code went with the supervisor.
		code, err = 128+int(syscall.SIGKILL), ErrSupervisorDied
	case o.ending == becauseLease:
		code, err = o.code, ErrLease
	default:
		code = o.code
	}
	return code, errors.Join(err, o.survivors())
}
