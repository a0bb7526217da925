package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	t.Parallel()
	const printed = `goos: linux
pkg: github.com/aim-control/aimlock/e2e/bench
BenchmarkRecoveryAfterKill/consul-lock-2         	       1	        44.90 s/recovery
BenchmarkRecoveryAfterKill/lock-exec-2           	       1	       250.0 ratio	         0.1800 s/recovery
BenchmarkRecoveryAfterKill/lock-exec-2           	       1	       230.0 ratio	         0.1900 s/recovery
BenchmarkRecoveryAfterKill/lock-exec-2           	       1	       240.0 ratio	         0.2100 s/recovery
BenchmarkIdle-2 	       1	        30.5 requests/agent-hour
PASS
`
	var b strings.Builder
	if err := write(&b, strings.NewReader(printed)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| kill -9: `consul lock`, seconds to the next holder | 44.9 | 44.9 to 44.9 | 1 |", "| kill -9: `aimlock lock exec` | 0.19 | 0.18 to 0.21 | 3 |", "times | 240 | 230 to 250 | 3 |",
		"| requests in all | 30.5 | 30.5 to 30.5 | 1 |", "| the raw floor, seconds | – | – | 0 |", "go test -run '^$' -benchtime 1x ./bench -bench AcquireRelease",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in\n%s", want, b.String())
		}
	}
	if err := write(&b, strings.NewReader("PASS\n")); err == nil {
		t.Error("nothing measured is no error")
	}
}
