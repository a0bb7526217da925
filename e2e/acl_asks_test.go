package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// asks records which rights the requests of a role took, so that a rule which
// none of them took can be found. What Consul asks for which request was read in
// the source of 1.14.11 (agent/consul/kvs_endpoint.go and its neighbours).
type asks struct {
	addr string

	mu    sync.Mutex
	taken map[string]bool // resource access name
}

func (a *asks) add(resource, access, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken == nil {
		a.taken = map[string]bool{}
	}
	a.taken[resource+" "+access+" "+name] = true
}

func (a *asks) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	for k := range a.taken {
		list = append(list, k)
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// note adds what a request asks for.
func (a *asks) note(r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	if !ok {
		return
	}
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	read := "read"
	if r.Method != http.MethodGet {
		read = "write"
	}
	switch {
	case strings.HasPrefix(path, "kv/"):
		key := strings.TrimPrefix(path, "kv/")
		if q := r.URL.Query(); q.Has("recurse") || q.Has("keys") {
			a.add("key", "list", key)
			return
		}
		a.add("key", read, key)
	case path == "txn":
		var ops []struct{ KV struct{ Verb, Key string } }
		_ = json.Unmarshal(body, &ops)
		for _, op := range ops {
			switch op.KV.Verb {
			case "get", "get-or-empty", "check-session", "check-index":
				a.add("key", "read", op.KV.Key)
			case "get-tree":
				a.add("key", "list", op.KV.Key)
			default: // check-not-exists too
				a.add("key", "write", op.KV.Key)
			}
		}
	case strings.HasPrefix(path, "session/info/"), path == "session/list":
		a.add("session", "read", "")
	case strings.HasPrefix(path, "session/"):
		a.add("session", "write", "")
	case strings.HasPrefix(path, "agent/service/"), strings.HasPrefix(path, "agent/check/"):
		what := string(body) + path
		for _, name := range []string{"aimlock-holder", "aimlock-agent"} {
			if strings.Contains(what, name) {
				a.add("service", "write", name)
			}
		}
	case path == "agent/self":
		a.add("agent", "read", "")
	case strings.HasPrefix(path, "health/"), strings.HasPrefix(path, "catalog/"):
		a.add("node", "read", "")
		a.add("service", "read", "")
	}
}

var ruleBlock = regexp.MustCompile(`(\w+?)(_prefix)? "([^"]*)" \{\s*policy = "(\w+)"`)

// idle are the rules that no request took. One that gives write is idle if
// nothing was written.
func (a *asks) idle(rules string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	blocks := ruleBlock.FindAllStringSubmatch(anyLock.ReplaceAllString(rules, "/any$2"), -1)
	for _, b := range blocks {
		resource, prefix, name, access := b[1], b[2] != "", b[3], b[4]
		used := access == "deny"
		for k := range a.taken {
			f := strings.SplitN(anyLock.ReplaceAllString(k, "/any$2"), " ", 3)
			if f[0] != resource || access == "write" && f[1] != "write" {
				continue
			}
			switch {
			case resource == "key" && f[1] == "list":
				used = used || strings.HasPrefix(name, f[2]) || strings.HasPrefix(f[2], name)
			case resource == "key" && prefix:
				used = used || strings.HasPrefix(f[2], name) && !narrower(blocks, name, f[2])
			case resource == "key":
				used = used || f[2] == name
			default:
				used = used || f[2] == "" || f[2] == name || prefix
			}
		}
		if !used && !unseen.MatchString(name) {
			out = append(out, fmt.Sprintf("%s %q %s", resource+b[2], name, access))
		}
	}
	return out
}

// anyLock makes one of the rules and keys of all locks of the story.
var anyLock = regexp.MustCompile(`/(job|stuck|dead|asked|night|app\.conf|aimlock\.locksmith)(/|"|$)`)

// unseen are rights that the story does not take: to acquire or break a lock whose
// last holder was on another host, of which no agent has told anything, Consul is
// asked to check that its record does not exist.
var unseen = regexp.MustCompile(`/observed/`)

// narrower tells whether another rule decides about key: Consul takes the one
// that is closest.
func narrower(blocks [][]string, name, key string) bool {
	for _, b := range blocks {
		if b[1] != "key" || len(b[3]) <= len(name) {
			continue
		}
		if b[3] == key || b[2] != "" && strings.HasPrefix(key, b[3]) {
			return true
		}
	}
	return false
}
