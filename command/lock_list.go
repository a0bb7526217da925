package command

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

func newLockList(m *Meta) *command {
	verbose, all := false, false
	return &command{
		Meta:     m,
		Synopsis: "List every lock and its verdict",
		Usage:    "[options] [PREFIX]",
		Description: `Lists every key that a session holds, with the verdict of the policies in force.
Without a PREFIX it looks at all of Consul's KV store, so that the locks of other
tools are shown as well. With one it shows the keys that begin so, and, where it
has no slash, aimlock's own locks whose names do. Which of aimlock's own are COOLING
is told below, on stderr.

It changes nothing and exits 0 whatever the locks' states are.`,
		Examples: []example{
			{"All locks of this Consul", "aimlock lock list"},
			{"Only those under a folder, for a program", "aimlock lock list -json ops/"},
			{"The slots of a semaphore", "aimlock lock list backup"},
		},
		Groups: groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&all, "all", false, "List aimlock's own locks that are free as well.")
			fs.BoolVar(&verbose, "verbose", false, "With -json, list the evidence of each verdict as well.")
		},
		MaxArgs:  1,
		Complete: completeLocks,
		Run: func(ctx context.Context, in *input) error {
			c, err := m.Locksmith()
			if err != nil {
				return err
			}
			prefixes := []string{""}
			if len(in.Args) > 0 {
				prefixes = lockPrefixes(m.Prefix, in.Args[0])
			}
			list, held := []*locksmith.Status{}, []*locksmith.Status{}
			var cooling []string
			take := func(v *locksmith.Verdict) {
				if !all && v.State == locksmith.Cooling {
					cooling = append(cooling, v.Snapshot.Name)
					return
				}
				st := c.Status(v)
				st.Next = c.Next(v, nil)
				if !verbose {
					st.Evidence = nil
				}
				list = append(list, st)
				if v.Occupied() {
					held = append(held, st)
				}
			}
			var hidden bool
			if all || m.JSON {
				hidden, err = c.EachLock(ctx, prefixes, all, take)
			} else {
				hidden, err = c.EachTaken(ctx, prefixes, take)
			}
			if err != nil {
				return err
			}
			var suspended *records.PolicySuspended
			if len(held) > 0 {
				suspended = m.suspended(ctx, c)
			}
			for _, st := range held {
				st.Suspended = suspended
			}
			if hidden {
				m.Notef("Warning: locks that the token may not read are not shown; check CONSUL_HTTP_TOKEN and its policies\n")
			}
			if m.JSON && verbose {
				full := make([]fullStatus, len(list))
				for i, st := range list {
					full[i] = withEvidence(st)
				}
				return m.PrintJSON(full)
			}
			if m.JSON {
				return m.PrintJSON(list)
			}
			if suspended != nil {
				m.tellWords(fmt.Sprintf("All automatic breaking is suspended %s\n", suspensionText(suspended)))
			}
			slices.Sort(cooling)
			return m.lockTable(list, cooling, hidden)
		},
	}
}

// lockPrefixes are the prefixes of the keys that are meant by one which a person gave,
// none of which begins with another.
func lockPrefixes(p keys.Prefix, given string) []string {
	key := strings.TrimPrefix(given, "/")
	if strings.Contains(given, "/") || strings.HasPrefix(p.Locks(), key) {
		return []string{key}
	}
	return []string{key, p.Locks() + keys.Escape(key)}
}

// lockTable prints the locks, and below them which are cooling. hidden: there may be
// more, which the token may not read.
func (m *Meta) lockTable(list []*locksmith.Status, cooling []string, hidden bool) error {
	switch {
	case len(list) == 0 && len(cooling) > 0:
		m.Notef("No locks held; %d cooling: %s\n", len(cooling), text.Some(cooling))
		return nil
	case len(list) == 0 && hidden:
		m.Notef("No locks that this token may read.\n")
		return nil
	case len(list) == 0:
		m.Notef("No locks.\n")
		return nil
	}
	w := tabwriter.NewWriter(m.Stdout, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "LOCK\tSTATE\tHELD FOR\tHOLDER\tWHY")
	for _, st := range list {
		held, who, why := "-", "-", first(st.Reason, strings.Join(st.Pending, ", "))
		if st.Session != nil {
			who = shortHolder(st)
			held = "?"
		}
		if st.Semaphore != nil {
			who = shortHolder(st) + ", " + st.Semaphore.SlotsText()
		}
		if st.HeldFor != nil {
			held = showSeconds(*st.HeldFor)
		}
		if st.Rule != "" {
			why = st.Rule + ": " + why
		}
		if st.Silence != nil {
			why = strings.TrimSuffix(fmt.Sprintf("silenced until %s; %s", whenText(st.Silence.Expires), why), "; ")
		}
		_, _ = fmt.Fprint(w, m.plain(fmt.Sprintf("%s\t%s\t%s\t%s\t%s\n", text.Printable(st.Name), st.State, held, text.Printable(who), text.Clip(text.Printable(first(why, "-")), 100))))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(cooling) > 0 {
		m.Notef("Not held, and cooling: %s\n", text.Some(cooling))
	}
	return nil
}

// shortHolder names who holds a lock in a column of a table: what a record says
// may be of any length.
func shortHolder(st *locksmith.Status) string { return text.Clip(text.Printable(holderName(st)), 60) }

func holderName(st *locksmith.Status) string {
	h := st.Holder
	if h == nil || h.PID == nil {
		text := "unknown"
		if h != nil && h.Tool != nil {
			text = *h.Tool
		}
		if h != nil && h.User != nil && h.Host != nil {
			text += " " + *h.User + "@" + *h.Host
		}
		return text
	}
	return fmt.Sprintf("%d@%s", *h.PID, deref(h.Host))
}
