// Package gates asks the gates of rollouts: it puts one question to the outside
// and gives one answer, pass, fail, unknown or pending, with what was measured
// and why. How often a gate is asked, and what becomes of the answers, is
// decided by the core (package orchestrator, gates.go).
//
//	Set             gates.go       finds the kind and bounds the question
//	consul_checks   consul.go      the health of a service's instances
//	http            http.go        status and body of a web server's answer
//	prometheus      prometheus.go  an instant query and a threshold
//	exec            exec.go        a program of this machine
//	nomad_deployment nomad.go      a job's last deployment
//	plugin          Config.Plugin  whatever implements Kind
//
// # Rules for a kind
//
//  1. What could not be asked, or was not understood, is unknown. Pass and fail
//     rest on an answer that was read whole.
//  2. Everything has a bound: the time by the context, bodies and outputs by
//     bytes.
//  3. What comes from outside is foreign: it is made printable and clipped
//     before it is shown. A secret is never shown, not even in an error.
//
// It may import the core, consulkv, nomadapi and text, and HCL by way of package
// condition. It knows nothing of locks.
package gates
