// Command check holds what benchmarks count to a baseline: allocations, requests,
// bytes, transactions, which do not depend on the machine. Times are left out.
// benchstat compares; this says what is too much. It is run by `make bench-check`.
package main

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// tolerance is by how much of the baseline a count may grow, in percent, by unit.
// What a unit counts may grow a little by itself: maps and pools grow when they must,
// and requests that wait meet each other differently.
var tolerance = map[string]float64{"allocs/op": 5, "B/op": 10, "requests/op": 10, "txns/op": 0, "bytes/node": 10}

// improved is by how much less a count must be for the baseline to be renewed, so
// that what was won is kept: in percent.
const improved = 25

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: check BENCHSTAT BASELINE NEW")
		os.Exit(2)
	}
	out, err := exec.Command(os.Args[1], "-format", "csv", os.Args[2], os.Args[3]).Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchstat:", err)
		os.Exit(1)
	}
	rows, err := read(out)
	if err == nil {
		err = judge(rows, os.Stdout)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n\nIf that is meant, renew the baseline, and say why in the commit:\n\n    make bench-baseline\n", err)
		os.Exit(1)
	}
}

// row is one count; a number below 0 is one that is not there.
type row struct {
	pkg, name, unit string
	was, is         float64
}

// read takes benchstat's CSV apart: tables with a line of files, a line of units and
// then one line for each benchmark, between lines that say where it is from.
func read(out []byte) ([]row, error) {
	in := csv.NewReader(bytes.NewReader(out))
	in.FieldsPerRecord = -1
	all, err := in.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("benchstat: %w", err)
	}
	var rows []row
	pkg, unit := "", ""
	number := func(f []string, i int) (float64, error) {
		if i >= len(f) || f[i] == "" {
			return -1, nil
		}
		return strconv.ParseFloat(f[i], 64)
	}
	for _, f := range all {
		p, isPkg := strings.CutPrefix(f[0], "pkg: ")
		switch {
		case isPkg:
			pkg = p
		case f[0] == "" && len(f) > 3 && f[2] == "CI":
			unit = f[1]
		case f[0] == "" || f[0] == "geomean" || len(f) < 2:
		case tolerance[unit] == 0 && unit != "txns/op":
		default:
			r := row{pkg: pkg, name: f[0], unit: unit}
			var errs [2]error
			r.was, errs[0] = number(f, 1)
			r.is, errs[1] = number(f, 3)
			if err := errors.Join(errs[:]...); err != nil {
				return nil, fmt.Errorf("benchstat: %q: %w", strings.Join(f, ","), err)
			}
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return nil, errors.New("there are no counts: the benchmarks did not run")
	}
	return rows, nil
}

// judge prints all counts, and fails for those that grew, are new, or are missing.
func judge(rows []row, to *os.File) error {
	var bad []string
	for _, r := range rows {
		name := r.name
		if r.pkg != "" {
			name = r.pkg[strings.LastIndexByte(r.pkg, '/')+1:] + "." + r.name
		}
		change := 0.0
		if r.was > 0 {
			change = 100 * (r.is - r.was) / r.was
		}
		verdict := ""
		switch {
		case r.was < 0:
			verdict = "is not in the baseline"
		case r.is < 0:
			verdict = "was not run"
		case r.was == 0 && r.is > 0:
			verdict = "was 0"
		case change > tolerance[r.unit]:
			verdict = fmt.Sprintf("grew by %.1f %%, and %.0f %% are allowed", change, tolerance[r.unit])
		case change < -improved:
			verdict = fmt.Sprintf("is %.0f %% less: the baseline should hold that", -change)
		}
		_, _ = fmt.Fprintf(to, "%-50s %14.2f %14.2f %-12s %+7.1f %%\n", name, r.was, r.is, r.unit, change)
		if verdict != "" {
			bad = append(bad, fmt.Sprintf("%s: %.2f %s, in the baseline %.2f: %s", name, r.is, r.unit, r.was, verdict))
		}
	}
	if len(bad) > 0 {
		return errors.New(strings.Join(bad, "\n"))
	}
	return nil
}
