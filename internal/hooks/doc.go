// Package hooks tells other programs what becomes of locks: by a POST to a URL,
// or by a command that reads it on stdin.
//
// It is never in the way of who tells it. Notify puts an event into a bounded
// queue of each hook and returns; where a receiver is slow or away, the oldest
// events are dropped and counted, and the next event that gets through says how
// many. Delivery is tried again with growing pauses for a while, so a receiver
// can see an event twice: its id tells.
//
// Secrets (what signs a body, values of headers, a path or a user in a URL) stand
// in no log and no error. It imports records for who did what, and nothing else
// of the rest.
package hooks
