// Package schedule tells when a rollout's window is open. It reads no clock:
// the time is an argument. It imports the core, for the type of a window, and
// the cron parser. Spec checks windows by it, runner and plan ask it.
package schedule

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	_ "time/tzdata" // the time zones of a machine without any

	"github.com/robfig/cron/v3"

	"github.com/aim-control/aimlock/orchestrator"
)

// MaxDuration bounds how long a window stays open.
const MaxDuration = 7 * 24 * time.Hour

// Schedule is a checked window.
type Schedule struct {
	cron     cron.Schedule
	duration time.Duration
	loc      *time.Location
	// last is the last answer: a window is asked about again and again (by each
	// rule, for each lock), and to follow its openings costs up to milliseconds.
	last atomic.Pointer[answer]
}

// answer is what At found, and when it holds: from the time it was asked about.
type answer struct {
	from, until time.Time
	open        bool
	change      time.Time
}

// FieldError says which field of a window is wrong.
type FieldError struct {
	Field string // schedule, duration or timezone
	Err   error
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Err.Error() }

func (e *FieldError) Unwrap() error { return e.Err }

// Parse checks a window. All errors are *FieldError, joined.
func Parse(w orchestrator.Window) (*Schedule, error) {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &FieldError{field, fmt.Errorf(format, args...)})
	}
	s := &Schedule{duration: w.Duration}
	switch {
	case w.Duration < time.Minute:
		bad("duration", "%s is less than a minute", w.Duration)
	case w.Duration > MaxDuration:
		bad("duration", "%s is more than a week: leave the window out to roll out at any time", w.Duration)
	}
	var err error
	switch w.Timezone {
	case "":
		s.loc = time.UTC
	case "Local":
		bad("timezone", "%q differs from machine to machine: name a zone, such as \"Europe/Berlin\"", w.Timezone)
	default:
		if s.loc, err = time.LoadLocation(w.Timezone); err != nil {
			bad("timezone", "%q is no time zone: give a name such as \"UTC\" or \"Europe/Berlin\"", w.Timezone)
		}
	}
	if strings.Contains(w.Schedule, "=") || strings.HasPrefix(strings.TrimSpace(w.Schedule), "@") {
		bad("schedule", "%q is no cron expression of five fields; the zone stands in timezone", w.Schedule)
		return nil, errors.Join(errs...)
	}
	parser := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
	if s.cron, err = parser.Parse(w.Schedule); err != nil {
		bad("schedule", "%q is no cron expression of five fields (minute hour day month weekday): %w", w.Schedule, err)
		return nil, errors.Join(errs...)
	}
	if len(errs) == 0 && s.cron.Next(time.Unix(0, 0).In(s.loc)).IsZero() {
		bad("schedule", "%q never comes", w.Schedule)
	}
	return s, errors.Join(errs...)
}

// lookAhead is how many openings that overlap are followed: a week of a schedule
// of every minute.
const lookAhead = 7 * 24 * 60

// At tells whether the window is open at now, and when that changes next: when
// it closes, or when it opens. Openings that overlap are one; where they go on
// for weeks, change may be a time up to which it is open, and to ask again at. The
// zero time means never.
//
// A window that opens in the hour that a change to summer time leaves out does
// not open that day; in the hour that comes twice it opens at both times, which
// overlap where its duration is an hour or more.
//
// It is safe for concurrent use.
func (s *Schedule) At(now time.Time) (open bool, change time.Time) {
	now = now.In(s.loc).Round(0)
	if a := s.last.Load(); a != nil && !now.Before(a.from) && now.Before(a.until) {
		return a.open, a.change
	}
	open, change = s.at(now)
	until := change
	if change.IsZero() { // never, as far as a year shows
		until = now.Add(24 * time.Hour)
	}
	s.last.Store(&answer{now, until, open, change})
	return open, change
}

func (s *Schedule) at(now time.Time) (open bool, change time.Time) {
	first := s.cron.Next(now.Add(-s.duration))
	switch {
	case first.IsZero():
		return false, time.Time{}
	case first.After(now):
		return false, first
	}
	// It opened at first, within the last duration. Follow openings that come
	// before the end of those before them.
	end := first.Add(s.duration)
	for range lookAhead {
		next := s.cron.Next(first)
		if next.IsZero() || next.After(end) {
			return true, end
		}
		first, end = next, next.Add(s.duration)
		if end.Sub(now) > 366*24*time.Hour {
			return true, time.Time{} // it never closes
		}
	}
	return true, end
}
