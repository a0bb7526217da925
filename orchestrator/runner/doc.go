// Package runner carries out what the pure core (package orchestrator)
// decides: it takes the locks, persists, gives orders, follows the answers,
// and feeds all of it back as events.
//
//	Start, Tick   start.go    the locks, the window, what is superseded
//	              decide.go   which rollout this is: new, resumed, follow-up
//	              queue.go    who waits for its turn, before anything began
//	              bake.go     how long a bake has lasted, over several holds
//	Command       command.go  an operator's word, from any terminal
//	Show, List    show.go, list.go  what is known of rollouts; reads only
//	Prune         prune.go    deletes what ended long ago
//	drive         drive.go    the loop: Step, effects in order, next event
//	              follow.go   what wakes the loop, by blocking queries
//	              reader.go   when whose answers are read
//	              store.go    rollouts/, configs/, desired/, actual/
//	              window.go, gate.go, fleet.go
//
// # Invariants
//
//  1. Everything that a rollout writes is a transaction under the guards of
//     its locks (locksmith.Hold.Txn). The other writes compare: an operator's
//     command, which decides nothing by itself; the record of a rollout that
//     has not begun, and the header of one that never will (queue.go); the
//     deletes of what has ended (prune.go).
//  2. The effects of one Step are done in their order. The first that fails
//     ends the drive; the next one recovers from what stands in Consul.
//  3. One goroutine, drive's caller, owns the state. Everything else sends it
//     events.
//  4. What is read to follow N nodes is O(N) bytes in all: a wake-up reads the
//     answers of the nodes in flight, and not much faster than they answer.
//  5. No content is begun twice by itself: not by a second copy that waited for
//     the lock, and not by a tick after it was rolled back, aborted or failed.
//
// It may import the core, locksmith, consulkv, keys and records. Next: package
// orchestrator for the decisions.
package runner
