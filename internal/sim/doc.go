// Package sim is a deterministic simulation of aimlock: the real code of the
// orchestrator, the locksmith, its holders and the agents, over the embedded Consul,
// in one process and on virtual time. `make sim` runs it; docs/simulation.md tells
// what it is and what it does not see.
//
//	Run        run.go     one seed: a world in a bubble of testing/synctest
//	World      world.go   its loop: one effect at a time
//	           sched.go   every effect waits for its turn, at a time that is drawn by
//	                      its name
//	           actor.go   processes: they die, stand still, are started again
//	           net.go     requests and answers: lost, late, repeated
//	           disk.go    what a machine that lost its power still has
//	           parts.go   agents, orchestrators, holders, locksmiths
//	Plan       plan.go    what a seed decides beforehand: who, and what goes wrong
//	           events.go  what each event does
//	           check.go   the invariants, at every step; check_rollout.go those of rollouts
//	Shrink     shrink.go  leaves out what a violation does not need
//
// # Why it replays
//
// Everything stands still whenever the scheduler decides: every request, answer,
// step on a disk and turn after a timer is parked, and one is let go at a time, after
// which synctest.Wait lets its consequences come to rest. In which order goroutines
// came to park is the machine's doing, so they are sorted by name. What is left to
// chance in the code (package fate) is drawn by the name of what it is for. What is
// left are goroutines of one process that run at the same time, a select whose cases
// are ready together, timers of one moment, the order of a map: the overlay of the
// runtime in overlay/ has them decided by the bubble's time. Without the overlay a
// seed is a test as good as any, and may have another history the next time.
//
// It may import everything but command. Nothing imports it.
package sim
