// Package agent is the endpoint of a rollout: it keeps one node's files at
// what Consul desires, behind a fence that no older order passes.
//
// # The fence
//
// For each config the node keeps, in its state folder, the highest order that
// it ever accepted: the mark. An order is compared with the mark under a lock
// file that is never renamed and never deleted; a newer one becomes the mark,
// on disk and synced, before anything else happens, and is compared once more
// just before the rename. So whatever wakes up late (a stopped orchestrator, a
// stale rendering of consul-template, a second agent) finds a newer mark and
// is refused. See fence.go, which is the place to start.
//
// # Fail static
//
// Without Consul the agent changes nothing and waits for nobody: the files
// stay, the programs run on. A node whose state is lost recovers its marks
// from its own reports in Consul, and writes nothing until it has.
//
// # What an agent costs
//
// An idle agent holds one blocking query on the names under
// configs/, which tells it of configs and changes once for each new revision,
// and one more for each config that it has heard of, on its own key
// desired/<config>/<node>. Each is renewed about once in two minutes. It
// passes its service check on the local Consul agent every 3 seconds, which
// goes no further than that agent. A node that a config does not concern asks
// for a key that does not exist; Consul wakes such a query early while other
// keys are written, so it is repeated at most once a second. Nothing is ever
// read that grows with the fleet, but for the names under desired/, every ten
// minutes or so.
//
// Consul takes 200 connections from one address unless its
// limits.http_max_conns_per_client is raised: that is enough for one agent on
// each machine, and too little for some seventy of them behind one address, or
// for one that has heard of more than some 190 configs.
//
// Configs that belong together are read by one transaction and carried out by
// one follower; the others find their answer in their own journals. See
// group.go.
//
// It may import the core, records, keys and consulkv, and what plugins are. Who delivers by other
// means (consul-template) enters by [Agent.Apply].
package agent
