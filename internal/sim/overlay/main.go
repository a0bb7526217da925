// The overlay makes Go's own select replayable in a simulation: of several cases
// that are ready it takes one by the time of the bubble, and not by chance. Outside
// of a bubble of testing/synctest nothing changes.
//
//	go test -overlay "$(go run ./internal/sim/overlay DIR)" …
//
// It writes the changed file of the runtime and what tells the Go tool of it into
// DIR, and prints the path of the latter.
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

// What stands once in the runtime's select.go, and what it is replaced by.
const (
	chance = "		j := cheaprandn(uint32(norder + 1))\n"
	decree = `		var j uint32
		if bubble := getg().bubble; bubble != nil {
			j = uint32((uint64(bubble.now)*0x9e3779b97f4a7c15>>33)+uint64(i)) % uint32(norder+1)
		} else {
			j = cheaprandn(uint32(norder + 1))
		}
`
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

func write(dir string) (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w", err)
	}
	src := filepath.Join(strings.TrimSpace(string(out)), "src", "runtime", "select.go")
	b, err := os.ReadFile(src)
	if err != nil {
		return "", err
	}
	if n := bytes.Count(b, []byte(chance)); n != 1 {
		return "", fmt.Errorf("%s: %q stands there %d times, and not once: this version of Go chooses in another way, for which the overlay is to be written anew", src, strings.TrimSpace(chance), n)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	changed, list := filepath.Join(dir, "select.go"), filepath.Join(dir, "overlay.json")
	j, err := json.Marshal(map[string]map[string]string{"Replace": {src: changed}})
	if err != nil {
		return "", err
	}
	return list, errors.Join(
		os.MkdirAll(dir, 0o755),
		os.WriteFile(changed, bytes.Replace(b, []byte(chance), []byte(decree), 1), 0o644),
		os.WriteFile(list, j, 0o644),
	)
}
