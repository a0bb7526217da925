// Package orchestrator is the pure core of a rollout. Start here.
//
// A rollout delivers configs to a fleet in stages. This package decides: who
// is next, when a stage is done, when to stop and when to go back. It does
// nothing: it has no clock, no network, no randomness and no goroutine, and it
// imports the standard library only, so that every decision can be replayed
// from its inputs.
//
// # The four things
//
//   - A [Spec] is what the author wrote. Package orchestrator/spec makes it
//     from HCL.
//   - A [Plan] is the spec applied to one fleet: every node in the order in
//     which it gets its turn, and where each stage ends. It never changes
//     once a rollout began, and it is persisted in chunks.
//   - A [State] is how far a rollout is. It is not persisted whole: its small
//     part is the [Header], and the rest stands in the orders that were given
//     (desired/) and answered (actual/). [Recover] puts it together again.
//   - [Step] takes a state, an [Event] and the time, and returns the next
//     state and the [Effect]s that must be done for it to become true.
//
// # The loop
//
// Package orchestrator/runner holds the locks and runs the loop:
//
//	state := Recover(plan, header, desired, actual)  // or NewState(plan)
//	state, effects = Step(state, Acquired{…}, now)
//	for {
//		for each effect, in order: do it; stop at the first that fails
//		event := the next of: reports of nodes, health, gate answers,
//		         operators' commands, the window, NextWake's time
//		state, effects = Step(state, event, now)
//	}
//
// The order of the effects is a contract, written on each type: what Persist
// carries must be durable before any effect that stands behind it is begun. A
// process that dies between any two effects is followed by one that recovers
// and goes on: no node is assigned past a gate that did not pass, no failure
// is forgotten, no node gets lost.
//
// # Names
//
// A [Status] is where a rollout stands (waiting, running, baking, paused,
// rolling_back, succeeded, failed, rolled_back, aborted, superseded), a
// [Class] where a node stands (pending, applied, failed, unreachable, skipped,
// rolled_back, superseded). A node is in flight while it has an order that it
// has not answered and still may: in time, with an agent that is up.
//
// Where to go next: plan.go (who is next), step.go (events), advance.go
// (decisions), header.go (what is persisted, and Recover).
package orchestrator
