// Package journal keeps what an observer of locks saw, and what it made of it,
// in files of one JSON object a line, so that the story of a lock can be told
// and today's policies can be tried on yesterday's evidence.
//
// A journal is a folder of journal-<n>.jsonl files, n growing. One process at a
// time writes it. It is bounded: a file that is full is followed by the next
// one, and the oldest go when all together are too large.
//
// # Invariants
//
//  1. An entry that Write returned nil for is in the file when the process is
//     killed. When the machine dies, what was not yet flushed may be lost.
//  2. What a crash or a full disk left of a line is never joined with the next
//     entry: a reader skips it, says where it stands, and goes on.
//  3. No failure of the disk stops the caller or makes it wait for a retry: the
//     entry is lost, and Write says so.
//  4. Each file begins with a start entry, and can be read without the others.
//
// Files are numbered and not named by the time, since a clock that jumps must
// not change their order; that, the bound on the total, and torn lines are what
// the rotating writers that there are do not do.
//
// Values of locks and ACL tokens are never in it; ids of sessions are.
//
// It imports package policies for the facts' JSON, and nothing of Consul. The
// recorder that decides what is written stands in package locksmith.
package journal
