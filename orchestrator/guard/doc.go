// Package guard is the locksmith daemon: it watches every lock that a policy is
// for, judges each when something about it changed, and breaks what the policies
// let it break. Start here.
//
// # The way through
//
//	Guard.Run   guard.go     the one loop that owns the table, and what feeds it
//	table       table.go     what is remembered of each lock, and when it is due
//	act         act.go       one break, beside the loop, with a bound
//	elect       elect.go     which of several locksmiths acts
//	brakes      brakes.go    what stops all breaking: other policies, the switch
//	alive       alive.go     processes of this host, which end without Consul
//	Guard.Once  once.go      one sweep for people and cron
//	metrics, health          what can be asked of it while it runs
//
// # Who acts
//
// All locksmiths watch and judge; one acts. Which one it is is decided by a lock
// of aimlock's own protocol, [LeaderLock], with a session, a lease and a progress
// record like any other: a leader that dies is followed within that lease, and
// one whose loop stands still goes HOT by policy and is broken by a follower,
// whose memory of ages is as old as its own watch. Two that act at once would
// still be safe, since each break is a transaction that fails if anything changed;
// it would be noise. A locksmith whose policies are not the ones applied does not
// stand for election: it could not act, and would keep another from it.
//
// # What it costs
//
// A lock is judged when its snapshot changed, when the process of a local holder
// may have ended, and when time itself can change the verdict
// ([policies.Policy.Steady]). Locks whose facts stand still cost nothing.
//
// # Invariants
//
//  1. The loop never waits for Consul. Breaks, the election and the heartbeat run
//     beside it. The heartbeat is sent only when the loop asks for it, so that it
//     proves that the loop turns.
//  2. An observer is used by the loop, or by one break, and never by both.
//  3. A break runs under the leader's hold: each of its writes checks session and
//     token of [LeaderLock], and none is sent once the lease is over.
//  4. What one lock does (an error, a slow step, a value that is no record) ends
//     nothing but the attempt at that lock.
//  5. The leader's own lock is never broken by the leader.
//
// It may import locksmith, evidence, policies, consulkv, keys, records and
// hostproc. It reads no files: policies come from its Config.
package guard
