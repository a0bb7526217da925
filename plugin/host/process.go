package host

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/supervise"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/plugin"
)

// process is one run of a plugin. It is made by start, and ended by stop.
type process struct {
	client *plugin.Client
	gp     *goplugin.Client
	run    *supervised
	log    *pump

	since time.Time
	// ended is closed when nothing of it is left; endedAt and cause then say when and
	// how it ended.
	ended   chan struct{}
	endedAt time.Time
	cause   string
	// killed: this side ended it.
	killed   atomic.Bool
	stopOnce sync.Once
}

// How long a plugin is given to end by itself, and the wait for what is killed.
const (
	endGrace  = 3 * time.Second
	killGrace = 5 * time.Second
)

// start starts the file at path, and returns when it has said what it is, or an
// error within the spec's StartTimeout; nothing of it is left then.
func start(ctx context.Context, s *Spec, path, sockets string, env []string, log hclog.Logger) (*process, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.StartTimeout, fmt.Errorf("no answer within %s (start_timeout)", s.StartTimeout))
	defer cancel()
	argv := append(append([]string{}, s.Interpreter...), path)
	p := &process{log: &pump{log: log}, ended: make(chan struct{}), since: time.Now()}
	p.run = &supervised{argv: append(argv, s.Args...), env: env, log: log, pump: p.log, tls: !s.PlainSocket}
	cfg := plugin.ClientConfig(quieter{log})
	cfg.AutoMTLS = false
	if !s.PlainSocket {
		cert, err := plugin.MutualTLS(cfg)
		if err != nil {
			return nil, err
		}
		p.run.env = append(p.run.env, cert)
	}
	cfg.SkipHostEnv = true
	cfg.StartTimeout = s.StartTimeout
	cfg.UnixSocketConfig = &goplugin.UnixSocketConfig{TempDir: sockets}
	// What it prints by the means of its language comes over the connection.
	printed, w := io.Pipe()
	cfg.SyncStdout, cfg.SyncStderr = w, w
	go p.log.run(printed)
	go func() {
		<-p.ended
		_ = w.Close()
	}()
	cfg.RunnerFunc = func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
		p.run.env, p.run.dir = append(p.run.env, cmd.Env...), dir
		return p.run, nil
	}
	p.gp = goplugin.NewClient(cfg)
	client, err := plugin.Connect(ctx, p.gp)
	if err != nil {
		died := p.run.ended()
		p.stop(0)
		close(p.ended)
		return nil, p.explain(err, died)
	}
	p.client = client
	go p.watch()
	return p, nil
}

// explain adds to why a start failed what the plugin itself said and how it ended.
func (p *process) explain(err error, died bool) error {
	var failed *supervise.StartError
	if startErr := p.run.startErr(); errors.As(startErr, &failed) {
		return fmt.Errorf("it cannot be run: %s", failed.Reason)
	} else if startErr != nil {
		return startErr
	}
	if said := p.run.wrong(); said != "" {
		err = errors.New(said)
	}
	if died {
		err = fmt.Errorf("%w; it ended with %s", err, p.run.exit())
	}
	if last := p.log.last(); last != "" {
		err = fmt.Errorf("%w; it wrote: %s", err, last)
	}
	return err
}

// watch sees it end.
func (p *process) watch() {
	<-p.run.done()
	p.endedAt, p.cause = time.Now(), "it ended with "+p.run.exit()
	if p.killed.Load() {
		p.cause = "aimlock ended it"
	} else if last := p.log.last(); last != "" {
		p.cause += "; it wrote: " + last
	}
	close(p.ended)
	// What go-plugin keeps of it.
	p.gp.Kill()
}

// alive tells whether it has not ended.
func (p *process) alive() bool {
	select {
	case <-p.run.done():
		return false
	default:
		return true
	}
}

// stop ends it: asked for grace, then killed with all that it started. It returns
// when nothing is left, or cannot be made to be.
func (p *process) stop(grace time.Duration) {
	p.stopOnce.Do(func() {
		p.killed.Store(true)
		if grace > 0 && p.client != nil && p.alive() {
			// go-plugin asks it to shut down. It may hold locks of its own while a
			// plugin hangs, so nobody waits for it.
			asked := make(chan struct{})
			go func() { defer close(asked); p.gp.Kill() }()
			timer := time.NewTimer(grace)
			defer timer.Stop()
			select {
			case <-asked:
			case <-p.run.done():
			case <-timer.C:
			}
		}
		p.run.stop()
		// Its pipes are closed now, so that this returns.
		go p.gp.Kill()
	})
	timer := time.NewTimer(killGrace)
	defer timer.Stop()
	select {
	case <-p.run.done():
	case <-timer.C:
	}
}

// supervised runs a plugin under a supervisor of internal/supervise, for go-plugin.
type supervised struct {
	argv, env []string
	// dir is the folder of its socket.
	dir  string
	log  hclog.Logger
	pump *pump
	tls  bool

	mu     sync.Mutex
	sup    *supervise.Supervisor
	err    error // of the start
	gone   chan struct{}
	code   int
	endErr error

	out  *firstLine
	logs sync.WaitGroup
}

var _ runner.Runner = (*supervised)(nil)

// Start implements go-plugin's Runner.
func (r *supervised) Start(context.Context) error {
	err := r.start()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	return err
}

func (r *supervised) start() error {
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		outR.Close()
		outW.Close()
		return err
	}
	sup, err := supervise.Prepare(supervise.Config{Log: r.log, Nonce: rand.Text()})
	if err == nil {
		if err = sup.Start(r.argv, r.env, nil, outW, errW); err != nil {
			err = errors.Join(err, sup.Close())
		}
	}
	outW.Close()
	errW.Close()
	if err != nil {
		outR.Close()
		errR.Close()
		return err
	}
	r.mu.Lock()
	r.sup, r.gone = sup, make(chan struct{})
	r.mu.Unlock()
	r.mu.Lock()
	r.out = newFirstLine(outR)
	r.mu.Unlock()
	r.logs.Go(func() {
		defer errR.Close()
		r.pump.run(errR)
	})
	go func() {
		code, err := sup.Wait(context.Background())
		_ = sup.Close()
		r.logs.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.code, r.endErr = code, err
		close(r.gone)
	}()
	return nil
}

func (r *supervised) startErr() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// done is closed when nothing of it is left, or where it was never started.
func (r *supervised) done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone == nil {
		return closed
	}
	return r.gone
}

var closed = func() chan struct{} { //nolint:gochecknoglobals // it never changes
	c := make(chan struct{})
	close(c)
	return c
}()

func (r *supervised) ended() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone == nil {
		return false
	}
	select {
	case <-r.gone:
		return true
	default:
		return false
	}
}

// exit says how it ended.
func (r *supervised) exit() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.endErr != nil:
		return r.endErr.Error()
	case r.code > 128:
		return "signal " + strconv.Itoa(r.code-128)
	}
	return "code " + strconv.Itoa(r.code)
}

// stop kills it and all that it started.
func (r *supervised) stop() {
	r.mu.Lock()
	sup := r.sup
	r.mu.Unlock()
	if sup == nil {
		return
	}
	if err := sup.Stop(0); err != nil && !errors.Is(err, supervise.ErrNotStarted) {
		r.log.Warn("a process of the plugin may still run", "error", err)
	}
}

// Kill implements go-plugin's Runner.
func (r *supervised) Kill(context.Context) error {
	r.stop()
	return nil
}

// Wait implements go-plugin's Runner.
func (r *supervised) Wait(context.Context) error {
	<-r.done()
	return nil
}

// Stdout implements go-plugin's Runner.
func (r *supervised) Stdout() io.ReadCloser { return r.output() }

func (r *supervised) output() *firstLine {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out
}

// Stderr implements go-plugin's Runner. The log is read by pump.
func (r *supervised) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name implements go-plugin's Runner.
func (r *supervised) Name() string { return filepath.Base(r.argv[0]) }

// ID implements go-plugin's Runner: empty before it is started.
func (r *supervised) ID() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sup == nil {
		return ""
	}
	p, _ := r.sup.Child()
	return strconv.Itoa(p.PID)
}

// Diagnose implements go-plugin's Runner.
func (r *supervised) Diagnose(context.Context) string { return "" }

// PluginToHost implements go-plugin's Runner. Who speaks no TLS may listen only
// where nobody else can come to.
func (r *supervised) PluginToHost(network, address string) (string, string, error) {
	if !r.tls && (network != "unix" || filepath.Dir(filepath.Clean(address)) != filepath.Clean(r.dir)) {
		return "", "", errors.New("with auto_mtls = false it must listen on a unix socket in the folder that PLUGIN_UNIX_SOCKET_DIR names, and it does not")
	}
	return network, address, nil
}

// HostToPlugin implements go-plugin's Runner.
func (r *supervised) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// wrong says what go-plugin does not of a handshake that came.
func (r *supervised) wrong() string {
	out := r.output()
	if out == nil {
		return ""
	}
	parts := strings.Split(strings.TrimSpace(out.first()), "|")
	if r.tls && len(parts) >= 4 && (len(parts) < 6 || len(parts[5]) <= 50) {
		if _, err := strconv.Atoi(parts[0]); err == nil && parts[1] == strconv.Itoa(plugin.Protocol) {
			return "it does not speak TLS as go-plugin asks for it: if it cannot, set auto_mtls = false in its block"
		}
	}
	return ""
}

// maxHandshake bounds the first line of stdout: that of go-plugin has a certificate.
const maxHandshake = 16 << 10

// firstLine hands on the first line, and throws away what comes after it: a plugin
// that prints must not stand still because nobody reads.
type firstLine struct {
	src io.ReadCloser
	r   *io.PipeReader

	mu   sync.Mutex
	line string
}

func newFirstLine(src io.ReadCloser) *firstLine {
	r, w := io.Pipe()
	f := &firstLine{src: src, r: r}
	go func() {
		defer src.Close()
		in := bufio.NewReaderSize(src, maxHandshake)
		line, err := in.ReadSlice('\n')
		if err != nil && len(line) > 0 {
			line = append(bytes.Clone(line), '\n')
		}
		f.mu.Lock()
		f.line = string(line)
		f.mu.Unlock()
		_, _ = w.Write(line)
		_, _ = io.Copy(io.Discard, in)
		_ = w.Close()
	}()
	return f
}

func (f *firstLine) first() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.line
}

// Read implements io.Reader.
func (f *firstLine) Read(p []byte) (int, error) { return f.r.Read(p) }

// Close implements io.Closer.
func (f *firstLine) Close() error { return f.r.Close() }

// quieter is the log of go-plugin itself: what it says of a plugin's end is said
// better by the error of the call.
type quieter struct{ hclog.Logger }

func (q quieter) Info(msg string, args ...any)  { q.Logger.Debug(text.Printable(msg), args...) }
func (q quieter) Warn(msg string, args ...any)  { q.Logger.Debug(text.Printable(msg), args...) }
func (q quieter) Error(msg string, args ...any) { q.Logger.Debug(text.Printable(msg), args...) }

// Named keeps the name.
func (q quieter) Named(string) hclog.Logger { return q }

// With keeps the levels.
func (q quieter) With(args ...any) hclog.Logger { return quieter{q.Logger.With(args...)} }

// baseEnv is what every plugin gets of this process's environment.
func baseEnv() []string { return []string{"PATH", "HOME", "LANG", "TMPDIR", hostproc.NonceVar} }
