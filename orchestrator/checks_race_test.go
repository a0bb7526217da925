//go:build race

package orchestrator

// checks is fewer under the race detector, which finds nothing in a core without
// goroutines and makes it ten times slower.
const checks = "600"
