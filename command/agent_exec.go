package command

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-envparse"
	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/keeper"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/supervise"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// keepOptions are the flags of "agent exec".
type keepOptions struct {
	agentFlags
	configs     []string // all of them, those of env too
	env         stringList
	signal      signalFlag
	killSignal  signalFlag
	killTimeout time.Duration
	settle      time.Duration
	wait        time.Duration
	restarts    int
	once        bool
	follow      bool
}

const (
	// firstRestart and longestRestart pause before a command that crashed is
	// started again; one that ran for calmAfter begins anew.
	firstRestart   = time.Second
	longestRestart = time.Minute
	calmAfter      = time.Minute
	// agentAgain is when this process tries again to be the node's agent.
	agentAgain = 2 * time.Second
	// maxEnvFile bounds a config that is read as environment: the kernel takes
	// less.
	maxEnvFile = 1 << 20
)

func newAgentExec(m *Meta) *command {
	o := keepOptions{killTimeout: 10 * time.Second, settle: time.Second, wait: 5 * time.Minute, restarts: 5}
	return &command{
		Meta:     m,
		Synopsis: "Run a command, restarted when its configs change",
		Usage:    "[options] CONFIG… -- CMD…",
		Description: `Runs the command beside the configs that it reads, as envconsul does, and is this
node's agent meanwhile: it follows what is desired, behind the same fence. The
command starts once there is a file of each config, and never before. When one
changes it is restarted, or gets a signal with -signal.

The change of a config counts as taken if the command still runs -settle later.
If it ends, the order has failed: the last good file is put back, the command
runs with it again, and the rollout learns of it.

If another process is the agent of the state folder already, or with -follow, it
only follows what that one, or consul-template, delivers; then a command that
ends by a new config changes nothing about the answer that was given. When the
other one ends, this one takes its place.

With -env CONFIG the lines KEY=VALUE of that config stand in the command's
environment, and its change means a restart. The agent's own Consul token is not
in the environment.

Without Consul, or with a config that is not valid, the command runs on with what
it has. One that crashes is started again, after a pause that grows from 1s to
1m, at most -restarts times in a row. The exit code is the command's (128 + n for
signal n); SIGINT and SIGTERM end it, other signals are passed on. It dies with
aimlock, kill -9 included.`,
		Examples: []example{
			{"Restart a service when its config changes", "aimlock agent exec -state-dir /var/lib/aimlock app.conf -- /usr/bin/app -c /etc/app.conf"},
			{"Tell it by SIGHUP", "aimlock agent exec -state-dir /var/lib/aimlock -signal HUP nginx.conf -- nginx -g 'daemon off;'"},
			{"Lines of a config as its environment", "aimlock agent exec -state-dir /var/lib/aimlock -env app.env -- /usr/bin/app"},
			{"Follow what consul-template delivers", "aimlock agent exec -follow -state-dir /var/lib/aimlock app.conf -- /usr/bin/app"},
		},
		Groups: groupConsul | groupDaemon | groupPlugin,
		Flags: func(fs *flag.FlagSet) {
			o.register(fs)
			fs.Var(&o.env, "env", "Put the lines KEY=VALUE of `CONFIG` into the command's environment. May be\ngiven several times.")
			fs.Var(&o.signal, "signal", "Send `SIGNAL` when a config has changed, such as HUP. Default: restart.")
			fs.Var(&o.killSignal, "kill-signal", "End the command by `SIGNAL`. Default: TERM, or INT where that ends aimlock.")
			fs.DurationVar(&o.killTimeout, "kill-timeout", o.killTimeout, "`DURATION` after which a command that must end is killed.")
			fs.DurationVar(&o.settle, "settle", o.settle, "`DURATION` that the command must run after a start or a signal for the change\nto count as taken.")
			fs.DurationVar(&o.wait, "wait", o.wait, "Give up if the configs are not there within `DURATION`; 0 waits without limit.")
			fs.IntVar(&o.restarts, "restarts", o.restarts, "Start a command that crashes at most `N` times in a row again; 0: never,\n-1: without limit.")
			fs.BoolVar(&o.once, "once", false, "Start the command once, and change nothing about it while it runs.")
			fs.BoolVar(&o.follow, "follow", false, "Never be the agent: follow what others deliver to the state folder.")
		},
		MaxArgs:     -1,
		Complete:    completeLocks,
		CommandLine: true,
		Run: func(ctx context.Context, in *input) error {
			if err := o.check(in); err != nil {
				return err
			}
			return m.agentExec(ctx, in.Command, &o)
		},
	}
}

func (o *keepOptions) check(in *input) error {
	if len(in.Command) == 0 {
		return usagef("no command given. Usage: aimlock agent exec [options] CONFIG… -- CMD…")
	}
	o.configs = nil
	for _, c := range slices.Concat(in.Args, []string(o.env)) {
		if err := keys.CheckName("config", c); err != nil {
			return usagef("%w", err)
		}
		if !slices.Contains(o.configs, c) {
			o.configs = append(o.configs, c)
		}
	}
	switch {
	case len(o.configs) == 0:
		return usagef("no config given: name those that the command reads before --, or with -env")
	case o.killTimeout < 0:
		return usagef("-kill-timeout %s: it must not be negative", o.killTimeout)
	case o.settle < 0 || o.settle > time.Minute:
		return usagef("-settle %s: it must be from 0 to 1m, since the rollout waits for it", o.settle)
	case o.wait < 0:
		return usagef("-wait %s: it must not be negative", o.wait)
	case o.restarts < -1:
		return usagef("-restarts %d: it must be -1, 0 or more", o.restarts)
	case o.once && o.signal != 0:
		return usagef("-once and -signal exclude each other")
	case o.once && in.Set("restarts"):
		return usagef("-once and -restarts exclude each other")
	}
	return nil
}

func (m *Meta) agentExec(ctx context.Context, argv []string, o *keepOptions) error {
	dir, err := m.stateFolder(&o.agentFlags)
	if err != nil {
		return err
	}
	root := o.root
	if dir, err = filepath.Abs(dir); err == nil && root != "" {
		root, err = filepath.Abs(root)
	}
	if err != nil {
		return usagef("-state-dir or -root: %w", err)
	}
	var k *keeper.Keeper
	var a *agent.Agent
	if !o.follow {
		a, err = m.agent(&o.agentFlags, func(ctx context.Context, left []agent.Left) error { return k.Changed(ctx, left) })
		if err != nil {
			return err
		}
	}
	k = keeper.New(keeper.Options{
		Configs: o.configs, Env: o.env,
		ReadEnv: func(left []agent.Left) ([]string, error) { return readEnv(left, o.env) },
		Look:    func() ([]agent.Left, bool) { return agent.ReadLeft(dir, root, o.configs) },
		Start: func(env []string) (keeper.Process, error) {
			return m.startKept(argv, append(m.childEnv(), env...), o.killTimeout)
		},
		Signal: syscall.Signal(o.signal), KillSignal: syscall.Signal(o.killSignal), KillTimeout: o.killTimeout, StopSignal: stopSignal,
		Settle: o.settle, Wait: o.wait, Restarts: o.restarts, First: firstRestart, Longest: longestRestart, Calm: calmAfter,
		Once: o.once, Final: interrupted(os.Stdin), Log: m.Log.Named("exec"),
	})
	others := make(chan os.Signal, 4)
	signal.Notify(others, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH)
	defer signal.Stop(others)

	// The agent ends when the command has: in this order, so that an order is
	// answered which the command's end decides.
	actx, stop := context.WithCancel(ctx)
	done := make(chan struct{}, 3)
	work := []func(){
		func() { agent.Follow(actx, dir, o.configs, k.Poke) },
		func() { pass(actx, others, k) },
	}
	if a != nil {
		work = append(work, func() { m.beAgent(actx, a) })
	}
	for _, w := range work {
		go func() { w(); done <- struct{}{} }()
	}
	code, err := k.Run(ctx)
	stop()
	for range work {
		<-done
	}
	if start, ok := errors.AsType[*supervise.StartError](err); ok {
		return exitf(start.Code, "%w", err)
	}
	if missing, ok := errors.AsType[*keeper.MissingError](err); ok {
		return exitf(ExitFailed, "%w. Is this node (%s) in a rollout of it? See: aimlock rollout list", missing, text.Printable(o.nodeName(m)))
	}
	if err != nil {
		return err
	}
	return exit(code)
}

// beAgent is the node's agent for as long as no other process is.
func (m *Meta) beAgent(ctx context.Context, a *agent.Agent) {
	t := time.NewTicker(agentAgain)
	defer t.Stop()
	last := ""
	for ctx.Err() == nil {
		if err := a.Run(ctx); err != nil && err.Error() != last {
			last = err.Error()
			if errors.Is(err, agent.ErrRunning) {
				m.Log.Info("another process is this node's agent: it is followed")
			} else {
				m.Log.Error("the agent ended; it is started again", "error", err)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// pass passes signals on.
func pass(ctx context.Context, signals <-chan os.Signal, k *keeper.Keeper) {
	for {
		select {
		case sig := <-signals:
			k.Forward(sig)
		case <-ctx.Done():
			return
		}
	}
}

// interrupted tells of the ends that a person at the keyboard asked for.
func interrupted(stdin *os.File) func(code int) bool {
	_, terminal := Terminal(stdin)
	return func(code int) bool {
		return terminal && (code == 128+int(syscall.SIGINT) || code == 128+int(syscall.SIGQUIT))
	}
}

func stopSignal(ctx context.Context) syscall.Signal {
	sig, _ := signalOf(ctx).(syscall.Signal)
	return sig
}

// childEnv is the environment without what is the agent's own.
func (m *Meta) childEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_HTTP_AUTH"}, name)
	})
}

// readEnv reads the files of some configs as environments; of a name that
// several have, the last one counts. Errors name the line and never what is in
// it.
func readEnv(left []agent.Left, configs []string) ([]string, error) {
	var env []string
	for _, c := range configs {
		i := slices.IndexFunc(left, func(l agent.Left) bool { return l.Config == c })
		if i < 0 || !left[i].Exists {
			return nil, fmt.Errorf("config %s has no file to read an environment from", c)
		}
		vars, err := readEnvFile(left[i].Path)
		if err != nil {
			return nil, fmt.Errorf("config %s cannot be an environment: %w", c, err)
		}
		env = append(env, vars...)
	}
	return env, nil
}

func readEnvFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxEnvFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxEnvFile)
	}
	vars, err := envparse.Parse(strings.NewReader(string(b)))
	if pe, ok := errors.AsType[*envparse.ParseError](err); ok {
		return nil, fmt.Errorf("%s, line %d: %w: its lines are KEY=VALUE", path, pe.Line, pe.Err)
	}
	if err != nil {
		return nil, err
	}
	var env []string
	for name, v := range vars {
		if strings.ContainsRune(v, 0) {
			return nil, fmt.Errorf("%s: the value of %s has a zero byte", path, text.Printable(name))
		}
		env = append(env, name+"="+v)
	}
	slices.Sort(env)
	return env, nil
}

// signalFlag is a signal by its name, with or without SIG, or its number.
type signalFlag syscall.Signal

func (s *signalFlag) String() string {
	if *s == 0 {
		return ""
	}
	return unix.SignalName(syscall.Signal(*s))
}

func (s *signalFlag) Set(name string) error {
	upper := strings.ToUpper(name)
	for n := syscall.Signal(1); n < 32; n++ {
		if full := unix.SignalName(n); full != "" && (upper == full || "SIG"+upper == full || name == fmt.Sprint(int(n))) {
			*s = signalFlag(n)
			return nil
		}
	}
	return fmt.Errorf("it is no signal, such as HUP")
}

// kept is a command under its supervisor.
type kept struct {
	sup   *supervise.Supervisor
	ended chan struct{}
	code  int
	err   error
}

var _ keeper.Process = (*kept)(nil)

func (m *Meta) startKept(argv, env []string, grace time.Duration) (keeper.Process, error) {
	// Whoever dies with a lock must die at once; here there is time to do it well.
	sup, err := supervise.Prepare(supervise.Config{Log: m.Log.Named("supervise"), Nonce: rand.Text(), Grace: grace, OrphanGrace: grace})
	if err != nil {
		return nil, fmt.Errorf("prepare the command's supervisor: %w", err)
	}
	if err := sup.Start(argv, env, os.Stdin, os.Stdout, os.Stderr); err != nil {
		return nil, errors.Join(err, sup.Close())
	}
	p := &kept{sup: sup, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.code, p.err = sup.Wait(context.Background())
		if err := sup.Close(); p.err == nil {
			p.err = err
		}
	}()
	return p, nil
}

func (p *kept) Signal(sig os.Signal) error { return p.sup.Signal(sig) }

func (p *kept) Ended() <-chan struct{} { return p.ended }

// Code: that somebody killed the supervisor is a crash like another, once
// nothing is found of what it left.
func (p *kept) Code() (int, error) { return p.code, p.err }

func (p *kept) Stop(sig syscall.Signal, timeout time.Duration) error {
	if sig != syscall.SIGTERM {
		if err := p.sup.Signal(sig); err == nil {
			t := time.NewTimer(timeout)
			defer t.Stop()
			select {
			case <-p.ended:
				return nil
			case <-t.C:
			}
		}
		timeout = 0
	}
	return p.sup.Stop(timeout)
}
