package evidence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/filelock"
	"github.com/aim-control/aimlock/policies"
)

const (
	// srcFile says whose machine it is: that of who judges, which need not be
	// the holder's.
	srcFile = "the observer's own machine, /proc"
	// srcPolicy is for what a policy leaves out.
	srcPolicy = "policy"
)

const (
	// fileTimeout bounds how long one file holds up a verdict.
	fileTimeout = 2 * time.Second
	// fileMaxAge is how old a look at the machine's locks may be: the files of
	// many locks that are judged together cost one.
	fileMaxAge = time.Second
)

// FileFacts are the facts of the file that a policy names for a lock, on this
// machine. Without a path there is none, and they are null, as they are where
// no such file is; with an error there should be one, and they are unknown.
func (r *Reader) FileFacts(path string, pathErr error, now time.Time) map[string]policies.Fact {
	switch {
	case pathErr != nil:
		return unknowns("file", srcPolicy, now, pathErr.Error(), nil).facts
	case path == "":
		return nullSet("file", srcPolicy, now, nil).facts
	}
	f := newSet("file", now, nil)
	if r.Files == nil {
		f.facts = unknowns("file", srcFile, now, "nobody looks at files here", nil).facts
		f.str("path", path, srcFile)
		return f.facts
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), fileTimeout, fmt.Errorf("no answer within %s", fileTimeout))
	defer cancel()
	report, err := r.Files.Explain(ctx, path, fileMaxAge)
	switch {
	case errors.Is(err, filelock.ErrNotExist):
		f.facts = nullSet("file", srcFile, now, nil).facts
	case err != nil:
		f.facts = unknowns("file", srcFile, now, err.Error(), nil).facts
	default:
		f.at = report.At
		f.fileLocks(report)
	}
	f.str("path", path, srcFile)
	return f.facts
}

func (f *set) fileLocks(r *filelock.Report) {
	unseen := strings.Join(r.Unseen, " ")
	switch {
	case r.Locked == nil:
		if unseen == "" {
			unseen = "not all locks of this machine could be seen"
		}
		f.facts = unknowns("file", srcFile, r.At, unseen, nil).facts
		return
	case !*r.Locked:
		f.facts = nullSet("file", srcFile, r.At, nil).facts
		f.boolean("locked", false, srcFile)
		f.known("kept_by", cty.ListValEmpty(keeperType()), srcFile)
		return
	}
	f.boolean("locked", true, srcFile)
	l := mainLock(r.Locks)
	f.str("kind", l.Kind, srcFile)
	f.known("pid", cty.NumberIntVal(int64(l.PID)), srcFile)
	f.pidAlive(r.Locks)
	f.keptBy(r.Locks, unseen)
}

// mainLock is the lock that is told of: the first exclusive one, else the first
// shared one, else a lease.
func mainLock(locks []filelock.Lock) *filelock.Lock {
	rank := func(l *filelock.Lock) int {
		switch {
		case l.Kind == filelock.Lease:
			return 2
		case l.Mode == filelock.Write:
			return 0
		}
		return 1
	}
	best := &locks[0]
	for i := range locks {
		if rank(&locks[i]) < rank(best) {
			best = &locks[i]
		}
	}
	return best
}

// pidAlive is true where a process lives that the kernel names for one of the
// locks, and false only where all that are named have ended.
func (f *set) pidAlive(locks []filelock.Lock) {
	named, why := false, ""
	for i := range locks {
		switch l := &locks[i]; {
		case l.PIDAlive != nil && *l.PIDAlive:
			f.boolean("pid_alive", true, srcFile)
			return
		case l.PID == -1: // nobody is named
		case l.PIDAlive == nil:
			why = l.Why
		default:
			named = true
		}
	}
	switch {
	case why != "":
		f.unknown("pid_alive", cty.Bool, srcFile, why)
	case named:
		f.boolean("pid_alive", false, srcFile)
	default:
		f.null("pid_alive", cty.Bool, srcFile)
	}
}

func keeperType() cty.Type { return schema()["file"]["kept_by"].Type.ElementType() }

// keptBy is known only where no process can be missing from it: a rule may rest
// on who is not in it. Otherwise it is known how many it has at least.
func (f *set) keptBy(locks []filelock.Lock, unseen string) {
	var list []cty.Value
	seen, why := map[int]bool{}, ""
	for i := range locks {
		l := &locks[i]
		if !l.Complete && why == "" {
			why = unseen
			if why == "" || l.KeptBy == nil {
				why = l.Why
			}
		}
		for _, k := range l.KeptBy {
			if !seen[k.PID] {
				seen[k.PID] = true
				list = append(list, cty.ObjectVal(map[string]cty.Value{
					"pid": cty.NumberIntVal(int64(k.PID)), "command": cty.StringVal(k.Command), "how": cty.StringVal(k.How),
				}))
			}
		}
	}
	if why == "" {
		f.known("kept_by", cty.ListVal(list), srcFile)
		return
	}
	v := cty.UnknownVal(cty.List(keeperType())).Refine().NotNull().CollectionLengthLowerBound(len(list)).NewValue()
	f.facts["kept_by"] = policies.Fact{Value: v, Source: srcFile, ObservedAt: f.at, Why: why}
}
