package conformance

import (
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"
)

// watched is the outcome of a blocking query.
type watched struct {
	index uint64
	keys  int
	took  time.Duration
	err   error
}

// watch starts a blocking query and returns once it blocks as well as one can
// tell: its request is on the way and the index in it is current.
func (e *env) watch(prefix string, index uint64, wait time.Duration) <-chan watched {
	ch := make(chan watched, 1)
	go func() {
		start := time.Now()
		q := &api.QueryOptions{WaitIndex: index, WaitTime: wait}
		pairs, meta, err := e.kv.List(prefix, q.WithContext(e.ctx))
		w := watched{keys: len(pairs), took: time.Since(start), err: err}
		if err == nil {
			w.index = meta.LastIndex
		}
		ch <- w
	}()
	return ch
}

// index reads the current index of a prefix.
func (e *env) index(prefix string) uint64 {
	e.Helper()
	_, meta, err := e.kv.List(prefix, e.q())
	e.must(err)
	return meta.LastIndex
}

// wakes checks that change ends a blocking query on the prefix long before its
// wait does, with a larger index and so many keys.
func (e *env) wakes(prefix string, keys int, change func()) {
	e.Helper()
	from := e.index(prefix)
	ch := e.watch(prefix, from, time.Minute)
	change()
	select {
	case w := <-ch:
		e.must(w.err)
		same(e, "keys", w.keys, keys)
		if w.index <= from {
			e.Errorf("woke at index %d, from %d", w.index, from)
		}
		if now := e.index(prefix); now < w.index {
			e.Errorf("the index went back from %d to %d", w.index, now)
		}
	case <-time.After(e.tgt.Slack):
		e.Fatalf("no answer in %v after the change", e.tgt.Slack)
	}
}

var blockingTests = []test{
	{"wakes on every kind of change", func(e *env) {
		p := e.key("a/")
		e.put(p+"1", "1")
		s := e.session()
		e.wakes(p, 2, func() { e.put(p+"2", "1") })
		e.wakes(p, 2, func() { e.put(p+"2", "2") })
		e.wakes(p, 3, func() { e.txn(op(api.KVSet, p+"3", value("1"))) })
		e.wakes(p, 3, func() { e.mustAcquire(p+"1", s, "1") })
		e.wakes(p, 3, func() { e.destroy(s) })
		e.wakes(p, 2, func() { e.delete(p + "2") })
		e.wakes(p, 1, func() { e.txn(op(api.KVDelete, p+"3")) })
		e.wakes(p, 0, func() {
			_, err := e.kv.DeleteTree(p, e.w())
			e.must(err)
		})
		e.wakes(p, 1, func() { e.put(p+"1", "1") })
	}},
	{"wakes when the first key appears", func(e *env) {
		key := e.key("new")
		_, meta, err := e.kv.Get(key, e.q())
		e.must(err)
		got := make(chan error, 1)
		go func() {
			q := &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute}
			for {
				p, meta, err := e.kv.Get(key, q.WithContext(e.ctx))
				if p != nil || err != nil {
					got <- err
					return
				}
				q.WaitIndex = meta.LastIndex // an answer without the key is allowed
			}
		}()
		e.put(key, "1")
		select {
		case err := <-got:
			e.must(err)
		case <-time.After(e.tgt.Slack):
			e.Fatalf("no answer in %v after the key appeared", e.tgt.Slack)
		}
	}},
	{"is not woken by another prefix, and keeps its index when its wait ends", func(e *env) {
		const wait = 800 * time.Millisecond
		e.put(e.key("a/1"), "1")
		e.put(e.key("ab"), "1")
		from := e.index(e.key("a/"))
		ch := e.watch(e.key("a/"), from, wait)
		var w watched
		for n, done := 0, false; !done; n++ {
			e.put(e.key("b/1"), fmt.Sprint(n))
			e.put(e.key("ab"), fmt.Sprint(n))
			e.put(e.key("a"), fmt.Sprint(n))
			e.delete(e.key("a"))
			select {
			case w = <-ch:
				done = true
			default:
			}
		}
		e.must(w.err)
		same(e, "index", w.index, from)
		same(e, "keys", w.keys, 1)
		if w.took < wait {
			e.Errorf("answered after %v, before its wait of %v", w.took, wait)
		}
	}},
	{"is not woken by a write that changes nothing", func(e *env) {
		const wait = 300 * time.Millisecond
		e.put(e.key("a"), "1")
		from := e.index(e.prefix)
		ch := e.watch(e.prefix, from, wait)
		e.put(e.key("a"), "1")
		e.delete(e.key("none"))
		w := <-ch
		e.must(w.err)
		same(e, "index", w.index, from)
		if w.took < wait {
			e.Errorf("answered after %v, before its wait of %v", w.took, wait)
		}
	}},
	{"an old index is answered at once", func(e *env) {
		e.put(e.key("a"), "1")
		from := e.index(e.prefix)
		e.put(e.key("a"), "2")
		w := <-e.watch(e.prefix, from, time.Minute)
		e.must(w.err)
		if w.index <= from || w.took > e.tgt.Slack {
			e.Errorf("answered with index %d after %v, from %d", w.index, w.took, from)
		}
	}},
	{"the index does not go back when the newest key is deleted", func(e *env) {
		e.put(e.key("t/1"), "1")
		newest := e.put(e.key("t/2"), "1")
		e.delete(newest.Key)
		after := e.index(e.key("t/"))
		if after <= newest.ModifyIndex {
			e.Errorf("the index of the prefix went from %d to %d", newest.ModifyIndex, after)
		}
		e.put(e.key("other"), "1")
		same(e, "index after a write elsewhere", e.index(e.key("t/")), after)
		_, err := e.kv.DeleteTree(e.key("t/"), e.w())
		e.must(err)
		if gone := e.index(e.key("t/")); gone <= after {
			e.Errorf("the index of the prefix went from %d to %d", after, gone)
		}
	}},
	// A trap, and a reason to delete the keys that somebody watches one by one.
	{"a watcher is not told of the deletion of a shorter prefix, if an older deletion is under his", func(e *env) {
		e.put(e.key("t/b/1"), "1")
		e.put(e.key("t/b/2"), "1")
		e.delete(e.key("t/b/1"))
		before := e.index(e.key("t/b/"))
		_, err := e.kv.DeleteTree(e.key("t/"), e.w())
		e.must(err)
		same(e, "index of the longer prefix", e.index(e.key("t/b/")), before)
		if idx := e.index(e.key("t/")); idx <= before {
			e.Errorf("the index of the deleted prefix stands at %d, not above %d", idx, before)
		}
	}},
	{"one key", func(e *env) {
		const wait = 300 * time.Millisecond
		p := e.put(e.key("a"), "1")
		e.put(e.key("b"), "1")
		q := &api.QueryOptions{WaitIndex: p.ModifyIndex, WaitTime: wait}
		start := time.Now()
		got, meta, err := e.kv.Get(p.Key, q.WithContext(e.ctx))
		e.must(err)
		same(e, "index", meta.LastIndex, p.ModifyIndex)
		same(e, "modify index", got.ModifyIndex, p.ModifyIndex)
		if took := time.Since(start); took < wait {
			e.Errorf("answered after %v, before its wait of %v", took, wait)
		}
	}},
	{"the end of a session", func(e *env) {
		id := e.session()
		_, meta, err := e.c.Session().Info(id, e.q())
		e.must(err)
		ended := make(chan error, 1)
		go func() {
			q := &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute}
			for {
				se, meta, err := e.c.Session().Info(id, q.WithContext(e.ctx))
				if se == nil || err != nil {
					ended <- err
					return
				}
				q.WaitIndex = meta.LastIndex
			}
		}()
		e.destroy(id)
		select {
		case err := <-ended:
			e.must(err)
		case <-time.After(e.tgt.Slack):
			e.Fatalf("no answer in %v after the session ended", e.tgt.Slack)
		}
	}},
	{"the status of a check", func(e *env) {
		check := e.service("s", time.Minute)
		status := func(want string) {
			e.Helper()
			e.until("check is "+want, e.tgt.Slack, func(q *api.QueryOptions) (bool, *api.QueryMeta, error) {
				entries, meta, err := e.c.Health().Service(e.serviceID("s"), "", false, q)
				done := len(entries) == 1 && entries[0].Checks.AggregatedStatus() == want
				return done, meta, err
			})
		}
		status(api.HealthCritical)
		e.report(check, api.HealthPassing, "")
		status(api.HealthPassing)
		e.report(check, api.HealthWarning, "")
		status(api.HealthWarning)
	}},
	{"a service that comes and goes", func(e *env) {
		count := func(want int) {
			e.Helper()
			e.until(fmt.Sprintf("%d instances", want), e.tgt.Slack, func(q *api.QueryOptions) (bool, *api.QueryMeta, error) {
				entries, meta, err := e.c.Health().Service(e.serviceID("s"), "", false, q)
				return len(entries) == want, meta, err
			})
		}
		count(0)
		e.service("s", time.Minute)
		count(1)
		e.must(e.c.Agent().ServiceDeregister(e.serviceID("s")))
		count(0)
	}},
	{"a service is not woken by another one", func(e *env) {
		const wait = 800 * time.Millisecond
		// A node of their own: a check of the node wakes all its services, and
		// tests that run beside this one give the agent's node such checks.
		node := e.name + "-node"
		e.Cleanup(func() { e.c.Catalog().Deregister(&api.CatalogDeregistration{Node: node}, nil) })
		register := func(service, status string) {
			e.Helper()
			_, err := e.c.Catalog().Register(&api.CatalogRegistration{
				Node: node, Address: "192.0.2.1", Service: &api.AgentService{ID: service, Service: e.serviceID(service)},
				Checks: api.HealthChecks{{Node: node, CheckID: service, Name: service, ServiceID: service, Status: status}},
			}, e.w())
			e.must(err)
		}
		register("s", api.HealthPassing)
		register("other", api.HealthCritical)
		_, meta, err := e.c.Health().Service(e.serviceID("s"), "", false, e.q())
		e.must(err)
		done := make(chan watched, 1)
		go func() {
			start := time.Now()
			q := &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: wait}
			_, m, err := e.c.Health().Service(e.serviceID("s"), "", false, q.WithContext(e.ctx))
			w := watched{took: time.Since(start), err: err}
			if err == nil {
				w.index = m.LastIndex
			}
			done <- w
		}()
		var w watched
		for n, over := 0, false; !over; n++ {
			register("other", []string{api.HealthPassing, api.HealthCritical}[n%2])
			select {
			case w = <-done:
				over = true
			default:
			}
		}
		e.must(w.err)
		same(e, "index", w.index, meta.LastIndex)
		if w.took < wait {
			e.Errorf("answered after %v, before its wait of %v", w.took, wait)
		}
	}},
}
