package reports

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/aim-control/aimlock/internal/text"
)

// Bounds of one report.
const (
	// MaxLine is the most bytes of a line, without its end.
	MaxLine = 4 << 10
	// MaxCount is the largest number that every JSON reader keeps exactly.
	MaxCount = 1<<53 - 1
	// MaxUnit and MaxNote are bytes.
	MaxUnit = 40
	MaxNote = 400
)

// Report is one statement of progress.
type Report struct {
	// Done of Total; Total 0 means that nobody knows how much there is.
	Done, Total int64
	// Unit names what is counted, in one word; it may be empty.
	Unit string
	// Note is for people.
	Note string
}

// Parse reads one line. It is one of
//
//	DONE[/TOTAL] [UNIT [NOTE…]]
//	{"done": N, "total": N, "unit": "…", "note": "…"}
//
// with whole numbers from 0 to MaxCount. In JSON done must stand, and no other
// field may.
func Parse(line []byte) (Report, error) {
	if len(line) > MaxLine {
		return Report{}, fmt.Errorf("the line has more than %d bytes", MaxLine)
	}
	if !utf8.Valid(line) {
		return Report{}, errors.New("the line is not UTF-8")
	}
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return Report{}, errors.New("the line is empty")
	}
	r, err := parse(line)
	if err != nil {
		return Report{}, err
	}
	switch {
	case r.Done < 0 || r.Done > MaxCount || r.Total < 0 || r.Total > MaxCount:
		return Report{}, fmt.Errorf("done and total must be from 0 to %d", int64(MaxCount))
	case r.Total > 0 && r.Done > r.Total:
		return Report{}, fmt.Errorf("%d are done of %d", r.Done, r.Total)
	case len(r.Unit) > MaxUnit:
		return Report{}, fmt.Errorf("the unit has more than %d bytes", MaxUnit)
	}
	r.Unit, r.Note = text.Printable(r.Unit), text.Clip(text.Printable(r.Note), MaxNote)
	return r, nil
}

func parse(line []byte) (Report, error) {
	if line[0] == '{' {
		return parseJSON(line)
	}
	count, rest, _ := strings.Cut(string(line), " ")
	if i := strings.IndexByte(count, '\t'); i >= 0 {
		return Report{}, fmt.Errorf("%q is no count: put blanks between the words", text.Clip(text.Printable(count), 40))
	}
	var r Report
	done, total, some := strings.Cut(count, "/")
	var err error
	if r.Done, err = number(done); err != nil {
		return Report{}, err
	}
	if some {
		if r.Total, err = number(total); err != nil {
			return Report{}, err
		}
	}
	unit, note, _ := strings.Cut(strings.TrimSpace(rest), " ")
	r.Unit, r.Note = unit, strings.TrimSpace(note)
	return r, nil
}

// number takes digits only: no sign, no underscore, no other base.
func number(s string) (int64, error) {
	bad := fmt.Errorf("%q is no count: write DONE/TOTAL, such as 3/10", text.Clip(text.Printable(s), 40))
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, bad
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, bad
	}
	return n, nil
}

func parseJSON(line []byte) (Report, error) {
	var v struct {
		Done  *int64 `json:"done"`
		Total int64  `json:"total"`
		Unit  string `json:"unit"`
		Note  string `json:"note"`
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return Report{}, fmt.Errorf("not a JSON object with done, total, unit and note: %s", text.Clip(text.Printable(err.Error()), 200))
	}
	if dec.More() {
		return Report{}, errors.New("something stands after the JSON object")
	}
	if v.Done == nil {
		return Report{}, errors.New(`the JSON object has no "done"`)
	}
	return Report{Done: *v.Done, Total: v.Total, Unit: v.Unit, Note: v.Note}, nil
}
