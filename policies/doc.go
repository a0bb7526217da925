// Package policies is aimlock's policy language: when a lock is WARM or HOT,
// on which facts, and how a HOT one may be broken.
//
// A policy is HCL 2. Its rules are expressions over facts, and every fact is a
// cty value, so that a rule has three answers: it holds, it does not, or it
// cannot be told because a fact that it needs could not be had. What cannot be
// told is never acted on. A fact that cannot apply (no progress record, no
// allocation) is null, which is not the same as unknown: a null passes through
// every operator and function, and a rule whose value is null does not hold.
// Only an explicit test (x == null, x != null), coalesce, try and can look at
// a null itself.
//
// The package is pure: it reads no clock, no network and no random source. The
// only thing it reads are policy files, in Load. Callers give it facts and
// their own monotonic time. It imports HCL, cty and the records of package
// internal/records, never Consul.
//
// A verdict can change while nothing happens but time passing: ages grow, a `for`
// is served, a window opens. Policy.Steady and Freeze.Steady (horizon.go) say
// for how long one stands, never too late, so that who watches many locks judges
// one anew only when its facts or its time come.
//
// Where to go next: Load and Parse (load.go) make a Set; Set.For finds the
// policy of a lock; Policy.Judge (judge.go) is the verdict; Break and Step
// (breaking.go) are what may be done about it. Schema (schema.go) is the list
// of facts. The logic of true, false, null and unknown is in logic.go, its
// truth tables in logic_test.go.
package policies
