// Package ui is the web page of aimlock: locks with their verdicts, one lock's
// story, rollouts live with their nodes, and the policies in force. Everything is
// embedded; the page loads nothing from elsewhere, and a content security policy
// holds it to that.
//
// # The way through
//
//	Server    server.go  what is served, to whom, and under which headers
//	board     board.go   follows locks and rollouts, once for all who look on
//	stream    stream.go  server-sent events: what changed, as often as a person can read
//	driving   driving.go who drives a rollout, told from the locks
//	details   details.go one lock's story, one rollout's nodes, the policies
//	act       act.go     what a viewer may do, where actions are allowed
//	static/              the page
//
// # What it costs Consul
//
// Nothing while nobody looks. While somebody does, the locks are followed as by
// `aimlock lock watch`, and the rollouts by one blocking query more; a second
// viewer costs no query. In a locksmith, which follows the locks and the policies
// anyway, it is the one query for the rollouts. Details are read when what they are about changed.
//
// # Invariants
//
//  1. Nothing is written to Consul but by act.go, under the viewer's own token.
//  2. What stands in Consul is foreign text. It reaches the page as JSON, and the
//     page puts it into text nodes, never into HTML.
//  3. A viewer that does not read is dropped, and holds nobody up.
package ui
