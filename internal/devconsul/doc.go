// Package devconsul serves, in process, the part of Consul's HTTP API that
// aimlock, consul-template, the consul command and hashicorp/consul/api use: KV,
// transactions, sessions, agent services and TTL checks, catalog, health and
// status, with blocking queries. It follows Consul 1.14.11; package conformance
// is the suite that both have to pass.
//
// It is for trying and testing. There is one server and one agent in it, all
// state is in memory and gone when it is closed, and there is no ACL: a token is
// accepted and ignored. Production is a real Consul cluster. Known differences:
//   - TTL checks only: it runs no script, HTTP, TCP or other check;
//   - no Connect, no prepared queries, no events, filter expressions for
//     health checks, catalog nodes and instances only, and KV operations only
//     in a transaction;
//   - the serfHealth check of its node passes until somebody registers it
//     otherwise in the catalog, so that a test can fail a node;
//   - the lock-delay is checked in the same step as the lock, so that contenders
//     cannot slip through it.
//
// It may import package state below it, go-memdb, go-bexpr, hclog and the
// standard library. Start at Config and Start in server.go; http.go routes requests,
// agent.go is the local agent, and state holds the rules of the data.
package devconsul
