package plugintest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aim-control/aimlock/plugin"
)

func general() []check {
	return []check{{"info", infos}, {"same info", sameInfo}, {"end", ends}, {"covered", covered}}
}

// infos: what the plugin says of itself is of use to who configures it.
func infos(_ context.Context, _ *run, c *plugin.Client, _ *Case) error {
	info := c.Info()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if info.Version == "" {
		bad("it tells no version")
	}
	if info.Doc == "" {
		bad("it does not say what it is for (doc)")
	}
	for i := range info.Kinds {
		k := &info.Kinds[i]
		for _, f := range k.Facts {
			if f.Doc == "" {
				bad("fact %s has no doc", f.Name)
			}
		}
		undocumented(string(k.Kind), &k.Config, bad)
	}
	return errors.Join(errs...)
}

func undocumented(where string, s *plugin.Schema, bad func(string, ...any)) {
	for _, a := range s.Attributes {
		if a.Doc == "" {
			bad("setting %s.%s has no doc", where, a.Name)
		}
		if a.Secret && a.Default != nil {
			bad("secret setting %s.%s has a default", where, a.Name)
		}
	}
	for i := range s.Blocks {
		b := &s.Blocks[i]
		undocumented(where+"."+b.Name, &b.Config, bad)
	}
}

// covered: there is a case for each kind.
func covered(_ context.Context, r *run, c *plugin.Client, _ *Case) error {
	seen := map[plugin.Kind]bool{}
	names := map[string]bool{}
	for i := range r.s.Cases {
		seen[r.s.Cases[i].Kind] = true
		if n := r.s.Cases[i].Name; n == "" || names[n] {
			return fmt.Errorf("case %d needs a name of its own, not %q", i, n)
		}
		names[r.s.Cases[i].Name] = true
	}
	for i := range c.Info().Kinds {
		if k := c.Info().Kinds[i].Kind; !seen[k] {
			return fmt.Errorf("the plugin is a %s too, and no case tests that", k)
		}
	}
	return nil
}

// validates: the plugin accepts its configuration, any number of times.
func validates(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	for range 3 {
		cctx, cancel := r.limit(ctx)
		err := c.Validate(cctx, cs.Kind, cs.config())
		cancel()
		if err != nil {
			return fmt.Errorf("its configuration is refused: %w", err)
		}
	}
	return nil
}

// refuses: the plugin refuses what is wrong, says where, and tells no secret.
func refuses(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	if len(cs.Refused) == 0 {
		return skip("the case has no configuration to refuse")
	}
	for _, text := range cs.Refused {
		cctx, cancel := r.limit(ctx)
		err := c.Validate(cctx, cs.Kind, plugin.Config(text))
		cancel()
		var problems plugin.Problems
		switch {
		case err == nil:
			return fmt.Errorf("it accepts %s", text)
		case !errors.As(err, &problems):
			return fmt.Errorf("it refuses %s, but not as a wrong configuration (ErrInvalidConfig): %w", text, err)
		}
		for _, p := range problems {
			if p.Path == "" {
				return fmt.Errorf("it refuses %s and does not say at which setting: %s", text, p.Message)
			}
			if err := oneLine("what it says of "+p.Path, p.Message); err != nil {
				return err
			}
		}
		// And it must not be possible to go past Validate.
		cctx, cancel = r.limit(ctx)
		v, err := instance(cctx, c, cs.Kind, plugin.Config(text))
		cancel()
		if err == nil {
			_ = plugin.Release(v)
			return fmt.Errorf("Validate refuses %s, and Configure accepts it", text)
		}
	}
	return nil
}

// instances: many of them live side by side, are used at once, and end alone.
func instances(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	const n = 8
	made := make([]any, n)
	for i := range made {
		cctx, cancel := r.limit(ctx)
		v, err := instance(cctx, c, cs.Kind, cs.config())
		cancel()
		if err != nil {
			return fmt.Errorf("configure instance %d: %w", i+1, err)
		}
		made[i] = v
	}
	for i := range n / 2 {
		if err := plugin.Release(made[i]); err != nil {
			return fmt.Errorf("release: %w", err)
		}
	}
	var errs []error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := n / 2; i < n; i++ {
		for range 2 {
			wg.Go(func() {
				cctx, cancel := r.limit(ctx)
				defer cancel()
				if err := use(cctx, r, made[i], cs); err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, fmt.Errorf("used beside others, after others were released: %w", err))
				}
			})
		}
	}
	wg.Wait()
	for i := n / 2; i < n; i++ {
		errs = append(errs, plugin.Release(made[i]))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	cctx, cancel := r.limit(ctx)
	defer cancel()
	return wantError("an instance that was released", use(cctx, r, made[0], cs), plugin.ErrNoInstance)
}

func instance(ctx context.Context, c *plugin.Client, k plugin.Kind, cfg plugin.Config) (any, error) {
	switch k {
	case plugin.KindEvidence:
		return c.Evidence(ctx, cfg)
	case plugin.KindBreaker:
		return c.Breaker(ctx, cfg)
	case plugin.KindGate:
		return c.Gate(ctx, cfg)
	case plugin.KindTarget:
		return c.Target(ctx, cfg)
	case plugin.KindFleet:
		return c.Fleet(ctx, cfg)
	}
	return nil, fmt.Errorf("kind %q: %w", k, plugin.ErrUnsupported)
}

// use calls an instance, without an effect where that is possible.
func use(ctx context.Context, r *run, v any, cs *Case) error {
	var err error
	switch v := v.(type) {
	case plugin.Evidence:
		_, err = v.Observe(ctx, &plugin.ObserveRequest{Lock: cs.Lock, Host: "plugintest"})
	case plugin.Breaker:
		_, err = v.Break(ctx, &plugin.BreakRequest{Lock: cs.Lock, Step: 1, DryRun: true})
	case plugin.Gate:
		_, err = v.Ask(ctx, &cs.Question)
	case plugin.Target:
		if cs.Place == nil {
			return skip("the case has no Place")
		}
		_, err = v.Read(ctx, &plugin.ReadRequest{Place: cs.Place(r.tb)})
	case plugin.Fleet:
		_, err = v.List(ctx)
	}
	return err
}

// wantError refuses an error that is none of these.
func wantError(what string, err error, want ...error) error {
	var names []string
	for _, w := range want {
		if errors.Is(err, w) {
			return nil
		}
		names = append(names, fmt.Sprintf("%q", w))
	}
	expected := strings.Join(names, " or ")
	if err == nil {
		return fmt.Errorf("%s: no error, want %s", what, expected)
	}
	return fmt.Errorf("%s: want the error %s: %w", what, expected, err)
}

// ended: a call whose caller gave up ends, and the next one is answered.
func ended(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	cctx, cancel := r.limit(ctx)
	defer cancel()
	v, err := instance(cctx, c, cs.Kind, cs.config())
	if err != nil {
		return err
	}
	defer func() { _ = plugin.Release(v) }()
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		gone, cancel := context.WithTimeout(ctx, after)
		_ = use(gone, r, v, cs) // it may have been in time
		cancel()
	}
	cctx, cancel = r.limit(ctx)
	defer cancel()
	if err := use(cctx, r, v, cs); err != nil {
		return fmt.Errorf("after calls that were cancelled: %w", err)
	}
	return nil
}

// hostile is a holder that somebody wrote who may write the lock's key.
func hostile(mark string) plugin.Lock {
	inject := "$(touch " + mark + ");`touch " + mark + "`;touch " + mark + "|touch " + mark + "\n-rf\x1b[2J\x00'\"../../" + mark
	return plugin.Lock{
		Name: inject, Key: "aimlock/locks/" + inject, Session: inject, Epoch: 1 << 63, Token: 1 << 63,
		Holder: plugin.Holder{
			Host: inject, Node: inject, PID: -1, BootID: inject, PIDNS: inject, StartTicks: 1 << 63, User: inject, Tool: inject,
			Operation: strings.Repeat(inject, 50), Rollout: "--help", AllocID: "-x", AllocRegion: inject,
		},
	}
}
