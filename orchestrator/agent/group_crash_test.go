package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
)

// groupStory is a group's order on a node that has "v1" by r1, in all but
// "first"; what stands after it.
type groupStory struct {
	name string
	// contents before, and those of the order; nil: a restore of r2.
	setup, contents []string
	edit            func(ds []*records.Desired)
	after           []string
	result          string
	// kill: at every so many of its steps, the agent is a process of its own, ended
	// by SIGKILL. At the others it is stopped within the test, which is cheaper.
	kill int
}

func groupStories() []groupStory {
	seen := sh("true")
	v1, v2 := set("v1", trio), set("v2", trio)
	some := []string{v2[0], v1[1], v2[2]}
	tell := func(ds []*records.Desired) {
		for _, d := range ds {
			d.Reload = seen
		}
	}
	return []groupStory{
		{name: "group first", contents: v2, after: v2, result: records.ResultApplied, edit: tell},
		{name: "group apply", kill: 2, setup: v1, contents: v2, after: v2, result: records.ResultApplied, edit: tell},
		{name: "group in part", setup: v1, contents: some, after: some, result: records.ResultApplied, edit: tell},
		{name: "group unchanged", setup: v1, contents: v1, after: v1, result: records.ResultApplied},
		{name: "group invalid", setup: v1, contents: v2, after: v1, result: records.ResultFailed, edit: func(ds []*records.Desired) {
			ds[2].Validate = sh("exit 1")
		}},
		{name: "group unhealthy", kill: 4, setup: v1, contents: v2, after: v1, result: records.ResultFailed, edit: func(ds []*records.Desired) {
			tell(ds)
			ds[1].Healthy = sh("exit 1")
		}},
		{name: "group restore", kill: 4, setup: v2, after: v1, result: records.ResultRolledBack, edit: tell},
		{name: "group restore, not well", setup: v2, after: v1, result: records.ResultFailed, edit: func(ds []*records.Desired) {
			ds[0].Healthy = sh("exit 1")
		}},
	}
}

func (s groupStory) prepare(t testing.TB, r *rig) {
	t.Helper()
	if s.setup == nil {
		return
	}
	v1 := set("v1", trio)
	r.groupMust(t, entries(order(1, 1), "r1", trio, v1), v1, records.ResultApplied)
	if s.contents == nil {
		r.groupMust(t, entries(order(2, 1), "r2", trio, s.setup), s.setup, records.ResultApplied)
	}
}

func (s groupStory) entries() []*records.Desired {
	var ds []*records.Desired
	if s.contents == nil {
		ds = restores(order(2, 2), "r2", trio)
	} else {
		ds = entries(order(2, 2), "r2", trio, s.contents)
	}
	if s.edit != nil {
		s.edit(ds)
	}
	return ds
}

func (s groupStory) sources() []string {
	if s.contents == nil {
		return make([]string, len(trio))
	}
	return s.contents
}

func (s groupStory) do(r *rig) (outcomes, error) { return r.groupDo(s.entries(), s.sources()) }

// groupChild carries out one story.
func groupChild(r *rig, name string) {
	for _, s := range groupStories() {
		if s.name == name {
			_, _ = s.do(r)
		}
	}
}

// TestGroupKilled ends an agent by SIGKILL between any two writes of a group's
// order. Whatever comes next, be it a restart without Consul and then the order
// again, or a newer order for one of the configs alone, the files end as one
// set.
func TestGroupKilled(t *testing.T) {
	for _, s := range groupStories() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			var steps []string
			prepared := newRig(t)
			s.prepare(t, prepared)
			r := prepared.copy(t)
			r.step = func(name string) { steps = append(steps, name) }
			r.groupMust(t, s.entries(), s.sources(), s.result)
			if len(steps) < 12 {
				t.Fatalf("only the steps %v", steps)
			}
			for i, name := range steps {
				r := prepared.copy(t)
				killGroupAt(t, r, s, i, fmt.Sprintf("%d (%s)", i, name))
			}
		})
	}
}

func killGroupAt(t *testing.T, r *rig, s groupStory, i int, name string) {
	t.Helper()
	before := r.files(t, trio)
	if s.kill > 0 && i%s.kill == 0 {
		killChildAt(t, r, s, i)
	} else {
		stopGroupAt(t, r, s, i)
	}
	// Each file is whole, whichever it is.
	for k, got := range r.files(t, trio) {
		if got != before[k] && got != s.after[k] && got != s.sources()[k] {
			t.Fatalf("step %s: %s is %q after the crash", name, trio[k], got)
		}
	}
	// An older order passes nowhere where the mark stands.
	for k, c := range trio {
		if st := r.peek(c); st == nil || st.Mark != order(2, 2) {
			continue
		}
		if out, err := r.apply(t.Context(), c, entry(order(1, 9), "r1", "old\n"), from("old\n")); err != nil || out.Refused == nil {
			t.Fatalf("step %s: an older order for %s: %+v %v", name, trio[k], out, err)
		}
	}
	if i%3 == 2 {
		overtake(t, r, s, name)
		return
	}
	// A restart without the orders: all are the old or the new ones by then.
	if _, err := r.finish(t.Context(), trio[i%len(trio)]); err != nil {
		t.Fatalf("step %s: restart: %v", name, err)
	}
	if got := r.files(t, trio); !same(got, before) && !same(got, s.after) {
		t.Fatalf("step %s: after the restart files are %q, neither %q nor %q", name, got, before, s.after)
	}
	outs, err := s.do(r)
	if err != nil {
		t.Fatalf("step %s: the order again: %v", name, err)
	}
	for k, out := range outs {
		rep := out.Report
		if rep == nil {
			rep = out.Standing
		}
		if rep.Result != s.result || rep.Order != order(2, 2) {
			t.Errorf("step %s: %s: %s of %s (%s), want %s", name, trio[k], rep.Result, rep.Order, rep.Error, s.result)
		}
		if rep.SHA256 != "" && rep.SHA256 != sum256([]byte(s.after[k])) {
			t.Errorf("step %s: the report of %s is not of %q", name, trio[k], s.after[k])
		}
	}
	if got := r.files(t, trio); !same(got, s.after) {
		t.Errorf("step %s: files are %q in the end, want %q", name, got, s.after)
	}
	r.tidied(t, name)
}

func killChildAt(t *testing.T, r *rig, s groupStory, i int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "AIMLOCK_TEST_CRASH_AT="+strconv.Itoa(i), "AIMLOCK_TEST_STORY="+s.name,
		"AIMLOCK_TEST_ROOT="+r.root, "AIMLOCK_TEST_STATE="+r.state)
	out, err := cmd.CombinedOutput()
	ee, ok := errors.AsType[*exec.ExitError](err)
	if !ok || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("step %d: the child was not killed: %v\n%s", i, err, out)
	}
}

func stopGroupAt(t *testing.T, r *rig, s groupStory, i int) {
	t.Helper()
	c := &rig{root: r.root, state: r.state, fence: r.newFence()}
	c.step = func(string) {
		if i--; i < 0 {
			panic(crash{})
		}
	}
	defer func() {
		if p := recover(); p != (crash{}) {
			t.Fatalf("it did not stop: %v", p)
		}
	}()
	_, err := s.do(c)
	t.Fatalf("it came to its end: %v", err)
}

// overtake gives one of the configs a newer order of its own: before it is
// taken, the group is settled, so the others are all old or all new.
func overtake(t *testing.T, r *rig, s groupStory, name string) {
	t.Helper()
	before := set("v1", trio)
	if s.setup == nil {
		before = make([]string, len(trio))
	} else if s.contents == nil {
		before = s.setup
	}
	d := entry(order(3, 1), "r3", "alone\n")
	d.Destination = "/etc/aim/a.conf"
	out, err := r.apply(t.Context(), "a.conf", d, from("alone\n"))
	if err != nil || out.Report == nil || out.Report.Result != records.ResultApplied {
		t.Fatalf("step %s: a newer order for one: %+v %v", name, out, err)
	}
	check := func(when string) {
		t.Helper()
		got := r.files(t, trio)
		old, now := []string{before[0], "alone\n", before[2]}, []string{s.after[0], "alone\n", s.after[2]}
		if !same(got, old) && !same(got, now) {
			t.Fatalf("step %s: %s files are %q, neither %q nor %q", name, when, got, old, now)
		}
	}
	check("after a newer order for one")
	// The group's order is still in Consul for the others: it is answered or
	// refused, and writes nothing.
	outs, err := s.do(r)
	if err != nil {
		t.Fatalf("step %s: the order after a newer one: %v", name, err)
	}
	for k, out := range outs {
		if out.Refused == nil && (out.Standing == nil || out.Standing.Order != order(2, 2)) {
			t.Errorf("step %s: %s: %+v", name, trio[k], out)
		}
	}
	check("after the order again")
	r.tidied(t, name)
}

// tidied checks that nothing is left beside the files, and no state unfinished
// that could still do something.
func (r *rig) tidied(t *testing.T, name string) {
	t.Helper()
	for _, l := range r.leftovers(t) {
		if strings.HasPrefix(l, ".aimlock-") {
			t.Errorf("step %s: left over: %s", name, l)
		}
	}
	for _, c := range trio {
		if st := r.peek(c); st != nil && (st.Phase == phaseStaged || st.Phase == phaseFailing) {
			t.Errorf("step %s: %s is %s in the end", name, c, st.Phase)
		}
	}
}
