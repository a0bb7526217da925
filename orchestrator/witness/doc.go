// Package witness is the eyes of an agent on its own host: it finds the holders
// of locks that run there, notices their end at once, and writes what it sees to
// observed/<lock>/<Consul node>, so that a successor on another host need not
// wait for a check to expire.
//
// Holders are found by one blocking query, for the services of the witness's own
// Consul node: a holder's service names its locks. Only those locks are then
// read and followed, so that a witness costs Consul nothing where nobody holds a
// lock, however many locks and witnesses there are. A hold without such a
// service (its Consul agent takes no checks) is not found: nothing is written,
// and others know nothing of its processes.
//
// It judges nothing: what a record proves is the matter of package evidence,
// which also has the means to look at processes. Start with [Witness.Run].
package witness
