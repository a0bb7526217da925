package supervise

import "time"

// machine decides when the tree is asked to end and when it is killed. It has
// no clock and touches no process: times are readings of the boot clock that
// both parent and supervisor read, and what to do is returned.
//
// Invariants, whatever the order of events:
//   - Under a lease, killing has begun killMargin before the lease ends.
//   - The moment of the kill never moves to a later one, except as far as a
//     renewed lease lets the grace of a stop be served.
//   - SIGTERM is sent once, and not after killing began.
//   - After the end was decided, nothing starts.
type machine struct {
	// grace is what a tree gets that its command left behind, and the most of a
	// lease that goes into asking before killing.
	grace       time.Duration
	orphanGrace time.Duration

	phase phase
	why   reason
	// end is when to kill on account of a stop; 0 is at no time.
	end time.Duration
	// lease is when the lease ends; 0 where there is none.
	lease       time.Duration
	leaseGrace  time.Duration
	leaseMargin time.Duration
}

type phase int

const (
	idle    phase = iota // nothing started
	running              // the command runs
	asking               // SIGTERM was sent
	killing              // SIGKILL until nothing is left
	over                 // nothing is left, or nothing ever was
)

// reason is why the tree is ended.
type reason string

const (
	becauseEnded  reason = "the command ended"
	becauseStop   reason = "stop was ordered"
	becauseLease  reason = "the lease ran out"
	becauseOrphan reason = "the parent is gone"
)

// act is what the caller does after an event.
type act int

const (
	nothing act = iota
	ask         // SIGTERM to the tree
	kill        // SIGKILL to the tree, again and again until it is empty
	leave       // end the supervisor
)

// Bounds of the part of a lease that is left for killing.
const (
	minMargin = 50 * time.Millisecond
	maxMargin = 500 * time.Millisecond
)

// extend sets the end of the lease. A fifth of its length at most is spent on
// asking, a twentieth on killing.
func (m *machine) extend(now, until time.Duration) act {
	length := max(until-now, 0)
	m.lease = until
	m.leaseMargin = min(max(length/20, minMargin), maxMargin)
	m.leaseGrace = min(m.grace, length/5)
	return m.tick(now)
}

// start tells whether the command may start now.
func (m *machine) start(now time.Duration) bool {
	if m.phase != idle || m.lease != 0 && now >= m.lease-m.leaseMargin {
		return false
	}
	m.phase = running
	return true
}

// stop ends the tree, with grace between SIGTERM and SIGKILL.
func (m *machine) stop(now, grace time.Duration, why reason) act {
	switch m.phase {
	case idle:
		m.phase, m.why = over, why
		return leave
	case running:
		m.phase, m.why, m.end = asking, why, now+grace
		if grace <= 0 || now >= m.killAt() {
			return m.kill()
		}
		return ask
	case asking:
		m.end = min(m.end, now+grace)
		return m.tick(now)
	case killing, over:
	}
	return nothing
}

func (m *machine) parentGone(now time.Duration) act {
	// Nobody renews the lease any more, and the lock may pass on at any moment.
	return m.stop(now, m.orphanGrace, becauseOrphan)
}

// commandEnded is for a command that left processes behind.
func (m *machine) commandEnded(now time.Duration) act {
	return m.stop(now, m.grace, becauseEnded)
}

// empty is for the kernel's word that no process is left. It means the end only
// where something was started.
func (m *machine) empty() act {
	if m.phase == idle || m.phase == over {
		return nothing
	}
	m.phase = over
	return leave
}

// tick is due at wake, and harmless at any other time.
func (m *machine) tick(now time.Duration) act {
	switch m.phase {
	case running:
		if m.lease == 0 || now < m.lease-m.leaseMargin-m.leaseGrace {
			return nothing
		}
		// Late, as after a suspension of the machine: no grace is left.
		return m.stop(now, m.lease-m.leaseMargin-now, becauseLease)
	case asking:
		if now >= m.killAt() {
			return m.kill()
		}
	case idle, killing, over:
	}
	return nothing
}

func (m *machine) kill() act {
	m.phase = killing
	return kill
}

// killAt is for phase asking.
func (m *machine) killAt() time.Duration {
	if m.lease == 0 {
		return m.end
	}
	return min(m.end, m.lease-m.leaseMargin)
}

// wake is the moment of the next tick; ok is false where none is due.
func (m *machine) wake() (at time.Duration, ok bool) {
	switch m.phase {
	case running:
		return m.lease - m.leaseMargin - m.leaseGrace, m.lease != 0
	case asking:
		return m.killAt(), true
	case idle, killing, over:
	}
	return 0, false
}
