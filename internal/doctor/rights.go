package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/consulkv"
)

// right is one question to Consul, as its endpoint takes it.
type right struct {
	Resource string
	Access   string
	Segment  string `json:",omitempty"`
	// rule is how it stands in a policy.
	rule string
}

func (r right) String() string {
	text := r.Resource + ":" + r.Access
	if r.Segment != "" {
		text += " on " + r.Segment
	}
	return text
}

// answer is Consul's; it repeats the question.
type answer struct {
	Resource string
	Access   string
	Segment  string
	Allow    bool
}

// maxQuestions is how many questions Consul takes at once (maximumACLAuthorize… of
// agent/acl_endpoint.go allows 64).
const maxQuestions = 64

// rights compares what the token may do with the roles.
func (e *examination) rights(ctx context.Context) bool {
	var self api.ACLToken
	if err := e.get(ctx, "/v1/acl/token/self", &self); err != nil {
		if strings.Contains(err.Error(), "ACL support disabled") {
			return e.note("rights", "", "Consul's ACLs are off: whoever reaches it may do everything, locks included")
		}
		return e.fail("rights", "set CONSUL_HTTP_TOKEN to a token that this Consul knows", "which rights the token has cannot be asked: %s", e.Consul.Classify("read the token", err))
	}
	e.ok("token", "accessor %s %s", self.AccessorID, self.Description)
	roles, err := acl.Roles()
	if err != nil {
		return e.fail("rights", "", "%s", err)
	}
	var have []string
	for _, r := range roles {
		asked := slices.Contains(e.Roles, r.Name)
		if len(e.Roles) > 0 && !asked {
			continue
		}
		missing, err := e.missing(ctx, r)
		switch {
		case err != nil && asked:
			e.fail("rights", e.withFlags(r), "role %s: %s", r.Name, err)
		case err != nil && r.Flags() != "":
			// It is for a node, a config or a lock that nobody named.
			e.unasked = append(e.unasked, r)
		case len(missing) == 0:
			have = append(have, r.Name)
		case asked:
			e.lacks(r.Name, missing)
		}
	}
	e.enough = len(e.Roles) > 0 && len(have) == len(e.Roles)
	switch {
	case len(have) > 0:
		e.ok("rights", "the token is enough for: %s", strings.Join(have, ", "))
	case len(e.Roles) == 0:
		e.warn("rights", e.orAsk("give it the rules of one: `aimlock acl` lists them, and -role NAME tells here what is missing"), "the token is enough for no role that could be asked about")
	}
	return true
}

// withFlags is the command that tells what a token lacks for a role.
func (e *examination) withFlags(r acl.Role) string {
	return strings.TrimSpace(fmt.Sprintf("`aimlock doctor -role %s %s", r.Name, r.Flags())) + "` asks for it"
}

// orAsk adds to mend how to ask about the roles that could not be asked about: a token
// that has one of them needs no mending.
func (e *examination) orAsk(mend string) string {
	var ask []string
	for _, r := range e.unasked {
		ask = append(ask, fmt.Sprintf("`aimlock doctor -role %s %s`", r.Name, r.Flags()))
	}
	if ask == nil {
		return mend
	}
	return fmt.Sprintf("of these roles it could not be asked: %s; if it is for none of them, %s", strings.Join(ask, ", "), mend)
}

// may asks whether the token has one right; known is false where that cannot be
// asked, as where Consul's ACLs are off.
func (e *examination) may(ctx context.Context, r right) (may, known bool) {
	return e.Consul.May(ctx, r.Resource, r.Access, r.Segment)
}

// lacks tells what a token lacks for a role: right by right, or together where they
// are many.
func (e *examination) lacks(role string, missing []right) {
	if len(missing) > eachRight {
		names := make([]string, len(missing))
		for i, m := range missing {
			names[i] = m.String()
		}
		e.fail("rights", fmt.Sprintf("`aimlock acl %s` prints the rules of a policy with all of them", role), "role %s: the token lacks %d rights: %s", role, len(missing), strings.Join(names, ", "))
		return
	}
	for _, m := range missing {
		e.fail("rights", fmt.Sprintf("add %s to a policy of the token; `aimlock acl %s` prints all rules", m.rule, role), "role %s: the token lacks %s", role, m)
	}
}

// eachRight is how many missing rights are told one by one.
const eachRight = 3

// missing are the rights of a role that the token does not have.
func (e *examination) missing(ctx context.Context, role acl.Role) ([]right, error) {
	p := e.Params
	p.Prefix = e.Keys
	text, err := role.Rules(p)
	if err != nil {
		return nil, err
	}
	want, err := parseRules(text)
	if err != nil {
		return nil, fmt.Errorf("role %s: %w", role.Name, err)
	}
	return missing(ctx, e.Consul, want)
}

// missing are those of want that the token does not have.
func missing(ctx context.Context, c *consulkv.Client, want []right) ([]right, error) {
	var out []right
	for part := range slices.Chunk(want, maxQuestions) {
		var got []answer
		if _, err := c.API().Raw().Write(consulkv.AuthorizePath, part, &got, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
			return nil, c.Classify("ask for the token's rights", err)
		}
		if len(got) != len(part) {
			return nil, fmt.Errorf("Consul answered %d of %d questions", len(got), len(part))
		}
		for i, a := range got {
			if !a.Allow {
				out = append(out, part[i])
			}
		}
	}
	return out, nil
}

// parseRules reads Consul's rules as the questions whether a token has them. What a
// rule denies is not asked for.
func parseRules(text string) ([]right, error) {
	file, diags := hclsyntax.ParseConfig([]byte(text), "rules.hcl", hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diags
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return nil, fmt.Errorf("the rules are no HCL")
	}
	var out []right
	add := func(resource, segment string, attr *hclsyntax.Attribute, block string) error {
		v, diags := attr.Expr.Value(nil)
		if diags.HasErrors() {
			return diags
		}
		if v.Type() != cty.String || v.IsNull() {
			return fmt.Errorf("%s is no text", attr.Name)
		}
		if access := v.AsString(); access != "deny" {
			out = append(out, right{Resource: resource, Access: access, Segment: segment, rule: fmt.Sprintf(block, access)})
		}
		return nil
	}
	for _, attr := range body.Attributes {
		if err := add(attr.Name, "", attr, attr.Name+" = %q"); err != nil {
			return nil, err
		}
	}
	for _, b := range body.Blocks {
		attr := b.Body.Attributes["policy"]
		if attr == nil || len(b.Labels) != 1 {
			return nil, fmt.Errorf("the block %s has no policy", b.Type)
		}
		block := strings.ReplaceAll(fmt.Sprintf("%s %q", b.Type, b.Labels[0]), "%", "%%") + " { policy = %q }"
		if err := add(strings.TrimSuffix(b.Type, "_prefix"), b.Labels[0], attr, block); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b right) int { return strings.Compare(a.rule, b.rule) })
	return out, nil
}
