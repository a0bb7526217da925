package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/plugin"
)

// Bounds of starting a plugin again.
const (
	firstPause = 500 * time.Millisecond
	maxPause   = time.Minute
	// stable is how long it must have run to be new again.
	stable = time.Minute
	// maxStarts in startWindow; then it stays down until the window has passed.
	maxStarts   = 20
	startWindow = 10 * time.Minute
	// maxCalls are under way at once; more wait.
	maxCalls = 32
	// pingTimeout is given to one that missed a deadline to show that it lives.
	pingTimeout = 2 * time.Second
)

// Plugin is one plugin: a file, and one process of it after another.
type Plugin struct {
	h    *Host
	spec Spec
	log  hclog.Logger
	// calls bounds those under way.
	calls chan struct{}
	// now is the monotonic clock.
	now func() time.Time

	mu sync.Mutex
	// proc is the process that was started last; it may have ended.
	proc *process
	// starting is set while one is being started.
	starting *starting
	pauses   *backoff.ExponentialBackOff
	// next is when it may be started again, and why is what went wrong.
	next   time.Time
	why    error
	starts []time.Time
	closed bool
	// info is what it said last.
	info *plugin.Info
	// instances are those in use, by kind and configuration.
	instances map[string]releaser

	answers answers
}

// starting is one start, which several callers may wait for.
type starting struct {
	done chan struct{}
	proc *process
	err  error
}

func newPlugin(h *Host, s Spec) *Plugin {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = firstPause, maxPause
	return &Plugin{h: h, spec: s, log: h.cfg.Log.Named(s.Name), calls: make(chan struct{}, maxCalls), now: time.Now, pauses: b}
}

// Name is what specs and policies call it.
func (p *Plugin) Name() string { return p.spec.Name }

// Spec is how it is run. It is only to be read.
func (p *Plugin) Spec() *Spec { return &p.spec }

// Check tells whether its file may be run, without running it.
func (p *Plugin) Check() error {
	if _, err := p.spec.checkFile(p.h.cfg.Dir); err != nil {
		return p.fail("", err)
	}
	return nil
}

// Sum is the SHA-256 of its file, whether it is pinned or not.
func (p *Plugin) Sum() (string, error) {
	if p.spec.Path == "" {
		return "", p.Check()
	}
	sum, err := sums.of(p.spec.Path)
	if err != nil {
		return "", p.fail("", err)
	}
	return sum, nil
}

func (p *Plugin) fail(op string, err error) error {
	var e *Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &Error{Plugin: p.spec.Name, Op: op, Err: err}
}

// Info is what the plugin says of itself. It is started for that if it does not run.
func (p *Plugin) Info(ctx context.Context) (*plugin.Info, error) {
	p.mu.Lock()
	info := p.info
	p.mu.Unlock()
	if info != nil {
		return info, nil
	}
	proc, err := p.running(ctx)
	if err != nil {
		return nil, err
	}
	return proc.client.Info(), nil
}

// State is whether it runs: "running", "stopped", or "failed" with the reason.
func (p *Plugin) State() (state string, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.proc != nil && p.proc.alive():
		return "running", nil
	case p.why != nil:
		return "failed", p.why
	}
	return "stopped", nil
}

// running returns the process, and starts one if there is none. Callers that come
// meanwhile wait for the same start, which goes on when one of them gives up.
func (p *Plugin) running(ctx context.Context) (*process, error) {
	p.mu.Lock()
	if p.proc != nil && p.proc.alive() {
		defer p.mu.Unlock()
		return p.proc, nil
	}
	s := p.starting
	if s == nil {
		if err := p.mayStart(); err != nil {
			p.mu.Unlock()
			return nil, err
		}
		s = &starting{done: make(chan struct{})}
		p.starting = s
		go p.start(s)
	}
	p.mu.Unlock()
	select {
	case <-s.done:
		return s.proc, s.err
	case <-ctx.Done():
		return nil, p.fail("", fmt.Errorf("it is being started: %w", context.Cause(ctx)))
	}
}

// mayStart tells whether it may be started now. p.mu is held.
func (p *Plugin) mayStart() error {
	now := p.now()
	switch last := p.proc; {
	case p.closed:
		return p.fail("", ErrClosed)
	case last != nil && !last.alive():
		// It ended since it was looked at last.
		<-last.ended
		p.proc = nil
		if !last.killed.Load() {
			p.log.Warn("the plugin ended by itself", "why", text.Printable(last.cause))
		}
		p.failed(last.endedAt, last.endedAt.Sub(last.since), errors.New(last.cause))
	}
	if wait := p.next.Sub(now); wait > 0 {
		return p.fail("", fmt.Errorf("%w: %w; it is started again in %s", plugin.ErrUnavailable, p.why, wait.Round(time.Second/10)))
	}
	return nil
}

// failed notes an end that nobody asked for. p.mu is held.
func (p *Plugin) failed(now time.Time, ran time.Duration, why error) {
	if ran >= stable {
		p.pauses.Reset()
	}
	p.why = why
	p.next = now.Add(p.pauses.NextBackOff())
	fresh := p.starts[:0]
	for _, t := range p.starts {
		if now.Sub(t) < startWindow {
			fresh = append(fresh, t)
		}
	}
	if p.starts = fresh; len(p.starts) >= maxStarts {
		if until := p.starts[0].Add(startWindow); until.After(p.next) {
			p.next = until
			p.log.Error("the plugin was started too often and stays down for a while", "starts", len(p.starts), "wait", until.Sub(now).Round(time.Second).String())
		}
	}
}

// start runs in a goroutine of its own, bounded by the spec's StartTimeout.
func (p *Plugin) start(s *starting) {
	defer close(s.done)
	begun := p.now()
	path, err := p.spec.checkFile(p.h.cfg.Dir)
	refused := err != nil
	if err == nil {
		var dir string
		if dir, err = p.h.sockets.folder(); err == nil {
			s.proc, err = start(p.h.life, &p.spec, path, dir, p.h.env(&p.spec), p.log)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting = nil
	if !refused {
		p.starts = append(p.starts, begun)
	}
	switch {
	case refused:
		p.why = err // another look costs nothing
	case err != nil:
		p.failed(p.now(), 0, err)
	case p.closed:
		err = ErrClosed
		s.proc.stop(0)
		s.proc = nil
	default:
		p.proc, p.why, p.info = s.proc, nil, s.proc.client.Info()
		p.log.Debug("started the plugin", "version", text.Printable(p.info.Version), "kinds", kinds(p.info), "took", p.now().Sub(begun).String())
	}
	s.err = p.fail("", err)
}

// hung ends a process that does not answer, unless it shows that it lives. It
// returns whether the process has ended, or is being ended.
func (p *Plugin) hung(proc *process) bool {
	ctx, cancel := context.WithTimeout(p.h.life, pingTimeout)
	defer cancel()
	err := proc.ping(ctx)
	if err == nil && proc.alive() {
		return false
	}
	if ctx.Err() == nil {
		// Its connection broke: it is about to end, and how is worth to know.
		select {
		case <-proc.run.done():
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	if p.proc != proc || p.closed || !proc.alive() {
		p.mu.Unlock()
		return true
	}
	p.log.Warn("the plugin does not answer, ending it")
	p.proc = nil
	p.failed(p.now(), p.now().Sub(proc.since), errors.New("it did not answer and was ended"))
	p.mu.Unlock()
	proc.stop(0)
	return true
}

// close ends the process.
func (p *Plugin) close() {
	p.mu.Lock()
	p.closed = true
	proc, s := p.proc, p.starting
	p.mu.Unlock()
	if s != nil {
		<-s.done // h.life has ended, so that this is soon
	}
	if proc != nil {
		proc.stop(endGrace)
	}
}

// Validate asks the plugin whether its own block would do for a kind. Where the place
// of use has to say more, only that it answers is known. It has no effects.
func (p *Plugin) Validate(ctx context.Context, k plugin.Kind) error {
	info, err := p.Info(ctx)
	if err != nil {
		return err
	}
	cfg, err := p.config(info, k, nil)
	if err != nil {
		return p.fail("", err)
	}
	if k == plugin.KindEvidence { // it has no other place
		return p.validate(ctx, k, cfg)
	}
	if _, err := info.Kind(k).Config.Apply(cfg); err != nil {
		cfg = nil
	}
	err = p.validate(ctx, k, cfg)
	if problems, ok := errors.AsType[plugin.Problems](err); ok && cfg != nil && !slices.ContainsFunc(problems, p.says) {
		return nil
	}
	return err
}

// says tells whether the plugin's own block has the argument that a problem is about.
// What it is without may stand where the plugin is used.
func (p *Plugin) says(at plugin.Problem) bool {
	if p.spec.Config == nil {
		return false
	}
	name := at.Path
	if n := strings.IndexAny(name, ".["); n >= 0 {
		name = name[:n]
	}
	one := &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: name}}}
	args, _, _ := p.spec.Config.PartialContent(one)
	one = &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: name}}}
	blocks, _, _ := p.spec.Config.PartialContent(one)
	return name == "" || len(args.Attributes) > 0 || len(blocks.Blocks) > 0
}

// validate has the plugin check a configuration; nil only asks for a sign of life.
func (p *Plugin) validate(ctx context.Context, k plugin.Kind, cfg plugin.Config) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.spec.Timeout, fmt.Errorf("no answer within %s (timeout)", p.spec.Timeout))
	defer cancel()
	proc, err := p.running(ctx)
	if err != nil {
		return err
	}
	if cfg == nil {
		err = proc.ping(ctx)
	} else {
		proc.log.hide(proc.client.Info().Kind(k).Config.Secrets(cfg))
		err = proc.client.Validate(ctx, k, cfg)
	}
	if err != nil {
		_, err = p.judge(ctx, proc, err)
	}
	return p.fail("", err)
}
