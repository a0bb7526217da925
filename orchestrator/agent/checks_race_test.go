//go:build race

package agent

// checks is fewer under the race detector: the histories are of one goroutine.
const checks = "40"
