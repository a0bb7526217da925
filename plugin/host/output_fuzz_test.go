package host

import (
	"io"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/plugin"
)

// FuzzKept: the block that was kept as JSON where the plugin's schema was not known.
func FuzzKept(f *testing.F) {
	s := &plugin.Schema{
		Attributes: []plugin.Attribute{
			{Name: "s", Type: plugin.String}, {Name: "n", Type: plugin.Number}, {Name: "d", Type: plugin.Duration}, {Name: "l", Type: plugin.List(plugin.Map(plugin.Bool))},
			{Name: "o", Type: plugin.Object(map[string]plugin.Type{"a": plugin.String})}, {Name: "secret", Type: plugin.String, Secret: true},
		},
		Blocks: []plugin.Block{{Name: "b", Config: plugin.Schema{Attributes: []plugin.Attribute{{Name: "x", Type: plugin.Number}}}}},
	}
	for _, in := range []string{`{"s":"a","n":"1","d":"2m","l":[{"a":"true"}],"o":{"a":1},"b":[{"x":1}]}`, `{"s":[],"b":{},"z\u001b":1}`, `{"n":1e999}`, `[]`, `{"d":"x","secret":[]}`, `{"b":[null]}`} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		values, err := fromJSON(s, raw)
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return unicode.IsControl(r) && r != '\n' }) {
				t.Fatalf("%q is not fit to be shown", err)
			}
			return
		}
		cfg, err := plugin.NewConfig(values)
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		if _, err := s.Apply(cfg); err != nil {
			t.Fatalf("%q passes as %s, and then: %v", raw, cfg, err)
		}
		secretIn(s, plugin.Config(raw))
	})
}

// FuzzOutput: what a plugin prints. Its first line is the handshake, and everything
// on stderr its log.
func FuzzOutput(f *testing.F) {
	for _, s := range []string{
		"1|1|unix|/tmp/x|grpc|\nmore\n", "1|1|tcp|127.0.0.1:1|grpc|" + strings.Repeat("A", 60) + "\n", "\n", "panic: x\n", `{"@level":"warn","@message":"m\u001b[2J","@timestamp":"x","a":{"b":[1]},"c":null}` + "\n",
		`{"@message":5}`, strings.Repeat("x", maxHandshake+5), "hunter2-secret\x1b]0;t\x07\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		first := newFirstLine(io.NopCloser(strings.NewReader(string(b))))
		got, err := io.ReadAll(first)
		if err != nil || len(got) > maxHandshake+1 || string(got) != first.first() || strings.Count(string(got), "\n") > 1 {
			t.Fatalf("the handshake is %q, %v", got, err)
		}
		for line := range strings.Lines(string(b)) {
			e := parseLine(strings.TrimRight(line, "\n"), func(s string) string { return s })
			said := []string{e.message}
			for _, a := range e.args {
				if s, ok := a.(string); ok {
					said = append(said, s)
				}
			}
			for _, s := range said {
				if len(s) > maxLogText+len("…") || strings.ContainsFunc(s, unicode.IsControl) {
					t.Fatalf("%q is logged as %q", line, s)
				}
			}
			if len(e.args) > 2*maxLogArgs || len(e.args)%2 != 0 {
				t.Fatalf("%d arguments", len(e.args))
			}
		}
		var log strings.Builder
		p := &pump{log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace}), since: time.Now()}
		p.hide([]string{"hunter2-secret"})
		p.run(strings.NewReader(string(b)))
		if strings.Contains(log.String(), "hunter2-secret") || len(p.last()) > (tailText+10)*64 {
			t.Fatalf("the log has %q", log.String())
		}
	})
}
