package orchestrator

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The tests of this file are named after what people complain of in the
// trackers of other tools. Each shows that it cannot happen here.

func complaint(t *testing.T, spec Spec, nodes int) *world {
	t.Helper()
	p, err := NewPlan("r-1", spec, fleet(nodes, "a", "b"), t0, Selecting(inZone(&spec)))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, p)
	w.start()
	return w
}

// answerAll lets nodes answer until nothing is open; bad are those that fail.
func (w *world) answerAll(bad ...int) {
	for open := w.unanswered(); len(open) > 0; open = w.unanswered() {
		var rs Reports
		for _, i := range open {
			if r, ok := w.answer(i, !slices.Contains(bad, i), "bad"); ok {
				rs = append(rs, r)
			}
		}
		w.step(rs, -1)
	}
}

func (w *world) wants(t *testing.T, st Status, reason string) {
	t.Helper()
	if w.s.Status() != st || !strings.Contains(w.s.reason, reason) {
		t.Fatalf("it is %s (%s), and should be %s (%s)", w.s.Status(), w.s.reason, st, reason)
	}
}

// Salt's batch and Ansible's serial take a percent of a small fleet for no
// node, or for all of them.
func TestSaltAnsiblePercentRoundedToNothing(t *testing.T) {
	t.Parallel()
	for nodes := 1; nodes <= 250; nodes += 1 + nodes/50 {
		for _, percent := range []int{1, 2, 10, 33, 50, 99, 100} {
			for _, sel := range []string{"", "a"} {
				spec := testSpec(Stage{Name: "some", Percent: percent, Select: sel})
				p, err := NewPlan("r", spec, fleet(nodes, "a", "b"), t0, Selecting(inZone(&spec)))
				if err != nil {
					t.Fatal(err)
				}
				of := nodes
				if sel != "" {
					of = (nodes + 1) / 2
				}
				if n := p.Ends[0]; n < 1 || n*100 < of*percent || (n-1)*100 >= of*percent {
					t.Errorf("%d percent of %d nodes are %d", percent, of, n)
				}
			}
		}
	}
}

// Ansible counts max_fail_percentage and Salt --failhard for each batch anew:
// one failure in each of a hundred batches never stops them. nodewright counts
// interrupted nodes for each of its batches.
func TestAnsibleSaltNodewrightBudgetPerBatch(t *testing.T) {
	var stages []Stage
	for i := range 10 {
		stages = append(stages, Stage{Name: fmt.Sprint(i), Nodes: 10, MaxParallel: 1})
	}
	spec := testSpec(stages...)
	spec.Failure.MaxFailed = 2
	w := complaint(t, spec, 100)
	var bad []int
	for i := 3; i < 100; i += 10 { // one in each stage
		bad = append(bad, i)
	}
	for range 20 {
		w.answerAll(bad...)
		w.start() // and a restart forgets none either
	}
	w.wants(t, Paused, "3 failed, and max_failed is 2")
	if n := w.s.Counts()[ClassFailed]; n != 3 || len(w.given) != 24 {
		t.Errorf("%d failed, and %d were given orders", n, len(w.given))
	}
}

// Nomad #10465: a deployment stays "running" past its progress deadline, and
// nothing comes of it.
func TestNomad10465_StalledPastDeadline(t *testing.T) {
	for then, want := range map[string]Status{ThenPause: Paused, ThenAbort: Aborted, ThenRollback: RollingBack} {
		spec := testSpec(Stage{Name: "all", Percent: 100, MaxParallel: 1})
		spec.Deadline, spec.NodeDeadline, spec.Failure.Then = time.Hour, 24*time.Hour, then
		w := complaint(t, spec, 3)
		// The only node in flight never answers, and nothing else happens: the
		// core asks to be woken, and acts.
		wake := w.s.NextWake()
		if !wake.Equal(t0.Add(time.Hour)) {
			t.Fatalf("it wakes at %s", wake)
		}
		w.now = wake
		w.step(Tick{}, -1)
		w.wants(t, want, "deadline of 1h")
	}
}

// Nomad #20295: a deployment that waits for its promotion outlives its
// deadline, and so does one whose server was replaced meanwhile.
func TestNomad20295_DeadlineWhileWaitingForPromotion(t *testing.T) {
	spec := testSpec(Stage{Name: "canary", Nodes: 1, Promote: PromoteManual}, Stage{Name: "rest", Percent: 100})
	spec.Deadline, spec.Failure.Then = time.Hour, ThenRollback
	w := complaint(t, spec, 3)
	w.answerAll()
	w.wants(t, Paused, "waits to be promoted")
	for range 5 {
		w.now = w.now.Add(10 * time.Minute)
		w.step(Tick{}, -1)
		w.header = w.s.Header() // as a runner does now and then
		w.start()
	}
	w.wants(t, Paused, "waits to be promoted")
	w.now = w.now.Add(10 * time.Minute)
	w.step(Tick{}, -1)
	w.wants(t, RollingBack, "deadline")
}

// Nomad #10882: an automatic revert deploys the old version through a canary,
// which waits to be promoted while the fleet is broken.
func TestNomad10882_RollbackThroughCanaryAgain(t *testing.T) {
	spec := testSpec(
		Stage{Name: "canary", Nodes: 1, Bake: time.Hour, Gate: []string{"g"}, Promote: PromoteManual, MaxParallel: 1},
		Stage{Name: "rest", Percent: 100, MaxParallel: 2},
	)
	spec.Gates = []Gate{{Name: "g", Kind: GateConsulChecks}}
	spec.Failure.Then = ThenRollback
	w := complaint(t, spec, 10)
	w.answerAll()
	w.step(OperatorCommand{N: 1, Verb: Promote, By: "sam"}, -1)
	r, _ := w.answer(1, true, "")
	w.step(Reports{r}, -1)
	r, _ = w.answer(2, false, "bad")
	effects := w.step(Reports{r}, -1)
	var back []int
	for _, e := range effects {
		switch e := e.(type) {
		case Restore:
			back = append(back, e.Nodes...)
		case Assign, AskGate:
			t.Errorf("a rollback does %+v", e)
		}
	}
	slices.Sort(back)
	if !slices.Equal(back, []int{0, 1, 2, 3}) {
		t.Errorf("in the Step of the failure %v go back; 0 to 3 had their orders", back)
	}
	w.answerAll()
	w.wants(t, RolledBack, "1 failed")
}

// Argo Rollouts #3850: an analysis that is inconclusive pauses the rollout,
// and some time later it is promoted in the background.
func TestArgo3850_InconclusivePromotedInTheBackground(t *testing.T) {
	spec := testSpec(Stage{Name: "canary", Nodes: 1, Gate: []string{"g"}}, Stage{Name: "rest", Percent: 100})
	spec.Gates = []Gate{{Name: "g", Kind: GateConsulChecks}}
	w := complaint(t, spec, 4)
	w.answerAll()
	answer := func(a Answer) {
		ask := w.asks[len(w.asks)-1]
		w.step(GateAnswered{Ask: ask.Ask, Gate: ask.Gate.Name, Answer: a}, -1)
	}
	first := w.asks[0]
	answer(Unknown)
	w.wants(t, Paused, "unknown")
	for range 20 { // time, restarts, late answers: nothing but an operator helps
		w.now = w.now.Add(24 * time.Hour)
		w.step(Tick{}, -1)
		w.step(GateAnswered{Ask: first.Ask, Gate: "g", Answer: Pass}, -1)
		w.start()
	}
	w.wants(t, Paused, "unknown")
	if len(w.given) != 1 {
		t.Fatalf("%d nodes have an order", len(w.given))
	}
	w.step(OperatorCommand{N: 1, Verb: Resume, By: "sam"}, -1)
	if w.s.Status() != Baking || len(w.given) != 1 {
		t.Fatalf("a resume without an answer: %s, %d orders", w.s.Status(), len(w.given))
	}
	answer(Pass) // asked anew, it passes
	if len(w.given) != 4 {
		t.Errorf("after a pass %d nodes have an order", len(w.given))
	}
}

// Two operators promote the canary. The word of the second comes when the next
// stage has its turn, and must not end the bake of that one.
func TestPromoteIsForOneStage(t *testing.T) {
	spec := testSpec(
		Stage{Name: "canary", Nodes: 1, Promote: PromoteManual},
		Stage{Name: "half", Percent: 50, Bake: time.Hour},
		Stage{Name: "rest", Percent: 100},
	)
	w := complaint(t, spec, 10)
	w.answerAll()
	w.wants(t, Paused, "waits to be promoted")
	promote := func(n uint64, stage string, ok bool, result string) {
		t.Helper()
		w.step(OperatorCommand{N: n, Verb: Promote, Stage: stage, By: "sam"}, -1)
		if c := w.s.Header().Command; c.N != n || c.OK != ok || !strings.Contains(c.Result, result) {
			t.Errorf("promote of %q: %+v, want %t and %q", stage, c, ok, result)
		}
	}
	promote(1, "half", false, `stage "half" is not the present one, which is "canary"`)
	promote(2, "nope", false, `there is no stage "nope"`)
	w.wants(t, Paused, "waits to be promoted")
	promote(3, "canary", true, "done")
	promote(4, "canary", true, `stage "canary" is over already; the present one is "half"`)
	w.answerAll()
	promote(5, "canary", true, "is over already")
	w.wants(t, Baking, "")
	if n := len(w.given); n != 5 {
		t.Errorf("%d nodes have their order, in the bake of the stage that ends with 5", n)
	}
	promote(6, "half", true, "done")
	if n := len(w.given); n != 10 {
		t.Errorf("%d nodes have their order after the promotion of the last but one stage", n)
	}
}

func TestPromoteWords(t *testing.T) {
	for stage, want := range map[string]string{
		"canary": "promote -stage canary", "eu-1.a": "promote -stage eu-1.a", "a b": "promote -stage 'a b'",
		"it's": `promote -stage 'it'\''s'`, "-x": "promote -stage '-x'", "$(id)": "promote -stage '$(id)'",
	} {
		if got := PromoteWords(stage); got != want {
			t.Errorf("%q: %s, want %s", stage, got, want)
		}
	}
}

// Nomad #6392: a template's key changes, and every allocation of the fleet
// restarts at once, past all stages. Here content reaches a node by an order
// only, which names the content by its hash; other content is another rollout,
// with a plan of its own, which begins at its canary.
func TestNomad6392_KeyChangeReachesEveryNodeAtOnce(t *testing.T) {
	spec := testSpec(Stage{Name: "canary", Nodes: 1, Promote: PromoteManual}, Stage{Name: "rest", Percent: 100, MaxParallel: 2})
	w := complaint(t, spec, 10)
	w.answerAll()

	changed := spec
	changed.Hash = "another"
	changed.Configs = slices.Clone(spec.Configs)
	changed.Configs[0].Revision = "222222222222"
	next, err := NewPlan("r-2", changed, fleet(10, "a", "b"), t0)
	if err != nil {
		t.Fatal(err)
	}
	// The unfinished rollout does not go on with the new content,
	if _, err := Recover(next, w.header, nil, nil); err == nil || !strings.Contains(err.Error(), "another plan") {
		t.Errorf("a rollout was resumed with other content, or refused for another reason: %v", err)
	}
	// it is superseded, which gives no node anything,
	for _, e := range w.step(Supersede{By: "r-2"}, -1) {
		switch e.(type) {
		case Assign, Restore:
			t.Errorf("superseded, it does %+v", e)
		}
	}
	// and the new one begins at its canary.
	w2 := newWorld(t, next)
	w2.start()
	if len(w2.given) != 1 {
		t.Errorf("%d nodes have an order of the new content", len(w2.given))
	}
	w2.answerAll()
	if len(w2.given) != 1 {
		t.Errorf("%d nodes have an order before the canary was promoted", len(w2.given))
	}
	for w2.step(OperatorCommand{N: 1, Verb: Promote, By: "sam"}, -1); len(w2.unanswered()) > 0; {
		if n := len(w2.unanswered()); n > 2 {
			t.Fatalf("%d nodes at once, max_parallel is 2", n)
		}
		r, _ := w2.answer(w2.unanswered()[0], true, "")
		w2.step(Reports{r}, -1)
	}
	w2.wants(t, Succeeded, "")
}

// TestVanishedNodesEndInAClass: nodes whose agents never come back, at every
// point of their turn, and a fleet of which nobody is there.
func TestVanishedNodesEndInAClass(t *testing.T) {
	spec := testSpec(Stage{Name: "one", Nodes: 2}, Stage{Name: "rest", Percent: 100})
	spec.Retry = &Retry{Attempts: 3, Delay: time.Second, MaxDelay: time.Second}
	spec.Failure.MaxFailed = 5
	all := 100 // or the rest waits for somebody to look
	spec.Stages[0].Failure = &StageFailure{MaxUnreachablePercent: &all, Then: ThenPause}
	w := complaint(t, spec, 6)
	r, _ := w.answer(1, false, "bad")
	w.step(Reports{r}, -1)                      // n2 waits for its next attempt,
	w.step(Health{Down: []int{0, 1, 4, 5}}, -1) // n1 is in flight, n5 and n6 have no order
	for i := 0; i < 20 && !w.s.Finished(); i++ {
		w.now = w.now.Add(time.Minute)
		w.step(Tick{}, -1)
		w.answered(2, 3)
	}
	w.wants(t, Succeeded, "")
	want := Counts{ClassApplied: 2, ClassUnreachable: 3, ClassFailed: 1}
	if got := w.s.Counts(); got != want {
		t.Errorf("%v, and it should be %v", got, want)
	}

	gone := complaint(t, testSpec(Stage{Name: "all", Percent: 100}), 3)
	gone.step(Health{Down: []int{0, 1, 2}}, -1)
	gone.now = gone.now.Add(time.Hour)
	gone.step(Tick{}, -1)
	gone.wants(t, Failed, "no node has applied it")
	if got := gone.s.Counts(); got != (Counts{ClassUnreachable: 3}) {
		t.Errorf("%v", got)
	}
}

// answered lets only these nodes answer.
func (w *world) answered(who ...int) {
	var rs Reports
	for _, i := range who {
		if r, ok := w.answer(i, true, ""); ok {
			rs = append(rs, r)
		}
	}
	w.step(rs, -1)
}

// TestRollbackNamesWhoDidNotGoBack: by class, in the reason and one by one.
func TestRollbackNamesWhoDidNotGoBack(t *testing.T) {
	spec := testSpec(Stage{Name: "all", Percent: 100})
	spec.Failure.Then = ThenRollback
	w := complaint(t, spec, 5)
	w.answered(0, 1, 2)
	r, _ := w.answer(3, false, "bad")
	w.step(Reports{r}, -1)
	w.wants(t, RollingBack, "1 failed")
	r, _ = w.answer(1, false, "disk full")
	w.step(Reports{r}, -1)
	w.start()
	w.answered(0, 3)
	w.now = w.now.Add(3 * time.Minute) // n3 and n5 do not answer
	w.step(Tick{}, -1)
	w.wants(t, Failed, "1 node could not go back: n2; not reached, and going back when they return: n3, n5")
	if got := w.s.Counts(); got != (Counts{ClassRolledBack: 1, ClassFailed: 2, ClassUnreachable: 2}) {
		t.Errorf("%v", got)
	}
	if !slices.ContainsFunc(w.header.Problems, func(p Problem) bool { return p.Node == "n2" && strings.Contains(p.Why, "disk full") }) {
		t.Errorf("problems: %+v", w.header.Problems)
	}
}

// TestSkipStage: a stage whose nodes are all skipped is passed without a bake
// or a gate; one that is at work loses those that have no order yet.
func TestSkipStage(t *testing.T) {
	spec := testSpec(Stage{Name: "a", Nodes: 1}, Stage{Name: "b", Nodes: 2, Bake: time.Hour, Promote: PromoteManual}, Stage{Name: "rest", Percent: 100, MaxParallel: 1})
	w := complaint(t, spec, 6)
	w.step(OperatorCommand{N: 1, Verb: Skip, Stage: "b", By: "sam"}, -1)
	w.start()
	w.answered(0)
	if len(w.given) != 2 || w.s.Stage() != 2 {
		t.Fatalf("%d orders in stage %d", len(w.given), w.s.Stage())
	}
	w.step(OperatorCommand{N: 2, Verb: Skip, Stage: "rest", By: "sam"}, -1)
	for i, stage := range []string{"a", "none"} {
		n := uint64(i + 3)
		if w.step(OperatorCommand{N: n, Verb: Skip, Stage: stage, By: "sam"}, -1); w.s.command.OK || w.s.command.N != n {
			t.Errorf("stage %s: %+v", stage, w.s.command)
		}
	}
	w.answerAll()
	w.wants(t, Succeeded, "")
	if got := w.s.Counts(); got != (Counts{ClassApplied: 2, ClassSkipped: 4}) {
		t.Errorf("%v", got)
	}
}

// TestNoCanaryIsLeft: whoever skips the canary, or goes on without it, is told which
// nodes are then the first; who has its order is not skipped, and the way on is named.
func TestNoCanaryIsLeft(t *testing.T) {
	spec := testSpec(Stage{Name: "canary", Nodes: 1}, Stage{Name: "half", Percent: 50, Bake: time.Hour}, Stage{Name: "rest", Percent: 100})
	told := func(w *world, c OperatorCommand, ok bool, result string) {
		t.Helper()
		c.By = "sam"
		w.step(c, -1)
		if c := w.s.Header().Command; c.OK != ok || c.Result != result {
			t.Errorf("%s: %t, %q, want %t, %q", c.Verb, c.OK, c.Result, ok, result)
		}
	}

	w := complaint(t, spec, 4)
	told(w, OperatorCommand{N: 1, Verb: Skip, Nodes: []string{"n1"}}, false, `node "n1" has its order already, which skip does not take back: leave it out; its answer is waited for no longer than 2m0s`)
	told(w, OperatorCommand{N: 2, Verb: Skip, Nodes: []string{"n4"}}, true, "done")
	w.now = w.now.Add(3 * time.Minute)
	w.step(Tick{}, -1)
	w.wants(t, Paused, `no node of stage "canary" has applied it`)
	told(w, OperatorCommand{N: 3, Verb: Skip, Nodes: []string{"n1"}}, false, "node \"n1\" has its order already, which skip does not take back: leave it out; `aimlock rollout resume` goes on without it")
	told(w, OperatorCommand{N: 4, Verb: Resume}, true, `done; no canary is left: the nodes of stage "half" are the first to get it`)
	w.answerAll()
	told(w, OperatorCommand{N: 5, Verb: Skip, Nodes: []string{"n2"}}, false, `node "n2" has its order already, which skip does not take back: leave it out`)

	// The agent of n2 is down when its turn comes, so it gets no order.
	spec.Stages = []Stage{{Name: "canary", Nodes: 2, MaxParallel: 1}, {Name: "rest", Percent: 100}}
	w = complaint(t, spec, 4)
	w.step(Health{Down: []int{1}}, -1)
	w.now = w.now.Add(3 * time.Minute)
	w.step(Tick{}, -1)
	w.step(Tick{}, -1)
	w.wants(t, Paused, `no node of stage "canary" has applied it`)
	of := func(node string) bool {
		return slices.ContainsFunc(w.s.Header().Problems, func(p Problem) bool { return p.Node == node })
	}
	if !of("n1") || !of("n2") {
		t.Errorf("problems: %+v", w.s.Header().Problems)
	}
	told(w, OperatorCommand{N: 1, Verb: Skip, Nodes: []string{"n2"}}, true, `done; no canary is left: the nodes of stage "rest" are the first to get it`)
	if !of("n1") || of("n2") {
		t.Errorf("problems after the skip of n2: %+v", w.s.Header().Problems)
	}
	told(w, OperatorCommand{N: 2, Verb: Skip, Stage: "rest"}, true, "skipped: 2 nodes")

	// A canary that failed is not tried again.
	spec.Stages = []Stage{{Name: "canary", Nodes: 2}, {Name: "rest", Percent: 100}}
	w = complaint(t, spec, 4)
	w.answerAll(0, 1)
	w.wants(t, Paused, "2 failed, and max_failed is")
	told(w, OperatorCommand{N: 1, Verb: Resume}, true, `done; it goes on without 2 failed nodes, which are not tried again; no canary is left: the nodes of stage "rest" are the first to get it`)
}

// TestProblemsAreOfNow: of a node that has applied it or was skipped no problem is
// left in the header, and a long one keeps its end, where an output says why.
func TestProblemsAreOfNow(t *testing.T) {
	spec := testSpec(Stage{Name: "all", Percent: 100, Bake: time.Hour})
	spec.Failure.MaxFailed = 2
	w := complaint(t, spec, 3)
	w.answered(0)
	w.now = w.now.Add(3 * time.Minute)
	r, _ := w.answer(1, false, "reload: here ended with status 6: "+strings.Repeat("noise ", 100)+"the last line")
	w.step(Reports{r}, -1)
	w.step(Tick{}, -1)
	why := func(node string) string {
		for _, p := range w.s.Header().Problems {
			if p.Node == node {
				return p.Why
			}
		}
		return ""
	}
	if p := why("n2"); len(p) > 310 || !strings.HasPrefix(p, "reload: here ended with status 6: ") || !strings.HasSuffix(p, "the last line") {
		t.Errorf("n2: %q", p)
	}
	last := "Error: rollout app-20261126-223125-pkt7 is " + strings.Repeat("w", 190)
	if p := Ends("reload: here ended with status 6: "+strings.Repeat("noise ", 100)+"\n"+last, 300); !strings.HasPrefix(p, "reload: here") || !strings.HasSuffix(p, " "+last) {
		t.Errorf("a long last line: %q", p)
	}
	last = "Error: rollout app-20261126-223125-pkt7 is paused: 1 failed, and max_failed is 0. To go back: `" + strings.Repeat("w", 190) + "` then start it again"
	if p := Ends("reload: here ended with status 6: "+strings.Repeat("noise ", 100)+"\n"+last, 300); len(p) > 310 || !strings.HasPrefix(p, "reload: here") || !strings.Contains(p, " … Error: rollout app-20261126-223125-pkt7 is paused: 1 failed, and max_failed is 0. ") || !strings.HasSuffix(p, "then start it again") {
		t.Errorf("a last line that is too long: %q", p)
	}
	if p := why("n3"); !strings.Contains(p, "did not answer") {
		t.Errorf("n3: %q", p)
	}
	w.answered(2)
	if p := why("n3"); p != "" || why("n2") == "" {
		t.Errorf("n3: %q, n2: %q", p, why("n2"))
	}
}

// A node has one problem at most that is told: what is over when it answers is not
// told beside the answer.
func TestOneProblemANode(t *testing.T) {
	w := complaint(t, testSpec(Stage{Name: "all", Percent: 100, Bake: time.Hour}), 3)
	order, _ := w.s.Order(2)
	w.s, _ = Step(w.s, Reports{{Node: 2, Order: order, Result: ResultApplied}}, w.now)
	w.s, _ = Step(w.s, Tick{}, w.now.Add(3*DefaultNodeDeadline)) // nobody answers
	if n := w.s.counts[ClassUnreachable]; n != 2 {
		t.Fatalf("%d nodes are unreachable", n)
	}
	order, _ = w.s.Order(0)
	w.s, _ = Step(w.s, Reports{{Node: 0, Order: order, Result: ResultFailed, Why: "bad"}}, w.now.Add(4*DefaultNodeDeadline))
	var got []string
	for _, p := range w.s.problems {
		got = append(got, p.Node+" "+p.Class)
	}
	slices.Sort(got)
	plan := w.s.plan.Nodes
	want := []string{plan[0] + " failed", plan[1] + " unreachable"}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("problems %q, not %q", got, want)
	}
}
