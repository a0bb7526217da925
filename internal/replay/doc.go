// Package replay judges a recorded journal anew by today's policies, and tells
// where they would have judged otherwise.
//
// At each entry the facts are those that were judged then. Between two entries
// of a lock nothing changed but the time, so that in between the lock is judged
// whenever time alone could change today's verdict: a stricter bound on an age
// shows when it would have been passed. `for` and confirm count recorded time.
//
// It is pure but for the reading of the journal, and needs no Consul.
package replay
