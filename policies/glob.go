package policies

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// LockID is what a policy's lock patterns are matched against.
type LockID struct {
	// Name is the lock's name; for a foreign lock, its whole key.
	Name string
	// Key is the whole key.
	Key string
	// Own says that the key stands under <prefix>locks/.
	Own bool
}

// glob is one compiled lock pattern.
type glob struct {
	text     string
	wholeKey bool // it began with a slash: it matches keys and not names
	re       *regexp.Regexp
}

func (g *glob) match(id LockID) bool {
	if g.wholeKey {
		return g.re.MatchString(id.Key)
	}
	return id.Own && g.re.MatchString(id.Name)
}

// covers reports whether g surely matches all that h matches. It may say false
// where it does: it only serves a warning.
func (g *glob) covers(h *glob) bool {
	switch {
	case g.text == h.text || g.text == "/**":
		return true
	case g.wholeKey != h.wholeKey:
		return false
	case g.text == "**" || g.text == "*":
		return true
	}
	if !strings.ContainsAny(h.text, "*?") {
		return g.re.MatchString(strings.TrimPrefix(h.text, "/"))
	}
	return false
}

func parseGlob(text string) (*glob, error) {
	pattern, whole := strings.CutPrefix(text, "/")
	switch {
	case pattern == "":
		return nil, errors.New(`the pattern is empty: "**" matches every lock of aimlock, "/**" every key`)
	case len(text) > 1024:
		return nil, fmt.Errorf("the pattern has %d bytes: 1024 at most", len(text))
	case strings.Contains(pattern, "***"):
		return nil, fmt.Errorf("%q: use * within a segment, ** across segments", text)
	case strings.ContainsAny(pattern, "[]{}\\"):
		return nil, fmt.Errorf("%q: only *, ** and ? are special; brackets, braces and backslashes are not known (? stands for any one character)", text)
	case !whole && strings.Contains(pattern, "/"):
		return nil, fmt.Errorf("%q can match no lock: names have no slash. For a whole key write %q", text, "/"+text)
	}
	var re strings.Builder
	re.WriteString(`(?s)\A`)
	for i := 0; i < len(pattern); {
		rest := pattern[i:]
		switch {
		case strings.HasPrefix(rest, "**/") && (i == 0 || pattern[i-1] == '/'):
			re.WriteString(`(?:.*/)?`)
			i += 3
		case strings.HasPrefix(rest, "**"):
			re.WriteString(`.*`)
			i += 2
		case rest[0] == '*':
			re.WriteString(`[^/]*`)
			i++
		case rest[0] == '?':
			re.WriteString(`[^/]`)
			i++
		default:
			n := strings.IndexAny(rest, "*?")
			if n < 0 {
				n = len(rest)
			}
			re.WriteString(regexp.QuoteMeta(rest[:n]))
			i += n
		}
	}
	re.WriteString(`\z`)
	compiled, err := regexp.Compile(re.String())
	if err != nil {
		return nil, fmt.Errorf("%q is not a pattern: %w", text, err)
	}
	return &glob{text: text, wholeKey: whole, re: compiled}, nil
}
