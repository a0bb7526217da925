package command

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul"
)

// pageLog is what a locksmith says, of which a test waits for lines.
type pageLog struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func (l *pageLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.text.Write(b)
}

// until waits for as many matches as n, and returns the last one.
func (l *pageLog) until(t *testing.T, n int, re string) []string {
	t.Helper()
	want, patience := regexp.MustCompile(re), time.After(30*time.Second)
	for {
		l.mu.Lock()
		said := l.text.String()
		l.mu.Unlock()
		if found := want.FindAllStringSubmatch(said, -1); len(found) >= n {
			return found[n-1]
		}
		select {
		case <-l.more:
		case <-patience:
			t.Fatalf("it does not say %q %d times:\n%s", re, n, said)
		}
	}
}

// pageStream is one open page.
type pageStream struct {
	body *bufio.Reader
	end  func()
}

func openPage(t *testing.T, url string) *pageStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/events?view=policies", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return &pageStream{bufio.NewReader(resp.Body), cancel}
}

type shownPolicies struct {
	Hash  string
	Files []struct{ Text string }
}

// policies are the next ones that the page is told of.
func (p *pageStream) policies(t *testing.T) (out shownPolicies) {
	t.Helper()
	for event := ""; ; {
		line, err := p.body.ReadString('\n')
		if err != nil {
			t.Fatalf("the page ends before it shows policies: %v", err)
		}
		if name, ok := strings.CutPrefix(line, "event: "); ok {
			event = strings.TrimSpace(name)
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok && event == "policies" {
			if err := json.Unmarshal([]byte(data), &out); err != nil || len(out.Files) != 1 {
				t.Fatalf("%v: %s", err, data)
			}
			return out
		}
	}
}

// A locksmith that is told by SIGHUP of other policies shows those: pages that were open
// end, so that they come back to the new one. Policies that are not valid, and those
// that cover nothing, change nothing on the page either, and open pages stay.
//
// It is not parallel: the signal is for the whole process.
func TestLocksmithPageReload(t *testing.T) { //nolint:paralleltest // see above
	consul, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = consul.Close() })
	file := filepath.Join(t.TempDir(), "p.hcl")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	named := func(rule string) string {
		return "policy \"p\" {\n  locks = [\"job-*\"]\n  hot \"" + rule + "\" {\n    when = false\n  }\n  break {\n    step \"take\" {\n    }\n  }\n}\n"
	}
	write(named("first"))
	ctx, cancel := context.WithCancel(t.Context())
	log, ended := &pageLog{more: make(chan struct{}, 1)}, make(chan int, 1)
	go func() {
		ended <- Run(ctx, []string{"locksmith", "-dry-run", "-policy", file, "-ui", "127.0.0.1:0", "-http-addr", consul.URL()}, IO{
			Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: log, LookupEnv: func(string) (string, bool) { return "", false },
		})
	}()
	defer func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("it ends with %d", code)
		}
	}()
	// It listens to the signal before it serves.
	url := "http://" + log.until(t, 1, `serving the page: address=(\S+)`)[1]
	hangUp := func() {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}

	open := openPage(t, url)
	first := open.policies(t)
	if !strings.Contains(first.Files[0].Text, `"first"`) {
		t.Fatalf("it shows %+v", first)
	}
	write("policy \"p\" {\n  locks = [\"job-*\"]\n  hot \"x\" {\n    when = holder.alife\n  }\n}\n")
	hangUp()
	log.until(t, 1, "those before stay in force")
	if again := openPage(t, url).policies(t); again.Hash != first.Hash {
		t.Errorf("after policies that are not valid it shows %+v", again)
	}
	write("# nothing\n")
	hangUp()
	log.until(t, 2, "those before stay in force")
	if again := openPage(t, url).policies(t); again.Hash != first.Hash {
		t.Errorf("after policies that cover nothing it shows %+v", again)
	}

	write(named("second"))
	hangUp()
	log.until(t, 1, "other policies are in force")
	if rest, err := io.ReadAll(open.body); err != nil || strings.Contains(string(rest), "event: policies") {
		t.Errorf("the page that was open says %q, %v", rest, err)
	}
	second := openPage(t, url).policies(t)
	if second.Hash == first.Hash || !strings.Contains(second.Files[0].Text, `"second"`) {
		t.Errorf("after a reload it shows %+v", second)
	}
}
