package policies

import "github.com/hashicorp/hcl/v2"

// Schemas returns what may stand in each block of a policy file, by the path of the
// block's types, such as "policy.break.budget"; "" is the file itself, and a step
// stands under its kind: "policy.break.step.signal". A block without one is free in
// what it has: locals are named by who writes them, and the config of a plugin is
// declared by the plugin. The schemas are not the caller's.
func Schemas() map[string]*hcl.BodySchema {
	out := map[string]*hcl.BodySchema{
		"":                     fileSchema,
		"policy":               policySchema,
		"policy.hot":           ruleSchema,
		"policy.warm":          ruleSchema,
		"policy.break":         breakSchema,
		"policy.break.confirm": confirmSchema,
		"policy.break.budget":  budgetSchema,
		"policy.break.freeze":  freezeSchema,
		"variable":             variableSchema,
		"variable.validation":  validationSchema,
		"test":                 testSchema,
		"test.expect":          expectSchema,
	}
	for kind := range stepKinds {
		out["policy.break.step."+kind] = stepSchema(kind)
	}
	return out
}
