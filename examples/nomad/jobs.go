// Package nomad holds the example jobs that are built into the program:
// `aimlock init` begins with them.
package nomad

import _ "embed"

// Tick is tick.nomad.hcl.
//
//go:embed tick.nomad.hcl
var Tick string
