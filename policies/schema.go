package policies

import (
	"maps"
	"slices"

	"github.com/zclconf/go-cty/cty"
)

// FactDef describes one fact that a policy may read.
type FactDef struct {
	Type cty.Type
	Doc  string
	// Age marks a number of seconds that grows by itself while nothing else
	// changes: a verdict that read it must be judged again when time passes,
	// and a rule that rests on proof may not read it.
	Age bool
	// Values are the words that a string fact can have, where they are known:
	// a comparison with any other word is reported as never true.
	Values []string
}

// pluginObject is the root of the facts of evidence plugins. They are declared
// by the plugins, not here: plugin.<name>.<fact>.
const pluginObject = "plugin"

// keptBy is one process that keeps a file locked.
var keptBy = cty.Object(map[string]cty.Type{
	"pid":     cty.Number,
	"command": cty.String,
	"how":     cty.String,
})

// schema is read only; Schema hands out copies.
var schema = map[string]map[string]FactDef{
	"lock": {
		"name":       {Type: cty.String, Doc: "the lock's name; the whole key where it is not aimlock's own"},
		"key":        {Type: cty.String, Doc: "the lock's whole key in Consul"},
		"held_for":   {Type: cty.Number, Doc: "seconds since this hold was first seen or, on its own host, was acquired, without the pause that it first waits out for the last holder", Age: true},
		"token":      {Type: cty.Number, Doc: "the fencing token: the key's ModifyIndex while it is held"},
		"waiters":    {Type: cty.Number, Doc: "how many wait for it, where an observer counted"},
		"delay_left": {Type: cty.Number, Doc: "seconds of lock-delay left, where an observer saw it begin"},
	},
	"session": {
		"id":       {Type: cty.String, Doc: "the session that holds the lock"},
		"exists":   {Type: cty.Bool, Doc: "Consul still has the session"},
		"ttl":      {Type: cty.Number, Doc: "its TTL in seconds"},
		"age":      {Type: cty.Number, Doc: "seconds since an observer first saw it", Age: true},
		"node":     {Type: cty.String, Doc: "the Consul node that it is bound to"},
		"behavior": {Type: cty.String, Doc: "what its end does to its keys", Values: []string{"release", "delete"}},
		"has_ttl":  {Type: cty.Bool, Doc: "it has a TTL; without one it ends only with its checks"},
	},
	"check": {
		"status": {Type: cty.String, Doc: "status of the holder's TTL check", Values: []string{"passing", "warning", "critical"}},
		"output": {Type: cty.String, Doc: "its output, as late as agents publish it"},
		"age":    {Type: cty.Number, Doc: "seconds since an observer saw its status change", Age: true},
	},
	"node": {
		"name":   {Type: cty.String, Doc: "the Consul node of the session"},
		"exists": {Type: cty.Bool, Doc: "the catalog still has the node"},
		"serf":   {Type: cty.String, Doc: "what Serf says of the node", Values: []string{"alive", "failed", "left"}},
	},
	"holder": {
		"local":      {Type: cty.Bool, Doc: "the holder is on this host, this boot and in this pid and time namespace"},
		"host":       {Type: cty.String, Doc: "host name in the holder record"},
		"pid":        {Type: cty.Number, Doc: "process id in the holder record"},
		"alive":      {Type: cty.Bool, Doc: "the process lives, by pid and start time; unknown where nobody can look"},
		"boot_id":    {Type: cty.String, Doc: "boot id of the holder's host"},
		"pid_ns":     {Type: cty.String, Doc: "pid namespace of the holder, and its time namespace unless that is the first one"},
		"started_at": {Type: cty.String, Doc: "when the process started, RFC 3339, by its own clock"},
		"user":       {Type: cty.String, Doc: "the user that it runs as"},
		"tool": {Type: cty.String, Doc: "the program that took the lock",
			Values: []string{"aimlock", "consul-lock", "terraform", "vault", "consul-template", "unknown"}},
	},
	"nomad": {
		"alloc_id":       {Type: cty.String, Doc: "the holder's Nomad allocation"},
		"client_status":  {Type: cty.String, Doc: "what the client says of it", Values: []string{"pending", "running", "complete", "failed", "lost", "unknown"}},
		"desired_status": {Type: cty.String, Doc: "what the servers want of it", Values: []string{"run", "stop", "evict"}},
		"node_status":    {Type: cty.String, Doc: "status of its Nomad node", Values: []string{"initializing", "ready", "down", "disconnected"}},
		"job":            {Type: cty.String, Doc: "its job"},
		"gone":           {Type: cty.Bool, Doc: "the allocation was collected"},
	},
	"progress": {
		"done":  {Type: cty.Number, Doc: "units of work done"},
		"total": {Type: cty.Number, Doc: "units of work in all"},
		"unit":  {Type: cty.String, Doc: "what is counted"},
		"age":   {Type: cty.Number, Doc: "seconds since an observer saw the record change", Age: true},
		"rate":  {Type: cty.Number, Doc: "units in a second, over what an observer saw"},
	},
	"rollout": {
		"id": {Type: cty.String, Doc: "the holder's rollout"},
		"state": {Type: cty.String, Doc: "its state", Values: []string{"waiting", "running", "baking", "paused", "rolling_back",
			"succeeded", "failed", "rolled_back", "aborted", "superseded"}},
		"finished":     {Type: cty.Bool, Doc: "it has ended, one way or another"},
		"finished_ago": {Type: cty.Number, Doc: "seconds since an observer saw it end", Age: true},
	},
	"file": {
		"path":      {Type: cty.String, Doc: "the file that the policy's `file` names, on the observer's own machine"},
		"locked":    {Type: cty.Bool, Doc: "the kernel holds a lock on it; null where there is no such file"},
		"kind":      {Type: cty.String, Doc: "kind of its first lock, an exclusive one before a shared one", Values: []string{"flock", "posix", "ofd", "lease"}},
		"pid":       {Type: cty.Number, Doc: "the process that the kernel names for it: 0 for one that it cannot show here, -1 for an ofd lock"},
		"pid_alive": {Type: cty.Bool, Doc: "a process that the kernel names lives; null for an ofd lock"},
		"kept_by":   {Type: cty.List(keptBy), Doc: "every process that keeps the file locked: pid, command, how; unknown where not all could be seen"},
	},
	"cluster": {
		"leader":             {Type: cty.String, Doc: "address of Consul's leader"},
		"leader_changed_ago": {Type: cty.Number, Doc: "seconds since an observer saw the leader change", Age: true},
		"sessions_lost":      {Type: cty.Number, Doc: "sessions that an observer saw end in the last minute"},
	},
	"now": {
		"unix": {Type: cty.Number, Doc: "seconds since 1970, by the caller's clock", Age: true},
		"hour": {Type: cty.Number, Doc: "hour of the day, 0 to 23, UTC"},
		"weekday": {Type: cty.String, Doc: "day of the week, UTC",
			Values: []string{"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}},
	},
}

// Schema returns every object and fact that a policy may read, except those of
// evidence plugins, which stand under plugin.<name> and are dynamic.
func Schema() map[string]map[string]FactDef {
	out := make(map[string]map[string]FactDef, len(schema))
	for object, facts := range schema {
		out[object] = maps.Clone(facts)
	}
	return out
}

func objectNames() []string { return slices.Sorted(maps.Keys(schema)) }

func factNames(object string) []string { return sortedFacts[object] }

var sortedFacts = func() map[string][]string {
	out := make(map[string][]string, len(schema))
	for object := range schema {
		out[object] = slices.Sorted(maps.Keys(schema[object]))
	}
	return out
}()
