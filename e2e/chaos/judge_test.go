package chaos

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// judge follows what is written and fails the test at the first thing that must
// not be.
type judge struct {
	ops   tailed
	nodes map[string]*node

	// Of the commands under the lock:
	newest  orchestrator.Order
	working int   // the contender of newest
	begunAt int64 // when it began
	holds   []porcupine.Operation
	work    int           // lines of work
	stale   int           // late ones, which the order kept out
	last    int64         // the newest line
	gap     time.Duration // the longest time without a line since reset

	// What stood in Consul after the last round.
	desired, actual map[string]orchestrator.Order
	breaks          map[string]string
}

// node is what one node did.
type node struct {
	log  tailed
	last loaded
	// texts are all that it was made to load.
	texts map[string]bool
}

// tailed is a file of lines, read as it grows.
type tailed struct {
	path   string
	offset int64
}

func (f *tailed) lines() ([][]byte, error) {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Seek(f.offset, io.SeekStart); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	whole := bytes.LastIndexByte(b, '\n') + 1
	f.offset += int64(whole)
	return slices.Collect(bytes.Lines(b[:whole])), nil
}

func (j *judge) init(w *world) {
	j.ops.path = filepath.Join(w.dir, "operations")
	j.nodes = map[string]*node{}
	j.desired, j.actual, j.breaks = map[string]orchestrator.Order{}, map[string]orchestrator.Order{}, map[string]string{}
	j.last = monotonic()
}

// reset begins to measure for how long nobody works.
func (j *judge) reset(w *world) {
	j.follow(w)
	j.last, j.gap = monotonic(), 0
}

func (j *judge) follow(w *world) {
	lines, err := j.ops.lines()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, line := range lines {
		var o operation
		if err := json.Unmarshal(line, &o); err != nil {
			w.t.Fatalf("%q: %v", line, err)
		}
		j.operation(w, o)
	}
	for _, m := range w.clients {
		j.loads(w, m.name)
	}
}

func (j *judge) operation(w *world, o operation) {
	c := o.order().Compare(j.newest)
	switch {
	case w.late[o.Client] && (c < 0 || o.Refused):
		j.stale++
		if !o.Refused && o.Return > j.begunAt {
			w.violation("contender %d was paused with its machine, and what checks the order let it write by %s beside contender %d, which has %s: %+v", o.Client, o.order(), j.working, j.newest, o)
		}
		return
	case c < 0:
		w.violation("two writers: contender %d writes by %s after contender %d began by %s: %+v", o.Client, o.order(), j.working, j.newest, o)
		return
	case c > 0 && o.Kind != "b":
		w.violation("contender %d works by %s before it begins: %+v", o.Client, o.order(), o)
	case c == 0 && o.Client != j.working:
		w.violation("contenders %d and %d have the same order %s", j.working, o.Client, o.order())
	case c == 0 && o.Kind == "b":
		w.violation("contender %d begins twice by %s", o.Client, o.order())
	case o.Refused:
		w.violation("the order %s of contender %d, the newest, is refused", o.order(), o.Client)
	}
	if o.Return > j.last {
		j.gap = max(j.gap, time.Duration(o.Return-j.last))
		j.last = o.Return
	}
	op := porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return}
	if c > 0 {
		j.newest, j.working, j.begunAt = o.order(), o.Client, o.Return
		j.holds = append(j.holds, op)
		return
	}
	// Of each hold its beginning and its last piece of work say when it was; the
	// pieces between were compared as they came.
	j.work++
	if last := &j.holds[len(j.holds)-1]; last.Input.(operation).Kind == "w" {
		*last = op
	} else {
		j.holds = append(j.holds, op)
	}
}

// model is a lock: each holder's order is newer than every one before, and
// nothing is done but by the last one that began.
var model = porcupine.Model{
	Init: func() any { return orchestrator.Order{} },
	Step: func(state, in, _ any) (bool, any) {
		held, op := state.(orchestrator.Order), in.(operation)
		if op.Kind == "b" {
			return held.Less(op.order()), op.order()
		}
		return op.order() == held, held
	},
	Equal: func(a, b any) bool { return a == b },
}

// history judges all holds together.
func (j *judge) history(w *world) {
	if res := porcupine.CheckOperationsTimeout(model, j.holds, time.Minute); res != porcupine.Ok {
		w.violation("porcupine: %s: this is no history of one lock", res)
	}
}

// loads follows what a node was made to load.
func (j *judge) loads(w *world, name string) {
	n := j.nodes[name]
	if n == nil {
		n = &node{log: tailed{path: filepath.Join(w.dir, name+".loaded")}, texts: map[string]bool{}}
		j.nodes[name] = n
	}
	lines, err := n.log.lines()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, line := range lines {
		var l loaded
		if err := json.Unmarshal(line, &l); err != nil {
			w.t.Fatalf("%q: %v", line, err)
		}
		switch c := l.Order.Compare(n.last.Order); {
		case c < 0:
			w.violation("%s loads %q by order %s after %q by %s", name, l.Text, l.Order, n.last.Text, n.last.Order)
		case c == 0 && l.Text != n.last.Text:
			w.violation("%s loads %q and then %q by order %s", name, n.last.Text, l.Text, l.Order)
		}
		n.last, n.texts[l.Text] = l, true
	}
}

// audit reads what stands in Consul and on the nodes when a round is over: what
// was acknowledged is there.
func (j *judge) audit(w *world) {
	w.t.Helper()
	later := func(what, name string, have orchestrator.Order, seen map[string]orchestrator.Order) {
		if have.Less(seen[name]) {
			w.violation("%s of %s went back from order %s to %s", what, name, seen[name], have)
		}
		seen[name] = have
	}
	var answers map[string]orchestrator.Order
	loads := map[string]orchestrator.Order{}
	for name, n := range j.nodes {
		loads[name] = n.last.Order
	}
	w.until(recovery, "every node has answered to what it loaded", func() bool {
		answers = j.answers(w)
		for _, m := range w.clients {
			if answers[m.name].Less(loads[m.name]) {
				return false
			}
		}
		return true
	})
	for name, o := range answers {
		later("the answer", name, o, j.actual)
	}
	for _, p := range w.list(prefix.DesiredAll(config)) {
		var d records.Desired
		if err := records.Decode(p.Key, p.Value, &d); err != nil {
			w.violation("%v", err)
			continue
		}
		later("the order", p.Key, d.Order, j.desired)
	}
	// A rollout that is under way may be between a file and its reload.
	w.until(recovery, "every node has what it loaded last", func() bool {
		for _, m := range w.clients {
			b, err := os.ReadFile(filepath.Join(m.dir, "root", "etc", "app", config))
			if err != nil || strings.TrimSpace(string(b)) != j.nodes[m.name].last.Text {
				return false
			}
		}
		return true
	})
	j.records(w)
}

// succeeded is asked when a rollout says that it reached every node.
func (j *judge) succeeded(w *world, revision int, t told) {
	j.follow(w)
	for _, m := range w.clients {
		if text := fmt.Sprintf("revision = %d", revision); !j.nodes[m.name].texts[text] {
			w.violation("rollout %s says that it succeeded on every node, and %s has never loaded %q", t.ID, m.name, text)
		}
	}
}

func (j *judge) answers(w *world) map[string]orchestrator.Order {
	w.t.Helper()
	out := map[string]orchestrator.Order{}
	for _, p := range w.list(prefix.ActualAll(config)) {
		var a records.Actual
		if err := records.Decode(p.Key, p.Value, &a); err != nil {
			w.violation("%v", err)
		}
		out[a.Node] = a.Order
	}
	return out
}

// records: rollouts that said succeeded, and audit records, stand.
func (j *judge) records(w *world) {
	w.t.Helper()
	states := map[string]orchestrator.Status{}
	for _, p := range w.list(prefix.Rollouts()) {
		id, ok := prefix.RolloutID(p.Key)
		if !ok {
			continue
		}
		var r struct {
			State orchestrator.Status `json:"state"`
		}
		if err := json.Unmarshal(p.Value, &r); err != nil {
			w.violation("%s: %v", p.Key, err)
		}
		states[id] = r.State
	}
	// Of the older ones retention may have taken some.
	for _, t := range w.acked[max(0, len(w.acked)-15):] {
		if states[t.ID] != orchestrator.Succeeded {
			w.violation("rollout %s said that it succeeded, and its record says %q", t.ID, states[t.ID])
		}
	}
	now := j.audits(w)
	for key, outcome := range j.breaks {
		have, ok := now[key]
		if !ok {
			w.violation("the audit record %s is gone", key)
		}
		if ok && outcome != records.OutcomeIntent && have != outcome {
			w.violation("the audit record %s said %q, and says %q", key, outcome, have)
		}
	}
	j.breaks = now
}

func (j *judge) audits(w *world) map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, p := range w.list(prefix.BreaksRoot()) {
		var b records.Break
		if err := records.Decode(p.Key, p.Value, &b); err != nil {
			w.violation("%v", err)
			continue
		}
		out[p.Key] = b.Outcome
	}
	return out
}
