package history

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// operation is one line of what the commands under one lock did. Times are of
// CLOCK_MONOTONIC, which all processes of a machine share.
type operation struct {
	// Kind is 'b' for a command that begins, 'w' for a piece of work.
	Kind   string `json:"kind"`
	Token  uint64 `json:"token"`
	Client int    `json:"client"`
	Call   int64  `json:"call"`
	Return int64  `json:"return"`
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// workerVar makes this program the command of a `lock exec`: it holds the folder
// of the history, the number of the client, when that asked for the lock, and
// for how long to work.
const workerVar = "HISTORY_WORKER"

func TestMain(m *testing.M) {
	if job := os.Getenv(workerVar); job != "" {
		if err := work(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// work looks at nothing but its time: whatever must keep it from working beside
// another one is not here.
func work(job string) error {
	var dir string
	var client int
	var asked int64
	var d time.Duration
	if _, err := fmt.Sscanf(job, "%d %d %d %s", &client, &asked, &d, &dir); err != nil {
		return fmt.Errorf("%s: %w", workerVar, err)
	}
	token, err := strconv.ParseUint(os.Getenv("AIMLOCK_TOKEN"), 10, 64)
	if err != nil {
		return fmt.Errorf("AIMLOCK_TOKEN: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "operations"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// What was not yet written here when the process was killed is left out of
	// the history: nothing but the line itself would show it.
	put := func(kind string, call int64) error {
		b, err := json.Marshal(operation{kind, token, client, call, monotonic()})
		if err != nil {
			return err
		}
		_, err = log.Write(append(b, '\n'))
		return err
	}
	if err := put("b", asked); err != nil {
		return err
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(d); ; {
		if err := put("w", monotonic()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-end:
			return nil
		}
	}
}

func operations(t *testing.T, dir string) []operation {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "operations"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []operation
	for line := range bytes.Lines(b) {
		var o operation
		if err := json.Unmarshal(line, &o); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, o)
	}
	return out
}
