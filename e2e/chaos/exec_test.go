package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

// wanted is how many contenders there are at a time.
const wanted = 3

// contender is one `lock exec`.
type contender struct {
	*harness.Process
	id   int
	on   *machine
	logs string
	// stopped is set while it is stopped on its own.
	stopped bool
	// disturbed: what it says is kept.
	disturbed bool
	// gone: it has lost the lock for certain, and its command must be ended.
	gone bool
}

// contenders are the commands under the lock "work".
type contenders struct {
	count int
	live  []*contender
	// rest: no new ones.
	rest bool
	// hanging are those whose command goes on until it is ended or told.
	hanging []*contender
	// late are those that were paused with their whole machine, for longer than
	// the pause that a lock's next holder serves: nothing but the order stops
	// what such a command is about to write when it wakes.
	late map[int]bool
}

func (c *contenders) step(w *world) {
	c.live = slices.DeleteFunc(c.live, func(p *contender) bool {
		if !ended(p.Process) {
			return false
		}
		code := p.Wait(time.Second)
		if code != 0 {
			w.note("contender %d on %s ended with %d: %s", p.id, p.on.name, code, lastLine(p.Stderr()))
		}
		p.Release()
		if code == 0 && !p.disturbed {
			if err := os.RemoveAll(p.logs); err != nil {
				w.t.Error(err)
			}
		}
		return true
	})
	for up := w.up(); !c.rest && len(c.live) < wanted && len(up) > 0; {
		c.start(w, pick(w, up))
	}
}

func (c *contenders) start(w *world, m *machine) {
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	c.count++
	d := w.between(50*time.Millisecond, 2*time.Second)
	spec := w.aimlock(m, fmt.Sprintf("exec-%d", c.count), "lock", "exec", "-policy", filepath.Join(w.dir, "policy.hcl"), "-grace", "200ms", "-progress-fd", "3", "work", "--", self)
	spec.Env = append(spec.Env, fmt.Sprintf("%s=%d %d %d %s", workerVar, c.count, monotonic(), d, w.dir))
	p := harness.Start(w.t, spec)
	c.live = append(c.live, &contender{Process: p, id: c.count, on: m, logs: spec.Logs})
}

// hang has the command of a contender go on until it is ended: what must keep it
// from working beside the next one's is not that it was short.
func (w *world) hang(c *contender) {
	if c == nil || slices.Contains(w.hanging, c) {
		return
	}
	w.note("the command of contender %d on %s goes on from here", c.id, c.on.name)
	w.write(filepath.Base(hangFile("", c.id)), "")
	w.hanging = append(w.hanging, c)
}

// unhang lets those commands end that may still hold their lock.
func (w *world) unhang() {
	for _, c := range w.hanging {
		if c.gone {
			continue // a command of it that is left over works on, and is seen
		}
		if err := os.Remove(hangFile(w.dir, c.id)); err != nil {
			w.t.Error(err)
		}
	}
	w.hanging = nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// holder is the contender that worked last, or any, so that there is always one;
// nil where none lives.
func (w *world) holder() *contender {
	w.judge.follow(w)
	for _, c := range w.live {
		if c.id == w.judge.working && !c.on.down {
			return c
		}
	}
	if len(w.live) == 0 {
		return nil
	}
	return pick(w, w.live)
}

// awaitHolder waits until somebody works.
func (w *world) awaitHolder() *contender {
	w.t.Helper()
	var c *contender
	w.until(recovery, "somebody works", func() bool {
		c = w.holder()
		return c != nil && c.id == w.judge.working && !c.stopped && !ended(c.Process)
	})
	w.hang(c)
	return c
}

func (w *world) stop(c *contender) {
	w.note("contender %d on %s is stopped", c.id, c.on.name)
	c.Freeze()
	c.stopped, c.disturbed = true, true
}

func (w *world) wake(c *contender) {
	if !c.stopped {
		return
	}
	w.note("contender %d on %s is woken", c.id, c.on.name)
	c.Thaw()
	c.stopped = false
}

func (w *world) kill(c *contender) {
	w.note("contender %d on %s is killed", c.id, c.on.name)
	c.disturbed, c.gone = true, true
	c.Signal(syscall.SIGKILL)
}
