// Package nomadapi makes the one client of Nomad that evidence, fleets and
// gates share: where Nomad is, by which token and certificates, how an error of
// it is told to people without the token, and how an answer is followed by
// blocking queries. It knows nothing of locks and rollouts.
//
// Every read is one of the region's leader, which is Nomad's default: a stale
// read never decides.
package nomadapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/nomad/api"

	"github.com/aim-control/aimlock/internal/text"
)

const (
	// Timeout bounds one request that does not wait.
	Timeout = 5 * time.Second
	// RetryFor bounds all tries of one operation together.
	RetryFor = 12 * time.Second
	// MaxWait is how long Nomad may hold a query without a change: less than
	// the five minutes after which it does not itself. It adds up to a
	// sixteenth.
	MaxWait = 2 * time.Minute
)

// Config says how to reach Nomad. What is empty is taken from the variables of
// Nomad's own tools: NOMAD_ADDR, NOMAD_TOKEN, NOMAD_REGION, NOMAD_NAMESPACE,
// NOMAD_HTTP_AUTH, NOMAD_CACERT, NOMAD_CAPATH, NOMAD_CLIENT_CERT,
// NOMAD_CLIENT_KEY, NOMAD_TLS_SERVER_NAME, NOMAD_SKIP_VERIFY.
type Config struct {
	// Address is a URL, such as https://nomad.example:4646, or
	// unix:///secrets/api.sock for the API inside a task. Empty, also in the
	// environment: http://127.0.0.1:4646.
	Address string
	// Token is an ACL token, TokenFile a file that holds one; Token counts first.
	Token, TokenFile string
	Region           string
	Namespace        string
	CACert           string
	ClientCert       string
	ClientKey        string
	TLSServerName    string
}

// Configured reports whether anybody has said where Nomad is. Who asks Nomad
// only to know more does not, unless that is so.
func (c *Config) Configured() bool { return c.Address != "" || os.Getenv("NOMAD_ADDR") != "" }

// Client talks to one Nomad. It is safe for concurrent use.
type Client struct{ api *api.Client }

// New makes a client; it does not connect. An error is about the address, a
// certificate or the token file.
func New(cfg Config) (*Client, error) {
	ac := api.DefaultConfig()
	set := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	set(&ac.Address, cfg.Address)
	set(&ac.Region, cfg.Region)
	set(&ac.Namespace, cfg.Namespace)
	set(&ac.TLSConfig.CACert, cfg.CACert)
	set(&ac.TLSConfig.ClientCert, cfg.ClientCert)
	set(&ac.TLSConfig.ClientKey, cfg.ClientKey)
	set(&ac.TLSConfig.TLSServerName, cfg.TLSServerName)
	if cfg.TokenFile != "" && cfg.Token == "" {
		b, err := os.ReadFile(cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("token file for Nomad: %w", err)
		}
		cfg.Token = strings.TrimSpace(string(b))
	}
	set(&ac.SecretID, cfg.Token)
	u, err := url.Parse(ac.Address)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "unix":
		return nil, fmt.Errorf("address of Nomad %q is no URL: set NOMAD_ADDR to one such as http://127.0.0.1:4646", redacted(ac.Address))
	case u.Scheme != "unix" && u.Host == "":
		return nil, fmt.Errorf("address of Nomad %q names no host: set NOMAD_ADDR to one such as http://127.0.0.1:4646", redacted(ac.Address))
	}
	c, err := api.NewClient(ac)
	if err != nil {
		return nil, fmt.Errorf("client for Nomad at %s: %w", redacted(ac.Address), err)
	}
	return Wrap(c), nil
}

// Wrap makes a Client of one of Nomad's own package.
func Wrap(c *api.Client) *Client { return &Client{api: c} }

// API is the client beneath. Its errors are told by Fail.
func (c *Client) API() *api.Client { return c.api }

// Addr is where Nomad is, for messages.
func (c *Client) Addr() string { return redacted(c.api.Address()) }

func redacted(addr string) string {
	u, err := url.Parse(addr)
	if err != nil {
		return "(not a URL)"
	}
	return u.Redacted()
}

// Error is a failed operation on Nomad. Its message holds no token.
type Error struct {
	Op, Addr, What string
	// Status is that of HTTP, 0 where no answer came.
	Status int
	err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: Nomad at %s: %s; check NOMAD_ADDR and NOMAD_TOKEN", e.Op, e.Addr, e.What)
}

func (e *Error) Unwrap() error { return e.err }

// Temporary reports whether another try may succeed: no answer came, or a
// server had no leader or too much to do. A region that nobody knows is answered
// with 500 as well, and does not become known.
func (e *Error) Temporary() bool {
	switch {
	case e.Status == 0:
		return !errors.Is(e.err, context.Canceled)
	case strings.Contains(e.What, "No path to region"):
		return false
	}
	return e.Status >= 500 || e.Status == http.StatusTooManyRequests
}

// Fail makes an *Error of an error of API. The text of an answer is foreign.
func (c *Client) Fail(op string, err error) error {
	out := &Error{Op: op, Addr: c.Addr(), What: text.Clip(text.Printable(err.Error()), 200), err: err}
	if e, ok := errors.AsType[api.UnexpectedResponseError](err); ok {
		out.Status = e.StatusCode()
		if out.Status != 0 {
			out.What = fmt.Sprintf("HTTP %d: %s", out.Status, text.Clip(text.Printable(e.Body()), 200))
		}
	} else if errors.Is(err, context.DeadlineExceeded) {
		out.What = "timed out"
	}
	return out
}

// Status is the status of HTTP that an error carries, 0 where there is none.
func Status(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	if e, ok := errors.AsType[api.UnexpectedResponseError](err); ok {
		return e.StatusCode()
	}
	return 0
}

// SeesAll reports whether what a region does not show to this client is not
// there: it asks for no tokens, or the token is one of management. Nomad hides
// what a token may not see as if it were not there.
//
// Without ACLs, Nomad 2.0.5 shows a token with the accessor "acls-disabled" that
// is a client's; older ones answer 400.
func (c *Client) SeesAll(q *api.QueryOptions) (bool, error) {
	tok, _, err := c.api.ACLTokens().Self(q)
	if err == nil {
		return tok.Type == "management" || tok.AccessorID == "acls-disabled", nil
	}
	if e, ok := errors.AsType[api.UnexpectedResponseError](err); ok && strings.TrimSpace(e.Body()) == "ACL support disabled" {
		return true, nil
	}
	return false, c.Fail("read the token", err)
}

// Retry runs f, which must be safe to repeat, until it succeeds, fails for good,
// or RetryFor is over; each try has Timeout. Its error is an *Error, or the
// cause of ctx if that ended.
func Retry[T any](ctx context.Context, c *Client, op string, f func(q *api.QueryOptions) (T, error)) (T, error) {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval = 100*time.Millisecond, 2, 2*time.Second
	return backoff.Retry(ctx, func() (T, error) {
		tctx, cancel := context.WithTimeout(ctx, Timeout)
		defer cancel()
		v, err := f((&api.QueryOptions{}).WithContext(tctx))
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			return v, backoff.Permanent(context.Cause(ctx))
		}
		err = c.Fail(op, err)
		if e, ok := errors.AsType[*Error](err); ok && !e.Temporary() {
			return v, backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(RetryFor))
}

// Blocking makes the options of a query that waits, for wait at most, until
// Nomad has something newer than index, and a context that bounds it. An index
// of 0 does not wait.
func Blocking(ctx context.Context, index uint64, wait time.Duration) (*api.QueryOptions, context.CancelFunc) {
	bound := Timeout
	if index > 0 {
		wait = min(max(wait, time.Second), MaxWait)
		bound += wait + wait/16
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	return (&api.QueryOptions{WaitIndex: index, WaitTime: wait}).WithContext(ctx), cancel
}
