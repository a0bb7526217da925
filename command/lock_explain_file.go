package command

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/filelock"
	"github.com/aim-control/aimlock/internal/text"
)

// fileTimeout bounds how long a file system may take to say what a path names.
const fileTimeout = 10 * time.Second

// explainFile is `lock explain -file PATH`. It needs no Consul.
func (m *Meta) explainFile(ctx context.Context, path string) error {
	if path == "" {
		return usagef("-file needs the path of a file")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, fileTimeout, fmt.Errorf("no answer within %s", fileTimeout))
	defer cancel()
	r, err := new(filelock.Scanner).Explain(ctx, path, 0)
	if err != nil {
		return errors.New(text.Printable(err.Error()))
	}
	if m.JSON {
		return m.PrintJSON(r)
	}
	m.tellWords(fileText(r))
	return nil
}

// fileText is a report for people.
func fileText(r *filelock.Report) string {
	var b strings.Builder
	state := "not known whether it is locked"
	switch {
	case r.Locked != nil && !*r.Locked:
		state = "not locked"
	case r.Deleted:
		state = "deleted, and still locked"
	case r.Locked != nil:
		state = "locked"
	}
	fmt.Fprintf(&b, "%s: %s\n", text.Printable(r.Path), state)
	if r.Resolved != r.Path {
		fmt.Fprintf(&b, "  it is %s\n", text.Printable(r.Resolved))
	}
	fileLocksText(&b, r.Locks)
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\nNote: %s\n", n)
	}
	if len(r.Former) > 0 {
		b.WriteString("\nLocks on what had this path before:\n")
		fileLocksText(&b, r.Former)
	}
	for _, u := range r.Unseen {
		fmt.Fprintf(&b, "\nNot seen: %s\n", u)
	}
	return b.String()
}

// mostLocks bounds a list for people: a database takes thousands of locks on
// parts of one file. -json has all.
const mostLocks = 50

func fileLocksText(b *strings.Builder, locks []filelock.Lock) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(b, "    %-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	for i, l := range locks {
		if i == mostLocks {
			fmt.Fprintf(b, "\n  and %s more: see -json\n", text.Count(len(locks)-i, "lock"))
			break
		}
		fmt.Fprintf(b, "\n  %s, %s%s\n", l.Kind, l.Mode, rangeText(l))
		line("shown as", "%s", shownAs(l))
		for _, k := range l.KeptBy {
			line("kept by", "pid %d (%s): %s, descriptor %s", k.PID, k.Command, k.How, descriptors(k.FDs))
		}
		switch {
		case l.KeptBy == nil:
			line("kept by", "unknown")
		case !l.Complete:
			line("", "and perhaps others, that cannot be seen")
		}
		line("why", "%s", l.Why)
		for _, w := range l.Waiters {
			line("waiting", "%s for a %s lock", waiterText(w), w.Mode)
		}
	}
}

func rangeText(l filelock.Lock) string {
	switch {
	case l.End != nil:
		return fmt.Sprintf(", bytes %d to %d", l.Start, *l.End)
	case l.Start > 0:
		return fmt.Sprintf(", from byte %d on", l.Start)
	}
	return ""
}

// shownAs is the pid of a lock as lslocks has it, and what is behind it.
func shownAs(l filelock.Lock) string {
	switch {
	case l.PID <= 0:
		return fmt.Sprintf("pid %d", l.PID)
	case l.PIDAlive == nil:
		return fmt.Sprintf("pid %d, of which it is not known whether it is still the same process", l.PID)
	case *l.PIDAlive:
		return fmt.Sprintf("pid %d, alive", l.PID)
	}
	return fmt.Sprintf("pid %d, which has ended", l.PID)
}

func waiterText(w filelock.Waiter) string {
	switch {
	case w.PID <= 0:
		return fmt.Sprintf("pid %d (%s)", w.PID, w.Kind)
	case w.Command == "":
		return fmt.Sprintf("pid %d", w.PID)
	}
	return fmt.Sprintf("pid %d (%s)", w.PID, w.Command)
}

func descriptors(fds []int) string {
	out := make([]string, len(fds))
	for i, fd := range fds {
		out[i] = strconv.Itoa(fd)
	}
	return strings.Join(out, ", ")
}
