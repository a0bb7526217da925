package chaos

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
)

// probes write to Consul by each machine all the time, so that what aimlock takes
// to go on can be told from what Consul takes.
type probes struct {
	// began are when the newest writes that went well began.
	began []*atomic.Int64
}

const (
	probeEvery = 250 * time.Millisecond
	probeLimit = 2 * time.Second
)

func (w *world) startProbes() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	w.t.Cleanup(func() { cancel(); wg.Wait() })
	for _, m := range w.clients {
		client, err := api.NewClient(&api.Config{Address: m.consul.Addr, HttpClient: &http.Client{Timeout: probeLimit}})
		if err != nil {
			w.t.Fatal(err)
		}
		began := &atomic.Int64{}
		w.began = append(w.began, began)
		pair := &api.KVPair{Key: "chaos-probe/" + m.name, Value: []byte("x")}
		wg.Go(func() {
			t := time.NewTicker(probeEvery)
			defer t.Stop()
			for {
				start := monotonic()
				if _, err := client.KV().Put(pair, (&api.WriteOptions{}).WithContext(ctx)); err == nil {
					began.Store(start)
				}
				select {
				case <-ctx.Done():
					return
				case <-t.C:
				}
			}
		})
	}
}

// answered tells whether every machine's Consul took a write that began after a
// time.
func (p *probes) answered(since int64) bool {
	for _, b := range p.began {
		if b.Load() <= since {
			return false
		}
	}
	return true
}
