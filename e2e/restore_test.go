package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Consul is restored from a snapshot under a fleet that has gone on since: nodes
// refuse what came back, a holder that is alive loses, and after a recovery the
// next rollout reaches every node.

// recovery is what `aimlock recover -json` says, as far as it matters here.
type recovery struct {
	Before uint64 `json:"epoch_before"`
	Epoch  uint64 `json:"epoch"`
	Holds  []struct {
		Lock   string `json:"lock"`
		Voided bool   `json:"voided"`
		Detail string `json:"detail"`
	} `json:"holds"`
}

// rollOut brings a new content to every node.
func (f *fleet) rollOut(content string) {
	f.t.Helper()
	f.write("app.conf", content)
	f.finishes()
	for _, node := range f.nodes {
		f.has(node, content)
	}
}

func (f *fleet) has(node, content string) {
	f.t.Helper()
	if b, err := os.ReadFile(f.file(node)); err != nil || string(b) != content {
		f.t.Fatalf("%s has %q (%v), want %q", node, b, err, content)
	}
}

func (f *fleet) order(node string) orchestrator.Order {
	f.t.Helper()
	var d records.Desired
	f.record(f.prefix.Desired(fleetConfig, node), &d)
	return d.Order
}

// refuses waits until every node has said that it accepted a newer order than the
// one that stands in Consul.
func (f *fleet) refuses(newest map[string]orchestrator.Order) {
	f.t.Helper()
	for _, node := range f.nodes {
		harness.Eventually(f.t, fleetLimit, node+" refuses what came back", func() bool {
			p, err := f.client.Get(f.t.Context(), f.prefix.Actual(fleetConfig, node))
			var a records.Actual
			return err == nil && p != nil && json.Unmarshal(p.Value, &a) == nil &&
				a.Result == records.ResultRefused && a.Order == newest[node] && a.Refused != nil && a.Refused.Less(a.Order)
		})
	}
}

func (f *fleet) orders() map[string]orchestrator.Order {
	f.t.Helper()
	out := map[string]orchestrator.Order{}
	for _, node := range f.nodes {
		out[node] = f.order(node)
	}
	return out
}

func snapshotOf(t *testing.T, c *harness.Consul) []byte {
	t.Helper()
	r, _, err := c.Client().Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func restore(t *testing.T, c *harness.Consul, snapshot []byte) {
	t.Helper()
	// A server that has just won its election may still refuse.
	var last error
	defer func() {
		if t.Failed() {
			t.Logf("restore: %v", last)
		}
	}()
	harness.Eventually(t, fleetLimit, "the snapshot is restored", func() bool {
		last = c.Client().Snapshot().Restore(nil, bytes.NewReader(snapshot))
		return last == nil
	})
	c.WaitReady()
}

// afterRestore is what holds in either case: recover, roll out, and refuse what
// is old.
func (f *fleet) afterRestore(want uint64, old map[string][]byte) recovery {
	f.t.Helper()
	var dry, done recovery
	f.json(&dry, harness.Spec{Path: harness.Aimlock.Path(f.t), Args: []string{"recover", "-prefix", string(f.prefix), "-dry-run", "-json"}, Env: f.env, Dir: f.dir})
	f.json(&done, harness.Spec{Path: harness.Aimlock.Path(f.t), Args: []string{"recover", "-prefix", string(f.prefix), "-yes", "-json"}, Env: f.env, Dir: f.dir})
	if dry.Epoch != want || done.Epoch != want {
		f.t.Fatalf("the epoch is %d, %d by the dry run, want %d", done.Epoch, dry.Epoch, want)
	}
	f.rollOut(fmt.Sprintf("after recovery %d\n", want))
	for _, node := range f.nodes {
		if o := f.order(node); o.Epoch != want {
			f.t.Errorf("%s has order %s", node, o)
		}
	}
	// Somebody who slept through it all gives the old order once more.
	newest := f.orders()
	for _, node := range f.nodes {
		if err := f.client.Put(f.t.Context(), f.prefix.Desired(fleetConfig, node), old[node]); err != nil {
			f.t.Fatal(err)
		}
	}
	f.refuses(newest)
	for _, node := range f.nodes {
		f.has(node, fmt.Sprintf("after recovery %d\n", want))
	}
	return done
}

// stops rolls a content out that must not go anywhere: the rollout sees that Consul
// went back, gives no order, and names the way out.
func (f *fleet) stops(content, stands string) {
	f.t.Helper()
	f.write("app.conf", content)
	orders := f.orders()
	r := harness.Run(f.t, fleetLimit, f.rollout())
	if r.Code != 1 || !strings.Contains(r.Stderr, "aimlock recover") || !strings.Contains(r.Stderr, "has accepted") {
		f.t.Errorf("a rollout before the recovery: exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, node := range f.nodes {
		f.has(node, stands)
		if o := f.order(node); o != orders[node] {
			f.t.Errorf("%s was given %s", node, o)
		}
	}
}

// raw are the orders that stand, as they are written.
func (f *fleet) raw() map[string][]byte {
	f.t.Helper()
	out := map[string][]byte{}
	for _, node := range f.nodes {
		p, err := f.client.Get(f.t.Context(), f.prefix.Desired(fleetConfig, node))
		if err != nil || p == nil {
			f.t.Fatalf("%v, %v", p, err)
		}
		out[node] = p.Value
	}
	return out
}

func TestRestoreIntoTheSameServer(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, harness.WithData(), manyConns)
	f := newFleet(t, c, "restored", 3, "")
	f.rollOut("one\n")
	holder := harness.Start(t, f.aimlock("lock", "exec", "deploy", "--", "sleep", "600"))
	harness.Eventually(t, cmdLimit, "deploy is held", func() bool {
		p, err := f.client.Get(t.Context(), f.prefix.Lock("deploy"))
		return err == nil && p != nil && p.Session != ""
	})
	snapshot := snapshotOf(t, c)
	f.rollOut("two\n")
	newest, old := f.orders(), f.raw()
	restore(t, c, snapshot)
	f.refuses(newest)
	for _, node := range f.nodes {
		f.has(node, "two\n")
	}
	if p, err := f.client.Get(t.Context(), f.prefix.Lock("deploy")); err != nil || p.Session == "" {
		t.Fatalf("the holder lost by the restore alone: %+v, %v", p, err)
	}
	// The index goes on, so that a new order would be in order; yet it is given by
	// who does not know what was given since.
	f.stops("three\n", "two\n")
	done := f.afterRestore(1, old)
	if len(done.Holds) != 1 || done.Holds[0].Lock != "deploy" || !done.Holds[0].Voided || !strings.Contains(done.Holds[0].Detail, "destroyed") {
		t.Errorf("%+v", done)
	}
	if code := holder.Wait(cmdLimit); code != 7 || !strings.Contains(holder.Stderr(), "ERROR: deploy: LOST") {
		t.Errorf("the holder ended with %d:\n%s", code, holder.Stderr())
	}
	// The lock is given out again, after the pause, under the new epoch.
	r := harness.Run(t, fleetLimit, f.aimlock("lock", "exec", "deploy", "--", "sh", "-c", "echo epoch $AIMLOCK_EPOCH"))
	if r.Code != 0 || r.Stdout != "epoch 1\n" {
		t.Errorf("exit %d, %q, %s", r.Code, r.Stdout, r.Stderr)
	}
}

func TestRestoreIntoAFreshCluster(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, harness.WithData(), manyConns)
	f := newFleet(t, c, "fresh", 3, "")
	f.rollOut("one\n")
	snapshot := snapshotOf(t, c)
	// Indexes grow, so that those of the fresh cluster are lower by far.
	for i := range 300 {
		if err := f.client.Put(t.Context(), "other/key", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	f.rollOut("two\n")
	newest, old := f.orders(), f.raw()

	f.freshConsul()
	restore(t, c, snapshot)
	f.refuses(newest)
	f.stops("three\n", "two\n")
	f.afterRestore(1, old)

	// The same snapshot once more, from before the first recovery: nodes have
	// accepted orders of an epoch that it does not know.
	newest, old = f.orders(), f.raw()
	for node := range newest {
		var a records.Actual
		f.record(f.prefix.Actual(fleetConfig, node), &a)
		newest[node] = a.Order
	}
	f.freshConsul()
	restore(t, c, snapshot)
	f.refuses(newest)
	f.afterRestore(2, old)
}

// freshConsul ends the server and starts one in its place that knows nothing.
func (f *fleet) freshConsul() {
	f.t.Helper()
	c := f.consul
	dir := c.DataDir()
	id, err := os.ReadFile(filepath.Join(dir, "node-id"))
	if err != nil {
		f.t.Fatal(err)
	}
	c.Kill()
	if err := os.RemoveAll(dir); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	// The machine is the same: what is lost is what Consul kept.
	if err := os.WriteFile(filepath.Join(dir, "node-id"), id, 0o600); err != nil {
		f.t.Fatal(err)
	}
	c.Restart()
	c.WaitReady()
	if p, _, err := c.Client().KV().Get(f.prefix.Desired(fleetConfig, f.nodes[0]), &api.QueryOptions{RequireConsistent: true}); err != nil || p != nil {
		f.t.Fatalf("the server is not fresh: %v, %v", p, err)
	}
}

// TestRestoreInMidRollout: Consul goes back to yesterday while a rollout is on
// its way. Nodes say how far they were, so whoever goes on with it sees that
// orders are lost, gives none, and names the way out; after it, the rollout goes
// on from what stands.
func TestRestoreInMidRollout(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, harness.WithData(), manyConns)
	f := newFleet(t, c, "midway", 4, "")
	f.rollOut("one\n")
	spec := strings.Replace(readText(t, filepath.Join(f.dir, "rollout.hcl")), `stage "canary" {`, `stage "canary" {
    promote = "manual"`, 1)
	spec = strings.Replace(spec, `stage "half" {`, `stage "half" {
    promote = "manual"`, 1)
	f.write("rollout.hcl", spec)
	f.write("app.conf", "two\n")
	tick := f.aimlock("rollout", "tick", "rollout.hcl")
	if r := harness.Run(t, fleetLimit, tick); r.Code != 0 {
		t.Fatalf("the first tick: exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	snapshot := snapshotOf(t, c)
	harness.Output(t, fleetLimit, f.aimlock("rollout", "promote", "app"))
	if r := harness.Run(t, fleetLimit, tick); r.Code != 0 {
		t.Fatalf("the second tick: exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	have := func() (two int, answered int) {
		for _, node := range f.nodes {
			if b, err := os.ReadFile(f.file(node)); err == nil && string(b) == "two\n" {
				two++
			}
			p, err := f.client.Get(t.Context(), f.prefix.Actual(fleetConfig, node))
			var a records.Actual
			if err == nil && p != nil && json.Unmarshal(p.Value, &a) == nil && a.Order.Compare(f.order(node)) > 0 {
				answered++
			}
		}
		return two, answered
	}
	if two, _ := have(); two != 2 {
		t.Fatalf("%d of 4 nodes have the new revision, want half", two)
	}
	restore(t, c, snapshot)
	harness.Eventually(t, fleetLimit, "the node that was given its order since says so", func() bool {
		_, answered := have()
		return answered == 1
	})
	r := harness.Run(t, fleetLimit, tick)
	if r.Code != 1 || !strings.Contains(r.Stderr, "aimlock recover") {
		t.Errorf("a tick after the restore: exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	harness.Output(t, fleetLimit, f.aimlock("recover", "-yes"))
	for _, order := range []string{"promote", "promote"} {
		harness.Output(t, fleetLimit, f.aimlock("rollout", order, "app"))
		if r := harness.Run(t, fleetLimit, tick); r.Code != 0 {
			t.Fatalf("a tick after the recovery: exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
		}
	}
	for _, node := range f.nodes {
		f.has(node, "two\n")
		if o := f.order(node); node != f.nodes[0] && o.Epoch != 1 {
			t.Errorf("%s has order %s", node, o)
		}
	}
}
