//go:build unix

package plugintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"

	"github.com/aim-control/aimlock/plugin"
)

// run is one run of the suite. It has at most one process of the plugin.
type run struct {
	tb testing.TB
	s  *Subject
	p  *process
	// second is a second process, between the checks of it.
	second *process
	// logs is what all processes wrote.
	logs syncBuffer
}

// process is a started plugin.
type process struct {
	cmd *exec.Cmd
	gp  *goplugin.Client
	c   *plugin.Client
}

// start starts the plugin as aimlock does: in a process group of its own, with
// little in its environment.
func (r *run) start() (*process, error) {
	command := r.s.Command
	env := append([]string{}, r.s.Env...)
	if len(command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		// Go's race detector waits a second at the end of a program unless it is told.
		command, env = []string{self}, append(env, serveEnv+"=1", strings.TrimSpace("GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // go-plugin ends it
	cmd.Env, cmd.Dir = env, r.tb.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cfg := plugin.ClientConfig(hclog.New(&hclog.LoggerOptions{Output: &r.logs, Level: hclog.Trace}))
	cfg.Cmd, cfg.SkipHostEnv, cfg.AutoMTLS, cfg.StartTimeout = cmd, true, false, r.s.Limit
	if !r.s.Plain {
		cert, err := plugin.MutualTLS(cfg)
		if err != nil {
			return nil, err
		}
		cmd.Env = append(cmd.Env, cert)
	}
	// Its path is short, as that of a socket must be.
	sockets, err := os.MkdirTemp("", "aimlock-")
	if err != nil {
		return nil, err
	}
	r.tb.Cleanup(func() { _ = os.RemoveAll(sockets) })
	cmd.Env = append(cmd.Env, goplugin.EnvUnixSocketDir+"="+sockets)
	p := &process{cmd: cmd, gp: goplugin.NewClient(cfg)}
	ctx, cancel := context.WithTimeout(r.tb.Context(), r.s.Limit)
	defer cancel()
	if p.c, err = plugin.Connect(ctx, p.gp); err == nil && r.s.Plain && !listensIn(p.gp, sockets) {
		err = errors.New("without TLS it must listen on a unix socket in the folder that PLUGIN_UNIX_SOCKET_DIR names, and it does not")
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("%w%s", err, r.said())
	}
	return p, nil
}

// listensIn tells whether a plugin listens on a socket in a folder.
func listensIn(gp *goplugin.Client, dir string) bool {
	at := gp.ReattachConfig()
	return at != nil && at.Addr != nil && at.Addr.Network() == "unix" && filepath.Dir(filepath.Clean(at.Addr.String())) == filepath.Clean(dir)
}

// client is the plugin, started anew if it ended.
func (r *run) client() (*plugin.Client, error) {
	if r.p != nil && !r.died() {
		return r.p.c, nil
	}
	r.stop()
	p, err := r.start()
	if err != nil {
		return nil, err
	}
	r.p = p
	return p.c, nil
}

// died tells whether the process ended by itself.
func (r *run) died() bool { return r.p != nil && r.p.gp.Exited() }

// gone is died for who has just found the connection broken: the end of a process
// is known a little later.
func (r *run) gone(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for ; r.p != nil && !r.p.gp.Exited(); pause(ctx) {
		if ctx.Err() != nil {
			return false
		}
	}
	return r.p != nil
}

func (r *run) stop() {
	for _, p := range []**process{&r.p, &r.second} {
		if *p != nil {
			(*p).kill()
			*p = nil
		}
	}
}

func (p *process) kill() {
	p.gp.Kill()
	if p.cmd.Process != nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// said is the end of what the plugin wrote to its log.
func (r *run) said() string {
	s := r.logs.String()
	if s == "" {
		return ""
	}
	const most = 2000
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return "; it wrote:\n" + s
}

func atEnd() []check { return []check{{"secrets", secrets}, {"orphans", orphans}} }

// sameInfo: a second process says the same, so that what was checked before a
// rollout holds in it.
func sameInfo(_ context.Context, r *run, c *plugin.Client, _ *Case) error {
	p, err := r.start()
	if err != nil {
		return err
	}
	r.second = p
	if a, b := c.Info(), p.c.Info(); !reflect.DeepEqual(a, b) {
		return fmt.Errorf("a second process says something else of itself: %+v, then %+v", a, b)
	}
	return nil
}

// ends: asked to, the plugin ends by itself, and within the time that it gets.
func ends(_ context.Context, r *run, _ *plugin.Client, _ *Case) error {
	p := r.second
	if p == nil {
		return skip("there is no second process to end")
	}
	r.second = nil
	defer p.kill()
	start := time.Now()
	p.gp.Kill() // asks first, and kills after two seconds
	switch st := p.cmd.ProcessState; {
	case st == nil:
		return errors.New("how it ended is not known")
	case !st.Exited():
		return fmt.Errorf("asked to end, it did not, and was killed after %s: serve go-plugin's GRPCController, and end", time.Since(start).Round(time.Millisecond))
	}
	return nil
}

// orphans: when the plugin's process is killed, nothing that it started runs on.
func orphans(ctx context.Context, r *run, c *plugin.Client, _ *Case) error {
	for i := range r.s.Cases { // what it starts, it starts when it is used
		cs := &r.s.Cases[i]
		cctx, cancel := r.limit(ctx)
		v, err := instance(cctx, c, cs.Kind, cs.config())
		if err == nil {
			err = use(cctx, r, v, cs)
			_ = plugin.Release(v)
		}
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", cs.Name, err)
		}
	}
	p := r.p
	r.p = nil
	defer p.kill()
	group := p.cmd.Process.Pid
	if err := syscall.Kill(group, syscall.SIGKILL); err != nil {
		return err
	}
	bound, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for ; !errors.Is(syscall.Kill(-group, 0), syscall.ESRCH); pause(bound) {
		if bound.Err() != nil {
			return errors.New("two seconds after it was killed, what it started runs on")
		}
	}
	return nil
}

// restarted puts a new process in the place of one that was killed.
func (r *run) restarted() error {
	r.stop()
	_, err := r.client()
	return err
}

func pause(ctx context.Context) {
	t := time.NewTimer(5 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// secrets: the values of secret settings stand in nothing that the plugin logs.
func secrets(_ context.Context, r *run, c *plugin.Client, _ *Case) error {
	logs, some := r.logs.String(), false
	for i := range r.s.Cases {
		cs := &r.s.Cases[i]
		ki := c.Info().Kind(cs.Kind)
		if ki == nil {
			continue
		}
		for _, cfg := range append([]string{string(cs.config())}, cs.Refused...) {
			for _, v := range ki.Config.Secrets(plugin.Config(cfg)) {
				some = true
				if len(v) >= 4 && bytes.Contains([]byte(logs), []byte(v)) {
					return fmt.Errorf("%s: its log holds the value of a secret setting", cs.Name)
				}
			}
		}
	}
	if !some {
		return skip("no case sets a secret")
	}
	return nil
}

// syncBuffer is a buffer that several goroutines write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write never fails. What is past a bound is dropped.
func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b.Len() < 8<<20 {
		s.b.Write(p)
	}
	return len(p), nil
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
