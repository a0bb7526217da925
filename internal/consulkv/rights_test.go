package consulkv_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// A refusal names the rule that is missing, in the words of Consul's policies.
// The texts are those of Consul 1.14.11.
func TestDeniedNamesTheRule(t *testing.T) {
	t.Parallel()
	const who = "Permission denied: token with AccessorID '9bbdf6a4-0a8e-4c56-9d2f-8d3b0a2b9c11' lacks permission "
	for body, want := range map[string]string{
		who + `'key:write' on "aimlock/locks/a"`:                        `add key "aimlock/locks/a" { policy = "write" } to a policy of the token`,
		who + `'session:write' on "server"`:                             `add session "server" { policy = "write" } to`,
		who + `'service:write' on "aimlock-holder"`:                     `add service "aimlock-holder" { policy = "write" } to`,
		who + `'agent:read' on "n\u001b[31m1"`:                          `add agent "n`,
		who + `'operator:read'`:                                         `add operator = "read" to`,
		who + `'node:read'`:                                             `add node_prefix "" { policy = "read" } to`,
		"Permission denied: provided token lacks permission 'key:read'": `add key_prefix "" { policy = "read" } to`,
		"Permission denied":                                             "check CONSUL_HTTP_TOKEN and its policies",
		"ACL not found":                                                 "does not know the token: check CONSUL_HTTP_TOKEN",
		strings.Replace(who, "9bbdf6a4-0a8e-4c56-9d2f-8d3b0a2b9c11", "00000000-0000-0000-0000-000000000002", 1) + `'key:read' on "k"`: "no token was given: set CONSUL_HTTP_TOKEN",
	} {
		err := get(serve(t, answer(nil, 403, plain, body), once))
		if consulkv.KindOf(err) != consulkv.Denied || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		clean(t, err)
	}
}

const hidden = "X-Consul-Results-Filtered-By-ACLs"

// What Consul leaves out of an answer is never taken for what does not exist:
// neither in a list, nor in a transaction, nor while watching.
func TestHiddenIsNotMissing(t *testing.T) {
	t.Parallel()
	list := answer(nil, 200, asJSON, `[]`, "X-Consul-Index", "7", "X-Consul-LastContact", "0", hidden, "true")
	for name, do := range map[string]func(context.Context, *consulkv.Client) error{
		"list":  func(ctx context.Context, c *consulkv.Client) error { _, err := c.List(ctx, "k/"); return err },
		"names": func(ctx context.Context, c *consulkv.Client) error { _, err := c.Keys(ctx, "k/", "/"); return err },
		"watch": func(ctx context.Context, c *consulkv.Client) error {
			w := consulkv.NewWatcher(c, consulkv.WatchOptions{Name: "k/"}, func(q *api.QueryOptions) (api.KVPairs, *api.QueryMeta, error) {
				return c.API().KV().List("k/", q.WithContext(ctx))
			})
			_, err := w.Next(ctx)
			return err
		},
	} {
		c := serve(t, list, once)
		err := do(t.Context(), c)
		if consulkv.KindOf(err) != consulkv.Denied || !strings.Contains(err.Error(), `add key_prefix "k/" { policy = "read" } to`) {
			t.Errorf("%s: %v", name, err)
		}
		if err := do(consulkv.Part(t.Context()), c); err != nil {
			t.Errorf("%s, a part is enough: %v", name, err)
		}
	}
	// Those of sessions and health are told by the header to who reads them.
	if _, meta, err := serve(t, list, once).Sessions(t.Context(), &api.QueryOptions{}); err != nil || !meta.ResultsFilteredByACLs {
		t.Errorf("sessions: %+v, %v", meta, err)
	}
}

// Consul 1.14.11 runs a transaction whose reads are denied, and leaves their
// results out. One that only reads has failed; one that writes stands, and is
// to be looked after.
func TestHiddenInTransaction(t *testing.T) {
	t.Parallel()
	c := serve(t, answer(nil, 200, asJSON, `{"Results":[{"KV":{"Key":"w","ModifyIndex":9}}]}`))
	for name, tc := range map[string]struct {
		ops    []consulkv.Op
		stands bool
	}{
		"reads":  {[]consulkv.Op{consulkv.GetOrEmpty("w"), consulkv.GetOrEmpty("k")}, false},
		"writes": {[]consulkv.Op{consulkv.Set("w", nil), consulkv.Get("k")}, true},
	} {
		_, err := c.Txn(t.Context(), tc.ops...)
		if consulkv.KindOf(err) != consulkv.Denied || !strings.Contains(err.Error(), `add key "k" { policy = "read" } to`) {
			t.Errorf("%s: %v", name, err)
		}
		if consulkv.Ambiguous(err) != tc.stands {
			t.Errorf("%s: ambiguous: %t", name, !tc.stands)
		}
	}
}

// To a client without a token Consul does not say that it left something out, so
// an empty list is checked by a read that would be refused.
func TestNothingWithoutAToken(t *testing.T) {
	t.Parallel()
	denied := false
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch q := r.URL.Query(); {
		case q.Has("recurse"), q.Has("keys"):
			answer(nil, 404, plain, "", "X-Consul-Index", "7")(w, r)
		case denied:
			answer(nil, 403, plain, "Permission denied: token with AccessorID '00000000-0000-0000-0000-000000000002' lacks permission 'key:read' on \"k/\"")(w, r)
		default:
			answer(nil, 404, plain, "", "X-Consul-Index", "7")(w, r)
		}
	}, once, func(c *consulkv.Config) { c.Token = "" })
	for _, d := range []bool{false, true} {
		denied = d
		_, err := c.List(t.Context(), "k/")
		_, err2 := c.Keys(t.Context(), "k/", "")
		if d != (err != nil) || d != (err2 != nil) {
			t.Errorf("denied %t: %v, %v", d, err, err2)
		}
		if d && !strings.Contains(errors.Join(err, err2).Error(), "no token was given: set CONSUL_HTTP_TOKEN") {
			t.Errorf("got %v, %v", err, err2)
		}
	}
}
