// Package state is the state machine behind devconsul: the tables, the index
// rules and the invalidation rules of a Consul server, over hashicorp/go-memdb,
// in memory only.
//
// Every write runs in one transaction under one raised index (the "Raft index"),
// also when it ends in a refusal, because that is what a Raft log does. Reads
// take a memdb.WatchSet and add the channels that close when their answer may
// have changed.
//
// It may import memdb and the standard library. It knows no HTTP, no timers and
// no agent; those are in package devconsul, where a reader goes next. Start here
// at Store.write, then kv.go and session.go.
package state
