package evidence_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// Who waits for a lock is woken by a check of its node if Snapshot.Health names it and
// SameChecks sees the change. So facts must be made of nothing else: where all that
// those two leave out is changed, or is not there, every fact stays as it was.
//
// What else a fact could be made of is known by the package's own words: the node has a
// check, and a service with one, for each text in the code, by which a new fact would
// have to find its check.
func TestFactsRestOnTheChecksOfHealth(t *testing.T) {
	t.Parallel()
	named := checksNamedInTheCode(t)
	// These must be seen to rest on checks, or it is not looked at what it is meant to be.
	missing := map[string]bool{"node.exists": true, "node.serf": true, "check.status": true, "check.output": true, "check.age": true, "holder.alive": true}
	for name, s := range heldLocks(t) {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // what it finds is put together
			checks := slices.Concat(s.snap.Checks, named)
			before := s.with(checks)
			facts := s.facts(before)
			health := map[*api.HealthCheck]bool{}
			for _, c := range before.Health(checks) {
				health[c] = true
			}
			if len(health) == 0 || len(health) > len(checks)/2 {
				t.Fatalf("of %d checks, %d are said to count", len(checks), len(health))
			}

			same := func(what string, list api.HealthChecks) {
				t.Helper()
				if after := s.with(list); !evidence.SameChecks(before.Health(checks), after.Health(list)) {
					t.Errorf("%s: the checks that count are not the same", what)
				}
				for fact, is := range s.facts(s.with(list)) {
					if was := facts[fact]; is != was {
						t.Errorf("%s: %s was %s and is %s, and nobody is woken: name its check in Snapshot.Health, and what is read of it in SameChecks", what, fact, was, is)
					}
				}
			}
			for _, status := range []string{api.HealthPassing, api.HealthWarning, api.HealthCritical, api.HealthMaint} {
				same("all others are "+status, each(checks, func(c *api.HealthCheck) *api.HealthCheck {
					if !health[c] {
						c.Status, c.Output, c.Notes, c.ModifyIndex = status, "another", "another", c.ModifyIndex+7
					}
					return c
				}, health))
			}
			same("no others are there", each(checks, func(c *api.HealthCheck) *api.HealthCheck {
				if !health[c] {
					return nil
				}
				return c
			}, health))
			// Of one that counts, whatever a fact is made of is compared.
			for i, c := range checks {
				if !health[c] {
					continue
				}
				for field, other := range changed(c) {
					list := slices.Clone(checks)
					list[i] = other
					after := s.with(list)
					if !evidence.SameChecks(before.Health(checks), after.Health(list)) {
						continue
					}
					for fact, is := range s.facts(after) {
						if was := facts[fact]; is != was {
							t.Errorf("another %s of %s: %s was %s and is %s, and nobody is woken: compare it in SameChecks", field, c.CheckID, fact, was, is)
						}
					}
				}
			}

			// And those that count do.
			for _, list := range []api.HealthChecks{nil, each(checks, func(c *api.HealthCheck) *api.HealthCheck {
				if c.Status = api.HealthCritical; !health[c] {
					c.Status = api.HealthPassing
				}
				c.Output += "!"
				return c
			}, health)} {
				after := s.with(list)
				if evidence.SameChecks(before.Health(checks), after.Health(list)) {
					t.Error("checks that count have changed, and are said to be the same")
				}
				for fact, is := range s.facts(after) {
					if is != facts[fact] {
						delete(missing, fact)
					}
				}
			}
		})
	}
	if len(missing) > 0 {
		t.Errorf("no lock was looked at where these rest on checks: %v", slices.Sorted(maps.Keys(missing)))
	}
}

// heldLock is a lock whose node's checks are made up.
type heldLock struct {
	w    *world
	snap *evidence.Snapshot
}

func heldLocks(t *testing.T) map[string]*heldLock {
	t.Helper()
	local := newWorld(t)
	local.service("c")
	local.holdOwn(func(h *records.Holder) { h.Check = "c" })
	// The session may be bound to other checks than the record names.
	bound := newWorld(t)
	bound.service("c")
	bound.service("d")
	bound.bound("ops/.lock", "d")
	remote := map[string]*bool{"alive elsewhere": yes(), "dead elsewhere": no(), "elsewhere, nobody knows": nil}
	out := map[string]*heldLock{"here": {local, local.read("a")}, "of another tool": {bound, bound.read("ops/.lock")}}
	for name, alive := range remote {
		w := newWorld(t)
		w.agentService("passing")
		w.put(observedKey, said(w.remoteHold(), alive))
		out[name] = &heldLock{w, w.read("a")}
	}
	blind := newWorld(t)
	blind.remoteHold()
	s := blind.read("a")
	s.Session, s.SessionWhy = nil, "the token may not read it"
	out["of a session that is not shown"] = &heldLock{blind, s}
	return out
}

func (w *world) service(check string) {
	w.t.Helper()
	err := w.kv.API().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: check, Name: check, Check: &api.AgentServiceCheck{CheckID: check, TTL: "1h", Status: "passing"}})
	if err != nil {
		w.t.Fatal(err)
	}
}

// bound takes a key for a session that is bound to the check of a service.
func (w *world) bound(key, check string) {
	w.t.Helper()
	id, _, err := w.kv.API().Session().Create(&api.SessionEntry{ServiceChecks: []api.ServiceCheck{{ID: check}}}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if ok, _, err := w.kv.API().KV().Acquire(&api.KVPair{Key: key, Session: id}, nil); err != nil || !ok {
		w.t.Fatalf("hold %s: %v, %v", key, ok, err)
	}
}

func (l *heldLock) with(checks api.HealthChecks) *evidence.Snapshot {
	s := *l.snap
	s.Checks = checks
	if len(checks) == 0 {
		s.ChecksWhy = "Consul shows none"
	}
	return &s
}

// facts are all of a snapshot, and what else is made of it, in words. Whoever looks has
// seen the lock before, as it is.
func (l *heldLock) facts(s *evidence.Snapshot) map[string]string {
	var mem evidence.Memory
	mem.Observe(l.with(nil), l.w.reader)
	mem.Observe(s, l.w.reader)
	out := map[string]string{}
	for object, facts := range l.w.reader.Facts(s, &mem, nil, s.ReadAt) {
		for name, f := range facts {
			out[object+"."+name] = fmt.Sprintf("%#v (%s; %s)", f.Value, f.Source, f.Why)
		}
	}
	if len(out) != len(allFacts()) {
		l.w.t.Fatal("facts are missing")
	}
	dead, why := l.w.reader.Dead(s)
	out["whether it is proved dead"] = fmt.Sprint(dead, why)
	out["whether it has a check"] = fmt.Sprint(s.Checked())
	return out
}

func allFacts() []string {
	var out []string
	for object, defs := range policies.Schema() {
		for name := range defs {
			out = append(out, object+"."+name)
		}
	}
	return out
}

// each gives copies of checks, changed; health are those that count, and its copies count too.
func each(checks api.HealthChecks, change func(*api.HealthCheck) *api.HealthCheck, health map[*api.HealthCheck]bool) api.HealthChecks {
	var out api.HealthChecks
	for _, c := range checks {
		one := *c
		if health[c] {
			health[&one] = true
		}
		if kept := change(&one); kept != nil {
			out = append(out, kept)
		}
		delete(health, &one)
	}
	return out
}

// changed are copies of a check of which one field is another, by its name.
func changed(c *api.HealthCheck) map[string]*api.HealthCheck {
	out := map[string]*api.HealthCheck{}
	for i := range reflect.TypeFor[api.HealthCheck]().NumField() {
		one := *c
		v := reflect.ValueOf(&one).Elem()
		switch f := v.Field(i); {
		case v.Type().Field(i).Name == "Status":
			one.Status = api.HealthCritical
		case f.Kind() == reflect.String:
			f.SetString(f.String() + "?")
		case f.CanUint():
			f.SetUint(f.Uint() + 7)
		case f.CanInt():
			f.SetInt(f.Int() + 7)
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.String:
			f.Set(reflect.ValueOf([]string{"another"}))
		default:
			continue // how a check is run
		}
		out[v.Type().Field(i).Name] = &one
	}
	return out
}

// checksNamedInTheCode are checks by which anything that the code of this package names
// would find one: by what they are called, or their service, also as a part.
func checksNamedInTheCode(t *testing.T) api.HealthChecks {
	t.Helper()
	names := map[string]bool{"_node_maintenance": true, "_service_maintenance:aimlock-agent": true, "another": true}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if s, err := strconv.Unquote(lit.Value); err == nil && s != "" && len(s) <= 60 && !strings.ContainsAny(s, " \n") {
				names[s] = true
			}
			return true
		})
	}
	if !names["serfHealth"] || !names["aimlock-agent"] {
		t.Fatal("the code is not what was read")
	}
	var out api.HealthChecks
	for _, name := range slices.Sorted(maps.Keys(names)) {
		for _, s := range []string{name, name + "-x", "x-" + name} {
			service := &api.HealthCheck{Node: "node-1", CheckID: "service:of-" + s, ServiceID: s, ServiceName: s, Status: api.HealthPassing}
			out = append(out, service)
			if s != "serfHealth" {
				out = append(out, &api.HealthCheck{Node: "node-1", CheckID: s, Name: s, Status: api.HealthPassing})
			}
		}
	}
	return out
}
