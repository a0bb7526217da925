//go:build !race

package orchestrator

// checks is how many histories a property is tried on: one takes a fraction of
// a millisecond.
const checks = "3000"
