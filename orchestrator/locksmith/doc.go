// Package locksmith is the lock protocol: acquire, hold, observe, judge, break.
//
// # The way through
//
//	Acquire   wait.go      waits until nobody holds the locks
//	          acquire.go   takes them in one transaction; what is in doubt is read
//	          blocked.go   while somebody holds one: judges, waits, breaks
//	Hold      hold.go      its life: loss, requests, what is owed, release
//	          write.go     fenced writes, in order whatever the network does
//	          session.go   session, check and lease
//	Observer  status.go    what a lock is now, and why
//	Break     lock_break.go
//	          breaking.go  confirm, permit, intent
//	          steps.go     what is done before the end
//	          ending.go    one transaction that ends the holds
//	          permit.go    the brakes
//
// # Invariants
//
//  1. The fencing token of a hold is the ModifyIndex of its lock key. Every
//     write of the holder to Consul is one transaction that begins with
//     check-session and check-index of every lock of the hold, so a holder
//     that lost its lock, or whose key somebody rewrote, writes nothing.
//  2. The writes of one hold land in the order of the calls that made them, or
//     not at all: after one of unknown outcome nothing that was sent before it
//     can land any more.
//  3. One session serves one acquisition. After an ambiguous acquisition that
//     reads as not ours, its session is destroyed before anything else is
//     tried, and the indexes that it rested on have moved when anybody else
//     takes the lock: a delayed request cannot take it later.
//  4. A break destroys nothing before its intent is committed. It ends all the
//     holds that it is about in one transaction, which fails if a lock, any KV
//     key that a verdict rested on, or a brake changed since. Nothing is begun
//     while a lock that is wanted too has a holder who may keep it.
//  5. What quiesce a hold leaves stands in fence/<name> from the transaction
//     that takes the lock on, whatever becomes of the lock's key. A clean
//     release takes it away; a break sets it anew; else it is cleared only by
//     a holder that has waited for the whole of it.
//  6. A holder stops work when its lease is over by its own clocks, before
//     Consul can give the lock to another, and sends nothing after it. That
//     makes two workers rare; the order check at every write is what makes
//     them harmless.
//
// It may import evidence, policies, consulkv, keys, records and hostproc. Next:
// package evidence for what is known of a lock, package policies for verdicts.
package locksmith
