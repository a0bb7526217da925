package runner_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// A restore into the running cluster leaves the Raft index where it was, so that
// new orders are above all former ones: nothing but what the nodes have accepted
// tells that Consul went back.

// yesterday is what stands in Consul now, to be put back by restore.
func (f *fleet) yesterday() api.KVPairs {
	f.t.Helper()
	list, _, err := f.kv.API().KV().List(keys.DefaultPrefix, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return list
}

func (f *fleet) restore(list api.KVPairs) {
	f.t.Helper()
	if _, err := f.kv.API().KV().DeleteTree(keys.DefaultPrefix, nil); err != nil {
		f.t.Fatal(err)
	}
	for _, p := range list {
		if err := f.kv.Put(f.t.Context(), p.Key, p.Value); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fleet) recover() {
	f.t.Helper()
	if _, err := f.locks().Recover(f.t.Context(), locksmith.RecoverRequest{}); err != nil {
		f.t.Fatal(err)
	}
}

// said waits until a node has said what it accepted: it is newer than what stands.
func (f *fleet) said(node string) {
	f.t.Helper()
	f.until(node+" to say what it has accepted", func() bool {
		var d records.Desired
		var a records.Actual
		p, err := f.kv.Get(f.t.Context(), prefix.Desired(config, node))
		if err != nil || p != nil && records.Decode(p.Key, p.Value, &d) != nil {
			return false
		}
		p, err = f.kv.Get(f.t.Context(), prefix.Actual(config, node))
		return err == nil && p != nil && records.Decode(p.Key, p.Value, &a) == nil && d.Less(a.Order)
	})
}

func (f *fleet) stopAll() {
	for n, stop := range f.stop {
		stop()
		<-f.done[n]
	}
}

func TestRestoredToYesterday(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		// heard: the nodes have said what they accepted before the next rollout.
		heard bool
		// lost: Consul lost all of it.
		lost bool
	}{
		"to yesterday": {heard: true}, "to yesterday, and nobody has said so": {}, "of all its data": {heard: true, lost: true},
		"of all its data, and nobody has said so": {lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 3)
			if _, err := f.runner().Start(t.Context(), f.input("one", rest)); err != nil {
				t.Fatal(err)
			}
			past := f.yesterday()
			if tc.lost {
				past = nil
			}
			// Only the canary has had the next one.
			bake := canary
			bake.Bake = time.Hour
			in := f.input("two", bake, rest)
			if out, err := f.runner().Tick(t.Context(), in); err != nil || out.Header.State != orchestrator.Baking || f.file("n00") != "two" {
				t.Fatalf("%+v, %v", out, err)
			}
			if !tc.heard {
				f.stopAll()
			}
			f.restore(past)
			in = f.input("three", canary, rest)
			in.Spec.Failure.MaxFailed = 2
			if tc.heard {
				f.said("n00")
			} else {
				// It begins, and the agents come back then.
				f.t.Cleanup(f.stopAll)
				for _, n := range f.nodes {
					f.startAgent(n.Name)
				}
			}
			for range 2 {
				if _, err := f.runner().Start(t.Context(), in); !errors.Is(err, runner.ErrRestored) || !strings.Contains(err.Error(), "n0") {
					t.Fatalf("%v", err)
				}
			}
			if f.file("n00") != "two" || f.file("n01") != "one" || f.file("n02") != "one" {
				t.Fatal("something was applied")
			}
			f.recover()
			out, err := f.runner().Start(t.Context(), in)
			if err != nil || out.Header.State != orchestrator.Succeeded || out.Header.Counts[orchestrator.ClassFailed] != 0 || f.count("three") != 3 {
				t.Fatalf("%+v, %v", out, err)
			}
		})
	}
}

// Who finds nothing to do says it too, and so does a plan.
func TestRestoredWithNothingToDo(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	one := f.input("one", rest)
	if _, err := f.runner().Start(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	past := f.yesterday()
	if _, err := f.runner().Start(t.Context(), f.input("two", rest)); err != nil {
		t.Fatal(err)
	}
	if p, err := f.runner().Preview(t.Context(), f.input("three", rest)); err != nil || p.Behind != "" {
		t.Fatalf("%+v, %v", p, err)
	}
	f.restore(past)
	for _, n := range f.nodes {
		f.said(n.Name)
	}
	if out, err := f.runner().Tick(t.Context(), one); !errors.Is(err, runner.ErrRestored) || !strings.Contains(err.Error(), "the newest rollout in Consul is of token") {
		t.Fatalf("%+v, %v", out, err)
	}
	if p, err := f.runner().Preview(t.Context(), f.input("three", rest)); err != nil || !strings.Contains(p.Behind, "`aimlock recover`") {
		t.Fatalf("%+v, %v", p, err)
	}
	f.recover()
	if p, err := f.runner().Preview(t.Context(), f.input("three", rest)); err != nil || p.Behind != "" {
		t.Fatalf("%+v, %v", p, err)
	}
	// What Consul remembers of these nodes is not what they have.
	out, err := f.runner().Tick(t.Context(), one)
	if err != nil || out.Header.Total != 2 {
		t.Fatalf("%+v, %v", out, err)
	}
	f.until("the nodes to have it, and a tick to find nothing to do", func() bool {
		out, err = f.runner().Tick(t.Context(), one)
		return err == nil && out.Converged && f.count("one") == 2
	})
}

// Somebody wrote an older order over a newer one by hand. The node refuses it, and
// that Consul knows the newer one's rollout as ended shows that nothing was lost.
func TestOrderWrittenOverByHand(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	if _, err := f.runner().Start(t.Context(), f.input("one", rest)); err != nil {
		t.Fatal(err)
	}
	key := prefix.Desired(config, "n00")
	old, err := f.kv.Get(t.Context(), key)
	if err != nil || old == nil {
		t.Fatalf("%v, %v", old, err)
	}
	if _, err := f.runner().Start(t.Context(), f.input("two", rest)); err != nil {
		t.Fatal(err)
	}
	if err := f.kv.Put(t.Context(), key, old.Value); err != nil {
		t.Fatal(err)
	}
	f.until("the node to refuse it", func() bool {
		var a records.Actual
		kv, err := f.kv.Get(t.Context(), prefix.Actual(config, "n00"))
		return err == nil && kv != nil && records.Decode(kv.Key, kv.Value, &a) == nil && a.Result == records.ResultRefused
	})
	out, err := f.runner().Start(t.Context(), f.input("three", rest))
	if err != nil || out.Header.State != orchestrator.Succeeded || f.count("three") != 2 {
		t.Fatalf("%+v, %v", out, err)
	}
}

// A Consul that was restored may hand out the very index again at which a lock was
// taken before. Whoever has answered the order of another rollout that has the same
// number has not answered this one.
func TestOrderThatWasGivenBeforeToAnother(t *testing.T) {
	t.Parallel()
	for _, result := range []string{records.ResultApplied, records.ResultFailed, records.ResultRefused} {
		t.Run(result, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 2)
			if _, err := f.runner().Start(t.Context(), f.input("one", rest)); err != nil {
				t.Fatal(err)
			}
			f.stopAll()
			bake := canary
			bake.Bake = time.Hour
			in := f.input("two", bake, rest)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := f.runner().Tick(ctx, in)
				ended <- err
			}()
			var given records.Desired
			f.until("the order of n00", func() bool {
				p, err := f.kv.Get(t.Context(), prefix.Desired(config, "n00"))
				return err == nil && records.Decode(p.Key, p.Value, &given) == nil && given.After != nil && !given.After.IsZero()
			})
			cancel()
			if err := <-ended; err == nil {
				t.Fatal("nobody answered, and it came to an end")
			}

			// What n00 had before was of the very same number.
			state := filepath.Join(f.dir, "n00", "state", "configs", config, "state.json")
			b, err := os.ReadFile(state)
			body, _, whole := strings.Cut(string(b), "\n#crc32c ")
			was, is := fmt.Sprintf(`"token": %d,`, given.After.Token), fmt.Sprintf(`"token": %d,`, given.Token)
			if err != nil || !whole || !strings.Contains(body, was) {
				t.Fatalf("%s, %v", b, err)
			}
			body = strings.ReplaceAll(body, was, is)
			sum := crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli))
			if err := os.WriteFile(state, fmt.Appendf([]byte(body), "\n#crc32c %08x\n", sum), 0o600); err != nil {
				t.Fatal(err)
			}
			key := prefix.Actual(config, "n00")
			p, err := f.kv.Get(t.Context(), key)
			if err != nil || p == nil {
				t.Fatal(p, err)
			}
			var a records.Actual
			if err := records.Decode(key, p.Value, &a); err != nil {
				t.Fatal(err)
			}
			if a.Order, a.Result, a.Error = given.Order, result, "of the other"; result == records.ResultRefused {
				a.Refused, a.Rollout = &given.Order, given.Rollout
			}
			f.put(key, &a)
			for range 2 {
				if out, err := f.runner().Tick(t.Context(), in); !errors.Is(err, runner.ErrRestored) || !strings.Contains(err.Error(), "n00 has accepted order") || !strings.Contains(err.Error(), "in Consul it is another one") {
					t.Fatalf("%+v, %v", out, err)
				}
			}
			f.recover()
			f.t.Cleanup(f.stopAll)
			for _, n := range f.nodes {
				f.startAgent(n.Name)
			}
			if out, err := f.runner().Tick(t.Context(), in); err != nil || out.Header.State != orchestrator.Baking || out.Header.Counts[orchestrator.ClassApplied] != 1 || f.file("n00") != "two" {
				t.Fatalf("%+v, %v", out, err)
			}
			if p, err = f.kv.Get(t.Context(), prefix.Desired(config, "n00")); err != nil || records.Decode(p.Key, p.Value, &given) != nil || given.Epoch != 1 {
				t.Fatalf("%+v, %v", given, err)
			}
		})
	}
}
