// Package soak runs aimlock for a long time and sees that nothing grows: rollouts
// one after the other, locks taken, holders killed and their locks broken, on a real
// Consul with agents and a locksmith. `make soak` runs it; DURATION says how long.
//
// What is measured is not measured at moments that differ: after each round, when
// nothing is under way. What grows is told by the slope that fits the samples, so
// that one that stands out decides nothing.
package soak
