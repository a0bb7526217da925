package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

var pair = []string{"a.conf", "b.conf"}

// group publishes the contents of a group and makes its entries.
func (b *bench) group(t testing.TB, o orchestrator.Order, v string) []records.Desired {
	t.Helper()
	ds := make([]records.Desired, len(pair))
	for i, c := range pair {
		body := v + " " + c + "\n"
		sum := agent.SHA256([]byte(body))
		b.put(t, prefix.ConfigChunk(c, sum, 0), []byte(body))
		ds[i] = records.Desired{
			Version: 1, Revision: sum[:12], Order: o, Rollout: "r" + o.String(), Size: int64(len(body)), SHA256: sum, Chunks: 1,
			Destination: "/etc/" + c, Action: records.ActionApplyWith, Requires: []string{records.FeatureGroups}, Configs: pair,
		}
	}
	return ds
}

// desireAll writes entries in one transaction, as a rollout does.
func (b *bench) desireAll(t testing.TB, node string, ds []records.Desired) {
	t.Helper()
	ops := make([]consulkv.Op, len(ds))
	for i, d := range ds {
		ops[i] = consulkv.Set(prefix.Desired(pair[i], node), records.Encode(d))
	}
	if _, err := b.Txn(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) answerFor(t testing.TB, config, node string, ok func(*records.Actual) bool) *records.Actual {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	key := prefix.Actual(config, node)
	w := consulkv.NewWatcher(b.Client, consulkv.WatchOptions{Name: key}, func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
		return b.API().KV().Get(key, q)
	})
	var last records.Actual
	for {
		kv, err := w.Next(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%s: no such answer; the last is %s", config, records.Encode(last))
		}
		if err != nil || kv == nil {
			continue
		}
		last = records.Actual{}
		if err := records.Decode(key, kv.Value, &last); err != nil {
			t.Fatal(err)
		}
		if ok(&last) {
			return &last
		}
	}
}

func stands(t testing.TB, cfg agent.Config, a, b string) {
	t.Helper()
	for i, want := range []string{a, b} {
		got, err := os.ReadFile(filepath.Join(cfg.Root, "etc", pair[i]))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is %q, want %q", pair[i], got, want)
		}
	}
}

// Of a group that is not whole nothing is applied, and the node says what it
// waits for: an entry is missing, or Consul was restored and one is of another
// order. It goes on when the group is whole, or with a newer order.
func TestFollowGroup(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	stop := run(t, cfg)
	waits := func(what string) func(*records.Actual) bool {
		return func(a *records.Actual) bool { return strings.Contains(a.Waiting, what) }
	}
	one := b.group(t, order(1, 1), "one")
	b.put(t, prefix.Desired("a.conf", "n1"), records.Encode(one[0]))
	if a := b.answerFor(t, "a.conf", "n1", waits("order 0.1.1 waits: the entry of b.conf, which belongs with it, is missing")); a.Result != "" || !a.Order.IsZero() {
		t.Errorf("%s", records.Encode(a))
	}
	stands(t, cfg, "", "")
	b.put(t, prefix.Desired("b.conf", "n1"), records.Encode(one[1]))
	for _, c := range pair {
		if a := b.answerFor(t, c, "n1", of(order(1, 1), records.ResultApplied)); a.Waiting != "" {
			t.Errorf("%s", records.Encode(a))
		}
	}
	stands(t, cfg, "one a.conf\n", "one b.conf\n")

	two := b.group(t, order(2, 1), "two")
	b.desireAll(t, "n1", two)
	for _, c := range pair {
		b.answerFor(t, c, "n1", of(order(2, 1), records.ResultApplied))
	}
	stands(t, cfg, "two a.conf\n", "two b.conf\n")

	// One entry of a newer order, beside one of the older.
	three := b.group(t, order(3, 1), "three")
	b.put(t, prefix.Desired("b.conf", "n1"), records.Encode(three[1]))
	a := b.answerFor(t, "b.conf", "n1", waits(`the entry of a.conf, which belongs with it, is of order 0.2.1 (rollout "r0.2.1")`))
	if a.Order != order(2, 1) || a.Result != records.ResultApplied || a.Revision != two[1].Revision {
		t.Errorf("%s", records.Encode(a))
	}
	stands(t, cfg, "two a.conf\n", "two b.conf\n")
	// It waits over a restart too, and holds no newer order up.
	stop()
	run(t, cfg)
	four := b.group(t, order(4, 1), "four")[1]
	four.Configs, four.Requires, four.Action = nil, nil, ""
	b.put(t, prefix.Desired("b.conf", "n1"), records.Encode(four))
	if a := b.answerFor(t, "b.conf", "n1", of(order(4, 1), records.ResultApplied)); a.Waiting != "" {
		t.Errorf("%s", records.Encode(a))
	}
	stands(t, cfg, "two a.conf\n", "four b.conf\n")

	// The rest of that group comes late: refused, since b.conf has a newer one.
	b.desireAll(t, "n1", three)
	for _, c := range pair {
		b.answerFor(t, c, "n1", func(a *records.Actual) bool {
			return a.Result == records.ResultRefused && a.Refused != nil && *a.Refused == order(3, 1) && strings.Contains(a.Error, "b.conf")
		})
	}
	stands(t, cfg, "two a.conf\n", "four b.conf\n")
	// An entry of a group that it is no part of is nobody's: it changes nothing.
	odd := b.group(t, order(5, 1), "five")
	odd[0].Configs = []string{"b.conf", "c.conf"}
	b.put(t, prefix.Desired("a.conf", "n1"), records.Encode(odd[0]))
	six := b.group(t, order(6, 1), "six")
	b.desireAll(t, "n1", six)
	for _, c := range pair {
		b.answerFor(t, c, "n1", of(order(6, 1), records.ResultApplied))
	}
	stands(t, cfg, "six a.conf\n", "six b.conf\n")
}
