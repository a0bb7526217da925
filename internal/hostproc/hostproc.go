// Package hostproc tells whether processes of this host are alive, whose they
// are, and signals them without ever hitting a reused pid. It is what a proof
// of death rests on, so its answers are three-valued: what cannot be known is
// [Unknown], with the reason, and never "dead".
//
// All of it is about one pid namespace and one time namespace on one boot: whoever
// compares a pid that was recorded elsewhere compares Host, BootID and PIDNS of
// [Identity] first. Only Linux has the means; elsewhere most answers are Unknown.
//
// It imports the standard library and x/sys. Start with [Self] and [Alive];
// the processes that a dead holder left behind are the matter of [TreeGone].
package hostproc

import (
	"errors"
	"strings"
	"time"
)

// Tri is an answer that may be unknown. The zero value is no.
type Tri int

// The answers.
const (
	False Tri = iota
	True
	Unknown
)

func (t Tri) String() string {
	switch t {
	case False:
		return "false"
	case True:
		return "true"
	default:
		return "unknown"
	}
}

// NonceVar is the environment variable that marks the processes of one hold:
// the child that runs under a lock has it, and so has whatever it starts. Its
// value is a list of nonces with commas between them, innermost first, for a
// lock taken by something that already runs under another.
const NonceVar = "AIMLOCK_NONCE"

// Process names one process of a host for as long as it lives: a pid alone is
// reused.
type Process struct {
	PID int
	// StartTicks is field 22 of /proc/PID/stat, 0 where it is not known.
	StartTicks uint64
}

// Relative is a process and the pid of its parent.
type Relative struct {
	Process
	Parent int
}

// Identity says which process this is, and which host, boot and namespaces it
// belongs to. What an operating system does not have is empty.
type Identity struct {
	Host string
	// BootID differs after each boot.
	BootID string
	// PIDNS names the pid namespace that PID is a number of and, after a space, the
	// time namespace that StartTicks is counted in, unless that is the first one.
	PIDNS string
	// CGroup is comparable with that of another process, and no more.
	CGroup     string
	User       string
	PID        int
	StartTicks uint64
	StartedAt  time.Time
}

// TimeNS is the time namespace that an Identity's PIDNS names; empty: the first one.
// The boot clocks and start times of two of them are not comparable.
func TimeNS(pidNS string) string {
	_, ns, _ := strings.Cut(pidNS, " ")
	return ns
}

// Process is the part of an Identity that names the process on its host.
func (i Identity) Process() Process { return Process{PID: i.PID, StartTicks: i.StartTicks} }

var (
	// ErrReused: the pid belongs to another process now.
	ErrReused = errors.New("the pid belongs to another process now")
	// ErrUnverified: it cannot be shown that the pid still belongs to the
	// process that was recorded, so nothing was sent.
	ErrUnverified = errors.New("the process behind the pid cannot be verified")
)
