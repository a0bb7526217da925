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
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
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
	// The file is read again for each request: Nomad writes the identity of a
	// task anew before it expires.
	Token, TokenFile string
	Region           string
	Namespace        string
	CACert           string
	ClientCert       string
	ClientKey        string
	TLSServerName    string
	// Log is told where Nomad's certificate is not verified. May be nil.
	Log hclog.Logger
}

// Configured reports whether anybody has said where Nomad is. What was asked for
// by name, such as a fleet or a gate, takes the Nomad of this machine where that is
// not so, as Nomad's own tools do. Evidence and steps of a break do not: another
// cluster's Nomad has none of the allocations, and what is gone is broken.
func (c *Config) Configured() bool { return c.Address != "" || os.Getenv("NOMAD_ADDR") != "" }

// Client talks to one Nomad. It is safe for concurrent use.
type Client struct {
	api *api.Client
	// addr is where Nomad is, without a password.
	addr      string
	tokenFile string
}

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
	if cfg.Token != "" {
		cfg.TokenFile = ""
	} else if cfg.TokenFile != "" {
		var err error
		if cfg.Token, err = readToken(cfg.TokenFile); err != nil {
			return nil, err
		}
	}
	set(&ac.SecretID, cfg.Token)
	const skip = "NOMAD_SKIP_VERIFY"
	if v := os.Getenv(skip); v != "" {
		// The package takes what it cannot read for false.
		if _, err := strconv.ParseBool(v); err != nil {
			return nil, fmt.Errorf("%s is %q: write true or false", skip, v)
		}
	}
	u, err := url.Parse(ac.Address)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "unix":
		return nil, fmt.Errorf("address of Nomad %q is no URL: set NOMAD_ADDR to one such as http://127.0.0.1:4646", redacted(ac.Address))
	case u.Scheme != "unix" && u.Host == "":
		return nil, fmt.Errorf("address of Nomad %q names no host: set NOMAD_ADDR to one such as http://127.0.0.1:4646", redacted(ac.Address))
	}
	if ac.TLSConfig.Insecure && u.Scheme == "https" && cfg.Log != nil {
		cfg.Log.Warn("Nomad's certificate is not verified: whoever stands between sees the token (" + skip + ")")
	}
	addr := redacted(ac.Address) // the package changes that of a socket
	c, err := api.NewClient(ac)
	if err != nil {
		return nil, fmt.Errorf("client for Nomad at %s: %w", addr, err)
	}
	return &Client{api: c, addr: addr, tokenFile: cfg.TokenFile}, nil
}

func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("token file for Nomad: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Wrap makes a Client of one of Nomad's own package.
func Wrap(c *api.Client) *Client { return &Client{api: c, addr: redacted(c.Address())} }

// API is the client beneath. Its errors are told by Fail, and its requests are
// made with Options.
func (c *Client) API() *api.Client { return c.api }

// Addr is where Nomad is, for messages.
func (c *Client) Addr() string { return c.addr }

// Options are those of a request within ctx, with the token that counts now. A
// token file that cannot be read any more leaves the token that was in it first.
func (c *Client) Options(ctx context.Context) *api.QueryOptions {
	q := (&api.QueryOptions{}).WithContext(ctx)
	if c.tokenFile != "" {
		if token, err := readToken(c.tokenFile); err == nil {
			q.AuthToken = token
		}
	}
	return q
}

func redacted(addr string) string {
	u, err := url.Parse(addr)
	if err != nil {
		return "(not a URL)"
	}
	return u.Redacted()
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
		v, err := f(c.Options(tctx))
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
func (c *Client) Blocking(ctx context.Context, index uint64, wait time.Duration) (*api.QueryOptions, context.CancelFunc) {
	bound := Timeout
	if index > 0 {
		wait = min(max(wait, time.Second), MaxWait)
		bound += wait + wait/16
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	q := c.Options(ctx)
	q.WaitIndex, q.WaitTime = index, wait
	return q, cancel
}
