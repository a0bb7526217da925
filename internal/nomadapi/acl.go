package nomadapi

import (
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// SeesAll reports whether an allocation that a region does not show to this
// client is not there. Nomad hides what a token may not see as if it were not
// there; so this is so only where it asks for no tokens, where the token is one
// of management, or where its policies let it read the jobs of all namespaces.
// An error is that of the question, and leaves it open.
//
// Without ACLs, Nomad 2.0.5 shows a token with the accessor "acls-disabled" that
// is a client's; older ones answer 400. The identity of a task is no token, and
// its policies are shown all the same.
func (c *Client) SeesAll(q *api.QueryOptions) (bool, error) {
	// Not by ACLTokens().Self: its reader panics at a null.
	var tok struct{ Type, AccessorID string }
	_, err := c.api.Raw().Query("/v1/acl/token/self", &tok, q)
	switch e, ok := errors.AsType[api.UnexpectedResponseError](err); {
	case err == nil && (tok.Type == "management" || tok.AccessorID == "acls-disabled"):
		return true, nil
	case ok && strings.TrimSpace(e.Body()) == "ACL support disabled":
		return true, nil
	case err != nil && (!ok || !strings.Contains(e.Body(), tellsNoAuth)):
		return false, c.Fail("read the token", err)
	}
	// To all but those of management, Nomad lists the policies of the token
	// itself, those of its roles and of its job included.
	list, _, err := c.api.ACLPolicies().List(q)
	if err != nil {
		return false, c.Fail("list the policies of the token", err)
	}
	var rules []namespaceRule
	for _, p := range list {
		if p == nil {
			return false, nil // no list of policies
		}
		var policy struct {
			RulesJSON *struct{ Namespaces []namespaceRule }
		}
		if _, err := c.api.Raw().Query("/v1/acl/policy/"+url.PathEscape(p.Name), &policy, q); err != nil {
			return false, c.Fail("read policy "+p.Name, err)
		}
		if policy.RulesJSON == nil {
			return false, nil // too old to tell
		}
		rules = append(rules, policy.RulesJSON.Namespaces...)
	}
	return readsAllJobs(rules), nil
}

// namespaceRule is a namespace block of an ACL policy, as Nomad reads it.
type namespaceRule struct {
	Name         string
	Policy       string
	Capabilities []string
}

// readsAllJobs reports whether rules let every job of every namespace be read.
// The rule with the closest name counts alone, so that one without the right
// takes it away for whatever its name matches.
func readsAllJobs(rules []namespaceRule) bool {
	all := false
	for _, r := range rules {
		if r.Policy == "deny" || slices.Contains(r.Capabilities, "deny") {
			return false
		}
		if r.Policy != "read" && r.Policy != "write" && !slices.Contains(r.Capabilities, "read-job") {
			return false
		}
		all = all || r.Name == "*"
	}
	return all
}
