// Package bench measures aimlock on a real Consul, where it matters beside
// `consul lock` in the same run: how long a dead holder holds the lock, what a
// rollout costs its orchestrator, what a lock costs. docs/benchmarks.md has the
// results and the commands.
//
// It has nothing but benchmarks. See package e2e for tests.
package bench
