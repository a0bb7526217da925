// Package evidence finds out what can be known about a lock and its holder,
// and says of each fact where it came from, when it was seen and, if it could
// not be had, why.
//
// [Reader.Read] takes one consistent picture of what Consul knows, a
// [Snapshot]; [Reader.Facts] turns it into the facts that policies judge by,
// with this host's /proc and an observer's [Memory] beside it. Nothing is
// decided here. A fact that could not be had is an unknown value and never a
// guess: an empty answer of Consul where an ACL token lacks rights, a process
// behind hidepid, an age that nobody watched.
//
// It may import policies (the facts' schema), records and consulkv; it is
// imported by locksmith.
package evidence
