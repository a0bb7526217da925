package command

import (
	"context"
	"flag"
	"fmt"
	"strings"

	"github.com/aim-control/aimlock/examples/acl"
)

func newACL(m *Meta) *command {
	var p acl.Params
	var configs, locks stringList
	return &command{
		Meta:     m,
		Synopsis: "Print the Consul ACL rules that a role needs",
		Usage:    "[options] [ROLE]",
		Description: `Prints the least that a role's token must be allowed, as rules of a Consul policy,
with the prefix and the names filled in. It connects to nothing. Without a ROLE it
lists the roles.`,
		Examples: []example{
			{"What roles there are", "aimlock acl"},
			{"The token of one node's agent", "aimlock acl -node web-1 -config-name app.conf agent"},
			{"As a policy in Consul", "aimlock acl orchestrator | consul acl policy create -name aimlock-orchestrator -rules -"},
		},
		Groups: groupConsul | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&p.Node, "node", "", "`NAME` of the agent's node, as in its -node.")
			fs.StringVar(&p.ConsulNode, "consul-node", "", "`NAME` of the agent's machine in Consul. Default: that of -node.")
			fs.Var(&configs, "config-name", "`NAME` of a config that the agent's node gets. May be repeated.")
			fs.Var(&locks, "lock", "`NAME` of a lock that lock exec takes or, for an agent, that is held on\nits machine. May be repeated.")
		},
		MaxArgs:  1,
		Complete: completeRoles,
		Run: func(_ context.Context, in *input) error {
			p.Prefix, p.Configs, p.Locks = m.Prefix, configs, locks
			roles, err := acl.Roles()
			if err != nil {
				return err
			}
			if len(in.Args) == 0 {
				return m.listRoles(roles)
			}
			var names []string
			for _, r := range roles {
				if r.Name == in.Args[0] {
					return m.printRules(r, p)
				}
				names = append(names, r.Name)
			}
			return usagef("there is no role %q: there are %s", in.Args[0], strings.Join(names, ", "))
		},
	}
}

// roleView is a role as JSON.
type roleView struct {
	Role  string `json:"role"`
	About string `json:"about"`
	// Rules of a policy in Consul, in HCL: where one role was named.
	Rules string `json:"rules,omitempty"`
}

func (m *Meta) listRoles(roles []acl.Role) error {
	if m.JSON {
		out := make([]roleView, len(roles))
		for i, r := range roles {
			out[i] = roleView{Role: r.Name, About: r.About}
		}
		return m.PrintJSON(out)
	}
	for _, r := range roles {
		m.Printf("%-13s %s\n", r.Name, r.About)
	}
	return nil
}

func (m *Meta) printRules(r acl.Role, p acl.Params) error {
	text, err := r.Rules(p)
	if err != nil {
		return usagef("%w (%s)", err, aclFlags(r))
	}
	if m.JSON {
		return m.PrintJSON(roleView{Role: r.Name, About: r.About, Rules: text})
	}
	m.Printf("%s", text)
	return nil
}

// aclFlags are the flags that a role cannot do without.
func aclFlags(r acl.Role) string {
	if r.Flags() == "" {
		return "-prefix"
	}
	return fmt.Sprintf("aimlock acl %s %s", r.Flags(), r.Name)
}
