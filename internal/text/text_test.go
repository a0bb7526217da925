package text

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                "plain",
		"a\x1b[31mred\x1b[0m":  "a?[31mred?[0m",
		"two\nlines\tand tab":  "two lines and tab",
		"bad \xff utf8":        "bad ? utf8",
		"right\u202eto left":   "right?to left",
		"c1 \u009b2J":          "c1 ?2J",
		"übergröße, 漢字 are ok": "übergröße, 漢字 are ok",
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestClip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		n := rapid.IntRange(0, 40).Draw(t, "n")
		got := Clip(s, n)
		if len(s) <= n && got != s {
			t.Fatalf("short text changed: %q", got)
		}
		head, cut := strings.CutSuffix(got, "…")
		if len(s) > n && (!cut || len(head) > n || !strings.HasPrefix(s, head) || !utf8.ValidString(head)) {
			t.Fatalf("Clip(%q, %d) = %q", s, n, got)
		}
		for _, r := range Printable(s) {
			if unicode.IsControl(r) {
				t.Fatalf("control character %q left", r)
			}
		}
	})
}

func TestNumber(t *testing.T) {
	for in, want := range map[string]string{
		"5.825686209998821": "5.8", "660": "660", "0.04": "0", "-1.25": "-1.3", "true": "true", `"1.25"`: `"1.25"`, "": "", "1e400": "1e400", "NaN": "NaN",
	} {
		if got := Number(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for _, c := range []struct {
		n          int
		noun, want string
	}{{1, "node", "1 node"}, {0, "node", "0 nodes"}, {2, "policy", "2 policies"}, {1, "policy", "1 policy"}, {3, "process", "3 processes"}} {
		if got := Count(c.n, c.noun); got != c.want {
			t.Errorf("Count(%d, %q) = %q, want %q", c.n, c.noun, got, c.want)
		}
	}
}

func TestSome(t *testing.T) {
	t.Parallel()
	for want, names := range map[string][]string{
		"":                                     nil,
		"a":                                    {"a"},
		"a, b, c, d, e":                        {"a", "b", "c", "d", "e"},
		"a, b, c, d, e and 1 more":             {"a", "b", "c", "d", "e", "f"},
		"a, b, c, d, e and 2 more":             {"a", "b", "c", "d", "e", "f", "g"},
		"a?[31mred, b":                         {"a\x1b[31mred", "b"},
		"b, " + strings.Repeat("n", 100) + "…": {"b", strings.Repeat("n", 101)},
	} {
		given := slices.Clone(names)
		if got := Some(names); got != want {
			t.Errorf("Some(%q) = %q, want %q", names, got, want)
		}
		if !slices.Equal(names, given) {
			t.Errorf("it changed the names that it was given: %q to %q", given, names)
		}
	}
}

func TestShell(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{
		"deploy": "deploy", "ops/web/.lock": "ops/web/.lock", "limit=10m": "limit=10m", "": "''",
		"my lock": "'my lock'", "$(reboot)": "'$(reboot)'", "it's": `'it'\''s'`, "a\x1b[31m;b": "'a?[31m;b'", "-n": "-n", "é": "'é'",
	} {
		if got := Shell(word); got != want {
			t.Errorf("Shell(%q) = %s, want %s", word, got, want)
		}
		if strings.ContainsAny(word, "\x1b") {
			continue
		}
		out, err := exec.Command("sh", "-c", "printf %s "+Shell(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("a shell reads %s as %q (%v)", Shell(word), out, err)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", time.Hour: "1h", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m", time.Hour + time.Second: "1h0m1s",
		20 * time.Second: "20s", 100 * time.Hour: "100h", 1500 * time.Millisecond: "1.5s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%s) = %s, not %s", d, got, want)
		}
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 13, 0, 5, 999, time.FixedZone("CET", 3600))
	if got := Time(at); got != "2026-03-01 12:00:05 UTC" {
		t.Errorf("Time(%s) = %s", at, got)
	}
}
