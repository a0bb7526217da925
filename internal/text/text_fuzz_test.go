package text_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/aim-control/aimlock/internal/text"
)

// FuzzText: nothing that a terminal would obey is left, whatever came, and it grows
// by no more than the sign that it was cut.
func FuzzText(f *testing.F) {
	for _, s := range []string{"a\x1b[2Jb\r\nc", "\u202etxt.exe", "\x9b31m", "\xff\xfe", "é…", "1e400", "a\u2028b", "\ufeff\u200b", "3.14159"} {
		f.Add(s, 5)
	}
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = max(0, n%1000)
		for name, got := range map[string]string{"Printable": text.Printable(s), "Block": text.Block(s), "ASCII": text.ASCII(text.Block(s))} {
			for _, r := range got {
				if r == '\n' && name != "Printable" && strings.Contains(s, "\n") {
					continue
				}
				if r == utf8.RuneError || unicode.Is(unicode.Cc, r) && name != "ASCII" || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) {
					t.Fatalf("%s(%q) holds %U", name, s, r)
				}
			}
		}
		if c := text.Clip(s, n); len(c) > n+len("…") || utf8.ValidString(s) && !utf8.ValidString(c) {
			t.Fatalf("Clip(%q, %d) = %q", s, n, c)
		}
		if got := text.Number(s); len(got) > len(s)+400 {
			t.Fatalf("Number(%q) has %d bytes", s, len(got))
		}
	})
}
