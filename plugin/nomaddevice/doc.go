// Package nomaddevice is a plugin of Nomad's clients: it shows each config that
// the aimlock agent of the machine manages as a device, so that a job can be
// placed only where a config has reached a revision and its lock is not HOT.
//
// # The way through
//
//	Serve     serve.go    one process, started by Nomad, until Nomad ends it
//	          base.go     what it is, which settings it takes
//	          settings.go the settings, checked
//	          device.go   the three calls about devices
//	Monitor   monitor.go  what is known of all configs, kept current
//	          state.go    the agent's state folder, by the kernel's word
//	          presence.go whether the agent runs, by its check
//	          lock.go     the lock of one config
//	          device_of.go from what is known to a device: pure
//
// # Invariants
//
//  1. It only reads. It holds no lock, breaks none, and writes nothing to
//     Consul or to the node.
//  2. What is not known is said to be unknown and counts as unhealthy; nothing
//     is ever taken away from a task that runs. Nomad evicts nobody for the
//     health of a device.
//  3. The stream of devices never ends by itself: Nomad would forget all
//     devices of the plugin until its client is started again.
//  4. What stands in attributes changes only with events (an order, a change of
//     hands), never with time: each change is a write to Nomad's servers.
//  5. Nodes whose attributes are the same have the same health. Nomad judges one
//     node of a class for all, and the health of an instance is no part of a
//     class; attributes are.
//
// The wire format is in package nomadpb, written from the facts of Nomad's
// interface. It may import the parts of aimlock that know locks and the agent's
// state; nothing but command imports it.
package nomaddevice
