// Package mutants takes the guards of the protocol out, one at a time, and
// shows that the tests notice: a guard that no test misses may be gone already.
//
// `make mutants` runs it. Each mutant is a piece of text that stands once in a
// file, and what it is replaced by; the Go tool compiles the changed file in its
// place (-overlay), so nothing of it is in the program that is built.
package mutants
