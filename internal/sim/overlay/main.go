// The overlay makes Go's own scheduler replayable in a simulation: of the goroutines
// of a bubble of testing/synctest one runs at a time, and which one is next, which
// case a select takes of several that are ready, which of the timers of one moment
// runs first, and in which order a map is walked, is drawn from the bubble's time and
// the number of draws before it. Outside of a bubble nothing changes.
//
//	go test -overlay "$(go run ./internal/sim/overlay DIR)" …
//
// It writes the changed files of the runtime and what tells the Go tool of them into
// DIR, and prints the path of the latter. The changes are in patches.go.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: overlay DIR")
		os.Exit(2)
	}
	path, err := write(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "overlay:", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

// write puts the changed files into dir. A file that is there as it shall be is left
// alone, so that what was compiled from it stands.
func write(dir string) (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	runtime := filepath.Join(strings.TrimSpace(string(out)), "src", "runtime")
	changed := map[string][]byte{}
	for _, p := range patches {
		src := filepath.Join(runtime, p.file)
		b, ok := changed[src]
		if !ok {
			if b, err = os.ReadFile(src); err != nil {
				return "", err
			}
		}
		if n := bytes.Count(b, []byte(p.old)); n != 1 {
			return "", fmt.Errorf("%s: %q stands there %d times, and not once: this version of Go does it in another way, for which the overlay (%s) is to be written anew", src, strings.TrimSpace(p.old), n, p.why)
		}
		changed[src] = bytes.Replace(b, []byte(p.old), []byte(p.new), 1)
	}
	replace := map[string]string{}
	var errs []error
	for src, b := range changed {
		dst := filepath.Join(dir, filepath.Base(src))
		replace[src] = dst
		errs = append(errs, keep(dst, b))
	}
	j, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	list := filepath.Join(dir, "overlay.json")
	return list, errors.Join(errors.Join(errs...), err, keep(list, j))
}

// keep writes a file unless it is there already.
func keep(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return os.WriteFile(path, b, 0o644)
}
