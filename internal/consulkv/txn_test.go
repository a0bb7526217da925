package consulkv_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// A transaction that only reads is consistent; for one that writes the servers'
// log sees to it.
func TestReadTransactionsAreConsistent(t *testing.T) {
	t.Parallel()
	var asked []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		answer(nil, 200, asJSON, `{"Results":[{"KV":{"Key":"a"}}]}`)(w, r)
	})
	for _, ops := range [][]consulkv.Op{
		{consulkv.GetOrEmpty("a"), consulkv.CheckIndex("b", 0)},
		{consulkv.GetOrEmpty("a"), consulkv.Set("b", nil)},
	} {
		if _, err := c.Txn(t.Context(), ops...); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(asked[0], "consistent") || strings.Contains(asked[1], "consistent") {
		t.Fatalf("asked with %q", asked)
	}
}

func TestTransactionLimits(t *testing.T) {
	t.Parallel()
	c := serve(t, answer(nil, 200, asJSON, `{}`))
	if _, err := c.Txn(t.Context()); err == nil {
		t.Error("a transaction of nothing passes")
	}
	ops := make([]consulkv.Op, consulkv.MaxTxnOps+1)
	for i := range ops {
		ops[i] = consulkv.Delete("k")
	}
	if _, err := c.Txn(t.Context(), ops...); err == nil || !strings.Contains(err.Error(), "128") {
		t.Errorf("129 operations: %v", err)
	}
	if _, err := c.Txn(t.Context(), ops[1:]...); err != nil {
		t.Errorf("128 operations: %v", err)
	}
}

// Size never says less than an operation takes.
func TestSize(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü\"\\", 70)
	for _, op := range []consulkv.Op{
		consulkv.Set("k", nil), consulkv.Set(strings.Repeat("k", 400), []byte(long)), consulkv.CAS("k", make([]byte, 1000), 1<<63),
		consulkv.Lock("k", []byte(`{"a":1}`), "b1a5c0de-0000-4000-8000-5ec2e75ec2e7"), consulkv.CheckIndex("k", 1<<63), consulkv.CheckIndex("k", 0),
	} {
		b, err := json.Marshal(&api.TxnOp{KV: op})
		if err != nil {
			t.Fatal(err)
		}
		if consulkv.Size(op) < len(b) {
			t.Errorf("%s: %d bytes, said to be %d at most", op.Verb, len(b), consulkv.Size(op))
		}
	}
}

func TestFindTakesTheLastAnswer(t *testing.T) {
	t.Parallel()
	res := consulkv.Results{{Key: "a", ModifyIndex: 1}, nil, {Key: "b", ModifyIndex: 2}, {Key: "a", ModifyIndex: 3}}
	if p := res.Find("a"); p == nil || p.ModifyIndex != 3 {
		t.Errorf("got %+v", p)
	}
	if p := res.Find("c"); p != nil {
		t.Errorf("got %+v", p)
	}
}
