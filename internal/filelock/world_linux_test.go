package filelock

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roleVar makes the test binary play a process that locks, or one that looks.
const roleVar = "FILELOCK_TEST_ROLE"

func TestMain(m *testing.M) {
	role, path := os.Getenv(roleVar), os.Getenv("FILELOCK_TEST_PATH")
	switch role {
	case "":
		os.Exit(m.Run())
	case "hold": // takes a lock of the kind that KIND names
		f := must(os.OpenFile(path, os.O_RDWR, 0))
		check(take(f, os.Getenv("KIND")))
	case "two": // takes a shared flock twice, and passes one descriptor on
		for range 2 {
			f := must(os.Open(path))
			check(take(f, "flock read"))
			if os.Getenv("KIND") == "" {
				os.Setenv("KIND", "passed")
				child("block", f)
			}
		}
	case "taker": // takes a lock, leaves it to a child, and ends
		f := must(os.OpenFile(path, os.O_RDWR, 0))
		check(take(f, os.Getenv("KIND")))
		fmt.Println("pid", child("block", f))
		os.Exit(0)
	case "give": // takes a flock, sends the descriptor to fd 3, and ends
		f := must(os.OpenFile(path, os.O_RDWR, 0))
		check(take(f, Flock))
		check(unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(f.Fd())), nil, 0))
		fmt.Println("ready")
		os.Exit(0)
	case "receive":
		oob := make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(3, make([]byte, 1), oob, 0)
		check(err)
		fds := must(unix.ParseUnixRights(&must(unix.ParseSocketControlMessage(oob[:n]))[0]))
		fmt.Println("fd", fds[0])
	case "map": // takes a flock, maps the file and closes it
		f := must(os.OpenFile(path, os.O_RDWR, 0))
		check(take(f, Flock))
		must(unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED))
		f.Close()
	case "block":
	case "explain":
		explainAs(path)
	case "container": // pid 1 of a pid namespace with a /proc of its own
		check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		check(unix.Mount("proc", "/proc", "proc", 0, ""))
		if os.Getenv("KIND") != "" {
			check(take(must(os.OpenFile(path, os.O_RDWR, 0)), os.Getenv("KIND")))
			break
		}
		explainAs(path)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func explainAs(path string) {
	r, err := new(Scanner).Explain(context.Background(), path, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(string(must(json.Marshal(r))))
	os.Exit(0)
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		fmt.Println("fails:", err)
		os.Exit(3)
	}
}

// child starts a process that inherits stdin and f, and waits until it is up.
func child(role string, f *os.File) int {
	c := exec.Command(must(os.Executable()))
	c.Env = append(os.Environ(), roleVar+"="+role)
	c.Stdin, c.ExtraFiles = os.Stdin, []*os.File{f}
	out := must(c.StdoutPipe())
	check(c.Start())
	must(bufio.NewReader(out).ReadString('\n'))
	return c.Process.Pid
}

// take locks f: "flock", "flock read", "posix", "ofd", "lease".
func take(f *os.File, kind string) error {
	bytes := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 90}
	switch kind {
	case Flock:
		return unix.Flock(int(f.Fd()), unix.LOCK_EX)
	case "flock read":
		return unix.Flock(int(f.Fd()), unix.LOCK_SH)
	case Posix:
		return unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &bytes)
	case OFD:
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &bytes)
	case Lease:
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
		return err
	}
	return fmt.Errorf("no lock of kind %q", kind)
}

// proc is a process that ends with its test.
type proc struct {
	*exec.Cmd
	out   *bufio.Reader
	stdin io.Closer
}

func start(t *testing.T, role, path, kind string, mod ...func(*exec.Cmd)) *proc {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), exe)
	c.Env = append(os.Environ(), roleVar+"="+role, "FILELOCK_TEST_PATH="+path, "KIND="+kind)
	for _, m := range mod {
		m(c)
	}
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skipf("SKIPPED: this needs rights that are not here: %v", err)
		}
		t.Fatal(err)
	}
	p := &proc{Cmd: c, out: bufio.NewReader(out), stdin: stdin}
	t.Cleanup(func() { p.end(t) })
	return p
}

func (p *proc) end(t *testing.T) {
	p.stdin.Close()
	p.Wait()
}

// line is the next line of its output.
func (p *proc) line(t *testing.T) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil || strings.HasPrefix(s, "fails:") {
		t.Fatalf("the process says %q, %v", s, err)
	}
	return strings.TrimSpace(s)
}

// number is the number at the end of the next line.
func (p *proc) number(t *testing.T) int {
	t.Helper()
	s := p.line(t)
	n, err := strconv.Atoi(s[strings.LastIndexByte(s, ' ')+1:])
	if err != nil {
		t.Fatalf("the process says %q", s)
	}
	return n
}

// hold starts a process that has the file locked.
func hold(t *testing.T, path, kind string, mod ...func(*exec.Cmd)) *proc {
	t.Helper()
	p := start(t, "hold", path, kind, mod...)
	p.line(t)
	return p
}

// report is what a process says that explains.
func (p *proc) report(t *testing.T) *Report {
	t.Helper()
	s := p.line(t)
	var r Report
	if err := json.Unmarshal([]byte(s), &r); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return &r
}

func with(files ...*os.File) func(*exec.Cmd) {
	return func(c *exec.Cmd) { c.ExtraFiles = files }
}

// inContainer gives a process namespaces of its own.
func inContainer(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
}

func newFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.lock")
	if err := os.WriteFile(path, make([]byte, 4096), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func explain(t *testing.T, path string) *Report {
	t.Helper()
	r, err := new(Scanner).Explain(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// one is the only lock of a locked file.
func one(t *testing.T, r *Report) Lock {
	t.Helper()
	if r.Locked == nil || !*r.Locked || len(r.Locks) != 1 {
		t.Fatalf("want one lock: %s", show(r))
	}
	return r.Locks[0]
}

func show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// keeper says how pid keeps l, or "".
func keeper(l Lock, pid int) string {
	for _, k := range l.KeptBy {
		if k.PID == pid {
			return k.How
		}
	}
	return ""
}

func boolText(b *bool) string {
	if b == nil {
		return "unknown"
	}
	return strconv.FormatBool(*b)
}

// expect looks at one lock: who is named, whether that lives, and how each
// process of want keeps it.
func expect(t *testing.T, l Lock, kind, mode string, pid int, alive string, want map[int]string, why string) {
	t.Helper()
	if l.Kind != kind || l.Mode != mode || l.PID != pid || boolText(l.PIDAlive) != alive {
		t.Errorf("want %s %s under pid %d, alive %s: %s", kind, mode, pid, alive, show(l))
	}
	if len(l.KeptBy) != len(want) {
		t.Errorf("want %d keepers: %s", len(want), show(l))
	}
	for pid, how := range want {
		if keeper(l, pid) != how {
			t.Errorf("pid %d should keep it as %q: %s", pid, how, show(l))
		}
	}
	if !strings.Contains(l.Why, why) {
		t.Errorf("%q does not say %q", l.Why, why)
	}
}

// eventually explains until ok, which a process brings about that was started.
func eventually(t *testing.T, path string, ok func(*Report) bool) *Report {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		if r := explain(t, path); ok(r) {
			return r
		} else if time.Now().After(end) {
			t.Fatalf("it never comes: %s", show(r))
		}
	}
}

// pair is a pair of connected sockets.
func pair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}
