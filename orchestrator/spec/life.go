package spec

import (
	"slices"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/orchestrator"
)

// life decodes what a rollout does about others of the same configs.
func (d *decoder) life(c *hcl.BodyContent) {
	s, a, ok := d.str(c, "conflict")
	known := []string{orchestrator.ConflictSupersede, orchestrator.ConflictQueue}
	switch {
	case !ok:
	case !slices.Contains(known, s):
		d.bad(a, "Unknown conflict rule", "\"conflict\" says what becomes of an unfinished rollout of the same configs: %q takes its place, %q waits for its end.%s", known[0], known[1], meant(s, known))
	default:
		d.file.Spec.Conflict = s
	}
}
