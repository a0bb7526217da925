package reports

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aim-control/aimlock/internal/text"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]Report{
		"3/10":                                {3, 10, "", ""},
		"3":                                   {3, 0, "", ""},
		"0/0 files":                           {0, 0, "files", ""},
		"  3/10  files  the big ones \r":      {3, 10, "files", "the big ones"},
		"3/10 files \x1b[31mred":              {3, 10, "files", "?[31mred"},
		`{"done":3}`:                          {3, 0, "", ""},
		`{"done":3,"total":10,"unit":"rows"}`: {3, 10, "rows", ""},
		` {"note":"a\u001bb","done":0} `:      {0, 0, "", "a?b"},
		"9007199254740991":                    {MaxCount, 0, "", ""},
		"1 " + strings.Repeat("é", 20):        {1, 0, strings.Repeat("é", 20), ""},
	} {
		if got, err := Parse([]byte(line)); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for line, why := range map[string]string{
		"":                                 "empty",
		" \t":                              "empty",
		"files 3/10":                       `"files" is no count`,
		"-1/10":                            "no count",
		"+1/10":                            "no count",
		"1_0/10":                           "no count",
		"0x1":                              "no count",
		"1.5":                              "no count",
		"3/":                               "no count",
		"/3":                               "no count",
		"3/10/20":                          "no count",
		"3/10\tfiles":                      "blanks",
		"11/10":                            "11 are done of 10",
		"9007199254740992":                 "must be from 0",
		"99999999999999999999":             "no count",
		"١/٢":                              "no count",
		"1 " + strings.Repeat("x", 41):     "unit",
		"1 a \xff":                         "UTF-8",
		"1 a " + strings.Repeat("x", 5000): "4096",
		`{"total":3}`:                      `no "done"`,
		`{"done":null}`:                    `no "done"`,
		`{"done":"3"}`:                     "not a JSON object",
		`{"done":3.5}`:                     "not a JSON object",
		`{"done":-3}`:                      "must be from 0",
		`{"done":1e30}`:                    "not a JSON object",
		`{"done":3,"percent":30}`:          "not a JSON object",
		`{"done":3} {"done":4}`:            "after the JSON",
		`{"done":3`:                        "not a JSON object",
	} {
		if got, err := Parse([]byte(line)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %+v, %v; want an error with %q", line, got, err, why)
		}
	}
}

// FuzzParse: whatever a command writes, what is taken is within the bounds and
// safe to show, and can be written and read again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"3/10 files note", `{"done":1,"total":2,"unit":"x","note":"y"}`, "\x1b[2J", "1/1 \u202e", "{", "1 \xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := Parse(line)
		if err != nil {
			if s := err.Error(); text.Printable(s) != s || len(s) > 500 {
				t.Fatalf("the error is not fit to show: %q", s)
			}
			return
		}
		if r.Done < 0 || r.Done > MaxCount || r.Total < 0 || r.Total > MaxCount || r.Total > 0 && r.Done > r.Total {
			t.Fatalf("out of range: %+v", r)
		}
		// What is not printable becomes a question mark, never more bytes.
		if len(r.Unit) > MaxUnit || len(r.Note) > MaxNote+len("…") || text.Printable(r.Unit) != r.Unit || text.Printable(r.Note) != r.Note {
			t.Fatalf("not fit to show: %+v", r)
		}
		if !utf8.ValidString(r.Unit) || !utf8.ValidString(r.Note) {
			t.Fatalf("not UTF-8: %+v", r)
		}
		b, err := json.Marshal(map[string]any{"done": r.Done, "total": r.Total, "unit": r.Unit, "note": r.Note})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Parse(b); err != nil || again.Done != r.Done || again.Total != r.Total || again.Unit != r.Unit {
			t.Fatalf("%s is read as %+v, %v", b, again, err)
		}
		if _, err := Parse(fmt.Appendf(nil, "%d/%d", r.Done, r.Total)); err != nil {
			t.Fatal(err)
		}
	})
}
