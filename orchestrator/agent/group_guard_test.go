package agent

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
)

// After a group's order is interrupted anywhere, all of its configs but one are
// given newer orders of their own that go wrong, so that their files go back to
// what stood. With whatever becomes of the last one afterwards, that must still be
// one set: the group is settled before a newer order is taken, and a group of
// which one has answered is never judged a second time.
//
// The program that is asked how it is says well once and never again: whoever
// judges a second time finds another verdict. Two guards are held by this that
// nothing else would miss: what is unfinished is settled before a newer order, and
// the leader's journal, which says of all that they are done, is the last.
func TestGroupIsJudgedOnce(t *testing.T) {
	t.Parallel()
	story := func(dir string) groupStory {
		once := sh(fmt.Sprintf("mkdir %s", filepath.Join(dir, "asked")))
		return groupStory{
			name: "judged once", setup: set("v1", trio), contents: set("v2", trio), after: set("v2", trio), result: records.ResultApplied,
			edit: func(ds []*records.Desired) {
				for _, d := range ds {
					d.Healthy = once // commands that are alike run once
				}
			},
		}
	}
	steps := 0
	s := story(t.TempDir())
	prepared := newRig(t)
	s.prepare(t, prepared)
	r := prepared.copy(t)
	r.step = func(string) { steps++ }
	r.groupMust(t, s.entries(), s.sources(), s.result)
	for i := range steps {
		r, s := prepared.copy(t), story(t.TempDir())
		stopGroupAt(t, r, s, i)
		for _, c := range trio[:2] {
			d := entry(order(3, 1), "r3", "alone\n")
			d.Destination, d.Healthy = "/etc/aim/"+c, sh("exit 1")
			out, err := r.apply(t.Context(), c, d, from("alone\n"))
			if err != nil || out.Report == nil || out.Report.Result != records.ResultFailed {
				t.Fatalf("step %d: a newer order for %s: %+v %v", i, c, out, err)
			}
		}
		if _, err := r.finish(t.Context(), trio[2]); err != nil {
			t.Fatalf("step %d: a restart of %s: %v", i, trio[2], err)
		}
		if got := r.files(t, trio); !same(got, set("v1", trio)) && !same(got, set("v2", trio)) {
			t.Errorf("step %d: files are %q", i, got)
		}
		r.tidied(t, fmt.Sprint(i))
	}
}
