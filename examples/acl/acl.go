// Package acl holds the ACL rules for Consul of each role that aimlock knows:
// the files beside it, with their places filled in. `aimlock acl` prints them,
// and the end-to-end tests run each role with them and nothing more.
package acl

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/keys"
)

//go:embed *.hcl
var files embed.FS

// Params fill the places of a role's rules.
type Params struct {
	Prefix keys.Prefix
	// Node is the agent's name under desired/, and ConsulNode that of its
	// machine in Consul; empty is the same.
	Node, ConsulNode string
	// Configs are those that the agent's node gets.
	Configs []string
	// Locks are those that lock exec takes or, for an agent, that are held on its
	// host beside those of its configs.
	Locks []string
}

// Role is one file of rules.
type Role struct {
	Name string
	// About is the first sentence of the file.
	About string
	// Node, Configs and Locks are which of Params it cannot do without.
	Node, Configs, Locks bool
	text                 string
}

// Roles are all roles, by name.
func Roles() ([]Role, error) {
	list, err := files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	var roles []Role
	for _, e := range list {
		b, err := files.ReadFile(e.Name())
		if err != nil {
			return nil, err
		}
		text := string(b)
		about, _, _ := strings.Cut(strings.NewReplacer("\n# ", " ", "# ", "").Replace(text), ":")
		roles = append(roles, Role{
			Name: strings.TrimSuffix(e.Name(), ".hcl"), About: about, text: text,
			Node: strings.Contains(text, "/NODE\""), Configs: strings.Contains(text, "# each CONFIG\n"), Locks: e.Name() == "exec.hcl",
		})
	}
	slices.SortFunc(roles, func(a, b Role) int { return strings.Compare(a.Name, b.Name) })
	return roles, nil
}

// Flags are the flags that name what the role cannot do without, as `aimlock acl` and
// `aimlock doctor` take them; "" if it is the same everywhere.
func (r Role) Flags() string {
	var out []string
	for _, f := range []struct {
		need bool
		text string
	}{{r.Node, "-node NAME"}, {r.Configs, "-config-name NAME"}, {r.Locks, "-lock NAME"}} {
		if f.need {
			out = append(out, f.text)
		}
	}
	return strings.Join(out, " ")
}

// Rules are the rules of the role, as `consul acl policy create -rules` takes
// them. Names are escaped as in keys.
func (r Role) Rules(p Params) (string, error) {
	check := func(what string, need bool, names ...string) error {
		if need && len(names) == 0 {
			return fmt.Errorf("the role %s is for one or more %ss: name them", r.Name, what)
		}
		for _, n := range names {
			if err := keys.CheckName(what, n); err != nil {
				return err
			}
		}
		return nil
	}
	var nodes []string
	for _, n := range []string{p.Node, p.ConsulNode} {
		if n != "" {
			nodes = append(nodes, n)
		}
	}
	if r.Node && p.Node == "" {
		return "", fmt.Errorf("the role %s is for one node: name it", r.Name)
	}
	for _, err := range []error{check("node", false, nodes...), check("config", r.Configs, p.Configs...), check("lock", r.Locks, p.Locks...)} {
		if err != nil {
			return "", err
		}
	}
	if p.ConsulNode == "" {
		p.ConsulNode = p.Node
	}
	all := map[string][]string{"CONFIG": p.Configs, "LOCK": p.Locks}
	if r.Configs {
		// The lock of a config has its name.
		all["LOCK"] = append(slices.Clone(p.Configs), p.Locks...)
		slices.Sort(all["LOCK"])
		all["LOCK"] = slices.Compact(all["LOCK"])
	}
	// keys.Escape leaves no quote and no backslash, but for a Consul node's name,
	// which stands in no path.
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", "$${", "%{", "%%{")
	var b strings.Builder
	for text := r.text; text != ""; {
		head, rest, ok := strings.Cut(text, "# each ")
		b.WriteString(head)
		if !ok {
			break
		}
		what, rest, _ := strings.Cut(rest, "\n")
		block, rest, _ := strings.Cut(rest, "# end\n")
		for _, name := range all[what] {
			b.WriteString(strings.ReplaceAll(block, what, keys.Escape(name)))
		}
		text = rest
	}
	return strings.NewReplacer(
		"PREFIX/", quote.Replace(string(p.Prefix)), `/CONSULNODE"`, "/"+keys.Escape(p.ConsulNode)+`"`, "CONSULNODE", quote.Replace(p.ConsulNode), "NODE", keys.Escape(p.Node),
		"BUCKET", fmt.Sprintf("%02d", keys.Bucket(p.Node)),
	).Replace(b.String()), nil
}
