package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/orchestrator"
)

const config = "app.conf"

// driver is one `rollout start`.
type driver struct {
	*harness.Process
	on       *machine
	revision int
	logs     string
	stopped  bool
	// doubtful: it began before a restore, which may have taken back what it says.
	doubtful bool
}

// told is what `rollout start -json` says at its end.
type told struct {
	ID     string              `json:"id"`
	State  orchestrator.Status `json:"state"`
	Counts map[string]int      `json:"counts"`
	Total  int                 `json:"total"`

	at int64
}

// full tells whether every node has what it shall have.
func (t told) full() bool {
	return t.State == orchestrator.Succeeded && t.Counts["applied"] == t.Total && t.Total > 0
}

// rollouts are revisions of one config, one after the other, each driven until
// some `rollout start` says that it succeeded.
type rollouts struct {
	revision int
	done     bool // some driver of the revision said so
	begun    int
	drivers  []*driver
	acked    []told
	resume   *harness.Process // an operator's order
	notYet   time.Time        // when the next driver may start
	epoch    uint64           // after the last recovery
}

func (w *world) startRollouts() {
	type member struct {
		Node string `json:"node"`
	}
	var fleet []member
	for _, m := range w.clients {
		fleet = append(fleet, member{m.name})
	}
	b, err := json.Marshal(fleet)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("fleet.json", string(b))
	w.revise()
}

// revise writes the next revision and its spec.
func (w *world) revise() {
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	w.revision++
	w.done = false
	w.write(fmt.Sprintf("rollout-%d/%s", w.revision, config), fmt.Sprintf("revision = %d\n", w.revision))
	w.write(fmt.Sprintf("rollout-%d/rollout.hcl", w.revision), fmt.Sprintf(`rollout "app" {
  config %q {
    source      = %q
    destination = "/etc/app/app.conf"
    reload      = [%q, %q, %q]
  }
  fleet {
    file {
      path = "../fleet.json"
    }
  }
  lock {
    wait = "10m"
  }
  node_deadline = "10s"
  stage "canary" {
    nodes = 1
  }
  stage "rest" {
    percent      = 100
    max_parallel = 2
  }
  failure {
    max_failed              = 1000
    max_unreachable_percent = 100
  }
}
`, config, config, self, reloadArg, w.dir))
}

func (r *rollouts) step(w *world) {
	r.drivers = slices.DeleteFunc(r.drivers, func(d *driver) bool {
		if !ended(d.Process) {
			return false
		}
		w.driverEnded(d)
		return true
	})
	if w.resume != nil && ended(w.resume) {
		if code := w.resume.Wait(time.Second); code != 0 {
			w.note("to resume: exit %d: %s", code, lastLine(w.resume.Stderr()))
		}
		w.resume.Release()
		w.resume = nil
	}
	awake := 0
	for _, d := range r.drivers {
		if !d.stopped && d.revision == r.revision {
			awake++
		}
	}
	up := w.up()
	if awake > 0 || len(up) == 0 || time.Now().Before(r.notYet) {
		return
	}
	if r.done {
		w.revise()
	}
	w.drive(pick(w, up))
	if w.rng.IntN(4) == 0 {
		w.drive(pick(w, up)) // two at once are safe
	}
}

func (w *world) drive(m *machine) {
	w.rollouts.begun++
	spec := w.aimlock(m, fmt.Sprintf("rollout-%d", w.rollouts.begun), "rollout", "start", "-json", "-policy", filepath.Join(w.dir, "policy.hcl"),
		filepath.Join(w.dir, fmt.Sprintf("rollout-%d", w.revision), "rollout.hcl"))
	p := harness.Start(w.t, spec)
	w.drivers = append(w.drivers, &driver{Process: p, on: m, revision: w.revision, logs: spec.Logs})
}

func (w *world) driverEnded(d *driver) {
	code := d.Wait(time.Second)
	var t told
	if code == 0 {
		if err := json.Unmarshal([]byte(d.Stdout()), &t); err != nil {
			w.violation("the rollout of revision %d on %s exits 0 and says %q: %v", d.revision, d.on.name, d.Stdout(), err)
		}
	}
	switch {
	case code == 0 && t.State == orchestrator.Succeeded:
		t.at = monotonic()
		if t.full() {
			w.judge.succeeded(w, d.revision, t)
		}
		if !d.doubtful {
			w.acked = append(w.acked, t)
		}
		if d.revision == w.revision {
			w.done = true
		}
		if !t.full() {
			w.note("revision %d by %s succeeded without all nodes: %v", d.revision, d.on.name, t.Counts)
		}
		if err := os.RemoveAll(d.logs); err != nil {
			w.t.Error(err)
		}
		w.notYet = time.Now().Add(200 * time.Millisecond)
	case code == 6 && w.resume == nil && w.orderOf(d):
	default:
		w.note("revision %d by %s: exit %d, %s: %s", d.revision, d.on.name, code, t.State, lastLine(d.Stderr()))
		w.notYet = time.Now().Add(500 * time.Millisecond)
	}
	d.Release()
}

// wayOn is what a rollout that is paused names as the way on.
var wayOn = regexp.MustCompile("`aimlock (rollout resume -pause [0-9]+ [^`]+)`")

// orderOf has an operator read what a rollout says that is paused, since all nodes of
// its first stage were away, and do it.
func (w *world) orderOf(d *driver) bool {
	up := w.up()
	order := wayOn.FindStringSubmatch(d.Stderr())
	if order == nil || len(up) == 0 {
		return false
	}
	w.note("revision %d by %s: %s", d.revision, d.on.name, order[1])
	w.begun++
	w.resume = harness.Start(w.t, w.aimlock(pick(w, up), fmt.Sprintf("resume-%d", w.begun), strings.Fields(order[1])...))
	w.notYet = time.Now().Add(500 * time.Millisecond)
	return true
}

// driver waits for an orchestrator that drives.
func (w *world) awaitDriver() *driver {
	w.t.Helper()
	var d *driver
	w.until(recovery, "somebody drives a rollout", func() bool {
		for _, o := range w.drivers {
			if !o.stopped && !o.on.down {
				d = o
				return true
			}
		}
		return false
	})
	return d
}
