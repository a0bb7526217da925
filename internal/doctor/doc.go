// Package doctor looks at what aimlock depends on and says what is wrong with it
// and how it is mended: Consul and the rights of a token in it, Nomad, the agents,
// the locksmith, the policies in force, and what stands still. It reads, and
// writes only where it is told to try a lock.
//
// Start at Examine, in doctor.go; consul.go, rights.go and state.go are its parts.
package doctor
