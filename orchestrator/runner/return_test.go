package runner_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// TestReturningNodes lets rollouts succeed, roll back and be aborted while nodes
// leave, come back and join. Nobody ever ends with what was rolled back, and a
// start of what is wanted brings it to everybody: those that were away, too.
func TestReturningNodes(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 7))
			f := newFleet(t, 4)
			r := f.runner()
			want, n := "start", 0
			all := 100 // its canary may be away as well
			canary := canary
			canary.Failure = &orchestrator.StageFailure{MaxUnreachablePercent: &all, Then: orchestrator.ThenRollback}
			if _, err := r.Start(t.Context(), f.input(want, rest)); err != nil {
				t.Fatal(err)
			}
			away := map[string]bool{}
			fetch := func(in runner.Input) runner.Input {
				in.Fleet = runner.StaticFleet(f.nodes)
				return in
			}
			back := func(node string) {
				f.startAgent(node)
				delete(away, node)
			}
			for range 7 {
				n++
				content := fmt.Sprintf("content %d", n)
				switch what := rnd.IntN(6); what {
				case 0: // succeeds
					out, err := r.Start(t.Context(), fetch(f.input(content, canary, rest)))
					if err != nil || out.Header.State != orchestrator.Succeeded {
						t.Fatalf("%+v %v", out, err)
					}
					want = content
				case 1: // rolls back, if n01 is there to fail
					in := fetch(f.bad("bad "+content, canary, rest))
					out, err := r.Start(t.Context(), in)
					if err != nil {
						t.Fatal(err)
					}
					if out.Header.State == orchestrator.Succeeded {
						want = "bad " + content // n01 is away: nobody found it bad
					} else if out.Header.State != orchestrator.RolledBack {
						t.Fatalf("%+v", out)
					}
				case 2: // aborted at its canary: what was wanted is wanted again
					bake := canary
					bake.Bake = time.Hour
					out, err := r.Tick(t.Context(), fetch(f.input("aborted "+content, bake, rest)))
					if err != nil {
						t.Fatal(err)
					}
					if _, err := r.Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Abort}); err != nil {
						t.Fatal(err)
					}
				case 3, 4: // one leaves, or comes back
					node := f.nodes[rnd.IntN(len(f.nodes))].Name
					if away[node] {
						back(node)
						break
					}
					f.stop[node]()
					<-f.done[node]
					away[node] = true
				case 5:
					node := fmt.Sprintf("j%02d", n)
					f.nodes = append(f.nodes, orchestrator.Node{Name: node})
					f.startAgent(node)
				}
			}
			for node := range away {
				back(node)
			}
			f.until("all agents to be back", func() bool {
				l, _, err := f.kv.API().Health().Service(runner.AgentService, "", true, nil)
				return err == nil && len(l) == len(f.nodes)
			})
			// Content that n01 refuses cannot be what everybody has.
			if len(want) > 4 && want[:4] == "bad " {
				want = "the last word"
			}
			if out, err := r.Start(t.Context(), fetch(f.input(want, rest))); err != nil || out.Header.State != orchestrator.Succeeded {
				t.Fatalf("%+v %v", out, err)
			}
			f.until("every node to have "+want, func() bool { return f.count(want) == len(f.nodes) })
			// And it stays so: nothing of before comes back.
			if out, err := r.Tick(t.Context(), fetch(f.input(want, rest))); err != nil || !out.Converged || f.count(want) != len(f.nodes) {
				t.Fatalf("%+v %v", out, err)
			}
		})
	}
}
