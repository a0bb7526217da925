package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aim-control/aimlock/e2e/lab"
	"github.com/aim-control/aimlock/orchestrator"
)

// These make this program something else than a test: the command of a lock exec,
// which finds the folder, its number, when that asked for the lock and for how
// long to work; and the reload command of a node, which finds the folder.
const (
	workerVar = "CHAOS_WORKER"
	reloadArg = "chaos-reload"
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == reloadArg:
		err = reload(os.Args[2])
	case os.Getenv(workerVar) != "":
		err = work(os.Getenv(workerVar))
	default:
		os.Exit(lab.Main(m))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// operation is a line of what the commands under the lock did. Times are of
// CLOCK_MONOTONIC, which all processes of a machine share.
type operation struct {
	// Kind is "b" for a command that begins, "w" for a piece of work.
	Kind   string `json:"kind"`
	Epoch  uint64 `json:"epoch"`
	Token  uint64 `json:"token"`
	Client int    `json:"client"`
	Call   int64  `json:"call"`
	Return int64  `json:"return"`
	// Refused is set where the file that checks the order refused it.
	Refused bool `json:"refused,omitempty"`
}

func (o operation) order() orchestrator.Order {
	return orchestrator.Order{Epoch: o.Epoch, Token: o.Token}
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// step is how often a command works.
const step = 10 * time.Millisecond

// work looks at nothing but its time: whatever must keep it from working beside
// another one is not here. Each piece of work is a line of a file that takes all
// of them, after a write to one that refuses old orders.
func work(job string) error {
	var dir string
	var o operation
	var d time.Duration
	if _, err := fmt.Sscanf(job, "%d %d %d %s", &o.Client, &o.Call, &d, &dir); err != nil {
		return fmt.Errorf("%s: %w", workerVar, err)
	}
	var err error
	if o.Token, err = strconv.ParseUint(os.Getenv("AIMLOCK_TOKEN"), 10, 64); err != nil {
		return fmt.Errorf("AIMLOCK_TOKEN: %w", err)
	}
	if o.Epoch, err = strconv.ParseUint(os.Getenv("AIMLOCK_EPOCH"), 10, 64); err != nil {
		return fmt.Errorf("AIMLOCK_EPOCH: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "operations"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	mark, err := os.OpenFile(filepath.Join(dir, "mark"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer mark.Close()
	progress, said := os.NewFile(3, "progress"), time.Time{}
	put := func(kind string) error {
		o.Kind = kind
		if o.Refused, err = refused(mark, o.order()); err != nil {
			return err
		}
		if time.Since(said) > time.Second/2 {
			said = time.Now()
			if _, err := fmt.Fprintln(progress, "1"); err != nil {
				return err
			}
		}
		o.Return = monotonic()
		b, err := json.Marshal(o)
		if err == nil {
			_, err = log.Write(append(b, '\n'))
		}
		return err
	}
	if err := put("b"); err != nil {
		return err
	}
	tick := time.NewTicker(step)
	defer tick.Stop()
	for start := time.Now(); time.Since(start) < d || time.Since(start) < hangLimit && hangs(dir, o.Client); {
		o.Call = monotonic()
		if err := put("w"); err != nil {
			return err
		}
		<-tick.C
	}
	return nil
}

// hangLimit is the end of a command that nobody ends.
const hangLimit = 3 * time.Minute

// hangs tells whether a command is to go on though it is done, until somebody ends
// it.
func hangs(dir string, client int) bool {
	_, err := os.Stat(hangFile(dir, client))
	return err == nil
}

func hangFile(dir string, client int) string {
	return filepath.Join(dir, fmt.Sprintf("hang-%d", client))
}

// refused is the resource that checks the order, as docs/exec.md asks: it keeps
// the highest that it has seen.
func refused(mark *os.File, o orchestrator.Order) (bool, error) {
	// Nobody holds it for longer than two system calls, unless it is stopped in
	// between: then the others do without.
	deadline := time.Now().Add(time.Second)
	for {
		err := unix.Flock(int(mark.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return false, fmt.Errorf("lock the mark: %w", err)
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		<-time.After(100 * time.Microsecond)
	}
	defer func() { _ = unix.Flock(int(mark.Fd()), unix.LOCK_UN) }()
	buf := make([]byte, 64)
	n, _ := mark.ReadAt(buf, 0)
	var high orchestrator.Order
	if n > 0 {
		if _, err := fmt.Sscanf(string(buf[:n]), "%d %d", &high.Epoch, &high.Token); err != nil {
			return false, fmt.Errorf("the mark %q: %w", buf[:n], err)
		}
	}
	if o.Less(high) {
		return true, nil
	}
	_, err := mark.WriteAt(fmt.Appendf(nil, "%-20d %-20d\n", o.Epoch, o.Token), 0)
	return false, err
}

// loaded is a line of what a node was made to load.
type loaded struct {
	Order orchestrator.Order `json:"order"`
	Text  string             `json:"text"`
	At    int64              `json:"at"`
}

// reload is a node's reload command: it writes down what stands, and by which
// order.
func reload(dir string) error {
	var l loaded
	for name, n := range map[string]*uint64{"AIMLOCK_EPOCH": &l.Order.Epoch, "AIMLOCK_TOKEN": &l.Order.Token, "AIMLOCK_SEQ": &l.Order.Seq} {
		var err error
		if *n, err = strconv.ParseUint(os.Getenv(name), 10, 64); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	text, err := os.ReadFile(os.Getenv("AIMLOCK_DESTINATION"))
	if err != nil {
		return err
	}
	l.Text, l.At = strings.TrimSpace(string(text)), monotonic()
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, os.Getenv("AIMLOCK_NODE")+".loaded"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	_, err = log.Write(append(b, '\n'))
	return err
}
