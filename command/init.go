package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/scaffold"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// initTime bounds what init waits for Consul: it goes on without.
const initTime = 15 * time.Second

func newInit(m *Meta) *command {
	p := scaffold.Params{}
	offline, noNomad := false, false
	return &command{
		Meta:     m,
		Synopsis: "Write a first rollout, policy and Nomad job",
		Usage:    "[options] [DIR]",
		Description: `Looks at what Consul has, and writes files to begin with into DIR, by default this
folder: rollout.hcl, policy.hcl, aimlock.hcl and tick.nomad.hcl, with comments and
fitted to the fleet, and a first content unless -source names one.

It changes nothing in Consul, and writes over no file: where one of them exists
already, nothing is written. Without a Consul it says so, and writes files for a
fleet that it does not know.`,
		Examples: []example{
			{"To look around", "aimlock init first-rollout"},
			{"For a file that you have", "aimlock init -source app.conf -destination /etc/app/app.conf"},
		},
		Groups: groupConsul | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&p.Config, "name", "", "`NAME` of the config, and of its lock. Default: that of the file.")
			fs.StringVar(&p.Source, "source", "", "Content of the config: the `PATH` of a file in DIR, relative to it.")
			fs.StringVar(&p.Destination, "destination", "", "Whole `PATH` of the file on a node. Default: /etc/NAME/NAME.")
			fs.BoolVar(&offline, "offline", false, "Do not ask Consul.")
			fs.BoolVar(&noNomad, "no-nomad", false, "Write no job for Nomad.")
		},
		MaxArgs:  1,
		Complete: completeDirs,
		Run: func(ctx context.Context, in *input) error {
			dir := "."
			if len(in.Args) > 0 {
				dir = in.Args[0]
			}
			p.Nomad = !noNomad
			return m.initFiles(ctx, dir, p, offline)
		},
	}
}

// firstConfig is the config of who names none.
const firstConfig = "app.conf"

// initView is what was written, as JSON.
type initView struct {
	// Dir is the folder that the files are in.
	Dir string `json:"dir"`
	// Cluster is what was seen of it; null: nothing was looked at.
	Cluster *scaffold.Cluster `json:"cluster"`
	Files   []scaffold.File   `json:"files"`
}

func (m *Meta) initFiles(ctx context.Context, dir string, p scaffold.Params, offline bool) error {
	if p.Source != "" {
		if filepath.IsAbs(p.Source) || !filepath.IsLocal(p.Source) {
			return usagef("-source %q: name a file in DIR, by its path there: a spec's sources stand beside it", p.Source)
		}
		switch info, err := os.Stat(filepath.Join(dir, p.Source)); {
		case errors.Is(err, fs.ErrNotExist):
			return usagef("-source: there is no %s; leave -source out, and one is written", filepath.Join(dir, p.Source))
		case err != nil:
			return err
		case info.IsDir():
			return usagef("-source: %s is a folder, and must be the file to deliver", filepath.Join(dir, p.Source))
		}
	}
	byPath := func(s string) string {
		if s == "" {
			return ""
		}
		return path.Base(filepath.ToSlash(s))
	}
	p.Config = first(p.Config, byPath(p.Source), byPath(p.Destination), firstConfig)
	p.Destination = first(p.Destination, "/etc/"+strings.TrimSuffix(path.Base(p.Config), path.Ext(p.Config))+"/"+path.Base(p.Config))
	p.Prefix = m.Prefix
	client, err := m.Consul()
	if err != nil {
		return err
	}
	p.Address = first(m.consul.httpAddr, m.Env("CONSUL_HTTP_ADDR"))
	var why error
	if !offline {
		lctx, cancel := context.WithTimeout(ctx, initTime)
		p.Cluster, why = scaffold.Look(lctx, client)
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	files, err := scaffold.Files(p)
	if err != nil {
		return usagef("%w", err)
	}
	if err := scaffold.Write(dir, files); err != nil {
		return err
	}
	if m.JSON {
		return m.PrintJSON(initView{dir, p.Cluster, files})
	}
	m.sayCluster(p.Cluster, client.Addr(), why)
	m.Printf("Written:\n")
	width := 0
	for _, f := range files {
		width = max(width, len(filepath.Join(dir, f.Name)))
	}
	for _, f := range files {
		m.Printf("  %-*s  %s\n", width, filepath.Join(dir, f.Name), f.About)
	}
	applied := ""
	if p.Cluster != nil {
		actx, cancel := context.WithTimeout(ctx, initTime)
		applied = m.otherPolicies(actx, dir)
		cancel()
	}
	m.Printf("\nNext:\n")
	in := ""
	if dir != "." {
		in = "cd " + dir + "; "
	}
	if applied != "" {
		m.Printf("  %saimlock policy show -active > policy.hcl   # %s\n", in, applied)
		in = ""
	}
	bakes := ""
	if d := p.Bakes(); d > 0 {
		bakes = "   # the bakes of its stages take " + text.Duration(d) + ": see rollout.hcl"
	}
	for _, line := range []string{
		in + "aimlock doctor -config aimlock.hcl",
		"aimlock policy check policy.hcl",
		"aimlock rollout plan -config aimlock.hcl rollout.hcl",
		"aimlock rollout start -config aimlock.hcl rollout.hcl" + bakes,
	} {
		m.Printf("  %s\n", line)
	}
	return nil
}

// otherPolicies says why the policies that were written into dir break nothing in this
// Consul; "" where they may, or where that is not known.
func (m *Meta) otherPolicies(ctx context.Context, dir string) string {
	set, diags := policies.Load([]string{filepath.Join(dir, "policy.hcl")})
	if diags.HasErrors() {
		return ""
	}
	c, err := m.locksmithWith(set)
	if err != nil {
		return ""
	}
	v, _, err := c.ActivePolicies(ctx)
	if err != nil || v == nil || v.Hash == set.Hash {
		return ""
	}
	return fmt.Sprintf("others are applied here, serial %d: those written break nothing", v.Serial)
}

// sayCluster tells what the files are fitted to.
func (m *Meta) sayCluster(c *scaffold.Cluster, addr string, why error) {
	switch {
	case why != nil:
		m.Notef("Warning: Consul was not looked at, and the files are for a fleet of any size: %s\n", why)
		return
	case c == nil:
		return
	}
	m.Printf("Consul at %s: datacenter %s, %s, %s", addr, text.Printable(c.Datacenter), text.Count(c.Nodes, "node"), text.Count(len(c.Agents), "aimlock agent"))
	if len(c.Agents) > 0 {
		names := c.Agents
		if len(names) > 3 {
			names = append(names[:3:3], "…")
		}
		m.Printf(" (%s)", text.Printable(strings.Join(names, ", ")))
	}
	m.Printf(".\n")
	switch {
	case len(c.Agents) == 0:
		m.Printf("A rollout reaches the machines on which this runs: aimlock agent -node NAME -state-dir DIR\n")
	case c.Service != "":
		m.Printf("The service %s runs beside the agents: its checks are the gate.\n", text.Printable(c.Service))
	}
	if c.Zone != "" {
		m.Printf("The nodes are spread by their %s.\n", c.Zone)
	}
}
