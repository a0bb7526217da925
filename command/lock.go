package command

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// loadPolicies reads the policies that judge: those of -policy or the config
// file, else the shipped default. What is wrong in them is printed. Of warnings only
// the commands tell that are about policies, and the locksmith when it loads them:
// who takes a lock for the hundredth time has other worries.
func (m *Meta) loadPolicies() (*policies.Set, error) {
	set, diags := m.loadPolicySet(nil)
	diags = slices.DeleteFunc(diags, func(d *hcl.Diagnostic) bool { return d.Severity != hcl.DiagError })
	if err := m.policyDiagnostics(set, diags); err != nil {
		return nil, err
	}
	return set, nil
}

// Locksmith makes the client of a command that is in groupConsul and
// groupPolicy.
func (m *Meta) Locksmith() (*locksmith.Client, error) {
	set, err := m.loadPolicies()
	if err != nil {
		return nil, err
	}
	return m.locksmithWith(set)
}

// lockError gives the errors of locksmith their texts and exit codes.
func lockError(err error) error {
	var ref *locksmith.RefusedError
	var not *locksmith.NotPermittedError
	var lost *locksmith.LostError
	var asked *locksmith.RequestedError
	switch {
	case errors.As(err, &ref):
		code := ExitLockBusy
		if ref.Hot {
			code = ExitLockHot
		}
		return refused(code, refusalText(ref.Status, ref.Why))
	case errors.As(err, &not):
		return refused(ExitLockHot, notPermittedText(not, nil))
	case errors.As(err, &lost):
		return refused(ExitLost, fmt.Sprintf("ERROR: %s: LOST\n  %-9s %s\n  %-9s %d\n", lost.Lock, "why", lost.Why, "token", lost.Token))
	case errors.As(err, &asked):
		return refused(ExitLost, fmt.Sprintf("ERROR: %s: LET GO\n  %-9s %v\n", asked.Lock, "why", asked))
	case errors.Is(err, locksmith.ErrPlainKey):
		return exitf(ExitFailed, "%w", err)
	}
	return err
}

// notPermittedText is what a person reads whom a brake refuses. st is what is
// known of the lock, or nil.
func notPermittedText(not *locksmith.NotPermittedError, st *locksmith.Status) string {
	text := fmt.Sprintf("ERROR: %s: HOT\n", not.Lock)
	if st != nil && st.State == locksmith.Hot {
		text += statusLines(st, "", "  ")
	}
	text += fmt.Sprintf("  %-9s %s\n", "not now", not.Why+not.Anyway)
	if not.Next != "" {
		text += fmt.Sprintf("  %-9s %s\n", "to do", "`"+not.Next+"`")
	}
	return text
}

// refusalText is what a person reads whom a lock refuses: the state, who, since
// when, on what evidence, under which rule, and what happens next.
func refusalText(st *locksmith.Status, why string) string {
	return fmt.Sprintf("ERROR: %s: %s\n%s", st.Name, st.State, statusLines(st, why, "  "))
}

// statusLines are the lines below the first, one fact each.
func statusLines(st *locksmith.Status, why, margin string) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%s%-9s %s\n", margin, name, fmt.Sprintf(format, args...))
	}
	if st.Session != nil {
		line("held by", "%s", holderText(st))
		if since := sinceText(st); since != "" {
			line("since", "%s", since)
		}
		if p := st.Progress; p != nil {
			line("progress", "%s", progressText(p))
		}
	}
	semaphoreLines(st, line)
	if st.Rule != "" {
		line("rule", "%s of policy %s: %s", st.Rule, st.Policy, st.Reason)
	}
	for _, p := range st.Pending {
		line("pending", "%s", p)
	}
	for _, e := range decidingEvidence(st) {
		line("evidence", "%s", e)
	}
	switch {
	case st.Serves:
		line("owed", "a pause of %s, which the holder serves before it does anything", showSeconds(st.Owed))
	case st.Owed > 0:
		line("owed", "a pause of %s by the next holder", showSeconds(st.Owed))
	}
	if st.Silence != nil {
		line("silenced", "%s", strings.TrimPrefix(silenceText(st.Silence), "silenced "))
	}
	if st.Suspended != nil {
		line("suspended", "all automatic breaking, %s", suspensionText(st.Suspended))
	}
	if why != "" {
		line("refused", "%s", why)
	}
	if st.Next != "" {
		line("next", "%s", st.Next)
	}
	return b.String()
}

// decidingEvidence shows the facts behind the deciding rule.
func decidingEvidence(st *locksmith.Status) []string {
	if st.Rule == "" {
		return nil
	}
	var out []string
	for _, e := range st.Evidence[:min(st.Decisive, len(st.Evidence))] {
		line := fmt.Sprintf("%s = %s (%s)", e.Fact, text.Number(string(e.Value)), e.Source)
		if !e.Known {
			line = fmt.Sprintf("%s is unknown: %s (%s)", e.Fact, e.Why, e.Source)
		}
		out = append(out, line)
	}
	return out
}

func holderText(st *locksmith.Status) string {
	h := st.Holder
	if h == nil || h.PID == nil {
		return foreignHolderText(st)
	}
	text := "aimlock"
	if st.Operation != "" {
		text += " " + st.Operation
	}
	text += fmt.Sprintf(", pid %d on %s", *h.PID, deref(h.Host))
	if h.User != nil {
		text += ", user " + *h.User
	}
	if st.Token != nil {
		text += fmt.Sprintf(", token %d", *st.Token)
	}
	if a := st.Allocation; a != nil {
		text += ", Nomad allocation " + a.ID
		if a.Job != "" {
			text += " of job " + a.Job
		}
	}
	if !st.Checked {
		text += "; by its session's TTL alone"
	}
	return text
}

// foreignHolderText is what is known of a holder that is not aimlock's. What its
// tool or its session says of it is foreign text.
func foreignHolderText(st *locksmith.Status) string {
	h, out := st.Holder, "an unknown program"
	if h != nil && h.Tool != nil && *h.Tool != "unknown" {
		out = *h.Tool
	}
	if st.Operation != "" {
		out += fmt.Sprintf(" (%s)", st.Operation)
	}
	if h != nil && h.User != nil {
		out += ", user " + *h.User
	}
	if h != nil && h.Host != nil {
		out += " on " + *h.Host
	}
	out += ", session " + deref(st.Session)
	if st.SlotOf != "" {
		out += ", a contender for " + text.Printable(st.SlotOf)
	}
	return out
}

// semaphoreLines show the slots of a semaphore.
func semaphoreLines(st *locksmith.Status, line func(name, format string, args ...any)) {
	sem := st.Semaphore
	if sem == nil {
		return
	}
	line("slots", "%s", sem.SlotsText())
	if sem.Why != "" && sem.Limit != 0 {
		line("unknown", "%s", sem.Why)
	}
	show := func(what, state string, v *locksmith.SlotView) {
		words := state + v.Name
		if v.Operation != "" {
			words += " (" + v.Operation + ")"
		}
		if v.Node != "" {
			words += ", node " + v.Node
		}
		line(what, "%s", text.Printable(words))
	}
	for _, v := range sem.Holders {
		show("slot", v.State+" ", v)
	}
	for _, v := range sem.Waiting {
		show("waiting", "", v)
	}
	for _, s := range sem.Stale {
		line("stale", "%s", s)
	}
}

func sinceText(st *locksmith.Status) string {
	switch {
	case st.HeldFor != nil && st.Since != nil:
		return fmt.Sprintf("%s, %s", text.Time(*st.Since), showSeconds(*st.HeldFor))
	case st.HeldFor != nil:
		return showSeconds(*st.HeldFor)
	}
	for _, e := range st.Evidence {
		if e.Fact == "lock.held_for" && !e.Known {
			return "not known: " + e.Why
		}
	}
	return ""
}

func progressText(p *locksmith.ProgressView) string {
	text := ""
	switch {
	case p.Done == nil || p.Total == nil:
	case *p.Total == 0: // nobody knows how much there is
		text = strings.TrimSpace(fmt.Sprintf("%d %s", *p.Done, deref(p.Unit)))
	default:
		text = strings.TrimSpace(fmt.Sprintf("%d of %d %s", *p.Done, *p.Total, deref(p.Unit)))
	}
	if p.Age != nil {
		text += fmt.Sprintf(", last written %s ago", showSeconds(*p.Age))
	}
	return text
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// showSeconds shows a number of seconds as people say it.
func showSeconds(s float64) string {
	d := time.Duration(math.MaxInt64)
	if s < d.Seconds() {
		d = time.Duration(s * float64(time.Second))
	}
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// notices prints what happens while a lock is waited for: a HOT lock in the
// form of a refusal, because that is what it is, and the rest as one line.
func (m *Meta) notices() func(locksmith.Notice) {
	return func(n locksmith.Notice) {
		switch n.Kind {
		case locksmith.NoticeWaiting:
			if n.Status.State == locksmith.Hot {
				text := refusalText(n.Status, "")
				if n.Text != "" {
					text += fmt.Sprintf("  %-9s %s\n", "waiting", n.Text)
				}
				m.Notef("%s", text)
				return
			}
			who := ""
			if n.Status.Session != nil {
				who = " by " + holderText(n.Status)
			}
			what := "waiting"
			if n.Status.State == locksmith.Cooling && n.Status.Next != "" {
				what += ": " + n.Status.Next
			}
			m.Notef("%s: %s%s; %s\n", n.Lock, n.Status.State, who, first(n.Text, what))
		case locksmith.NoticeQuiesce:
			m.Notef("%s: taken; %s\n", n.Lock, n.Text)
		case locksmith.NoticeBroken:
			m.Notef("%s: broken and taken: %s\n", n.Lock, n.Text)
		case locksmith.NoticeOutage:
			m.Notef("%s: waiting for Consul: %s\n", n.Lock, n.Text)
		default:
			m.Notef("%s: %s: %s\n", n.Lock, n.Kind, n.Text)
		}
	}
}

// lockName checks a lock's name from the command line.
func lockName(name string) (string, error) {
	switch {
	case name == "" || strings.HasSuffix(name, "/"):
		return "", usagef("lock name %q is not allowed: give a name, or the whole key of another tool's lock", name)
	case strings.HasPrefix(name, "/"):
		// Policies write whole keys with a leading slash; KV keys have none.
		// Of a key without any other, it is what tells it from a name.
		if rest := name[1:]; strings.Contains(rest, "/") {
			name = rest
		}
	}
	for _, seg := range strings.Split(strings.TrimPrefix(name, "/"), "/") {
		if seg == "." || seg == ".." {
			return "", usagef("lock name %q is not allowed: it has a segment %q", name, seg)
		}
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f {
			return "", usagef("lock name %q is not allowed: it holds a control character", name)
		}
	}
	return name, nil
}

// watched observes a lock for a command that reports: a rule that waits for
// its `for` is watched for that long, unless now is set.
func watched(ctx context.Context, m *Meta, c *locksmith.Client, name string, now bool) (*locksmith.Verdict, *locksmith.Status, error) {
	obs := c.NewObserver(name, nil)
	var v *locksmith.Verdict
	var err error
	if now {
		v, err = obs.Observe(ctx)
	} else {
		v, err = obs.Watch(ctx, m.notices())
	}
	if err != nil {
		return nil, nil, err
	}
	st, err := outlook(ctx, c, v)
	if err != nil {
		return nil, nil, err
	}
	st.Next = v.Named(st.Next)
	if v.Occupied() {
		st.Suspended = m.suspended(ctx, c)
	}
	if hint := meantInstead(ctx, c, v); hint != "" {
		m.Notef("Hint: %s\n", hint)
	}
	return v, st, nil
}

// hintApplied says where other policies are applied than a held lock is judged by here;
// "" if none are. Of a HOT lock the refusal to break it says so.
func (m *Meta) hintApplied(ctx context.Context, c *locksmith.Client, v *locksmith.Verdict) string {
	if v.State == locksmith.Hot || !v.Snapshot.Held() {
		return ""
	}
	others := c.OthersApplied(ctx)
	if others == "" {
		return ""
	}
	may := "One of the applied ones may match %s."
	if v.Policy != nil {
		may = "The applied ones may judge %s otherwise."
	}
	return fmt.Sprintf("Hint: %s: `%s`. "+may+"\n", others, m.given.Looking("policy show", "-active")+" > applied.hcl", text.Printable(v.Snapshot.Name))
}

// outlook is a verdict as it is shown, with what happens next: of a HOT lock, whether
// the policy lets it be broken now.
func outlook(ctx context.Context, c *locksmith.Client, v *locksmith.Verdict) (*locksmith.Status, error) {
	var p *locksmith.Permit
	if v.State == locksmith.Hot {
		var err error
		if p, err = c.Outlook(ctx, v); err != nil {
			return nil, err
		}
	}
	st := c.Status(v)
	st.Next = c.Next(v, p)
	return st, nil
}

// suspended is the suspension that stands, or nil. Whoever may not read it is told of
// locks all the same.
func (m *Meta) suspended(ctx context.Context, c *locksmith.Client) *records.PolicySuspended {
	s, err := c.Suspended(ctx)
	if err != nil {
		m.Notef("Warning: whether breaking is suspended is not known: %s\n", err)
	}
	return s
}

// meantInstead names a held lock that whoever names this free one may have meant; ""
// if there is none.
func meantInstead(ctx context.Context, c *locksmith.Client, v *locksmith.Verdict) string {
	name := text.Printable(v.Snapshot.Name)
	if n, one := c.SlotsHeld(ctx, v); n > 0 {
		return fmt.Sprintf("%s is not held, but %s: lock exec -n takes the locks %[1]s.0, %[1]s.1 and so on.", name, heldSlots(n, one))
	}
	if other, how := c.HeldBeside(ctx, v); other != "" {
		return fmt.Sprintf("%s is not held, but %s is: %s.", name, text.Printable(other), how)
	}
	return ""
}

// onLock makes the Run of a command whose one argument is a lock's name.
func (m *Meta) onLock(do func(ctx context.Context, c *locksmith.Client, name string) error) func(context.Context, *input) error {
	return func(ctx context.Context, in *input) error {
		name, err := lockName(in.Args[0])
		if err != nil {
			return err
		}
		c, err := m.Locksmith()
		if err != nil {
			return err
		}
		return do(ctx, c, name)
	}
}
