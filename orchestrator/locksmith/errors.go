package locksmith

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels, for errors.Is.
var (
	// ErrLost: the lock was lost while working.
	ErrLost = errors.New("lock lost")
	// ErrRequested: somebody asked the holder to let go.
	ErrRequested = errors.New("asked to let go")
	// ErrReleased: the hold was released by its owner.
	ErrReleased = errors.New("lock released")
	// ErrAlreadyHeld: a session acquires what it holds already.
	ErrAlreadyHeld = errors.New("lock is already held by this session")
	// ErrPlainKey: the lock's key is in use as a plain key.
	ErrPlainKey = errors.New("key is in use and is no lock of aimlock")
)

// LostError says how a lock was lost. It is an ErrLost.
type LostError struct {
	Lock  string
	Token uint64
	Why   string
}

func (e *LostError) Error() string {
	return fmt.Sprintf("lock %s (token %d) lost: %s", e.Lock, e.Token, e.Why)
}

// Is makes errors.Is(err, ErrLost) true.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// RequestedError says who asked for the locks of a hold. It is an ErrRequested.
type RequestedError struct {
	Lock string
	// By and Reason are as they stand in the request.
	By, Reason string
}

func (e *RequestedError) Error() string {
	return fmt.Sprintf("asked to let go of %s by %s%s", e.Lock, printable(e.By), reasonText(e.Reason))
}

// Is makes errors.Is(err, ErrRequested) true.
func (e *RequestedError) Is(target error) bool { return target == ErrRequested }

// RefusedError says that the lock was not given, with the verdict on whoever
// has it.
type RefusedError struct {
	Status *Status
	// Why says what ended the wait: "-try", "waited 10m0s", …
	Why string
	// Hot: the lock is HOT and the policy does not let this be broken now.
	Hot bool
	// Slots are all of which one was wanted, where any would have done; Status
	// is the one that says most then.
	Slots []*Status
}

// SlotsError says that somebody holds a slot of the same semaphore who counts
// more or fewer slots: more would hold one at once than one of both was told.
type SlotsError struct {
	// Status is the verdict on that holder's slot.
	Status *Status
	// Theirs and Ours are the numbers of slots.
	Theirs, Ours int
}

func (e *SlotsError) Error() string {
	return fmt.Sprintf("%s is held as one of %d slots, and %d were asked for here", e.Status.Name, e.Theirs, e.Ours)
}

// Error is the first line only; Status.Explain has the rest.
func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Status.Name, e.Status.State)
	if e.Why != "" {
		fmt.Fprintf(&b, " (%s)", e.Why)
	}
	return b.String()
}
