package consulkv

import (
	"context"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/fate"
)

// WatchOptions tune a Watcher.
type WatchOptions struct {
	// Name says what is watched, for errors.
	Name string
	// MinInterval is the least time between the starts of two reads: one
	// change under a prefix returns the whole prefix, so a busy one must not
	// be read at every change. 0: none.
	MinInterval time.Duration
	// Wait is how long the server may hold a query without a change. 0: one
	// minute. Consul adds up to a sixteenth of it.
	Wait time.Duration
	// From is an index that the caller knows of already: the first answer is
	// the first change after it. 0: the first answer is what stands.
	From uint64
	// Timeout bounds what a read takes beside the wait. 0: the client's.
	Timeout time.Duration
}

// Watcher follows one answer of Consul by blocking queries. It is used by one
// goroutine: the one that calls Next.
//
// The rules are Consul's: an index that stands still is no change, one that
// goes back (a restored server) starts anew from 0. A restore ends the queries
// that wait with what stood before it, and the same index; asked again by that
// index, a server would wait until it is passed. So an answer of no news that
// did not come when a server's wait ends is followed by a query that does not
// block, and so is an error: whoever answers next may be a server that knows
// only lower indexes. What such a query reads is told whatever its index is:
// restored servers give indexes out again, and something else may stand there.
type Watcher[T any] struct {
	c     *Client
	opts  WatchOptions
	fetch func(*api.QueryOptions) (T, *api.QueryMeta, error)

	index uint64
	last  time.Time
	// idle is set after an answer that brought nothing new sooner than a
	// server that blocks would have sent it.
	idle bool
	// plain makes the next query one that does not block.
	plain bool
}

// idlePause is the least time between two reads of which the first brought
// nothing new: whatever answers does not block (a proxy that drops the index),
// and would be asked without end.
const idlePause = time.Second

// NewWatcher makes a watcher of what fetch reads. fetch passes the options on
// to consul/api.
func NewWatcher[T any](c *Client, opts WatchOptions, fetch func(*api.QueryOptions) (T, *api.QueryMeta, error)) *Watcher[T] {
	if opts.Wait == 0 {
		opts.Wait = time.Minute
	}
	return &Watcher[T]{c: c, opts: opts, fetch: fetch, index: opts.From}
}

// Next returns the first answer at once (but see WatchOptions.From), and each
// later one when it changed; after an error, its own or one that was retried,
// and after a query that a server did not end by itself, what stands, changed
// or not. Temporary errors are retried within the client's RetryFor; after an
// error Next may be called again and goes on where it was.
func (w *Watcher[T]) Next(ctx context.Context) (T, error) {
	for {
		if err := w.pause(ctx); err != nil {
			var zero T
			return zero, err
		}
		w.last = time.Now()
		v, meta, err := w.query(ctx)
		if err != nil {
			w.plain = true
			return v, err
		}
		before, index := w.index, meta.LastIndex
		plain := w.plain
		w.plain = false
		w.idle = before != 0 && index <= before
		switch {
		case index < before:
			w.index = 0
			return v, nil
		case index == before && index != 0 && !plain:
			w.plain = !w.waited(time.Since(w.last))
			continue
		}
		// Index 0 would turn the next query into one that does not block.
		w.index = max(index, 1)
		return v, nil
	}
}

// waited tells whether an answer of no news came when a server ends its wait by
// itself: not before it is over, and not so long after its jitter that this
// process, or the network, may have kept an answer that was early.
func (w *Watcher[T]) waited(took time.Duration) bool {
	return took >= w.opts.Wait && took < w.opts.Wait+w.opts.Wait/16+lateAnswer
}

// lateAnswer is how long after a server's wait its answer may come.
const lateAnswer = 2 * time.Second

// Name says what is watched.
func (w *Watcher[T]) Name() string { return w.opts.Name }

// Restart makes the next Next return at once with what stands, changed or not:
// for who forgot, after an error, what it was told before.
func (w *Watcher[T]) Restart() { w.index, w.idle, w.plain = 0, false, false }

// SetMinInterval changes MinInterval, for who finds out how busy it is.
func (w *Watcher[T]) SetMinInterval(d time.Duration) { w.opts.MinInterval = d }

// Index is the Raft index of the answer returned last; 0 before the first.
func (w *Watcher[T]) Index() uint64 { return w.index }

// pause keeps MinInterval between reads, and idlePause where it is due.
func (w *Watcher[T]) pause(ctx context.Context) error {
	least := w.opts.MinInterval
	if w.idle {
		least = max(least, idlePause)
	}
	wait := least - time.Since(w.last)
	if w.last.IsZero() || wait <= 0 {
		return ctxErr(ctx)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		fate.Turn(ctx, "watch "+w.opts.Name)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func ctxErr(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

type answer[T any] struct {
	v    T
	meta *api.QueryMeta
}

func (w *Watcher[T]) query(ctx context.Context) (T, *api.QueryMeta, error) {
	// The time-out of a try covers the server's wait, its jitter of a
	// sixteenth, and a normal request.
	slow := *w.c
	if w.opts.Timeout > 0 {
		slow.timeout = w.opts.Timeout
	}
	index := w.index
	if w.plain {
		index = 0
	}
	if index > 0 {
		slow.timeout += w.opts.Wait + w.opts.Wait/16
	}
	tries := 0
	// One query waits for long, whatever the hurry of its caller.
	a, err := Retry(Unhurried(ctx), &slow, "watch "+w.opts.Name, func(ctx context.Context) (answer[T], error) {
		if tries++; tries > 1 {
			index, w.plain = 0, true
		}
		q := &api.QueryOptions{WaitIndex: index, WaitTime: w.opts.Wait}
		v, meta, err := w.fetch(q.WithContext(ctx))
		return answer[T]{v, meta}, err
	})
	return a.v, a.meta, err
}
