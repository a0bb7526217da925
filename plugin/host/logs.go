package host

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/text"
)

// Bounds of what a plugin may write to its log.
const (
	maxLogLine  = 16 << 10 // the rest of a longer line is cut off
	maxLogLines = 100      // a second
	maxLogBytes = 64 << 10 // a second
	maxLogArgs  = 30
	maxLogText  = 2 << 10 // of a message, and of each value
	tailLines   = 4       // are kept for what is said of its end
	tailText    = 300     // of each
)

// pump reads what a plugin writes to stderr, cleans it, bounds it, and logs it.
type pump struct {
	log hclog.Logger

	mu      sync.Mutex
	secrets map[string]bool
	// quiet replaces the secrets; nil: there are none.
	quiet *strings.Replacer
	// longest is the length of the longest secret.
	longest int
	tail    []string
	// panicked: tail says why, and what comes after is the stack.
	panicked bool

	// The rest is of the current second.
	since        time.Time
	lines, bytes int
	dropped      int
	timer        *time.Timer
}

// hide keeps secrets out of the log from now on.
func (p *pump) hide(secrets []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.secrets == nil {
		p.secrets = map[string]bool{}
	}
	for _, s := range secrets {
		if len(s) >= minSecret {
			p.secrets[s] = true
		}
	}
	p.requiet()
}

// minSecret: what is shorter stands in every other word, and hides nothing.
const minSecret = 4

func (p *pump) requiet() {
	p.quiet = nil
	if len(p.secrets) == 0 {
		return
	}
	// The longest first: one may be a part of another.
	list := slices.SortedFunc(maps.Keys(p.secrets), func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	p.longest = len(list[0])
	for _, s := range list {
		pairs = append(pairs, s, "(secret)")
		// As it stands in a line of JSON.
		if quoted, err := json.Marshal(s); err == nil && string(quoted[1:len(quoted)-1]) != s {
			pairs = append(pairs, string(quoted[1:len(quoted)-1]), "(secret)")
		}
	}
	p.quiet = strings.NewReplacer(pairs...)
}

// hush takes the secrets out of a text. p.mu is held.
func (p *pump) hush(s string) string {
	if p.quiet == nil {
		return s
	}
	return p.quiet.Replace(s)
}

// run reads until the plugin, and whoever inherited its stderr, has ended.
func (p *pump) run(r io.Reader) {
	in := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := in.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		p.line(strings.TrimRight(string(line), "\r\n"), len(line), long)
		for long && err != nil && errors.Is(err, bufio.ErrBufferFull) {
			line, err = in.ReadSlice('\n')
			p.count(len(line))
		}
		if err != nil {
			p.mu.Lock()
			p.settle()
			p.mu.Unlock()
			return
		}
	}
}

// count notes bytes that are not shown.
func (p *pump) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += n
}

// line takes one line of size bytes; cut: only its beginning is there.
func (p *pump) line(s string, size int, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s == "" {
		return
	}
	if now := time.Now(); now.Sub(p.since) >= time.Second {
		p.settle()
		p.since, p.lines, p.bytes = now, 0, 0
	}
	p.lines++
	p.bytes += size
	if p.lines > maxLogLines || p.bytes > maxLogBytes {
		if p.dropped++; p.dropped == 1 {
			// It may fall silent after a flood.
			p.timer = time.AfterFunc(time.Second, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.settle()
			})
		}
		return
	}
	if cut {
		s = s[:max(0, len(s)-p.longest)] // a secret may have been cut in two
	}
	e := parseLine(s, p.hush)
	if e.level == hclog.Error && strings.HasPrefix(e.message, "panic: ") && !p.panicked {
		p.panicked, p.tail = true, []string{text.Clip(e.message, tailText)}
	}
	if e.message != "" && !p.panicked {
		if len(p.tail) == tailLines {
			p.tail = append(p.tail[:0], p.tail[1:]...)
		}
		said := e.message
		for i := 0; i+1 < len(e.args); i += 2 {
			if e.args[i] == "error" {
				said = fmt.Sprintf("%s: %v", said, e.args[i+1])
			}
		}
		p.tail = append(p.tail, text.Clip(said, tailText))
	}
	p.log.Log(e.level, e.message, e.args...)
}

// settle tells how many lines were dropped.
func (p *pump) settle() {
	if p.dropped == 0 {
		return
	}
	p.log.Warn(fmt.Sprintf("dropped %s of the plugin's log: it writes more than %d lines or %d KiB a second", text.Count(p.dropped, "line"), maxLogLines, maxLogBytes>>10))
	p.dropped = 0
	p.timer.Stop()
}

// last is what was written at the end, for the words about the end.
func (p *pump) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.tail, " | ")
}

type logEntry struct {
	level   hclog.Level
	message string
	args    []any
}

// parseLine takes a line of hclog's JSON apart. Any other line is a message. hush takes
// secrets out: of what the line says and not of how it is written, since JSON has
// many ways to write a letter.
func parseLine(s string, hush func(string) string) logEntry {
	clean := func(s string) string { return text.Clip(hush(text.Printable(hush(s))), maxLogText) }
	e := logEntry{level: hclog.Info, message: clean(s)}
	if strings.HasPrefix(s, "panic: ") || strings.HasPrefix(s, "fatal error: ") {
		e.level = hclog.Error
	}
	if !strings.HasPrefix(s, "{") {
		return e
	}
	var fields map[string]any
	if json.Unmarshal([]byte(s), &fields) != nil {
		return e
	}
	message, ok := fields["@message"].(string)
	if !ok {
		return e
	}
	e.message = clean(message)
	if name, ok := fields["@level"].(string); ok {
		if l := hclog.LevelFromString(name); l != hclog.NoLevel && l != hclog.Off {
			e.level = l
		}
	}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if k == "@message" || k == "@level" || k == "@timestamp" || k == "@caller" || len(e.args) >= 2*maxLogArgs {
			continue
		}
		v := fields[k]
		switch t := v.(type) {
		case float64, bool, nil:
		case string:
			v = clean(t)
		default:
			raw, err := json.Marshal(hushed(v, hush))
			if err != nil {
				continue
			}
			v = clean(string(raw))
		}
		e.args = append(e.args, clean(strings.TrimPrefix(k, "@")), v)
	}
	return e
}

// hushed is a value of JSON with the secrets taken out of its texts.
func hushed(v any, hush func(string) string) any {
	switch v := v.(type) {
	case string:
		return hush(v)
	case []any:
		for i := range v {
			v[i] = hushed(v[i], hush)
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for k := range v {
			out[hush(k)] = hushed(v[k], hush)
		}
		return out
	}
	return v
}
