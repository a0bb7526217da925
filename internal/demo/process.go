package demo

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// lines keeps apart what several processes and the story itself print: each
// write is a whole line.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// process is one child: this binary with other arguments.
type process struct {
	name string
	// title names it in an error: by what it runs where it has no name.
	title string
	cmd   *exec.Cmd
	out   io.Writer // nil keeps its lines to itself
	done  chan struct{}
	code  int // valid once done is closed

	mu    sync.Mutex
	lines []string
}

// keep is how many lines of a process are kept.
const keep = 400

// run starts aimlock with args and shows its output behind its name.
func (s *story) run(name string, args ...string) (*process, error) {
	who := name
	if who != "" {
		who += ": "
	}
	s.line("%saimlock %s", who, strings.Join(args, " "))
	return s.spawn(name, s.cfg.Out, args...)
}

// quiet is run without showing the output.
func (s *story) quiet(name string, args ...string) (*process, error) {
	return s.spawn(name, nil, args...)
}

func (s *story) spawn(name string, out io.Writer, args ...string) (*process, error) {
	p := &process{name: name, title: name, out: out, done: make(chan struct{})}
	if name == "" {
		p.title = "aimlock " + strings.Join(args, " ")
	}
	p.cmd = exec.Command(s.cfg.Exe, args...) //nolint:noctx // this binary; ended by the story
	p.cmd.Dir = s.cfg.Dir
	p.cmd.Env = append(os.Environ(), "CONSUL_HTTP_ADDR="+s.consul, "CONSUL_HTTP_TOKEN=", "CONSUL_HTTP_SSL=false", "AIMLOCK_PREFIX=", "AIMLOCK_CONFIG=")
	p.cmd.SysProcAttr = childAttr()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	err = p.cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	read := make(chan struct{})
	go func() { defer close(read); p.read(r) }()
	go func() {
		defer close(p.done)
		err := p.cmd.Wait()
		<-read
		p.code = p.cmd.ProcessState.ExitCode()
		if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.code = 128 + int(ws.Signal())
		}
		if err != nil && p.code == 0 {
			p.code = 1
		}
	}()
	return p, nil
}

func (p *process) read(r io.ReadCloser) {
	defer func() { _ = r.Close() }()
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := sc.Text()
		p.mu.Lock()
		if len(p.lines) == keep {
			p.lines = p.lines[1:]
		}
		p.lines = append(p.lines, line)
		p.mu.Unlock()
		if p.out != nil {
			sep := " | "
			if p.name == "" {
				sep = "    "
			}
			_, _ = fmt.Fprintf(p.out, "      %s%s%s\n", p.name, sep, line)
		}
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(sig os.Signal) { _ = p.cmd.Process.Signal(sig) }

// kill makes sure that nothing is left of it, stopped or not.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// exit waits for the end and returns the exit code, -1 if it does not come.
func (p *process) exit(d time.Duration) int {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.done:
		return p.code
	case <-t.C:
		return -1
	}
}

// wait is exit for a process that is to succeed.
func (p *process) wait(d time.Duration) error {
	switch code := p.exit(d); code {
	case 0:
		return nil
	case -1:
		return fmt.Errorf("the process %q did not end within %s, which is what the demo allows it: is this machine very busy?", p.title, d)
	default:
		return fmt.Errorf("%s ended with exit code %d", p.title, code)
	}
}

// said reports whether it printed the line.
func (p *process) said(line string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lines {
		if strings.TrimSpace(l) == line {
			return true
		}
	}
	return false
}

// unseen is what it printed, for the error that it ended; nothing of a process whose
// lines are in the story already.
func (p *process) unseen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out != nil || len(p.lines) == 0 {
		return ""
	}
	return ":\n" + strings.Join(p.lines, "\n")
}

// finishes runs aimlock with args to its good end.
func (s *story) finishes(name string, args ...string) error {
	p, err := s.run(name, args...)
	if err != nil {
		return err
	}
	defer p.kill()
	return p.wait(step)
}
