package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
)

// What an agent's token lacks is asked, whether the node has configs or not.
func TestAgentLacks(t *testing.T) {
	t.Parallel()
	const p = keys.Prefix(keys.DefaultPrefix)
	// n1 is what the token of n1 may do, whose one config is app.conf.
	n1 := func(a answer) bool {
		switch a.Resource {
		case "key":
			return !strings.HasPrefix(a.Segment, p.ActualRoot()) && !strings.HasPrefix(a.Segment, p.DesiredRoot()) && !strings.HasPrefix(a.Segment, p.ConfigsRoot()) ||
				a.Segment == p.Actual("app.conf", "n1") || a.Segment == p.Desired("app.conf", "n1") || a.Segment == p.ConfigsRoot()+"app.conf/"
		default:
			return true
		}
	}
	for name, tt := range map[string]struct {
		allow   func(answer) bool
		node    string
		configs []string // of the node
		there   []string // in Consul
		denied  string   // the name in Consul that the token may not read
		want    []string // none: it is told of nothing
		key     string
	}{
		"its own": {allow: n1, node: "n1", configs: []string{"app.conf"}, there: []string{"app.conf"}},
		// Those of other nodes are no concern of its token.
		"its own, before its first order":  {allow: n1, node: "n1", there: []string{"a.conf", "app.conf", "z.conf"}},
		"its own, before the first config": {allow: n1, node: "n1"},
		"another node's, with a config":    {allow: n1, node: "n2", configs: []string{"app.conf"}, want: []string{"key:write on aimlock/actual/app.conf/", "and 1 other right", `add key "aimlock/actual/app.conf/`, "-role agent -node n2 -consul-node node-1 -config-name app.conf`"}, key: p.Actual("app.conf", "n2")},
		"another node's, before its order": {allow: n1, node: "n2", there: []string{"app.conf"}, want: []string{"unless it is for a config that is not there yet", "key:write on aimlock/actual/app.conf/", "-config-name app.conf`"}, key: p.Actual("app.conf", "n2")},
		"it may read, and write no report": {allow: func(a answer) bool {
			return a.Access == "read" || a.Resource != "key" || !strings.Contains(a.Segment, "actual/")
		}, node: "n1", there: []string{"b.conf", "c.conf"}, want: []string{"key:write on aimlock/actual/b.conf/"}, key: p.Actual("b.conf", "n1")},
		"another machine's":                  {allow: func(a answer) bool { return !strings.Contains(a.Segment, "host-2") }, node: "n2", denied: "host-2", want: []string{"agent:read on host-2", "-consul-node host-2"}},
		"it may not register":                {allow: func(a answer) bool { return a.Resource != "service" || a.Access != "write" }, node: "n1", want: []string{"service:write on aimlock-agent", `add service "aimlock-agent" { policy = "write" }`, "-config-name NAME`"}},
		"no token, and the name is not told": {allow: func(answer) bool { return false }, node: "n1", denied: "-", want: []string{"key:read on aimlock/locks/"}, key: "aimlock/locks/"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := guardedClient(t, tt.allow, tt.denied)
			for _, config := range tt.there {
				if _, err := c.API().KV().Put(&api.KVPair{Key: p.ConfigsRoot() + config + "/abc/000000"}, nil); err != nil {
					t.Fatal(err)
				}
			}
			l := AgentLacks(t.Context(), c, acl.Params{Prefix: p, Node: tt.node, Configs: tt.configs})
			if tt.want == nil {
				if l != nil {
					t.Errorf("%s: %s", name, l)
				}
				return
			}
			if l == nil {
				t.Errorf("%s: nothing is told", name)
				return
			}
			for _, w := range tt.want {
				if !strings.Contains(l.String(), w) {
					t.Errorf("%s: %q is not in: %s", name, w, l)
				}
			}
			if l.Key != tt.key {
				t.Errorf("%s: key %q, and not %q", name, l.Key, tt.key)
			}
		})
	}
}

// A Consul without ACLs tells nothing, nor one that does not answer: the question
// ends with its context.
func TestAgentLacksUnanswered(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(*http.Request) *http.Response{
		"without ACLs": func(*http.Request) *http.Response { return nil },
		"silent": func(req *http.Request) *http.Response {
			<-req.Context().Done()
			return nil
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if l := AgentLacks(ctx, answering(t, answer), acl.Params{Prefix: keys.DefaultPrefix, Node: "n1"}); l != nil {
				t.Errorf("%s: %s", name, l)
			}
		})
	}
}

// answering is a client of a Consul in whose place answer answers, if it does.
func answering(t *testing.T, answer func(*http.Request) *http.Response) *consulkv.Client {
	t.Helper()
	srv, err := devconsul.New(devconsul.Config{NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	c, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(rt http.RoundTripper) http.RoundTripper {
		next := consulkvtest.InProcess(srv.Handler())(rt)
		return roundTrip(func(req *http.Request) (*http.Response, error) {
			if req.URL.Path == consulkv.AuthorizePath && req.Method != http.MethodPost {
				return nil, errors.New("Consul takes it by POST alone")
			}
			if resp := answer(req); resp != nil {
				return resp, nil
			}
			if err := req.Context().Err(); err != nil {
				return nil, err
			}
			return next.RoundTrip(req)
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// guardedClient asks a Consul that allows what allow says. It refuses to tell which
// node it is if denied is not empty, and names that in its refusal; "-": it does not.
func guardedClient(t *testing.T, allow func(answer) bool, denied string) *consulkv.Client {
	t.Helper()
	return answering(t, func(req *http.Request) *http.Response {
		w := httptest.NewRecorder()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case req.URL.Path == consulkv.AuthorizePath:
			var questions []answer
			if err := json.NewDecoder(req.Body).Decode(&questions); err != nil || len(questions) > maxQuestions {
				t.Errorf("%d questions, %v", len(questions), err)
			}
			for i := range questions {
				questions[i].Allow = allow(questions[i])
			}
			if err := json.NewEncoder(w).Encode(questions); err != nil {
				t.Error(err)
			}
		case denied == "-" && req.URL.Path == "/v1/agent/self":
			http.Error(w, "Permission denied", http.StatusForbidden)
		case denied != "" && req.URL.Path == "/v1/agent/self":
			http.Error(w, fmt.Sprintf("Permission denied: token with AccessorID 'a' lacks permission 'agent:read' on %q", denied), http.StatusForbidden)
		default:
			return nil
		}
		return w.Result()
	})
}
