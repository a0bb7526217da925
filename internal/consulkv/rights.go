package consulkv

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/text"
)

// right is what a token lacks, in the words of Consul's ACL rules.
type right struct {
	resource, access, name string
	// prefix: for all names that begin with name.
	prefix bool
}

// rule is what would give the right, as it stands in a policy.
func (r right) rule() string {
	if r.name == "" {
		switch r.resource {
		case "acl", "operator", "keyring", "mesh", "peering":
			return fmt.Sprintf("%s = %q", r.resource, r.access)
		}
	}
	block := r.resource
	if r.prefix || r.name == "" {
		block += "_prefix"
	}
	return fmt.Sprintf("%s %q { policy = %q }", block, text.Printable(r.name), r.access)
}

// AuthorizePath asks which rights a token has. Consul's own UI uses it; found in
// agent/http_register.go of Consul 1.14.11.
const AuthorizePath = "/v1/internal/acl/authorize"

// May asks whether the client's token has a right; known is false where that cannot
// be asked, as where Consul's ACLs are off.
func (c *Client) May(ctx context.Context, resource, access, segment string) (may, known bool) {
	ask := []struct{ Resource, Access, Segment string }{{resource, access, segment}}
	var got []struct{ Allow bool }
	_, err := c.api.Raw().Write(AuthorizePath, ask, &got, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil || len(got) != 1 {
		return false, false
	}
	return got[0].Allow, true
}

// lacking is how Consul 1.12 and later say what a token lacks; before, they said
// no more than that it is denied.
var lacking = regexp.MustCompile(`lacks permission '([a-z-]+):([a-z]+)'(?: on "([^"]+)")?`)

// anonymous is the accessor of the token that stands for none.
const anonymous = "00000000-0000-0000-0000-000000000002"

// deniedHint is the way out of a refusal that says msg.
func deniedHint(msg string) string {
	switch {
	case strings.Contains(msg, "ACL not found"):
		return "this Consul does not know the token: check CONSUL_HTTP_TOKEN and the token file"
	case strings.Contains(msg, anonymous):
		return "no token was given: set CONSUL_HTTP_TOKEN"
	}
	m := lacking.FindStringSubmatch(msg)
	if m == nil {
		return "check CONSUL_HTTP_TOKEN and its policies"
	}
	return addHint(right{resource: m[1], access: m[2], name: m[3]})
}

// DeniedOn is the name of what a refusal is about; "" where Consul does not tell it,
// and where err is no refusal.
func DeniedOn(err error) string {
	if KindOf(err) != Denied {
		return ""
	}
	if m := lacking.FindStringSubmatch(err.Error()); m != nil {
		return m[3]
	}
	return ""
}

func addHint(r right) string {
	return fmt.Sprintf("add %s to a policy of the token, or check CONSUL_HTTP_TOKEN", r.rule())
}

// hiddenError is an answer without what the token may not read. Consul leaves it
// out of lists and of the results of transactions without an error, so that what
// is not there and what is hidden look alike.
type hiddenError struct {
	right
	// asked without a token
	bare bool
}

func (e *hiddenError) Error() string {
	what := "the keys under " + text.Printable(e.name)
	switch {
	case e.name == "":
		what = "some keys"
	case !e.prefix:
		what = "the key " + text.Printable(e.name)
	}
	return fmt.Sprintf("Consul's answer leaves out what the token may not read of %s", what)
}

type partKey struct{}

// Part lets lists of keys under ctx be a part of what there is, for who does not
// take what is left out for what does not exist. Without it they are an error of
// kind Denied where the token may not read all of them.
func Part(ctx context.Context) context.Context { return context.WithValue(ctx, partKey{}, true) }

// filtered refuses an answer from which Consul, 1.11 or later, says that it left
// something out. Sessions, health and catalog are the business of their readers.
func filtered(req *http.Request, resp *http.Response) error {
	if resp.Header.Get("X-Consul-Results-Filtered-By-ACLs") != "true" || req.Context().Value(partKey{}) != nil {
		return nil
	}
	_, key, isKV := strings.Cut(req.URL.Path, "/v1/kv/")
	if !isKV && !strings.HasSuffix(req.URL.Path, "/v1/txn") {
		return nil
	}
	return &hiddenError{right: right{resource: "key", access: "read", name: key, prefix: isKV}}
}

// nothing checks that an empty list is one: to a client without a token, Consul
// does not say that it left something out. A read of a key is refused.
func (c *Client) nothing(ctx context.Context, op, prefix string) error {
	if c.hasToken || prefix == "" {
		return nil
	}
	_, err := Retry(ctx, c, op, func(ctx context.Context) (struct{}, error) {
		_, _, err := c.api.KV().Get(prefix, consistent(ctx))
		return struct{}{}, err
	})
	return err
}

// shown checks that every read of a transaction has its result.
func (c *Client) shown(op string, ops []Op, res Results) error {
	for _, o := range ops {
		if o.Verb != "get" && o.Verb != "get-or-empty" || res.Find(o.Key) != nil {
			continue
		}
		return &Error{
			Kind: Denied, Op: op, Addr: c.addr, Tries: 1, stands: writes(ops),
			Err: &hiddenError{right: right{resource: "key", access: "read", name: o.Key}, bare: !c.hasToken},
		}
	}
	return nil
}

// Needs is err, and names access as what the token lacks on a key if it is that key
// which the token may not read: who also writes it is else told to add too little.
func Needs(err error, key, access string) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	h, ok := isHidden(e.Err)
	if !ok || h.prefix || h.name != key {
		return err
	}
	out, lacks := *e, *h
	lacks.access = access
	out.Err = &lacks
	return &out
}

func isHidden(err error) (*hiddenError, bool) { return errors.AsType[*hiddenError](err) }
