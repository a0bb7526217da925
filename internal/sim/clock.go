package sim

import (
	"bytes"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// A wall clock that is wrong shows in what its process writes, and all that others
// know of it is there: so the times in records are moved on their way to Consul. To
// the process itself it looks as if its clock had jumped between a write and a read.
//
// Left alone are the ends of silences and approvals and the window of a budget,
// which are read off a wall clock by design (docs/safety.md), and what is hashed.
//
//nolint:gochecknoglobals // read-only
var (
	stamps  = regexp.MustCompile(`"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"`)
	exempt  = regexp.MustCompile(`/(silences|approvals|budgets|policies|configs)/|/rollouts/[^/]+/plan`)
	kvWrite = "/v1/kv/"
)

// skewed is a request's body as a process with a wrong clock would have written it.
func skewed(req *http.Request, body []byte, by time.Duration) []byte {
	switch {
	case by == 0 || req.Method != http.MethodPut:
		return body
	case strings.HasPrefix(req.URL.Path, kvWrite):
		return moved(strings.TrimPrefix(req.URL.Path, kvWrite), body, by)
	case !strings.HasPrefix(req.URL.Path, "/v1/txn"):
		return body
	}
	var ops []map[string]map[string]any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if dec.Decode(&ops) != nil {
		return body
	}
	var values []struct{ KV *struct{ Value []byte } }
	if json.Unmarshal(body, &values) != nil {
		return body
	}
	for i, op := range ops {
		kv := op["KV"]
		if key, _ := kv["Key"].(string); kv != nil && values[i].KV != nil && len(values[i].KV.Value) > 0 {
			kv["Value"] = moved(key, values[i].KV.Value, by)
		}
	}
	out, err := json.Marshal(ops)
	if err != nil {
		return body
	}
	return out
}

// moved is a record with its times moved.
func moved(key string, value []byte, by time.Duration) []byte {
	if exempt.MatchString(key) {
		return value
	}
	return stamps.ReplaceAllFunc(value, func(s []byte) []byte {
		t, err := time.Parse(`"`+time.RFC3339Nano+`"`, string(s))
		if err != nil || t.Year() < 1900 {
			return s
		}
		return []byte(t.Add(by).Format(`"` + time.RFC3339Nano + `"`))
	})
}
