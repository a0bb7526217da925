package guard

import (
	"context"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
)

// brakes are what stops all automatic breaking, as Consul has it. Every break
// asks for it again, consistently (locksmith.Client.Permit): this only spares
// asking for each lock what is known to be refused.
type brakes struct {
	// known: it was read, and is followed without a gap.
	known bool
	// applied is the hash of the policies in force; "" if none were ever applied,
	// and "?" where the record cannot be read.
	applied string
	// suspended says who suspended all breaking, and why; "": nobody.
	suspended string
}

const unreadable = "?"

// inForce tells whether policies with this hash may act.
func (b brakes) inForce(hash string) bool { return b.applied == "" || b.applied == hash }

// open tells whether policies with this hash can break anything now.
func (b brakes) open(hash string) bool { return b.known && b.inForce(hash) && b.suspended == "" }

// brakesEvery is the least time between two reads of the brakes.
const brakesEvery = 500 * time.Millisecond

// followBrakes tells of every change until ctx ends.
func (g *Guard) followBrakes(ctx context.Context) {
	prefix := g.keys.Policies()
	w := consulkv.NewWatcher(g.consul, consulkv.WatchOptions{Name: prefix, MinInterval: brakesEvery},
		func(q *api.QueryOptions) (api.KVPairs, *api.QueryMeta, error) {
			return g.consul.API().KV().List(prefix, q)
		})
	for ctx.Err() == nil {
		list, err := w.Next(ctx)
		b := brakes{}
		if err != nil {
			g.trouble("brakes", err)
			w.Restart()
		} else {
			b = g.readBrakes(list)
		}
		select {
		case g.brakesCh <- b:
		case <-ctx.Done():
			return
		}
		if err != nil && !pause(ctx, time.Second) {
			return
		}
	}
}

func (g *Guard) readBrakes(list api.KVPairs) brakes {
	b := brakes{known: true}
	for _, p := range list {
		switch p.Key {
		case g.keys.PolicyActive():
			var rec records.PolicyActive
			if b.applied = unreadable; records.Decode(p.Key, p.Value, &rec) == nil && rec.Hash != "" {
				b.applied = rec.Hash
			}
		case g.keys.PolicySuspended():
			var rec records.PolicySuspended
			b.suspended = "somebody"
			if records.Decode(p.Key, p.Value, &rec) == nil && rec.By != "" {
				b.suspended = text.Clip(text.Printable(rec.By+": "+rec.Reason), 200)
			}
		}
	}
	return b
}

// pause waits for d; it is false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		fate.Turn(ctx, "slept")
		return true
	case <-ctx.Done():
		return false
	}
}
