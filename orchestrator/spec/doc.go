// Package spec reads rollouts: it makes an orchestrator.Spec of a file in HCL,
// with everything checked, the contents of the configs, and the fleet where
// that is a file too. Start with [Load].
//
// Whatever is wrong is a diagnostic with file, line and a way out, and all of
// them come at once. It imports the core, HCL and internal/keys, and neither
// Consul nor the runner: a fleet in Consul is resolved by package
// orchestrator/runner.
package spec
