package orchestrator

import (
	"cmp"
	"fmt"
)

// Order places every decision that leaves a lock holder in one total order.
// It is compared field by field: Epoch, then Token, then Seq.
//
// Invariant: a node that accepted an order never accepts an older one.
//
// The epoch is raised only by `aimlock recover`, after Consul was restored
// from a snapshot: a restore brings old sessions back to life and hands out
// Raft indexes that were handed out before, so tokens alone are not enough.
type Order struct {
	// Epoch is the value of the key `epoch` read in the acquiring transaction.
	Epoch uint64 `json:"epoch"`
	// Token is the fencing token: the Raft index of the acquiring transaction,
	// which is the lock key's ModifyIndex for as long as it is held.
	Token uint64 `json:"token"`
	// Seq counts the holder's own decisions under one lock, from 1. A rollback
	// under the same lock is newer than the assignment that it undoes.
	Seq uint64 `json:"seq"`
}

// Compare returns -1 if o is older than p, 0 if they are the same order, and
// +1 if o is newer.
func (o Order) Compare(p Order) int {
	if c := cmp.Compare(o.Epoch, p.Epoch); c != 0 {
		return c
	}
	if c := cmp.Compare(o.Token, p.Token); c != 0 {
		return c
	}
	return cmp.Compare(o.Seq, p.Seq)
}

// Less reports whether o is older than p.
func (o Order) Less(p Order) bool { return o.Compare(p) < 0 }

// IsZero reports whether o is the order of nothing: older than every real one.
func (o Order) IsZero() bool { return o == Order{} }

// String returns epoch.token.seq, the form used in messages and file names.
func (o Order) String() string { return fmt.Sprintf("%d.%d.%d", o.Epoch, o.Token, o.Seq) }
