package command

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/doctor"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/internal/version"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

func newDoctor(m *Meta) *command {
	var roles, configs, locks stringList
	var p acl.Params
	try := false
	return &command{
		Meta:     m,
		Synopsis: "Look for what is wrong, and say how to mend it",
		Usage:    "[options]",
		Description: `Looks at what aimlock depends on: Consul, its leader, its clock and what it takes,
the rights of the token against the roles of "aimlock acl", the agents, the
locksmith, the policies applied, locks and rollouts in trouble, rollouts that nobody
drives, files that somebody else changed, and Nomad and plugins where they are
configured. Each finding says how it is mended.

It changes nothing, unless -try is given: then it takes the lock aimlock.doctor
and lets go of it. It exits 1 if something does not work.`,
		Examples: []example{
			{"Is all well here?", "aimlock doctor"},
			{"Does this token do for the orchestrator, in deed?", "aimlock doctor -role orchestrator -try"},
			{"And that of a node's agent?", "aimlock doctor -role agent -node web-1 -config-name app.conf"},
		},
		Groups: groupConsul | groupPolicy | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.Var(&roles, "role", "Tell what the token lacks for the role `NAME`. May be repeated.")
			fs.StringVar(&p.Node, "node", "", "`NAME` of the node, for the role agent.")
			fs.StringVar(&p.ConsulNode, "consul-node", "", "`NAME` of that machine in Consul. Default: that of -node.")
			fs.Var(&configs, "config-name", "`NAME` of a config, for the role agent. May be repeated.")
			fs.Var(&locks, "lock", "`NAME` of a lock, for the role exec. May be repeated.")
			fs.BoolVar(&try, "try", false, "Take the lock aimlock.doctor, and let go of it.")
		},
		Run: func(ctx context.Context, _ *input) error {
			p.Configs, p.Locks = configs, locks
			known, err := acl.Roles()
			if err != nil {
				return err
			}
			for _, r := range roles {
				if !slices.ContainsFunc(known, func(k acl.Role) bool { return k.Name == r }) {
					return usagef("-role: there is no role %q; `aimlock acl` lists them", r)
				}
			}
			return m.doctor(ctx, doctor.Config{Roles: roles, Params: p, TryLock: try})
		},
	}
}

func (m *Meta) doctor(ctx context.Context, cfg doctor.Config) error {
	set, err := m.loadPolicies()
	if err != nil {
		return err
	}
	cfg.Now = time.Now
	cfg.Transport = &doctor.Transport{Now: time.Now}
	if cfg.Consul, err = m.consulVia(cfg.Transport.Wrap); err != nil {
		return err
	}
	if cfg.Locks, err = m.locksmithOver(cfg.Consul, set, locksmith.Config{}); err != nil {
		return err
	}
	cfg.Keys, cfg.Rollouts = m.Prefix, m.runnerOver(cfg.Consul, cfg.Locks, nil)
	if n := m.nomadConfig(); n.Configured() {
		if cfg.Nomad, err = m.Nomad(); err != nil {
			return err
		}
	}
	cfg.Start, cfg.Version = m.startAgain(), version.Get().Version
	cfg.Plugins = m.tryPlugins
	findings, bad := []doctor.Finding{}, 0
	err = doctor.Examine(ctx, cfg, func(f doctor.Finding) {
		findings = append(findings, f)
		if f.Result == doctor.Failed {
			bad++
		}
		if !m.JSON {
			m.tellWords(fmt.Sprintf("%-8s %-13s %s\n", f.Result, f.Check, strings.TrimSpace(text.Printable(f.Detail))))
			if f.Mend != "" {
				m.tellWords(fmt.Sprintf("%-8s %-13s to mend: %s\n", "", "", text.Printable(f.Mend)))
			}
		}
	})
	if err != nil {
		return err
	}
	if m.JSON {
		if err := m.PrintJSON(findings); err != nil {
			return err
		}
	}
	if bad > 0 {
		return exit(ExitFailed)
	}
	return nil
}

// tryPlugins starts each plugin that is configured.
func (m *Meta) tryPlugins(ctx context.Context) []doctor.Plugin {
	h := m.Plugins()
	var out []doctor.Plugin
	if err := h.Err(); err != nil {
		out = append(out, doctor.Plugin{Name: "the folder", Err: err})
	}
	for _, name := range h.Names() {
		p, err := m.findPlugin(name)
		if err != nil {
			out = append(out, doctor.Plugin{Name: name, Err: err})
			continue
		}
		d := doctor.Plugin{Name: name, What: "starts, and may be used"}
		for _, c := range m.verifyPlugin(ctx, p).Checks {
			if !c.OK {
				d.Err = fmt.Errorf("%s: %s", c.Check, c.Why)
				break
			}
		}
		out = append(out, d)
	}
	return out
}
