//go:build mutants

package mutants

const core = "orchestrator"

// complaints are what keeps from aimlock what people complain of in the trackers
// of other tools, each left out. The tests are named after those.
var complaints = []mutant{
	{
		name: "a percent is rounded up",
		file: core + "/choose.go",
		old:  "return min(max(0, (all*st.Percent+99)/100-done), left)",
		new:  "return min(max(0, all*st.Percent/100-done), left)",
		run:  "TestSaltAnsiblePercentRoundedToNothing",
	},
	{
		name: "there is one budget over all stages",
		file: core + "/budget.go",
		old:  "if n := s.budget.Failed - s.budget.ForgivenFailed; n > f.MaxFailed {",
		new:  "if n := s.budget.Failed - s.budget.ForgivenFailed; n > f.MaxFailed*(s.stage+1) {",
		run:  "TestAnsibleSaltNodewrightBudgetPerBatch",
	},
	{
		name: "a deadline has a consequence",
		file: core + "/budget.go",
		old:  "if !s.ticking() || s.elapsed < limit || s.stopped() {",
		new:  "if limit > 0 || !s.ticking() || s.stopped() {",
		run:  "TestNomad10465_StalledPastDeadline",
	},
	{
		name: "a deadline counts while a stage waits to be promoted",
		file: core + "/budget.go",
		old:  "p.Cause != CauseOperator && p.Cause != CauseDeadline",
		new:  "p.Cause != CauseOperator && p.Cause != CauseDeadline && p.Cause != CausePromotion",
		run:  "TestNomad20295_DeadlineWhileWaitingForPromotion",
	},
	{
		name: "a rollback is of all nodes at once",
		file: core + "/advance.go",
		old:  "!n.order.IsZero() && !n.restore && !n.flying {",
		new:  "!n.order.IsZero() && !n.restore && !n.flying && s.plan.StageOf(i) == 0 {",
		run:  "TestNomad10882_RollbackThroughCanaryAgain",
	},
	{
		name: "unknown pauses",
		file: core + "/gates.go",
		old:  "if g.State == GateUnknown && unknown == nil {",
		new:  "if g.State == GateUnknown && unknown == nil && !baked {",
		run:  "TestArgo3850_InconclusivePromotedInTheBackground",
	},
	{
		name: "a canary that nobody could try pauses",
		file: core + "/budget.go",
		old:  "	if next == 0 {",
		new:  "	if next >= 0 {",
		run:  "TestScripts",
	},
	{
		name: "a resume ends no pause that its giver has not seen",
		file: core + "/step.go",
		old:  "case c.Pause == nil || *c.Pause == s.pauses:",
		new:  "case s.pauses > 0:",
		run:  "TestScripts",
	},
	{
		name: "other content is another rollout",
		file: core + "/header.go",
		old:  "case h.ID != plan.ID || h.Hash != plan.Spec.Hash:",
		new:  "case h.ID == plan.ID && h.Hash == \"\":",
		run:  "TestNomad6392_KeyChangeReachesEveryNodeAtOnce",
	},
	{
		name: "an order comes after the one that the node accepted",
		file: agents + "/fence.go",
		old:  "if d.After == nil || d.Epoch > mark.Epoch || !mark.Less(d.Order) || !d.After.Less(mark) {",
		new:  "if d.After == nil || d.After != nil || mark.IsZero() {",
		run:  "TestOrderGivenInIgnorance|TestGroupGivenInIgnorance",
	},
	{
		name: "a Consul that went back is noticed before anything is assigned",
		file: core + "/runner/standing.go",
		old:  "if lost := d.Less(mark) && !d.damaged; lost || ignorant {",
		new:  "if lost := d.Less(mark) && d.damaged; lost || ignorant {",
		run:  "TestRestoredToYesterday|TestRestoredWithNothingToDo",
	},
}
