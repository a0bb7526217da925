package supervise

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/internal/hostproc"
)

// lines collects what is read from a stream.
type lines struct {
	mu  sync.Mutex
	got []string
}

// newLines reads a command's stdout.
func newLines(t *testing.T, c *exec.Cmd) *lines {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = w, os.Stderr
	t.Cleanup(func() { w.Close() })
	return readLines(t, r)
}

func readLines(t *testing.T, r io.ReadCloser) *lines {
	l := &lines{}
	t.Cleanup(func() { r.Close() })
	go func() {
		for in := bufio.NewScanner(r); in.Scan(); {
			l.mu.Lock()
			l.got = append(l.got, strings.TrimRight(in.Text(), "\r"))
			l.mu.Unlock()
		}
	}()
	return l
}

func (l *lines) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.got) == 0 {
		return ""
	}
	return l.got[len(l.got)-1]
}

// want waits until a line contains part.
func (l *lines) want(t *testing.T, part string) {
	t.Helper()
	err := poll(time.Minute, "the line "+part, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, g := range l.got {
			if strings.Contains(g, part) {
				return true
			}
		}
		return false
	})
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		t.Fatalf("%v; there is: %q", err, l.got)
	}
}

// reader is the argv of a parent with a command under it that reads from the
// terminal.
func reader(t *testing.T) []string {
	return role("parent", append([]string{t.TempDir(), "0s"}, role("terminal")...)...)
}

// onTerminal starts a process as the leader of a session with a terminal of its
// own.
func onTerminal(t *testing.T, argv []string, stdout func(*exec.Cmd, *os.File)) (keys *os.File, screen *lines, c *exec.Cmd) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIPPED: no pseudo terminals here: %v", err)
	}
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIPPED: no pseudo terminals here: %v", err)
	}
	defer tty.Close()
	c = exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	c.Stdin, c.Stdout, c.Stderr = tty, tty, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if stdout != nil {
		stdout(c, tty)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A job in the background outlives the leader of its session.
		jobs, err := hostproc.Descendants(c.Process.Pid)
		if err != nil {
			t.Error(err)
		}
		c.Process.Kill()
		c.Wait()
		for _, j := range jobs {
			hostproc.SignalProcess(j.PID, j.StartTicks, syscall.SIGKILL)
		}
	})
	return master, readLines(t, master), c
}

func press(t *testing.T, keys *os.File, s string) {
	t.Helper()
	if _, err := keys.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	keys, screen, _ := onTerminal(t, reader(t), nil)
	screen.want(t, "command ready")
	press(t, keys, "one\n")
	screen.want(t, `command got "one"`)
	// ^Z does not suspend it.
	press(t, keys, "\x1a")
	press(t, keys, "two\n")
	screen.want(t, `command got "two"`)
	// ^C ends the command, and not its parent.
	press(t, keys, "\x03")
	screen.want(t, "parent: code 130, survivors false, error <nil>, interrupted true")
	press(t, keys, "three\n")
	screen.want(t, `parent got "three\n" <nil>`)
}

// Where stdout goes to another program, the command gets the terminal when it
// reads from it.
func TestTerminalOnDemand(t *testing.T) {
	t.Parallel()
	var out *lines
	keys, _, _ := onTerminal(t, reader(t), func(c *exec.Cmd, _ *os.File) { out = newLines(t, c) })
	out.want(t, "command ready")
	press(t, keys, "one\n")
	out.want(t, `command got "one"`)
	press(t, keys, "\x04")
	out.want(t, "parent: code 0, survivors false, error <nil>")
	press(t, keys, "two\n")
	out.want(t, `parent got "two\n" <nil>`)
}

// A job that was started in the background waits for the terminal when it reads
// from it, and has it when the shell puts it in the foreground, of which nobody
// is told.
func TestTerminalOfBackgroundJob(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ keys, want string }{
		{"one\n\x04", "parent: code 0, survivors false, error <nil>, interrupted false"},
		{"\x03", "parent: code 130, survivors false, error <nil>, interrupted true"},
	} {
		t.Run(test.want, func(t *testing.T) {
			t.Parallel()
			keys, screen, c := onTerminal(t, role("shell", reader(t)...), nil)
			screen.want(t, "shell: the command is stopped")
			if err := c.Process.Signal(syscall.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			screen.want(t, "shell: the command has the terminal")
			press(t, keys, test.keys)
			screen.want(t, test.want)
		})
	}
}

// A signal ends a command in the background that waits for the terminal.
func TestSignalWhileItWaitsForTheTerminal(t *testing.T) {
	t.Parallel()
	_, screen, c := onTerminal(t, role("shell", reader(t)...), nil)
	screen.want(t, "shell: the command is stopped")
	if err := c.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	screen.want(t, "parent: code 143, survivors false, error <nil>, interrupted false")
}

// playShell runs argv as a job in the background. It passes SIGUSR2 on as
// SIGTERM, and puts the job in the foreground for SIGUSR1.
func playShell(argv []string) int {
	fail := func(err error) int {
		fmt.Println("shell:", err)
		return 1
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGUSR1, syscall.SIGUSR2)
	job, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return fail(err)
	}
	sup, err := await(argv[3], "supervisor", time.Minute)
	if err != nil {
		return fail(err)
	}
	// The command alone is stopped, of all descendants of the supervisor.
	if err := poll(time.Minute, "the command to be stopped", func() bool {
		ds, err := hostproc.Descendants(sup.PID)
		if err != nil || len(ds) == 0 {
			return false
		}
		state, ok := hostproc.StateOf(ds[0].PID)
		return ok && state == 'T'
	}); err != nil {
		return fail(err)
	}
	fmt.Println("shell: the command is stopped")
	switch <-told {
	case syscall.SIGUSR2:
		if err := job.Signal(syscall.SIGTERM); err != nil {
			return fail(err)
		}
	default:
		if err := setForeground(os.Stdin, job.Pid); err != nil {
			return fail(err)
		}
		if err := poll(time.Minute, "the terminal to be the command's", func() bool {
			group, err := foreground(os.Stdin)
			return err == nil && group != job.Pid
		}); err != nil {
			return fail(err)
		}
		fmt.Println("shell: the command has the terminal")
	}
	if _, err := job.Wait(); err != nil {
		return fail(err)
	}
	return 0
}
