// Package filelock tells which kernel locks there are on a file of this
// machine, and which processes keep them: also where the process that took a
// lock is gone, or was never named.
//
// The kernel lists locks in /proc/locks under the pid that took them. Only a
// POSIX lock belongs to a process (exactly: to its table of descriptors). A
// flock, an OFD lock and a lease belong to an open file description, which
// children inherit and which is passed over sockets, and last until the last
// descriptor of it is closed. Who has one is in /proc/PID/fdinfo, whose `lock:`
// lines stand at the very descriptions that carry a lock (Linux 4.1).
//
// Answers are three-valued: what cannot be seen is nil, with the reason, and
// never "nobody". What cannot be seen are the descriptors of other users'
// processes, and in a container every lock taken outside of it.
//
// It imports internal/hostproc, internal/text, x/sys and a parser of mountinfo.
// Start with [Scanner.Explain]; scan_linux.go reads /proc, explain_linux.go
// puts lines and descriptors together, why.go finds the words. Elsewhere than
// on Linux every answer is [ErrUnsupported].
package filelock

import (
	"errors"
	"time"
)

var (
	// ErrUnsupported: this operating system does not tell who locks a file.
	ErrUnsupported = errors.New("only Linux tells which processes keep a file locked")
	// ErrNotExist: there is no such file, and no process that can be seen
	// holds a lock on a deleted one of that name.
	ErrNotExist = errors.New("no such file")
)

// Kinds of locks.
const (
	Flock = "flock" // flock(2)
	Posix = "posix" // fcntl(2) F_SETLK, lockf(3)
	OFD   = "ofd"   // fcntl(2) F_OFD_SETLK
	Lease = "lease" // fcntl(2) F_SETLEASE, or a delegation of an NFS server
)

// Modes of locks.
const (
	Read  = "read"
	Write = "write"
)

// How a process came to keep a lock.
const (
	// Owner: it is the process that the kernel names.
	Owner = "owner"
	// InheritedOrPassed: it has the open file that another process locked, from
	// its parent or over a socket.
	InheritedOrPassed = "inherited or passed"
	// OpenFileDescription: it has the open file that the lock belongs to; for
	// an OFD lock the kernel does not say who took it.
	OpenFileDescription = "open file description"
)

// Report is all that can be said of one file's locks.
type Report struct {
	// Path is as it was asked for.
	Path string `json:"path"`
	// Locked is nil where no lock was seen and it cannot be told whether there
	// is one: Unseen says why.
	Locked *bool  `json:"locked"`
	Locks  []Lock `json:"locks"`

	// Resolved is the path without symbolic links.
	Resolved string `json:"resolved"`
	// Deleted: nothing has the path any more, and Locks are those of a file
	// that had it.
	Deleted bool `json:"deleted"`
	// Former are locks on files that had this path and were deleted or
	// replaced. They do not guard the file that has it now.
	Former []Lock `json:"former"`
	// Unseen says, a sentence each, what could not be seen.
	Unseen []string `json:"unseen"`
	// Notes are what else a person should know.
	Notes []string  `json:"notes"`
	At    time.Time `json:"observed_at"`
}

// Lock is one lock.
type Lock struct {
	Kind string `json:"kind"`
	Mode string `json:"mode"`
	// PID is the process that the kernel names. 0: it has ended or is in
	// another pid namespace, and cannot be named here. -1: none, an OFD lock.
	PID int `json:"pid"`
	// PIDAlive is nil where no process is named, or it cannot be told whether
	// it is still the same.
	PIDAlive *bool `json:"pid_alive"`
	// KeptBy are the processes that keep it. nil: somebody does, and cannot be
	// seen; Why says why.
	KeptBy []Keeper `json:"kept_by"`
	Why    string   `json:"why"`

	// Complete: KeptBy is all of them.
	Complete bool `json:"complete"`
	// Start and End are the first and last byte of its range; End is nil for
	// the end of the file, wherever that is.
	Start uint64  `json:"start"`
	End   *uint64 `json:"end"`
	// Waiters are blocked by it, in the kernel's order.
	Waiters []Waiter `json:"waiters"`
}

// Keeper is a process that keeps a lock.
type Keeper struct {
	PID int `json:"pid"`
	// Command is the name of its program, as in /proc/PID/comm.
	Command string `json:"command"`
	How     string `json:"how"`
	// FDs are its descriptors that do so.
	FDs []int `json:"fds"`
}

// Waiter is a process that waits for a lock. Its PID is as in Lock; Command is
// empty where it is not known.
type Waiter struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Kind    string `json:"kind"`
	Mode    string `json:"mode"`
}
