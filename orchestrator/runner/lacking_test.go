package runner_test

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// told checks what who has nothing to do is told, by whatever he asks.
func (f *fleet) told(in runner.Input, start, tick string) {
	f.t.Helper()
	in.Fleet = runner.StaticFleet(f.nodes)
	r := f.runner()
	if p, err := r.Preview(f.t.Context(), in); err != nil || !p.NothingToDo || p.Note != start {
		f.t.Errorf("planned: %+v, %v, want %q", p, err, start)
	}
	if out, err := r.Start(f.t.Context(), in); err != nil || !out.Converged || out.Note != start {
		f.t.Errorf("started: %+v, %v, want %q", out, err, start)
	}
	if out, err := r.Tick(f.t.Context(), in); err != nil || !out.Converged || out.Note != tick {
		f.t.Errorf("ticked: %+v, %v, want %q", out, err, tick)
	}
}

const everybody = "every node of the fleet has this revision: nothing to do"

// Who has nothing to do is told which nodes do not have the revision, and what becomes
// of them: one that was away takes its order by itself.
func TestToldWhoLacksIt(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	in := f.input("one", rest)
	f.stop["n02"]()
	<-f.done["n02"]
	if out, err := f.runner().Start(t.Context(), in); err != nil || out.Header.State != orchestrator.Succeeded || out.Header.Counts[orchestrator.ClassUnreachable] != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	want := "2 of 3 nodes of the fleet have this revision: n02 has its order, and takes it when its agent is back; nothing to do here"
	f.told(in, want, want)
	f.startAgent("n02")
	f.until("n02 to take its order", func() bool { return f.file("n02") == "one" })
	f.until("everybody to be known to have it", func() bool {
		p, err := f.runner().Preview(t.Context(), in)
		return err == nil && p.Note == everybody
	})
	f.told(in, everybody, everybody)

	// An agent that is up carries its order out by itself: there is nothing to give it.
	if _, err := f.kv.API().KV().Delete(prefix.Actual(config, "n00"), nil); err != nil {
		t.Fatal(err)
	}
	want = "2 of 3 nodes of the fleet have this revision: n00 has its order, and has not answered it yet though its agent is up; nothing to do here"
	f.told(in, want, want)
}

// Nodes that no stage reaches do not have it either.
func TestToldWhoIsInNoStage(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 8)
	in := f.input("one", canary)
	if out, err := f.runner().Start(t.Context(), in); err != nil || out.Header.State != orchestrator.Succeeded {
		t.Fatalf("%+v, %v", out, err)
	}
	first := ""
	for _, n := range f.nodes {
		if f.file(n.Name) == "one" {
			first = n.Name
		}
	}
	names := ""
	for _, n := range f.nodes {
		if n.Name != first && strings.Count(names, "n") < 5 {
			names += ", " + n.Name
		}
	}
	want := "1 of 8 nodes of the fleet has this revision: " + names[2:] + " and 2 more have no order of it; nothing to do here"
	f.told(in, want, want)
}

// A late joiner that nobody could reach got no order: once its agent is up it is served.
func TestLateJoinerThatWasAway(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"start", "tick"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 2)
			in := f.input("one", rest)
			if out, err := f.runner().Start(t.Context(), in); err != nil || out.Header.State != orchestrator.Succeeded {
				t.Fatalf("%+v, %v", out, err)
			}
			f.nodes = append(f.nodes, orchestrator.Node{Name: "late"})
			in.Fleet = runner.StaticFleet(f.nodes)
			if out, err := f.runner().Start(t.Context(), in); err != nil || out.Header.Follows == "" || out.Header.State != orchestrator.Failed {
				t.Fatalf("nobody is there: %+v, %v", out, err)
			}
			want := "2 of 3 nodes of the fleet have this revision: late has no order of it: the next start or tick gives it once the agent is up; nothing to do here"
			f.told(in, want, want)
			f.startAgent("late")
			f.registered()
			call := f.runner().Start
			if name == "tick" {
				call = f.runner().Tick
			}
			if out, err := call(t.Context(), in); err != nil || out.Header.State != orchestrator.Succeeded || out.Header.Total != 1 || f.file("late") != "one" {
				t.Errorf("it is back: %+v, %v", out, err)
			}
			f.told(in, everybody, everybody)
		})
	}
}

// A tick leaves who has failed, and says so.
func TestToldWhoFailed(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	in := f.bad("one", canary, rest)
	in.Spec.Failure.MaxFailed = 1
	if out, err := f.runner().Start(t.Context(), in); err != nil || out.Header.State != orchestrator.Succeeded || out.Header.Counts[orchestrator.ClassFailed] != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	want := "2 of 3 nodes of the fleet have this revision: n01 failed, and a tick does not try again: `aimlock rollout start` does; nothing to do here"
	if out, err := f.runner().Tick(t.Context(), in); err != nil || !out.Converged || out.Note != want {
		t.Errorf("%+v, %v, want %q", out, err, want)
	}
}
