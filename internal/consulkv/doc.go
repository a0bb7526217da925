// Package consulkv is how aimlock talks to Consul: consistent reads,
// transactions whose outcome is told apart (committed, refused, unknown),
// blocking queries by Consul's rules, and errors that say what to do.
//
// It knows nothing of locks or rollouts. It imports consul/api and nothing of
// the rest of aimlock. Start with [Client.Txn] and [Watcher].
package consulkv
