package command

import (
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// The table of lock watch fits the terminal, shows the gravest locks, and lets
// no foreign code through.
func TestLockBoard(t *testing.T) {
	t.Parallel()
	at := time.Now()
	held, id, tool := 90.0, "s", "consul-lock\x1b[31m"
	row := func(key, state string) *lockRow {
		return &lockRow{at: at, st: &locksmith.Status{
			Name: key, Key: key, State: state, Session: &id, HeldFor: &held, Holder: &locksmith.HolderView{Tool: &tool},
		}}
	}
	b := &lockBoard{m: newMeta(t.Context(), IO{LookupEnv: func(string) (string, bool) { return "", false }}), screen: io.Discard, rows: map[string]*lockRow{}}
	for _, k := range []string{"a", "b\x1b[2J", "c/with/a/long/name/that/does/not/fit/anywhere", "ünï/cödé"} {
		b.rows[k] = row(k, locksmith.Held)
	}
	b.rows["z"] = row("z", locksmith.Hot)
	b.notes = []string{"read all keys: Consul at 127.0.0.1:8500: did not answer"}
	for _, width := range []int{39, 60, 120} {
		for _, height := range []int{4, 6, 20} {
			lines := b.table(at.Add(5*time.Second), width, height)
			if len(lines) > height {
				t.Errorf("%d lines do not fit into %d", len(lines), height)
			}
			for _, l := range lines {
				if utf8.RuneCountInString(l) > width || strings.ContainsRune(l, '\x1b') {
					t.Errorf("width %d: %q", width, l)
				}
			}
			if !strings.HasPrefix(lines[1], "z ") || !strings.Contains(lines[1], "1m35s") {
				t.Errorf("first comes %q", lines[1])
			}
			if all := strings.Join(lines, "\n"); height == 4 && !strings.Contains(all, "… and 4 more") {
				t.Errorf("nothing tells of the rest: %s", all)
			}
		}
	}
}
