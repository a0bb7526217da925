// Package reports reads what a command says of its own progress, line by line,
// from a pipe or from a file, and passes it on at a bounded rate.
//
// What a command writes is foreign: a line has a bound, its fields have ranges,
// text is made printable, and what cannot be read is told once and does no
// harm. A command never waits for its reports to be read.
//
// It imports internal/text only.
package reports
