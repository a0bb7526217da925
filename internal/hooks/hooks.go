package hooks

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/text"
)

// Defaults and bounds of Config.
const (
	// DefaultTimeout bounds one try to deliver.
	DefaultTimeout = 10 * time.Second
	// MaxTimeout is the most that a try can be given.
	MaxTimeout = 5 * time.Minute
	// DefaultUnknownAfter is for how long a lock is UNKNOWN before it is told.
	DefaultUnknownAfter = 10 * time.Minute
	// QueueSize is how many events wait for one hook. The oldest are dropped.
	QueueSize = 256
	// RetryFor bounds all tries to deliver one event.
	RetryFor = 5 * time.Minute
)

// Config is one hook. Either URL or Command is set.
type Config struct {
	Name string
	// On are the kinds that it is told of, and Break for all of a break.
	On []string

	// URL takes a POST of the event.
	URL string
	// Headers are added to it.
	Headers map[string]string
	// Secret signs the body: the header Aimlock-Signature is "sha256=" and the
	// HMAC-SHA256 in hex. Empty: it is not signed.
	Secret []byte

	// Command is run without a shell, with the event on stdin.
	Command []string

	// Timeout bounds one try; 0 is DefaultTimeout.
	Timeout time.Duration
	// UnknownAfter is for Unknown; 0 is DefaultUnknownAfter.
	UnknownAfter time.Duration
}

// Check says what is wrong with the hook; nil if it can be used.
func (c *Config) Check() error {
	switch {
	case len(c.On) == 0:
		return fmt.Errorf("on is empty: it names what the hook is told of, of %s", strings.Join(Kinds(), ", "))
	case (c.URL == "") == (len(c.Command) == 0):
		return fmt.Errorf("give either url or command")
	case len(c.Command) > 0 && c.Command[0] == "":
		return fmt.Errorf("command names no program")
	case len(c.Command) > 0 && (len(c.Headers) > 0 || len(c.Secret) > 0):
		return fmt.Errorf("headers and a secret go with url: a command gets neither")
	case c.Timeout < 0 || c.Timeout > MaxTimeout:
		return fmt.Errorf("timeout %s: it is above 0 and at most %s", c.Timeout, MaxTimeout)
	case c.UnknownAfter < 0:
		return fmt.Errorf("unknown_after %s: it is not below 0", c.UnknownAfter)
	}
	for _, k := range c.On {
		if !slices.Contains(Kinds(), k) {
			return fmt.Errorf("on has %q: it is of %s", text.Clip(text.Printable(k), 40), strings.Join(Kinds(), ", "))
		}
	}
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			// The URL itself may hold a secret, and so may the parser's error.
			return fmt.Errorf("url is not one of http:// or https:// with a host")
		}
	}
	return nil
}

// target is where a hook goes, as it may be shown: what stands in a path or in a
// user's place is often the secret itself.
func (c *Config) target() string {
	if len(c.Command) > 0 {
		return c.Command[0]
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return "its URL"
	}
	return u.Scheme + "://" + u.Host
}

// Notifier tells hooks of events. A nil one tells nobody. It is safe for
// concurrent use.
type Notifier struct {
	hooks []*hook
	log   hclog.Logger
	watch watch

	closing atomic.Bool
	ctx     context.Context //nolint:containedctx // the life of all deliveries is a context, by design
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// Options are what New takes beside the hooks.
type Options struct {
	Log hclog.Logger
	// Transport is for tests; nil is one of its own.
	Transport http.RoundTripper
}

// New starts a notifier; Close ends it. It is nil where there are no hooks.
func New(list []Config, opts Options) (*Notifier, error) {
	if len(list) == 0 {
		return nil, nil
	}
	if opts.Log == nil {
		opts.Log = hclog.NewNullLogger()
	}
	n := &Notifier{log: opts.Log}
	client := newHTTPClient(opts.Transport)
	for _, c := range list {
		if err := c.Check(); err != nil {
			return nil, fmt.Errorf("hook %q: %w", c.Name, err)
		}
		if c.Timeout == 0 {
			c.Timeout = DefaultTimeout
		}
		if c.UnknownAfter == 0 {
			c.UnknownAfter = DefaultUnknownAfter
		}
		h := &hook{cfg: c, log: opts.Log.With("hook", c.Name, "target", c.target()), wake: make(chan struct{}, 1)}
		h.send = h.post(client)
		if len(c.Command) > 0 {
			h.send = h.exec
		}
		n.hooks = append(n.hooks, h)
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	for _, h := range n.hooks {
		n.wg.Go(func() { h.run(n.ctx) })
	}
	return n, nil
}

// Notify tells every hook that wants it. It does not block. ID and At are filled
// in where they are empty.
func (n *Notifier) Notify(e Event) {
	if n == nil {
		return
	}
	for _, h := range n.hooks {
		if wants(h.cfg.On, e.Kind) {
			n.tell(h, e)
		}
	}
}

func (n *Notifier) tell(h *hook, e Event) {
	if n.closing.Load() {
		return
	}
	if e.ID == "" {
		e.ID = rand.Text()
	}
	if e.At.IsZero() {
		e.At = time.Now().UTC()
	}
	for _, s := range []*string{&e.Reason, &e.Detail, &e.Holder, &e.By} {
		*s = text.Clip(text.Printable(*s), 1000)
	}
	h.push(e)
}

// Close takes no more events, and waits until those that wait are delivered or
// ctx ends: then what is being sent is given up, and a command's process group
// killed. It returns how many were not delivered.
func (n *Notifier) Close(ctx context.Context) int64 {
	if n == nil {
		return 0
	}
	n.closing.Store(true)
	n.watch.stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.wg.Wait()
	}()
	for _, h := range n.hooks {
		h.close()
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	n.cancel()
	<-done
	var lost int64
	for _, h := range n.hooks {
		lost += h.lost.Load()
	}
	if lost > 0 {
		n.log.Warn("hooks were not told of all events", "lost", lost)
	}
	return lost
}

// Stats are the counts of one hook since the start.
type Stats struct {
	Name string
	// Delivered events, Failed tries, and Lost events: dropped for others, or
	// given up after all tries.
	Delivered, Failed, Lost int64
	// Waiting is how many events are in the queue now.
	Waiting int
}

// Stats are the counts of every hook.
func (n *Notifier) Stats() []Stats {
	if n == nil {
		return nil
	}
	out := make([]Stats, 0, len(n.hooks))
	for _, h := range n.hooks {
		out = append(out, Stats{Name: h.cfg.Name, Delivered: h.delivered.Load(), Failed: h.failed.Load(), Lost: h.lost.Load(), Waiting: h.waiting()})
	}
	return out
}

// ReadSecret reads a secret from a file, without the line end at its end.
func ReadSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if b = []byte(strings.TrimRight(string(b), "\r\n")); len(b) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return b, nil
}
