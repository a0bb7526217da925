//go:build !linux

package command_test

import "github.com/rogpeppe/go-internal/testscript"

func flocked(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Fatalf("flocked is for Linux: put [!linux] skip before it")
}
