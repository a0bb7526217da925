// Package e2e holds the end-to-end tests: aimlock, and the parts of it that
// stand in for Consul, against real programs. It is a module of its own, so that
// what only these tests need stays out of aimlock's go.mod. Package harness
// starts the programs; the folders under tools pin them, each in its own module.
package e2e
