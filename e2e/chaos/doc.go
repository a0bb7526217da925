// Package chaos breaks a real cluster and watches whether aimlock keeps its word:
// three Consul servers, machines with a Consul client, an agent and a locksmith
// each, and all the while rollouts and `aimlock lock exec` from every machine.
// Round by round servers, machines, links and processes are killed, stopped, cut
// off, slowed and restored from a snapshot. Which, where and for how long comes
// from a seed.
//
// After each round everything must go on within its bound, and nothing that was
// acknowledged may be lost:
//
//   - commands under one lock write to one file, and to one that checks their
//     order: none writes after one of a newer hold (judge_test.go);
//   - what each node was told, has answered and has on disk never goes back;
//   - a rollout that said succeeded stays so, with every file in place;
//   - an audit record that stood once stands.
//
// A run of the tests is a short one. For more:
//
//	make chaos ROUNDS=200 SEED=1
package chaos
