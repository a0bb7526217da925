package orchestrator

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Matcher tells whether a node is one of those that a stage's Select means.
// It must be a function of its arguments alone. Package orchestrator/selector
// makes one of a spec; the core is handed it, so that it knows no language.
type Matcher func(stage int, n *Node) (bool, error)

// PlanOption is what a plan needs beside a spec and a fleet.
type PlanOption func(*planOptions)

type planOptions struct{ match Matcher }

// Selecting hands NewPlan what the stages with a Select need.
func Selecting(m Matcher) PlanOption { return func(o *planOptions) { o.match = m } }

func options(opts []PlanOption) (o planOptions) {
	for _, f := range opts {
		f(&o)
	}
	return o
}

// StageError is what is wrong with one stage of a spec, as it stands or with
// the fleet that it is for.
type StageError struct {
	// Stage is its index.
	Stage int
	Name  string
	Err   error
}

func (e *StageError) Error() string { return fmt.Sprintf("stage %q: %v", e.Name, e.Err) }

func (e *StageError) Unwrap() error { return e.Err }

// dealer deals a fleet out to stages. Nodes are known to it by their place in
// the order of names.
//
// Invariant: dealt and rest have every node once between them.
type dealer struct {
	spec  *Spec
	match Matcher
	fleet []Node
	// byName are indexes into fleet.
	byName []int32
	// zone is the place of each node's value of Spread among all values; nil
	// without a Spread.
	zone  []int32
	zones int
	// pin is the stage that names a node in its order, for those that have
	// one. An earlier stage takes such a node only when it needs all that
	// there are.
	pin map[int32]int

	dealt []int32
	rest  []int32 // in the order of turns
	done  []bool
	// uneven: rest is not the order of turns any more, because a stage took
	// others than the first of it.
	uneven   bool
	ends     []int
	warnings []string
}

func newDealer(spec *Spec, fleet []Node, match Matcher) (*dealer, error) {
	d := &dealer{spec: spec, match: match, fleet: fleet, byName: sortByName(fleet), done: make([]bool, len(fleet))}
	for i := 1; i < len(fleet); i++ {
		if d.name(int32(i)) == d.name(int32(i-1)) {
			return nil, fmt.Errorf("node %q is in the fleet twice", d.name(int32(i)))
		}
	}
	d.turns()
	return d, nil
}

// sortByName returns the indexes of a fleet by its nodes' names. Most names of
// a fleet begin alike and differ within eight bytes after that, so these are
// compared first: a large fleet's names lie all over memory.
func sortByName(fleet []Node) []int32 {
	first, same := fleet[0].Name, len(fleet[0].Name)
	for i := range fleet {
		n := 0
		for name := fleet[i].Name; n < same && n < len(name) && name[n] == first[n]; {
			n++
		}
		same = n
	}
	type keyed struct {
		key   uint64
		index int32
	}
	list := make([]keyed, len(fleet))
	for i := range fleet {
		var key [8]byte // shorter names are padded with what sorts first
		copy(key[:], fleet[i].Name[same:])
		list[i] = keyed{binary.BigEndian.Uint64(key[:]), int32(i)}
	}
	slices.SortFunc(list, func(a, b keyed) int {
		if c := cmp.Compare(a.key, b.key); c != 0 {
			return c
		}
		return strings.Compare(fleet[a.index].Name, fleet[b.index].Name)
	})
	out := make([]int32, len(list))
	for i := range list {
		out[i] = list[i].index
	}
	return out
}

func (d *dealer) name(i int32) string { return d.fleet[d.byName[i]].Name }

// turns makes the order of turns: by name, or round robin over the values of
// the metadata key Spread, each value's nodes by name. So the first n nodes
// hold each value as often as any other, give or take one, for as long as it
// has nodes left.
func (d *dealer) turns() {
	d.rest = make([]int32, len(d.fleet))
	if d.spec.Spread == "" {
		for i := range d.rest {
			d.rest[i] = int32(i)
		}
		return
	}
	groups := map[string][]int32{}
	for i := range d.rest {
		v := d.fleet[d.byName[i]].Meta[d.spec.Spread]
		groups[v] = append(groups[v], int32(i))
	}
	values := make([]string, 0, len(groups))
	for v := range groups {
		values = append(values, v)
	}
	slices.Sort(values)
	if len(values) == 1 && values[0] == "" {
		d.warn("no node of the fleet has the metadata %q that spread names: stages take nodes by name alone", d.spec.Spread)
	}
	d.zone, d.zones = make([]int32, len(d.fleet)), len(values)
	for z, v := range values {
		for _, i := range groups[v] {
			d.zone[i] = int32(z)
		}
	}
	d.rest = d.rest[:0]
	for round := 0; len(values) > 0; round++ {
		left := values[:0]
		for _, v := range values {
			g := groups[v]
			d.rest = append(d.rest, g[round])
			if round+1 < len(g) {
				left = append(left, v)
			}
		}
		values = left
	}
}

// deal gives every stage its nodes.
func (d *dealer) deal() error {
	if err := d.pins(); err != nil {
		return err
	}
	d.dealt = make([]int32, 0, len(d.fleet))
	for i := range d.spec.Stages {
		st := &d.spec.Stages[i]
		err := d.check(st)
		switch {
		case err != nil:
		case st.Select == "" && len(st.Order) == 0 && len(d.pin) == 0 && !d.uneven:
			d.take(d.quota(st, len(d.fleet), len(d.dealt), len(d.rest)))
		default:
			err = d.pick(i, st)
		}
		if err != nil {
			return &StageError{Stage: i, Name: st.Name, Err: err}
		}
		d.ends = append(d.ends, len(d.dealt))
	}
	if n := len(d.rest); n > 0 {
		d.warn("the stages end after %d of %s: the rest is skipped", len(d.dealt), countNodes(len(d.fleet)))
	}
	return nil
}

func (d *dealer) warn(format string, args ...any) {
	d.warnings = append(d.warnings, fmt.Sprintf(format, args...))
}

func (d *dealer) check(st *Stage) error {
	switch {
	case st.Nodes > 0 && st.Percent > 0:
		return errors.New("it has both nodes and percent")
	case st.Nodes < 0 || st.Percent < 0 || st.Percent > 100:
		return fmt.Errorf("nodes is %d and percent %d: 100 percent is all", st.Nodes, st.Percent)
	case st.Nodes == 0 && st.Percent == 0 && st.Select == "" && len(st.Order) == 0:
		return errors.New("it has none of nodes, percent, select and order")
	case st.Select != "" && d.match == nil:
		return errors.New("it selects nodes, and this caller brought nothing that reads the selector")
	}
	return nil
}

// pins notes which nodes are named in the order of a stage.
func (d *dealer) pins() error {
	for s := range d.spec.Stages {
		st := &d.spec.Stages[s]
		var missing []string
		for _, name := range st.Order {
			at, ok := slices.BinarySearchFunc(d.byName, name, func(i int32, n string) int { return strings.Compare(d.fleet[i].Name, n) })
			if !ok {
				missing = append(missing, name)
				continue
			}
			if d.pin == nil {
				d.pin = map[int32]int{}
			}
			i := int32(at)
			if first, twice := d.pin[i]; twice {
				return &StageError{Stage: s, Name: st.Name, Err: fmt.Errorf("node %q is in the order of stage %q already", name, d.spec.Stages[first].Name)}
			}
			d.pin[i] = s
		}
		switch {
		case len(missing) == 0:
		case st.Nodes == 0 && st.Percent == 0 && st.Select == "":
			// The author said: exactly these. Going on with fewer, or with none
			// as the canary, is not what was meant.
			return &StageError{Stage: s, Name: st.Name, Err: fmt.Errorf("its order names %s, not in the fleet: take it out, or add nodes, percent or select, so that others stand in for it", few(missing[:min(len(missing), 5)], len(missing)))}
		default:
			d.warn("stage %q: its order names %s, not in the fleet", st.Name, few(missing[:min(len(missing), 5)], len(missing)))
		}
	}
	return nil
}

// few joins some names, which are the first ones of n.
func few(names []string, n int) string {
	out := strings.Join(names, ", ")
	if n > len(names) {
		out = fmt.Sprintf("%s and %d more", out, n-len(names))
	}
	return out
}

// quota is how many nodes a stage takes: of all that it may choose from, done
// are done before it, and left are not.
func (d *dealer) quota(st *Stage, all, done, left int) int {
	switch {
	case st.Nodes > 0:
		return min(st.Nodes, left)
	case st.Percent > 0:
		// Rounded up, so that it is never rounded to nothing.
		return min(max(0, (all*st.Percent+99)/100-done), left)
	}
	return left
}

// take deals the first n of the rest.
func (d *dealer) take(n int) {
	for _, i := range d.rest[:n] {
		d.done[i] = true
	}
	d.dealt = append(d.dealt, d.rest[:n]...)
	d.rest = d.rest[n:]
}

// pick deals the nodes of a stage that does not just take the next ones.
func (d *dealer) pick(s int, st *Stage) error {
	before := len(d.dealt)
	meant, all, err := d.meant(s, st)
	if err != nil {
		return err
	}
	done := 0
	for i, m := range meant {
		if m && d.done[i] {
			done++
		}
	}
	if all == 0 {
		d.warn("stage %q: its select matches no node of the fleet", st.Name)
	} else if all == done && st.Select != "" {
		d.warn("stage %q: all nodes that its select matches are in earlier stages", st.Name)
	}
	n := d.quota(st, all, done, all-done)
	if st.Nodes == 0 && st.Percent == 0 && st.Select == "" {
		n = len(st.Order)
	}
	n = d.ordered(s, st, meant, n)
	if n > 0 {
		for _, i := range d.candidates(meant)[:n] {
			d.done[i] = true
			d.dealt = append(d.dealt, i)
		}
	}
	if len(d.dealt) > before {
		d.rest = slices.DeleteFunc(d.rest, func(i int32) bool { return d.done[i] })
		d.uneven = d.zones > 0
	}
	return nil
}

// meant tells which nodes of the whole fleet the stage may choose from.
func (d *dealer) meant(s int, st *Stage) (meant []bool, all int, err error) {
	meant = make([]bool, len(d.fleet))
	for i := range meant {
		if meant[i] = true; st.Select != "" {
			if meant[i], err = d.match(s, &d.fleet[d.byName[i]]); err != nil {
				return nil, 0, fmt.Errorf("its select on node %q: %w", d.fleet[d.byName[i]].Name, err)
			}
		}
		if meant[i] {
			all++
		}
	}
	return meant, all, nil
}

// ordered deals those that the stage's order names, at most n, and returns how
// many are still to be dealt.
func (d *dealer) ordered(s int, st *Stage, meant []bool, n int) int {
	for _, name := range st.Order {
		at, ok := slices.BinarySearchFunc(d.byName, name, func(i int32, n string) int { return strings.Compare(d.fleet[i].Name, n) })
		i := int32(at)
		if !ok || d.pin[i] != s {
			continue
		}
		delete(d.pin, i) // from here on it is one of many
		switch {
		case d.done[i]:
			d.warn("stage %q: node %s of its order is needed in an earlier stage", st.Name, name)
		case !meant[i]:
			d.warn("stage %q: node %s of its order does not match its select", st.Name, name)
		case n > 0:
			d.done[i] = true
			d.dealt = append(d.dealt, i)
			n--
		}
	}
	if st.Nodes == 0 && st.Percent == 0 && st.Select == "" {
		return 0
	}
	return n
}

// candidates are the nodes that a stage may choose from and that are not dealt
// yet, in the order of their turns: so that the values of Spread are as even
// as they can be among all dealt ones that it may choose from. Those that a
// later stage names come last.
func (d *dealer) candidates(meant []bool) []int32 {
	var out []int32
	for i := range meant {
		if meant[i] && !d.done[i] {
			out = append(out, int32(i))
		}
	}
	// place is the how many-th of its value a node is.
	var place []int32
	if d.zones > 0 {
		seen := make([]int32, d.zones)
		for i, m := range meant {
			if m && d.done[i] {
				seen[d.zone[i]]++
			}
		}
		place = make([]int32, len(meant))
		for _, i := range out {
			place[i] = seen[d.zone[i]]
			seen[d.zone[i]]++
		}
	}
	later := func(i int32) int {
		if _, ok := d.pin[i]; ok {
			return 1
		}
		return 0
	}
	slices.SortFunc(out, func(a, b int32) int {
		if c := cmp.Compare(later(a), later(b)); c != 0 {
			return c
		}
		if d.zones > 0 {
			if c := cmp.Or(cmp.Compare(place[a], place[b]), cmp.Compare(d.zone[a], d.zone[b])); c != 0 {
				return c
			}
		}
		return cmp.Compare(a, b)
	})
	return out
}

// names are all nodes in the order of their turns, those of no stage last.
func (d *dealer) names() []string {
	out := make([]string, 0, len(d.fleet))
	for _, i := range d.dealt {
		out = append(out, d.name(i))
	}
	for _, i := range d.rest {
		out = append(out, d.name(i))
	}
	return out
}

// Reached returns those nodes that some stage of the spec could take, given
// the numbers: for a fleet's late joiners, of whom those in no stage's select
// must not be given the config by another way.
func Reached(spec *Spec, fleet []Node, opts ...PlanOption) ([]Node, error) {
	if slices.ContainsFunc(spec.Stages, func(st Stage) bool { return st.Select == "" && st.Nodes+st.Percent > 0 }) {
		return fleet, nil
	}
	match := options(opts).match
	var out []Node
	for i := range fleet {
		n := &fleet[i]
		for s := range spec.Stages {
			st := &spec.Stages[s]
			switch {
			case st.Select == "":
				if !slices.Contains(st.Order, n.Name) {
					continue
				}
			case match == nil:
				return nil, &StageError{Stage: s, Name: st.Name, Err: errors.New("nothing reads its select")}
			default:
				ok, err := match(s, n)
				if err != nil {
					return nil, &StageError{Stage: s, Name: st.Name, Err: err}
				}
				if !ok {
					continue
				}
			}
			out = append(out, *n)
			break
		}
	}
	return out, nil
}
