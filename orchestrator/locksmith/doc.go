// Package locksmith is the lock protocol: acquire, hold, observe, judge, break.
//
// # The way through
//
//	Acquire   wait.go     waits, judges who is in the way, breaks by policy
//	  acquire acquire.go  one transaction; ambiguous commits are read, not retried
//	Hold      hold.go     fenced writes, lease, loss, release
//	Read/Judge status.go  what a lock is now, and why
//	Break     break.go    intent, steps, and one transaction that ends the hold
//
// # Invariants
//
//  1. The fencing token of a hold is the ModifyIndex of its lock key. Every
//     write of the holder to Consul is one transaction that begins with
//     check-session and check-index of every lock of the hold, so a holder
//     that lost its lock, or whose key somebody rewrote, writes nothing.
//  2. One session serves one acquisition. After an ambiguous acquisition that
//     reads as not ours, its session is destroyed before anything else is
//     tried: a delayed request cannot take the lock later.
//  3. A break destroys nothing before its intent is committed, and ends the
//     old hold in one transaction that fails if the lock, or any KV key that
//     the verdict rested on, changed since the verdict.
//  4. What quiesce an ended hold leaves is written to fence/<name> in the
//     transaction that ends it or, where Consul ended it, in the one that
//     takes the lock next; it is cleared only by a holder that has waited for
//     the whole of it.
//  5. A holder stops work when its lease is over by its own clock, before
//     Consul can give the lock to another. That makes two workers rare; the
//     order check at every write is what makes them harmless.
//
// It may import evidence, policies, consulkv, keys, records and hostproc. Next:
// package evidence for what is known of a lock, package policies for verdicts.
package locksmith
