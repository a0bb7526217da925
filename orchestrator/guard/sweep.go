package guard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// Sweeps makes the Source that is used: an evidence.Sweep that remembers since
// when a part of it could not be read.
func Sweeps(r *evidence.Reader) func(roots []string) Source {
	return func(roots []string) Source {
		s := &sweep{Sweep: r.NewSweep(roots), failing: map[string]failing{}}
		s.Failed = s.failed
		return s
	}
}

// sweep is a Source.
type sweep struct {
	*evidence.Sweep
	mu      sync.Mutex
	failing map[string]failing
	// tell is told of each part that begins to fail; nil: nobody is.
	tell func(error)
}

var (
	_ Source = (*sweep)(nil)
	_ aged   = (*sweep)(nil)
	_ teller = (*sweep)(nil)
)

// failing is a part that cannot be read.
type failing struct {
	since time.Time
	err   error
}

func (s *sweep) failed(part string, err error) {
	s.mu.Lock()
	old, was := s.failing[part]
	switch {
	case err == nil:
		delete(s.failing, part)
	case was:
		s.failing[part] = failing{old.since, err}
	default:
		s.failing[part] = failing{time.Now(), err}
	}
	tell := s.tell
	s.mu.Unlock()
	if tell != nil && err != nil && !was && !errors.Is(err, context.Canceled) {
		tell(fmt.Errorf("%s: %w", part, err))
	}
}

// tells has f told of what begins to fail.
func (s *sweep) tells(f func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell = f
}

// Age is since when a part could not be read, and why; 0 while all can.
func (s *sweep) Age() (age time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.failing {
		if d := time.Since(f.since); err == nil || d > age {
			age, err = d, f.err
		}
	}
	return age, err
}

// teller is a Source that tells of its errors beside Run's.
type teller interface{ tells(f func(error)) }
