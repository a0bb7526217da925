package command_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tutorialPatience bounds the wait for one output.
const tutorialPatience = 2 * time.Minute

// TestTutorial types docs/tutorial.md into three shells, and compares what they
// show with what it says they do.
func TestTutorial(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("a dead process is proved by /proc")
	}
	page, err := os.ReadFile("../docs/tutorial.md")
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddress(t)
	text := strings.ReplaceAll(string(page), "\naimlock dev\n", "\naimlock dev -listen 127.0.0.1:8500\n")
	text = strings.ReplaceAll(text, "127.0.0.1:8500", addr)
	dir := t.TempDir()
	text = strings.ReplaceAll(text, "=/root/aimlock-tutorial/", "="+dir+"/")
	shells := map[string]*shell{}
	for _, name := range []string{"1", "2", "3"} {
		shells[name] = newShell(t, dir)
	}
	var at *shell
	typed, compared, begun, again := 0, 0, 0, 0
	named := regexp.MustCompile(`(?i)\*\*terminal (\d)\*\*`)
	parts := tutorialParts(text)
	for i := 0; i < len(parts); i++ {
		part := parts[i]
		switch part.lang {
		case "":
			if m := named.FindAllStringSubmatch(part.text, -1); m != nil {
				at = shells[m[len(m)-1][1]]
			}
		case "sh":
			typed++
			if strings.HasPrefix(part.text, "aimlock lock exec nightly") && at == shells["2"] {
				begun = i - 1
			}
			at.typeIn(part.text, at == shells["3"] || strings.HasPrefix(part.text, "kill "))
		case "text":
			compared++
			if late := at.shows(part.text); late {
				// As the page has its reader do who was not quick enough.
				if again++; again > 10 {
					t.Fatal("the dead holder's session is over each time before somebody looks at it")
				}
				i = begun - 1
			}
		default:
			t.Errorf("a block of %q", part.lang)
		}
		if t.Failed() {
			return
		}
	}
	if typed < 15 || compared < 15 {
		t.Errorf("%d blocks were typed and %d outputs compared", typed, compared)
	}
}

// tutorialPart is a piece of the page: prose, or a block of a language.
type tutorialPart struct{ lang, text string }

func tutorialParts(page string) []tutorialPart {
	var out []tutorialPart
	for i, piece := range strings.Split("\n"+page, "\n```") {
		lang, text, _ := strings.Cut(piece, "\n")
		if i%2 == 0 {
			lang = ""
		}
		out = append(out, tutorialPart{lang, text})
	}
	return out
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// shell is one terminal of the tutorial.
type shell struct {
	t    *testing.T
	in   io.Writer
	last string // what was typed in last, if that may be typed again
	runs int

	mu     sync.Mutex
	out    bytes.Buffer
	seen   int
	change chan struct{}
}

func newShell(t *testing.T, dir string) *shell {
	t.Helper()
	cmd := exec.Command("bash", "--norc", "--noprofile")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "AIMLOCK_CONFIG=", "AIMLOCK_PREFIX=", "CONSUL_HTTP_TOKEN=", "NO_COLOR=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s := &shell{t: t, change: make(chan struct{}, 1)}
	cmd.Stdout, cmd.Stderr = s, s
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.WaitDelay = 10 * time.Second
	t.Cleanup(func() {
		_ = in.Close()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		if cmd.Wait(); t.Failed() {
			t.Logf("a terminal:\n%s", s.out.String())
		}
	})
	return s
}

// Write takes what the shell and all that it runs write.
func (s *shell) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.change <- struct{}{}:
	default:
	}
	return s.out.Write(b)
}

// typeIn types commands in; wait waits for their end.
func (s *shell) typeIn(commands string, wait bool) {
	s.t.Helper()
	s.last = ""
	if wait && readsOnly(commands) {
		s.last = commands
	}
	s.send(commands, wait)
}

func (s *shell) send(commands string, wait bool) {
	s.t.Helper()
	s.runs++
	end := fmt.Sprintf("the end of %d", s.runs)
	if wait {
		commands += "\necho the end of \"" + fmt.Sprint(s.runs) + "\"\n"
	}
	if _, err := io.WriteString(s.in, commands+"\n"); err != nil {
		s.t.Fatal(err)
	}
	if wait {
		s.until("the end of\n"+commands, func(out string) bool { return strings.Contains(out, end+"\n") })
	}
}

// readsOnly tells whether commands change nothing, so that they may be repeated
// until what they show is so.
func readsOnly(commands string) bool {
	for line := range strings.Lines(commands) {
		if line = strings.TrimSpace(line); line != "" && !regexp.MustCompile(`^(aimlock (lock (list|status)|rollout (plan|list)|agent status) |cat [^>]*$|aimlock (lock|rollout) list$)`).MatchString(line) {
			return false
		}
	}
	return true
}

// until waits for what is not yet compared of the output to be so.
func (s *shell) until(what string, ok func(string) bool) {
	s.t.Helper()
	end := time.NewTimer(tutorialPatience)
	defer end.Stop()
	for {
		s.mu.Lock()
		out := s.out.String()[s.seen:]
		s.mu.Unlock()
		if ok(out) {
			return
		}
		select {
		case <-s.change:
		case <-end.C:
			s.t.Fatalf("waited in vain for %s\nthere is\n%s", what, out)
		}
	}
}

// tooLate is what is said of a lock whose dead holder was given up by Consul before
// anybody broke it, or whose holder is not dead yet.
var tooLate = regexp.MustCompile(`(?m)^(ERROR: )?nightly: (HELD|COOLING|FREE|nobody holds it)`)

// shows waits for the lines of text, in their order. late: they will not come, since
// Consul was quicker than this test.
func (s *shell) shows(text string) (late bool) {
	s.t.Helper()
	if strings.Contains(text, "nightly: breaking: by rule holder-dead\n") {
		s.mu.Lock()
		out := s.out.String()[s.seen:]
		if missing(text, out) != "" && tooLate.MatchString(out) {
			s.seen = s.out.Len()
			s.mu.Unlock()
			return true
		}
		s.mu.Unlock()
	}
	end := time.Now().Add(tutorialPatience)
	for s.last != "" {
		s.mu.Lock()
		out := s.out.String()[s.seen:]
		s.mu.Unlock()
		if missing(text, out) == "" {
			break
		}
		if time.Now().After(end) {
			s.t.Fatalf("no line %q in\n%s", missing(text, out), out)
		}
		s.mu.Lock()
		s.seen = s.out.Len()
		s.mu.Unlock()
		s.send(s.last, true)
	}
	s.until("the line that is missing of\n"+text, func(out string) bool { return missing(text, out) == "" })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = s.out.Len()
	return false
}

// missing is the first line of text that is not in the output after the one
// before it. Standard error may come before or after standard output: a line that
// begins with ERROR or is indented is looked for anywhere.
func missing(text, out string) string {
	lines := strings.Split(normal(out), "\n")
	for line := range strings.Lines(normal(text)) {
		line = strings.TrimRight(line, "\n")
		if line == "" {
			continue
		}
		found := false
		for i, l := range lines {
			if l == line {
				lines, found = lines[i+1:], true
				break
			}
		}
		if !found {
			return line
		}
	}
	return ""
}

// normal is text without what differs from run to run: numbers, times, names of
// the machine and the user, and how wide columns are. Hashes are of what the page
// itself has written, and the same each time.
func normal(s string) string {
	host, _ := os.Hostname()
	s = strings.ReplaceAll(s, host, "vm")
	for _, r := range []struct{ from, to string }{
		{`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?`, "TIME"},
		{`app-\d{8}-\d{6}-[a-z0-9]{4}`, "ROLLOUT"},
		{`(\d+(\.\d+)?(ms|s|m|h))+`, "TIME"},
		{`(pid|process|token|succeeds|n\d) \d+`, "$1 N"},
		{`lock\.held_for = [\d.]+`, "lock.held_for = N"},
		{`(\s)\d+@`, "${1}N@"},
		{`\b\d+\.\d+\.\d+\b`, "ORDER"},
		{`user \S+,`, "user U,"},
		{`by \S+@vm`, "by U@vm"}, {`, \S+@vm\]`, ", U@vm]"},
		{`[ \t]+`, " "},
	} {
		s = regexp.MustCompile(r.from).ReplaceAllString(s, r.to)
	}
	return s
}
