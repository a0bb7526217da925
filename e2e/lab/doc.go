// Package lab gives tests a network of hosts that can be cut, slowed and made
// lossy, one direction at a time, on one machine and without rights on it.
//
// Each host is a network namespace, with an address of its own, and a UTS
// namespace, with a name of its own. A pair of virtual interfaces joins it to the
// hub, which is the test's process: it reads each frame that a host sends, and
// passes it on, later, or not at all. So a cut is silence, as with a broken
// switch, and nothing but namespaces, veth and packet sockets is asked of the
// kernel: no bridge, no filter and no traffic control, which a machine may not
// have.
//
// Main runs the tests of a package again in namespaces of their own, by a user
// namespace where they are not run by root. Where none can be had, Why says so,
// and the tests go on without. All of it goes away with the process.
package lab
