package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
)

// reporter brings each config's last answer to Consul and does not give up
// until it stands there, or there is a newer one.
type reporter struct {
	a    *Agent
	wake chan struct{}
	// stands is at which index this process saw its answer stand, by config. It belongs
	// to who brings them.
	stands map[string]uint64

	mu      sync.Mutex
	pending map[string]pending
	// last are the answers known to this process, and answers how many orders it
	// has answered, by result.
	last    map[string]*records.Actual
	answers map[string]uint64
}

type pending struct {
	rep *records.Actual
	// compare: write only if Consul has another one, whenever it was given.
	compare bool
}

func newReporter(a *Agent) *reporter {
	return &reporter{a: a, wake: make(chan struct{}, 1), stands: map[string]uint64{}, pending: map[string]pending{}, last: map[string]*records.Actual{}, answers: map[string]uint64{}}
}

// set makes rep the answer to bring.
func (r *reporter) set(config string, rep *records.Actual) { r.add(config, pending{rep: rep}) }

// again brings an answer that was given before a restart, if it did not come.
func (r *reporter) again(config string, rep *records.Actual) {
	r.add(config, pending{rep: rep, compare: true})
}

func (r *reporter) add(config string, p pending) {
	r.mu.Lock()
	if was := r.last[config]; !p.compare && (was == nil || was.Order != p.rep.Order || was.Result != p.rep.Result || p.rep.Result == records.ResultRefused) {
		r.answers[p.rep.Result]++
	}
	r.pending[config], r.last[config] = p, p.rep
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// take returns one pending answer.
func (r *reporter) take() (config string, p pending, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for config, p := range r.pending {
		return config, p, true
	}
	return "", pending{}, false
}

// sent forgets p unless a newer answer has taken its place.
func (r *reporter) sent(config string, p pending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending[config].rep == p.rep {
		delete(r.pending, config)
	}
}

// flush brings what is pending, for a process that does not run. The error is
// that of the first that cannot be brought.
func (r *reporter) flush(ctx context.Context) error {
	for {
		config, p, ok := r.take()
		if !ok {
			return nil
		}
		if err := r.put(ctx, config, p.rep, p.compare); err != nil {
			return fmt.Errorf("%s: the report cannot be written: %w", config, err)
		}
		r.sent(config, p)
	}
}

func (r *reporter) run(ctx context.Context) {
	b := newBackOff(ctx, "report")
	for ctx.Err() == nil {
		config, p, ok := r.take()
		if !ok {
			select {
			case <-r.wake:
			case <-ctx.Done():
			}
			continue
		}
		if err := r.put(ctx, config, p.rep, p.compare); err != nil {
			r.a.trouble.is(ctx, err)
			// A newer answer does not make Consul answer sooner.
			sleep(ctx, b.NextBackOff(), nil)
			continue
		}
		b.Reset()
		r.sent(config, p)
	}
}

// put writes this node's own key in place of what stands there. So what is still on its
// way of an earlier try, and arrives after a newer answer, changes nothing. With
// compare nothing is written where the answer stands, whenever it was given: a thousand
// agents that restart need not write a thousand keys.
func (r *reporter) put(ctx context.Context, config string, rep *records.Actual, compare bool) error {
	const tries = 3 // nobody else writes this key, unless two agents have one name
	key, value := r.a.cfg.Prefix.Actual(config, r.a.cfg.Node), records.Encode(rep)
	index, known := r.stands[config]
	delete(r.stands, config)
	var err error
	for range tries {
		if compare || !known {
			kv, rerr := r.a.cfg.Consul.Get(ctx, key)
			if rerr != nil {
				return rerr
			}
			index = 0
			if kv != nil {
				index = kv.ModifyIndex
			}
			if kv != nil && (bytes.Equal(kv.Value, value) || said(kv, rep, compare)) {
				r.stands[config] = index
				return nil
			}
		}
		var res consulkv.Results
		if res, err = r.a.cfg.Consul.Txn(ctx, consulkv.CAS(key, value, index)); err == nil {
			if kv := res.Find(key); kv != nil {
				r.stands[config] = kv.ModifyIndex
			}
			return nil
		}
		if _, refused := errors.AsType[*consulkv.Refused](err); !refused {
			return err
		}
		known = false
	}
	return err
}

// said reports whether what stands makes rep needless: an answer of this state folder to
// a newer order, which another process gave, or, where that is asked, the same answer
// but for when it was given and by which version.
func said(kv *api.KVPair, rep *records.Actual, compare bool) bool {
	var last records.Actual
	if records.Decode(kv.Key, kv.Value, &last) != nil {
		return false
	}
	if rep.Order.Less(last.Order) && rep.Instance != "" && rep.Instance == last.Instance {
		return true
	}
	last.Time, last.Agent = rep.Time, rep.Agent
	return compare && bytes.Equal(records.Encode(&last), records.Encode(rep))
}

// Standing is how an agent stands, for whoever watches over it.
type Standing struct {
	// Reports are the last answers by config: those of this process and, from a
	// start on, those before it. They are only to be read.
	Reports map[string]*records.Actual
	// Answers counts the orders that this process has answered, by result.
	Answers map[string]uint64
	// Unsent are answers that do not stand in Consul yet.
	Unsent int
	// Reachable: Consul answered when it was last asked.
	Reachable bool
}

// Standing says how the agent stands. It asks nobody.
func (a *Agent) Standing() Standing {
	a.reports.mu.Lock()
	st := Standing{Reports: maps.Clone(a.reports.last), Answers: maps.Clone(a.reports.answers), Unsent: len(a.reports.pending)}
	a.reports.mu.Unlock()
	a.trouble.mu.Lock()
	defer a.trouble.mu.Unlock()
	st.Reachable = a.trouble.since.IsZero()
	return st
}
