package spec

import "github.com/hashicorp/hcl/v2"

// drift is what a node does about a file that somebody else changed. "leave" is
// the default, and as good as none.
func (d *decoder) drift(c *hcl.BodyContent) string {
	s, a, ok := d.text(c, "drift")
	switch {
	case !ok || s == "leave":
	case s == "restore":
		return s
	default:
		d.bad(a, "Invalid drift", "%q is \"leave\", which reports a file that somebody else changed, or \"restore\", which puts it back.", "drift")
	}
	return ""
}
