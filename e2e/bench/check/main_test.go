package main

import (
	"os"
	"strings"
	"testing"
)

// What benchstat prints, with times, and benchmarks that one side has not.
const printed = `goos: linux
pkg: a/orchestrator
,b1,,b2,,,
,sec/op,CI,sec/op,CI,vs base,P
CountX-2,1e-07,∞,9e-07,∞,~,p=0.333 n=2
geomean,12,,14.000000000000004,,+16.67%,

,b1,,b2,,,
,requests/op,CI,requests/op,CI,vs base,P
CountX/once-2,12,∞,14,∞,~,p=0.333 n=2
geomean,12,,14.000000000000004,,+16.67%,

,b1,,b2,,,
,allocs/op,CI,allocs/op,CI,vs base,P
CountY-2,100,∞,104,∞,~,p=1.000 n=1
CountGone-2,3,∞
CountNew-2,,,3,∞
CountLess-2,100,∞,50,∞,~,p=1.000 n=1
geomean,2.9999999999999996,,2.9999999999999996,,+0.00%,
`

func TestJudge(t *testing.T) {
	t.Parallel()
	rows, err := read([]byte(printed))
	if err != nil || len(rows) != 5 {
		t.Fatalf("%+v, %v", rows, err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	err = judge(rows, null)
	for _, want := range []string{
		"orchestrator.CountX/once-2: 14.00 requests/op, in the baseline 12.00: grew by 16.7 %, and 10 % are allowed",
		"CountGone-2: -1.00 allocs/op, in the baseline 3.00: was not run", "CountNew-2: 3.00 allocs/op, in the baseline -1.00: is not in the baseline", "CountLess-2: 50.00 allocs/op, in the baseline 100.00: is 50 % less",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nand %q was wanted", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "CountY") {
		t.Errorf("what is within its tolerance is told: %v", err)
	}
	if _, err := read([]byte("goos: linux\n")); err == nil {
		t.Error("no counts are no error")
	}
}
