package agent

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// quiet is the least time between two lines about the same trouble.
const quiet = time.Minute

// trouble logs that Consul cannot be had, and that it can again, without
// filling a disk over a weekend.
type trouble struct {
	log hclog.Logger

	mu     sync.Mutex
	since  time.Time // zero: none
	told   time.Time // of the last line, whether it is over or not
	tellIt bool      // this trouble was told, so its end is told too
	others map[string]time.Time
	shut   time.Time // when hidden was told
}

func (t *trouble) is(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		t.since = time.Now()
	}
	if !t.told.IsZero() && time.Since(t.told) < quiet {
		return
	}
	t.told, t.tellIt = time.Now(), true
	t.log.Warn("Consul cannot be had: this node keeps what it has and tries again", "lasted", time.Since(t.since).Round(time.Second).String(), "error", err)
}

func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tellIt {
		t.log.Info("Consul answers again", "lasted", time.Since(t.since).Round(time.Second).String())
	}
	t.since, t.tellIt = time.Time{}, false
}

// hidden is a folder with keys of which the token may read none.
func (t *trouble) hidden(folder string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.shut.IsZero() && time.Since(t.shut) < quiet {
		return
	}
	t.shut = time.Now()
	t.log.Warn("this token may read none of the configs that there are: unless none is for this node yet, it lacks key:read on "+folder+"<config>/", "key", folder)
}

// other is trouble with one config on this node.
func (t *trouble) other(config string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := config + "\x00" + err.Error()
	if last, ok := t.others[key]; ok && time.Since(last) < quiet {
		return
	}
	if t.others == nil || len(t.others) > 100 {
		t.others = map[string]time.Time{}
	}
	t.others[key] = time.Now()
	t.log.Error("order not carried out yet: tried again", "config", config, "error", err)
}
