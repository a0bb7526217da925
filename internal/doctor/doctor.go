package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// Results of a finding.
const (
	OK      = "ok"
	Note    = "note"    // as it may be, and worth to know
	Warning = "warning" // it works, and not as it should
	Failed  = "failed"  // it does not work
)

// Finding is one thing that was looked at.
type Finding struct {
	// Check names what was looked at: consul, leader, clock, rights, …
	Check  string `json:"check"`
	Result string `json:"result"`
	// Detail says what was found. It may hold foreign text.
	Detail string `json:"detail"`
	// Mend says how it is put right; empty where nothing is wrong.
	Mend string `json:"mend"`
}

// Config says what is looked at.
type Config struct {
	// Consul is asked through Transport.
	Consul    *consulkv.Client
	Transport *Transport

	Keys     keys.Prefix
	Locks    *locksmith.Client
	Rollouts *runner.Runner
	// Roles are those whose rights the token must have; none: it is only told which
	// it has. Params fill the places of their rules.
	Roles  []string
	Params acl.Params
	// Nomad may be nil: then it is not looked at.
	Nomad *nomadapi.Client
	// Start is the command that starts a rollout again, as it is typed here.
	Start string
	// Version is this program's; agents of another are told.
	Version string
	// Plugins tries each one that is configured; nil where none is.
	Plugins func(context.Context) []Plugin
	// TryLock takes a lock and lets go of it, the one thing that writes.
	TryLock bool
	// Now is this machine's clock.
	Now func() time.Time
}

// Plugin is how the trial of one went. Err is nil if it may be used.
type Plugin struct {
	Name, What string
	Err        error
}

// patience bounds each part of an examination.
const patience = 20 * time.Second

// Examine looks at everything in turn, and tells what it finds. If Consul cannot
// be reached, it ends there: the rest would only say so again.
func Examine(ctx context.Context, cfg Config, tell func(Finding)) error {
	e := &examination{Config: cfg, tell: tell}
	if missing := hostproc.NeedsLinux(); missing != "" {
		e.note("system", "run holders, agents and the locksmith on Linux", "%s, and the kernel's locks on a file are not shown", missing)
	}
	if !e.part(ctx, e.consul) {
		return context.Cause(ctx)
	}
	if e.denied != nil {
		// What else fails would only say it again.
		e.refused(ctx)
		return context.Cause(ctx)
	}
	for _, part := range []func(context.Context) bool{e.transactions, e.rights, e.agents, e.locksmith, e.policies, e.locks, e.rollouts, e.orders, e.nomad, e.plugins, e.try} {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e.part(ctx, part)
	}
	return nil
}

// examination is one under way.
type examination struct {
	Config
	tell func(Finding)
	// denied is why the token may not even read the epoch; nil: it may.
	denied error
	// unasked are roles about which could not be asked: they are for a node, a config or
	// a lock that nobody named.
	unasked []acl.Role
	// enough: roles were asked about, and the token has the rights of each.
	enough bool
}

func (e *examination) part(ctx context.Context, look func(context.Context) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return look(ctx)
}

func (e *examination) ok(check, format string, args ...any) bool {
	e.tell(Finding{Check: check, Result: OK, Detail: fmt.Sprintf(format, args...)})
	return true
}

func (e *examination) note(check, mend, format string, args ...any) bool {
	e.tell(Finding{Check: check, Result: Note, Mend: mend, Detail: fmt.Sprintf(format, args...)})
	return true
}

func (e *examination) warn(check, mend, format string, args ...any) bool {
	e.tell(Finding{Check: check, Result: Warning, Mend: mend, Detail: fmt.Sprintf(format, args...)})
	return true
}

func (e *examination) fail(check, mend, format string, args ...any) bool {
	e.tell(Finding{Check: check, Result: Failed, Mend: mend, Detail: fmt.Sprintf(format, args...)})
	return false
}

// unread tells of what Consul did not show. Who asked whether the token is enough for
// a role, and was told that it is, is not told that it is not enough for more.
func (e *examination) unread(check string, err error) bool {
	if e.enough && consulkv.KindOf(err) == consulkv.Denied {
		return e.note(check, "", "not looked at: the token may not read it, and its role needs none of it")
	}
	return e.fail(check, "", "%s", err)
}
