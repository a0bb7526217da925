// Package harness starts the real programs that the end-to-end tests need: a
// Consul server, a cluster of three, client agents, and whatever command a test
// wants to run against them, aimlock itself included.
//
// Nothing it starts outlives the test: processes are killed when the test ends,
// and the kernel kills them when the test's own process dies. A program that is
// not there fails the test and is never a reason to skip it: make test builds
// them all.
//
// It imports hashicorp/consul/api and nothing of aimlock. Start at StartConsul
// in consul.go; process.go is the part that runs a command.
package harness
