package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/text"
)

// AgentLack is what the token of a node's agent lacks.
type AgentLack struct {
	// Right is the first right that is missing, and Key the key that it is for, if it
	// is for one.
	Right, Key string
	// Rule gives it, as it stands in a policy.
	Rule string
	// More is how many others are missing.
	More int
	// Guessed: which configs the node has is not known, and the right is for one of
	// those that there are.
	Guessed bool
	// Ask is the command that tells of all rights.
	Ask string
}

func (l *AgentLack) String() string {
	unless := ""
	if l.Guessed {
		unless = ", unless it is for a config that is not there yet"
	}
	others := ""
	if l.More > 0 {
		others = fmt.Sprintf(", and %s", text.Count(l.More, "other right"))
	}
	return fmt.Sprintf("this token is not enough for the agent of this node%s: it lacks %s%s: add %s to a policy of the token, or check CONSUL_HTTP_TOKEN; `%s` tells all that is missing", unless, l.Right, others, l.Rule, l.Ask)
}

// AgentLacks asks what the token lacks for the agent of p.Node, whose configs are
// p.Configs: where there are none, it asks about those whose names the token may
// list. nil: nothing is missing, or that cannot be told, as where Consul's ACLs are
// off or it does not answer.
func AgentLacks(ctx context.Context, c *consulkv.Client, p acl.Params) *AgentLack {
	roles, err := acl.Roles()
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(roles, func(r acl.Role) bool { return r.Name == "agent" })
	if i < 0 {
		return nil
	}
	role := roles[i]
	// The rights that are for no config are asked about as well where there is none.
	role.Configs = len(p.Configs) > 0
	self, selfErr := c.Self(ctx)
	p.ConsulNode = cmp.Or(self.NodeName, consulkv.DeniedOn(selfErr))
	rules, err := role.Rules(p)
	if err != nil {
		return nil
	}
	want, err := parseRules(rules)
	if err != nil {
		return nil
	}
	if p.ConsulNode == "" {
		// These are for a name that is not known then.
		want = slices.DeleteFunc(want, func(r right) bool {
			return r.Resource == "agent" || r.Resource == "node" || strings.HasPrefix(r.Segment, p.Prefix.ObservedRoot())
		})
	}
	lacks, err := missing(ctx, c, want)
	if err != nil {
		return nil
	}
	guess := ""
	if len(p.Configs) == 0 {
		more, config, err := lacksForSome(ctx, c, p)
		if err != nil {
			return nil
		}
		lacks, guess = append(more, lacks...), config
	}
	if len(lacks) == 0 {
		return nil
	}
	// What the agent's work rests on comes first.
	rank := func(r right) int {
		return slices.IndexFunc([]string{p.Prefix.ActualRoot(), p.Prefix.DesiredRoot(), p.Prefix.ConfigsRoot(), ""}, func(root string) bool { return strings.HasPrefix(r.Segment, root) })
	}
	slices.SortStableFunc(lacks, func(a, b right) int { return cmp.Compare(rank(a), rank(b)) })
	l := &AgentLack{Right: lacks[0].String(), Rule: lacks[0].rule, More: len(lacks) - 1, Guessed: guess != "", Ask: "aimlock doctor -role agent -node " + text.Shell(p.Node)}
	if lacks[0].Resource == "key" {
		l.Key = lacks[0].Segment
	}
	if p.ConsulNode != "" && p.ConsulNode != p.Node {
		l.Ask += " -consul-node " + text.Shell(p.ConsulNode)
	}
	configs := p.Configs
	switch {
	case guess != "":
		configs = []string{guess}
	case len(configs) == 0:
		configs = []string{"NAME"}
	}
	for _, name := range configs {
		l.Ask += " -config-name " + text.Shell(name)
	}
	return l
}

// lacksForSome asks about the configs that there are. A config that the token is for
// shows that it is this node's token; without one, it tells what is missing for the
// config for which the token may do most.
func lacksForSome(ctx context.Context, c *consulkv.Client, p acl.Params) (lacks []right, config string, err error) {
	root := p.Prefix.ConfigsRoot()
	folders, _, err := c.API().KV().Keys(root, "/", (&api.QueryOptions{}).WithContext(consulkv.Part(ctx)))
	if err != nil {
		return nil, "", c.Classify("list "+root, err)
	}
	for part := range slices.Chunk(folders, maxQuestions/2) {
		var want []right
		of := map[string]string{}
		for _, f := range part {
			name := keys.Unescape(strings.TrimSuffix(strings.TrimPrefix(f, root), "/"))
			if keys.CheckName("config", name) != nil {
				continue
			}
			for key, access := range map[string]string{p.Prefix.Desired(name, p.Node): "read", p.Prefix.Actual(name, p.Node): "write"} {
				of[key] = name
				want = append(want, right{Resource: "key", Access: access, Segment: key, rule: fmt.Sprintf("key %q { policy = %q }", key, access)})
			}
		}
		got, err := missing(ctx, c, want)
		if err != nil {
			return nil, "", err
		}
		by := map[string][]right{}
		for _, r := range got {
			by[of[r.Segment]] = append(by[of[r.Segment]], r)
		}
		for _, name := range of {
			switch l := by[name]; {
			case len(l) == 0:
				return nil, "", nil
			case config == "" || len(l) < len(lacks) || len(l) == len(lacks) && name < config:
				lacks, config = l, name
			}
		}
	}
	return lacks, config, nil
}
