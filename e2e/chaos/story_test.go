package chaos

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// story is what happened, in a file as it happens.
type story struct {
	file  *os.File
	lines []string
	since time.Time
}

func (s *story) open(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	s.file, s.since = f, time.Now()
	t.Cleanup(func() { f.Close() })
}

func (s *story) note(format string, args ...any) {
	line := fmt.Sprintf("%9.3f %d ", time.Since(s.since).Seconds(), monotonic()) + fmt.Sprintf(format, args...)
	s.lines = append(s.lines, line)
	fmt.Fprintln(s.file, line)
}

func (s *story) tail(n int) string {
	return strings.Join(s.lines[max(0, len(s.lines)-n):], "\n")
}

// violation fails the test; the run ends at the next step.
func (w *world) violation(format string, args ...any) {
	w.t.Helper()
	text := fmt.Sprintf(format, args...)
	w.note("VIOLATION: %s", text)
	w.t.Errorf("VIOLATION: %s", text)
}

// client is a client of a machine's Consul that gives up soon.
func (w *world) client(m *machine) *api.Client {
	c, err := api.NewClient(&api.Config{Address: m.consul.Addr, HttpClient: &http.Client{Timeout: callLimit, Transport: &http.Transport{DisableKeepAlives: true}}})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}
