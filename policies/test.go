package policies

import "github.com/hashicorp/hcl/v2"

// Test is one test block: given facts and the verdict that is expected.
type Test struct {
	Name  string
	Range hcl.Range
}

func (d *decoder) decodeTests(blocks hcl.Blocks) {}
