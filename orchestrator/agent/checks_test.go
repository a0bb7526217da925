//go:build !race

package agent

// checks is how many histories a property is tried on. Each syncs files many times.
const checks = "100"
