package locksmith

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
)

// The operators' switches: keys that stop breaking while they stand. Each is
// read for a permit, and its index is a guard of the intent and of the
// transaction that ends the hold, so that one that is set in between counts.

// MaxSilence is how long a silence can be set for: it is for a day's work and
// must not outlive the memory of why it was set. It can be set again.
const MaxSilence = 7 * 24 * time.Hour

// MaxReason is how many bytes a reason may have.
const MaxReason = 500

// switchTries bounds how often a switch is set anew because somebody else did at
// the same moment.
const switchTries = 5

// Silence stops the breaking of the lock called name for d, at most MaxSilence,
// for proof as for any other verdict: it is the operator's word. It replaces a
// silence that stands, which it returns as old.
//
// A silence ends by the wall clock of whoever wants to break. A clock that is
// wrong ends it early or late, and neither destroys anything by itself: after
// it the lock is broken only if a verdict and every other brake allow it.
func (c *Client) Silence(ctx context.Context, name, reason string, d time.Duration) (rec, old *records.Silence, err error) {
	name = c.lockName(name)
	now := time.Now().UTC()
	rec = &records.Silence{Version: records.Version, Lock: name, Reason: reason, By: c.by, Who: c.Who(ctx), At: now, Expires: now.Add(d)}
	p, err := c.flip(ctx, c.keys.Silence(name), records.Encode(rec))
	if err != nil {
		return nil, nil, err
	}
	return rec, c.silenceOf(name, p), nil
}

// EndSilence lets the lock called name be broken again. It returns the silence
// that stood, and nil if there was none.
func (c *Client) EndSilence(ctx context.Context, name string) (*records.Silence, error) {
	name = c.lockName(name)
	p, err := c.flip(ctx, c.keys.Silence(name), nil)
	return c.silenceOf(name, p), err
}

// Silences are all that stand, by the names of their locks.
func (c *Client) Silences(ctx context.Context) (map[string]*records.Silence, error) {
	list, err := c.consul.List(ctx, c.keys.Silences())
	if err != nil {
		return nil, err
	}
	out, now := map[string]*records.Silence{}, time.Now()
	for _, p := range list {
		name := keys.LastSegment(p.Key)
		if s := c.silenceOf(name, p); s.Stands(now) {
			out[name] = s
		}
	}
	return out, nil
}

func (c *Client) silenceOf(name string, p *api.KVPair) *records.Silence {
	if p == nil {
		return nil
	}
	return records.DecodeSilence(p.Key, name, p.Value)
}

// Exists tells whether there is, or was, a lock called name.
func (c *Client) Exists(ctx context.Context, name string) (bool, error) {
	p, err := c.consul.Get(ctx, c.keys.Lock(name))
	return p != nil, err
}

// Suspend stops all automatic breaking until Resume. It returns what stood
// before; nil: it was not suspended.
func (c *Client) Suspend(ctx context.Context, reason string) (rec, old *records.PolicySuspended, err error) {
	rec = &records.PolicySuspended{Version: records.Version, By: c.by, Who: c.Who(ctx), At: time.Now().UTC(), Reason: reason}
	p, err := c.flip(ctx, c.keys.PolicySuspended(), records.Encode(rec))
	if err != nil {
		return nil, nil, err
	}
	return rec, suspensionOf(p), nil
}

// Resume ends a suspension. It returns what stood, and nil if it was not
// suspended.
func (c *Client) Resume(ctx context.Context) (*records.PolicySuspended, error) {
	p, err := c.flip(ctx, c.keys.PolicySuspended(), nil)
	return suspensionOf(p), err
}

// Suspended is the suspension that stands; nil: there is none.
func (c *Client) Suspended(ctx context.Context) (*records.PolicySuspended, error) {
	p, err := c.consul.Get(ctx, c.keys.PolicySuspended())
	return suspensionOf(p), err
}

// suspensionOf reads a suspension. One that cannot be read counts too.
func suspensionOf(p *api.KVPair) *records.PolicySuspended {
	if p == nil {
		return nil
	}
	var s records.PolicySuspended
	if err := records.Decode(p.Key, p.Value, &s); err != nil {
		return &records.PolicySuspended{Reason: err.Error()}
	}
	return &s
}

// flip writes a switch, or deletes it where value is nil, and returns what stood
// before: nobody's word is replaced unseen. The last write wins.
func (c *Client) flip(ctx context.Context, key string, value []byte) (*api.KVPair, error) {
	var last error
	for range switchTries {
		p, err := c.consul.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		index := uint64(0)
		if p != nil {
			index = p.ModifyIndex
		}
		op := consulkv.CAS(key, value, index)
		if value == nil {
			if p == nil {
				return nil, nil
			}
			op = consulkv.DeleteCAS(key, index)
		}
		_, err = c.consul.Txn(ctx, op)
		switch {
		case err == nil:
			return p, nil
		case consulkv.Ambiguous(err) && ctx.Err() == nil:
			// What was sent may still land: it is what is wanted. Reading shows
			// whether it has.
			now, rerr := c.consul.Get(ctx, key)
			if rerr != nil {
				return nil, errors.Join(err, rerr)
			}
			if now == nil && value == nil || now != nil && string(now.Value) == string(value) {
				return p, nil
			}
		default:
			if _, refused := isRefused(err); !refused {
				return nil, err
			}
		}
		last = err
	}
	return nil, fmt.Errorf("%s is written by others all the time: gave up after %d tries: %w", key, switchTries, last)
}

// suspendedText says that breaking is suspended.
func suspendedText(key string, value []byte) string {
	s := suspensionOf(&api.KVPair{Key: key, Value: value})
	return fmt.Sprintf("all automatic breaking is suspended%s%s", byText(s.By), reasonText(s.Reason))
}

// silencedText says that a lock is silenced; "" if it is not by now.
func silencedText(s *records.Silence, now time.Time) string {
	if !s.Stands(now) {
		return ""
	}
	words := "the lock is silenced" + byText(s.By)
	if !s.Expires.IsZero() {
		words += " until " + text.Time(s.Expires)
	}
	return words + reasonText(s.Reason)
}

func byText(by string) string {
	if by == "" {
		return ""
	}
	return " by " + printable(by)
}

func reasonText(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + printable(reason)
}
