package footprint

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestTrim: the program goes on, and has less of its file mapped.
func TestTrim(t *testing.T) {
	before := mapped(t)
	if err := trim(); err != nil {
		t.Fatal(err)
	}
	if after := mapped(t); after >= before {
		t.Errorf("%d kB of the file are mapped, before it were %d", after, before)
	}
}

// mapped is what is resident of files, in kB.
func mapped(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "RssFile:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestParse(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		"00400000-01226000 r-xp 00000000 fe:00 10831972                           /usr/bin/aim lock":           true,
		"01226000-021d0000 r--p 00e26000 fe:00 10831972                           /usr/bin/aim lock":           true,
		"021d0000-022fa000 rw-p 01dd0000 fe:00 10831972                           /usr/bin/aim lock":           false,
		"7f0000000000-7f0000001000 r--s 00000000 fe:00 1                          /usr/bin/aim lock":           false,
		"7f0000000000-7f0000001000 r--p 00000000 fe:00 1                          /usr/lib/other":              false,
		"01226000-00400000 r--p 00e26000 fe:00 10831972                           /usr/bin/aim lock":           false,
		"7f0000000000-7f0000001000 r--p 00000000 00:00 0":                                                      false,
		"00400000-01226000 r-xp 00000000 fe:00 10831972                           /usr/bin/aim lock (deleted)": false,
	} {
		if _, _, ok := parse(line, "/usr/bin/aim lock"); ok != want {
			t.Errorf("%s: %v, want %v", line, ok, want)
		}
	}
}
