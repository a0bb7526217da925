package builtin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/plugin"
)

func breakerPlugins() []plugin.Plugin {
	list := []struct {
		name, doc string
		make      func() plugin.Breaker
	}{
		{"destroy_session", "Destroys the Consul session that holds the lock.", func() plugin.Breaker { return &destroySession{} }},
		{"nomad_stop", "Stops the holder's Nomad allocation.", func() plugin.Breaker { return &nomadStop{} }},
		{"signal", "Signals the holder's process, where it is this host's.", func() plugin.Breaker { return &signal{Signal: "TERM"} }},
	}
	var out []plugin.Plugin
	for _, b := range list {
		p := named(b.name, b.doc)
		p.Breaker = b.make
		out = append(out, p)
	}
	return out
}

func result(o plugin.Outcome, format string, args ...any) (*plugin.BreakResult, error) {
	return &plugin.BreakResult{Outcome: o, Detail: fmt.Sprintf(format, args...)}, nil
}

type destroySession struct {
	consulConfig

	c *consulkv.Client
}

func (b *destroySession) Start(context.Context) (err error) {
	b.c, err = b.client()
	return err
}

// Break destroys the session if it is the one that holds the lock, and holds no other
// key: of those nothing was judged. Session ids are never used again, so that one
// that is late destroys no newer hold.
func (b *destroySession) Break(ctx context.Context, r *plugin.BreakRequest) (*plugin.BreakResult, error) {
	if r.Lock.Session == "" || r.Lock.Key == "" {
		return result(plugin.NotApplicable, "the request names no session that holds a key")
	}
	kv, err := b.c.Get(ctx, r.Lock.Key)
	switch {
	case err != nil:
		return nil, err
	case kv == nil || kv.Session != r.Lock.Session:
		return result(plugin.NotApplicable, "session %s does not hold the lock any more", r.Lock.Session)
	}
	other, err := b.c.KeyHeldBy(ctx, r.Lock.Session, func(key string) bool { return key == r.Lock.Key })
	switch {
	case err != nil:
		return nil, err
	case other != "":
		return result(plugin.Failed, "session %s holds %s too", r.Lock.Session, other)
	case r.DryRun:
		return result(plugin.Done, "would destroy session %s", r.Lock.Session)
	}
	_, err = consulkv.Retry(ctx, b.c, "destroy session "+r.Lock.Session, func(ctx context.Context) (struct{}, error) {
		_, err := b.c.API().Session().Destroy(r.Lock.Session, (&api.WriteOptions{}).WithContext(ctx))
		return struct{}{}, err
	})
	if err != nil {
		return nil, err
	}
	return result(plugin.Done, "session %s was destroyed", r.Lock.Session)
}

type nomadStop struct {
	nomadConfig

	n evidence.Nomad
}

func (b *nomadStop) Validate(context.Context) error { return b.named() }

func (b *nomadStop) Start(context.Context) error {
	c, err := b.client()
	if err != nil {
		return err
	}
	b.n = evidence.NewNomad(c)
	return nil
}

func (b *nomadStop) Break(ctx context.Context, r *plugin.BreakRequest) (*plugin.BreakResult, error) {
	h := &r.Lock.Holder
	switch {
	case h.AllocID == "":
		return result(plugin.NotApplicable, "the holder did not record an allocation")
	case r.DryRun:
		return result(plugin.Done, "would stop allocation %s", h.AllocID)
	}
	if err := b.n.Stop(ctx, evidence.AllocRef{ID: h.AllocID, Region: h.AllocRegion}); err != nil {
		return nil, err
	}
	return result(plugin.Done, "Nomad was asked to stop allocation %s", h.AllocID)
}

type signal struct {
	Signal string `config:"signal" doc:"TERM, KILL, INT, HUP, QUIT, USR1, USR2 or CONT"`

	r *evidence.Reader
}

func (b *signal) Validate(context.Context) error {
	b.Signal = strings.TrimPrefix(b.Signal, "SIG")
	if !slices.Contains([]string{"TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "CONT"}, b.Signal) {
		return plugin.Invalid("signal", "it is one of TERM, KILL, INT, HUP, QUIT, USR1, USR2 and CONT")
	}
	return nil
}

func (b *signal) Start(context.Context) error {
	self, err := hostproc.Self()
	b.r = &evidence.Reader{Self: self}
	return err
}

func (b *signal) Break(_ context.Context, r *plugin.BreakRequest) (*plugin.BreakResult, error) {
	h := &r.Lock.Holder
	switch {
	case h.PID == 0 || h.StartTicks == 0:
		return result(plugin.NotApplicable, "the holder recorded no process, or not when it began")
	case !b.r.Local(recordOf(h)):
		return result(plugin.NotApplicable, "the holder is not a process of this host and this pid namespace")
	case r.DryRun:
		return result(plugin.Done, "would send SIG%s to process %d", b.Signal, h.PID)
	}
	err := hostproc.SignalProcess(h.PID, h.StartTicks, unix.SignalNum("SIG"+b.Signal))
	switch {
	case errors.Is(err, os.ErrProcessDone) || errors.Is(err, hostproc.ErrReused):
		return result(plugin.NotApplicable, "process %d has ended", h.PID)
	case err != nil:
		return nil, err
	}
	return result(plugin.Done, "process %d was sent SIG%s", h.PID, b.Signal)
}

var (
	_ plugin.Breaker = (*destroySession)(nil)
	_ plugin.Breaker = (*nomadStop)(nil)
	_ plugin.Breaker = (*signal)(nil)
)
