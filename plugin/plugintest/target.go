package plugintest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/aim-control/aimlock/plugin"
)

func targetChecks() []check {
	return []check{
		{"absent", absent}, {"write", writes}, {"contents", contents}, {"fence", fences}, {"fence after a restart", fencesAnew},
		{"writers at once", atOnce}, {"restore", restores}, {"put back", putsBack}, {"places", places}, {"cancelled", ended},
	}
}

// place is a config on a node, for the time of a check.
type place struct {
	ctx context.Context //nolint:containedctx // of the check that the place is for
	r   *run
	t   plugin.Target
	at  plugin.Place
}

func onPlace(ctx context.Context, r *run, c *plugin.Client, cs *Case, f func(p *place) error) error {
	if cs.Place == nil {
		return errors.New("the case has no Place")
	}
	return with(ctx, r, c, cs, func(t plugin.Target) error { return f(&place{ctx, r, t, cs.Place(r.tb)}) })
}

// rolloutOf is a rollout of its own for each content, as in life.
func rolloutOf(content string) string { return "plugintest-" + sum([]byte(content))[:8] }

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func (p *place) apply(token, seq uint64, content string) (*plugin.Applied, error) {
	return p.applyOf(rolloutOf(content), token, seq, content)
}

func (p *place) applyOf(rollout string, token, seq uint64, content string) (*plugin.Applied, error) {
	ctx, cancel := p.r.limit(p.ctx)
	defer cancel()
	a, err := p.t.Apply(ctx, &plugin.ApplyRequest{
		Place: p.at, Order: plugin.Order{Epoch: 1, Token: token, Seq: seq}, Revision: "r" + sum([]byte(content))[:8], Rollout: rollout,
		SHA256: sum([]byte(content)), Content: []byte(content), Mode: "0640",
	})
	if err == nil {
		err = oneLine("the detail", a.Detail)
	}
	return a, err
}

func (p *place) restore(token, seq uint64) error {
	ctx, cancel := p.r.limit(p.ctx)
	defer cancel()
	_, err := p.t.Restore(ctx, &plugin.RestoreRequest{Place: p.at, Order: plugin.Order{Epoch: 1, Token: token, Seq: seq}, Rollout: rolloutOf("bad\n")})
	return err
}

// holds fails unless exactly this stands at the place.
func (p *place) holds(want string) error {
	ctx, cancel := p.r.limit(p.ctx)
	defer cancel()
	st, err := p.t.Read(ctx, &plugin.ReadRequest{Place: p.at, Content: true})
	switch {
	case err != nil:
		return fmt.Errorf("read: %w", err)
	case !st.Exists:
		return errors.New("what was written does not exist")
	case !bytes.Equal(st.Content, []byte(want)):
		return fmt.Errorf("%d bytes with the sum %.8s stand there, and not the %d with %.8s that were written", len(st.Content), sum(st.Content), len(want), sum([]byte(want)))
	case st.SHA256 != sum([]byte(want)):
		return fmt.Errorf("read tells the sum %q of what is %q", st.SHA256, sum([]byte(want)))
	case st.Size != int64(len(want)):
		return fmt.Errorf("read tells %d bytes of %d", st.Size, len(want))
	}
	return nil
}

// absent: what does not exist is no error.
func absent(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return onPlace(ctx, r, c, cs, func(p *place) error {
		ctx, cancel := r.limit(ctx)
		defer cancel()
		st, err := p.t.Read(ctx, &plugin.ReadRequest{Place: p.at, Content: true})
		switch {
		case err != nil:
			return fmt.Errorf("read what does not exist: %w", err)
		case st.Exists:
			return errors.New("it says that something stands where nothing was written")
		}
		// What was before was nothing: to say so, or to leave it at that, are both right.
		if err := p.restore(1, 1); err != nil {
			return wantError("restore where there is nothing", err, plugin.ErrNotFound, plugin.ErrUnsupported)
		}
		if st, err = p.t.Read(ctx, &plugin.ReadRequest{Place: p.at}); err != nil || st.Exists {
			return errors.Join(err, errors.New("restored to what was before, which is nothing, something stands there"))
		}
		return nil
	})
}

// writes: what is written stands there, and a second writing of it changes nothing.
func writes(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return onPlace(ctx, r, c, cs, func(p *place) error {
		for i, content := range []string{"first\n", "second\n", "second\n"} {
			if _, err := p.apply(10, uint64(i+1), content); err != nil {
				return fmt.Errorf("write %d: %w", i+1, err)
			}
			if err := p.holds(content); err != nil {
				return fmt.Errorf("write %d: %w", i+1, err)
			}
		}
		// The same order again is the same write: an answer may have been lost.
		if _, err := p.apply(10, 3, "second\n"); err != nil {
			return fmt.Errorf("the same order sent again: %w", err)
		}
		return p.holds("second\n")
	})
}

// contents: any bytes, also none, and more than one message holds.
func contents(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	return onPlace(ctx, r, c, cs, func(p *place) error {
		for i, content := range []string{
			"", string(all), "no newline at the end", "$(reboot) `reboot` 'quoted' \"twice\" \\n %s {{ braces }}\n",
			string(bytes.Repeat(all, 1<<20/256)),
		} {
			if _, err := p.apply(10, uint64(i+1), content); err != nil {
				return fmt.Errorf("%d bytes: %w", len(content), err)
			}
			if err := p.holds(content); err != nil {
				return fmt.Errorf("%d bytes: %w", len(content), err)
			}
		}
		return nil
	})
}

// fences: an older order is refused, by its place in epoch, token and seq, and
// changes nothing.
func fences(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return onPlace(ctx, r, c, cs, func(p *place) error {
		if !p.t.Fencing() {
			return skip("it does not say that it is fenced")
		}
		if _, err := p.apply(20, 5, "of token 20\n"); err != nil {
			return err
		}
		return p.refusesOlder(20, 5)
	})
}

func (p *place) refusesOlder(token, seq uint64) error {
	for _, old := range []plugin.Order{{Epoch: 1, Token: token, Seq: seq - 1}, {Epoch: 1, Token: token - 1, Seq: seq + 100}, {Epoch: 1, Token: 9, Seq: 1}} {
		_, err := p.apply(old.Token, old.Seq, "of an older order\n")
		var stale *plugin.StaleError
		switch {
		case err == nil:
			return fmt.Errorf("the order %s is written after %d-%d-%d", old, 1, token, seq)
		case !errors.As(err, &stale):
			return fmt.Errorf("the older order %s is refused, but not as older (StaleError): %w", old, err)
		case stale.Highest != plugin.Order{Epoch: 1, Token: token, Seq: seq}:
			return fmt.Errorf("it tells %s as the newest order that it has seen, and that is 1-%d-%d", stale.Highest, token, seq)
		}
		if err := wantError("a restore by the older order "+old.String(), p.restore(old.Token, old.Seq), plugin.ErrStale, plugin.ErrUnsupported); err != nil {
			return err
		}
	}
	return p.holds("of token 20\n")
}

// fencesAnew: what a target has seen, its next process knows.
func fencesAnew(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	var at plugin.Place
	err := onPlace(ctx, r, c, cs, func(p *place) error {
		if !p.t.Fencing() {
			return skip("it does not say that it is fenced")
		}
		at = p.at
		_, err := p.apply(20, 5, "of token 20\n")
		return err
	})
	if err != nil {
		return err
	}
	if err := r.restarted(); err != nil {
		return err
	}
	c, err = r.client()
	if err != nil {
		return err
	}
	return with(ctx, r, c, cs, func(t plugin.Target) error { return (&place{ctx, r, t, at}).refusesOlder(20, 5) })
}

// atOnce: of several writers the newest order stands in the end, whole.
func atOnce(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return onPlace(ctx, r, c, cs, func(p *place) error {
		if !p.t.Fencing() {
			return skip("it does not say that it is fenced")
		}
		const n = 8
		content := func(i int) string { return string(bytes.Repeat([]byte{byte('a' + i)}, 100_000)) }
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { _, errs[i] = p.apply(uint64(30+i), 1, content(i)) })
		}
		wg.Wait()
		for i, err := range errs {
			if err != nil && (i == n-1 || !errors.Is(err, plugin.ErrStale)) {
				return fmt.Errorf("writer %d of %d: %w", i+1, n, err)
			}
		}
		return p.holds(content(n - 1))
	})
}

// restores: the last good revision comes back under a new order.
func restores(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return onPlace(ctx, r, c, cs, func(p *place) error {
		for i, content := range []string{"good\n", "bad\n"} {
			if _, err := p.apply(10, uint64(i+1), content); err != nil {
				return err
			}
		}
		err := p.restore(10, 3)
		switch {
		case errors.Is(err, plugin.ErrUnsupported):
			return skip("it keeps no last good revision")
		case err != nil:
			return err
		}
		if err := p.holds("good\n"); err != nil {
			return fmt.Errorf("restored: %w", err)
		}
		if !p.t.Fencing() {
			return nil
		}
		_, err = p.apply(10, 2, "bad\n")
		if err := wantError("the order before a restore, sent again", err, plugin.ErrStale); err != nil {
			return err
		}
		return p.holds("good\n")
	})
}

// putsBack: what an order brought is taken back under that order, as an agent does where
// it finds it to do harm, and may come again under it.
func putsBack(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return onPlace(ctx, r, c, cs, func(p *place) error {
		for i, content := range []string{"good\n", "bad\n", "good\n", "bad\n", "good\n"} {
			if _, err := p.applyOf(rolloutOf("bad\n"), 10, uint64(min(i+1, 2)), content); err != nil {
				return fmt.Errorf("write %d, from the third on by the order of the second: %w", i+1, err)
			}
			if err := p.holds(content); err != nil {
				return fmt.Errorf("write %d, from the third on by the order of the second: %w", i+1, err)
			}
		}
		return nil
	})
}

// places: what is written at one place stands at no other.
func places(ctx context.Context, r *run, c *plugin.Client, cs *Case) error {
	return onPlace(ctx, r, c, cs, func(p *place) error {
		q := *p
		q.at = cs.Place(r.tb)
		if q.at.Node == p.at.Node && q.at.Config == p.at.Config && q.at.Destination == p.at.Destination {
			return errors.New("the case's Place makes the same place twice")
		}
		if _, err := p.apply(50, 1, "here\n"); err != nil {
			return err
		}
		// A fence is of its place.
		if _, err := q.apply(40, 1, "there\n"); err != nil {
			return fmt.Errorf("at another place: %w", err)
		}
		return errors.Join(p.holds("here\n"), q.holds("there\n"))
	})
}
