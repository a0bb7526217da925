// Package history runs `aimlock lock exec` at random against a real Consul:
// processes that take one lock, work under it, and are killed, stopped and
// woken, robbed of their sessions and broken by a policy. What their commands
// did must be a history of one lock (porcupine): no command does anything once
// another one has begun.
//
// A run of the tests makes one history of each of some locks. For more:
//
//	go test ./history -args -for 10m
package history
