package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// stages writes a rollout of the fleet with other stages.
func (f *fleet) stages(text string) {
	f.t.Helper()
	f.write("rollout.hcl", fmt.Sprintf(`rollout "app" {
  config %q {
    source      = "app.conf"
    destination = "/etc/app/app.conf"
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
%s
}
`, fleetConfig, text))
}

const longBakes = `
  stage "canary" {
    nodes = 1
    bake  = "1h"
  }
  stage "half" {
    percent = 50
    bake    = "1h"
  }
  stage "rest" {
    percent = 100
    bake    = "1h"
  }
`

func (f *fleet) header() *orchestrator.Header {
	f.t.Helper()
	var all []counted
	f.json(&all, f.aimlock("rollout", "list", "-json"))
	if len(all) != 1 {
		f.t.Fatalf("%d rollouts: %+v", len(all), all)
	}
	var h orchestrator.Header
	f.record(f.prefix.Rollout(all[0].ID), &h)
	return &h
}

func (f *fleet) free() {
	f.t.Helper()
	p, err := f.client.Get(f.t.Context(), f.prefix.Lock(fleetConfig))
	if err != nil || p != nil && p.Session != "" {
		f.t.Errorf("the lock is not free: %+v, %v", p, err)
	}
}

// A periodic job is launched twice (hashicorp/nomad#11052): one copy works, the
// others say who does, and all exit 0. Nothing is done twice.
func TestDoublePeriodicLaunchNomad11052(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	f := newFleet(t, c, "double", 3, `validate = ["sh", "-c", "while true; do sleep 1; done"]`)
	first := harness.Start(t, f.aimlock("rollout", "tick", "rollout.hcl"))
	harness.Eventually(t, fleetLimit, "the first copy is at work", func() bool {
		p, err := f.client.Get(t.Context(), f.prefix.Lock(fleetConfig))
		return err == nil && p != nil && p.Session != ""
	})
	for range 2 {
		r := harness.Run(t, cmdLimit, f.aimlock("rollout", "tick", "rollout.hcl"))
		if r.Code != 0 || !strings.Contains(r.Stdout, "left to its holder") || !strings.Contains(r.Stdout, fmt.Sprint(first.Pid())) {
			t.Errorf("exit %d, and it does not say who works:\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
	}
	first.Kill()
	first.Wait(cmdLimit)
	f.stages(longBakes)
	// All at the same moment, on a rollout that is another one.
	f.write("app.conf", "revision = 3\n")
	copies := make([]*harness.Process, 5)
	for i := range copies {
		copies[i] = harness.Start(t, f.aimlock("rollout", "tick", "rollout.hcl"))
	}
	for _, p := range copies {
		if code := p.Wait(fleetLimit); code != 0 {
			t.Errorf("exit %d:\n%s%s", code, p.Stdout(), p.Stderr())
		}
	}
	// Whoever was killed holds the lock for a while: the copies left it to it.
	harness.Eventually(t, fleetLimit, "a tick works", func() bool {
		r := harness.Run(t, cmdLimit, f.aimlock("rollout", "tick", "rollout.hcl"))
		return r.Code == 0 && strings.Contains(r.Stdout, "baking")
	})
	f.free()
}

// An orchestrator is restarted while it lets its lock go (kured loses its lock
// then, for ever): the next one is not held up for longer than a crash would, and
// nothing is left behind.
func TestRestartInMidReleaseKured(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	f := newFleet(t, c, "kured", 2, "")
	f.stages(longBakes)
	rnd := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for round := range 6 {
		p := harness.Start(t, f.rollout())
		harness.Eventually(t, fleetLimit, "it bakes", func() bool {
			lock, err := f.client.Get(t.Context(), f.prefix.Lock(fleetConfig))
			if err != nil || lock == nil || lock.Session == "" {
				return false
			}
			var all []counted
			f.json(&all, f.aimlock("rollout", "list", "-json"))
			return len(all) == 1 && all[0].State == orchestrator.Baking
		})
		p.Signal(syscall.SIGTERM)
		hard := round%2 == 1
		if hard {
			// It is killed at some moment of its release.
			select {
			case <-p.Done():
			case <-time.After(time.Duration(rnd.IntN(8)) * time.Millisecond):
				p.Kill()
			}
		}
		p.Wait(cmdLimit)
		began := time.Now()
		// A tick leaves a lock alone that is held, so try until one works.
		harness.Eventually(t, fleetLimit, "the next one works", func() bool {
			r := harness.Run(t, cmdLimit, f.aimlock("rollout", "tick", "rollout.hcl"))
			return r.Code == 0 && strings.Contains(r.Stdout, "baking") && !strings.Contains(r.Stdout, "left to its holder")
		})
		limit := 5 * time.Second
		if hard {
			limit = 30 * time.Second // the check's TTL, and Consul's own pace
		}
		if took := time.Since(began); took > limit {
			t.Errorf("round %d: the next one was held up for %s", round, took)
		}
		f.free()
	}
	if h := f.header(); h.State != orchestrator.Baking {
		t.Errorf("it is %s", h.State)
	}
}

// Operators at several terminals give orders at the same moment, with and
// without an orchestrator at work. Each order is taken exactly once, in some
// order, or refused with a reason to the very operator who gave it.
func TestOperatorsAtOnce(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, manyConns)
	for _, driven := range []bool{true, false} {
		t.Run(fmt.Sprintf("driven %v", driven), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, c, fmt.Sprintf("ops%v", driven), 4, "")
			f.stages(longBakes)
			if r := harness.Run(t, fleetLimit, f.aimlock("rollout", "tick", "rollout.hcl")); r.Code != 0 {
				t.Fatalf("%s%s", r.Stdout, r.Stderr)
			}
			if driven {
				harness.Start(t, f.rollout())
			}
			id := f.header().ID
			var mu sync.Mutex
			reported := map[string]int{}
			note := func(what string) {
				mu.Lock()
				defer mu.Unlock()
				reported[what]++
			}
			give := func(verb string, args ...string) {
				r := harness.Run(t, fleetLimit, f.aimlock("rollout", verb, append([]string{"-json", id}, args...)...))
				switch {
				case r.Code == 0:
					var v struct {
						State   orchestrator.Status
						Command *orchestrator.CommandSeen
					}
					err := json.Unmarshal([]byte(r.Stdout), &v)
					if err == nil && v.Command == nil && v.State.Terminal() {
						t.Logf("%s: it is %s already", verb, v.State)
						return
					}
					if err != nil || v.Command == nil || string(v.Command.Verb) != verb || !v.Command.OK {
						t.Errorf("%s was told of %+v (%v)", verb, v.Command, err)
					}
					note(verb)
				case r.Code == 1 && strings.Contains(r.Stderr, "was refused: "):
					note(verb + " refused")
				case r.Code == 1 && strings.Contains(r.Stderr, "has ended"):
					t.Logf("%s: %s", verb, r.Stderr)
				default:
					t.Errorf("%s: exit %d:\n%s%s", verb, r.Code, r.Stdout, r.Stderr)
				}
			}
			var wg sync.WaitGroup
			for op := range 4 {
				rnd := rand.New(rand.NewPCG(uint64(op), uint64(time.Now().UnixNano())))
				wg.Go(func() {
					for range 4 {
						switch verb := []string{"pause", "resume", "promote", "skip", "pause", "resume"}[rnd.IntN(6)]; verb {
						case "skip":
							give(verb, f.nodes[rnd.IntN(len(f.nodes))])
						default:
							give(verb)
						}
					}
				})
			}
			wg.Wait()
			for _, verb := range []string{"abort", "rollback"} {
				wg.Go(func() { give(verb) })
			}
			wg.Wait()
			var h orchestrator.Header
			harness.Eventually(t, fleetLimit, "it has ended", func() bool {
				h = orchestrator.Header{}
				f.record(f.prefix.Rollout(id), &h)
				return h.FinishedAt != nil
			})
			taken, total := f.commands(id), 0
			for _, n := range taken {
				total += n
			}
			if !maps.Equal(taken, reported) || h.Command == nil || h.Command.N != uint64(total) {
				t.Errorf("the log has %v, the operators were told of %v, the last number is %+v", taken, reported, h.Command)
			}
			sum := 0
			for _, n := range h.Counts {
				sum += n
			}
			if sum != len(f.nodes) || h.Counts[orchestrator.ClassPending] != 0 {
				t.Errorf("the classes: %v", h.Counts)
			}
			harness.Eventually(t, fleetLimit, "the lock is free", func() bool {
				p, err := f.client.Get(t.Context(), f.prefix.Lock(fleetConfig))
				return err == nil && p != nil && p.Session == ""
			})
		})
	}
}

// commands counts what the rollout's log says of commands, by verb and whether
// they were refused.
func (f *fleet) commands(id string) map[string]int {
	f.t.Helper()
	list, err := f.client.List(f.t.Context(), f.prefix.Rollout(id)+"/events/")
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]int{}
	for _, p := range list {
		var chunk records.RolloutEvents
		if err := records.Decode(p.Key, p.Value, &chunk); err != nil {
			f.t.Fatal(err)
		}
		for _, e := range chunk.Events {
			if e.Kind != records.EventCommand {
				continue
			}
			verb, rest, _ := strings.Cut(e.Text, " by ")
			if strings.Contains(rest, ": refused: ") {
				verb += " refused"
			}
			out[verb]++
		}
	}
	return out
}
