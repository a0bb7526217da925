package host

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
)

// FuzzLog: whatever a plugin writes to its log, no line of ours is more than one, none
// reaches a terminal's escapes, and no secret is in it.
func FuzzLog(f *testing.F) {
	f.Add([]byte(`{"@level":"info","@message":"a \u001b[31m message","password":"swordfish"}` + "\n"))
	f.Add([]byte("panic: swordfish\n\ngoroutine 1 [running]:\n"))
	f.Add([]byte(strings.Repeat("x", maxLogLine) + "swordfish\n"))
	f.Add([]byte("\x00\xff\x1b]0;title\x07\r\n\"sword\\u0066ish\""))
	f.Add([]byte(`{"@message":"sword\u0066ish","@level":7,"@timestamp":{},"a":[{"b":"swordfish"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var out bytes.Buffer
		p := &pump{log: hclog.New(&hclog.LoggerOptions{Name: "p", Output: &out, Level: hclog.Trace, JSONFormat: false})}
		p.hide([]string{"swordfish"})
		p.run(bytes.NewReader(text))
		log := out.String()
		if strings.ContainsAny(log, "\x1b\x00\r\x07") || !utf8.ValidString(log) {
			t.Errorf("%q becomes %q", text, log)
		}
		if strings.Contains(log, "swordfish") || strings.Contains(p.last(), "swordfish") {
			t.Errorf("the secret is in %q, or in %q", log, p.last())
		}
		if n := strings.Count(log, "\n"); n > bytes.Count(text, []byte("\n"))+2 {
			t.Errorf("%d lines become %d: %q", bytes.Count(text, []byte("\n")), n, log)
		}
	})
}
