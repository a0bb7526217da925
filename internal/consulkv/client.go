package consulkv

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

// Defaults of Config.
const (
	// DefaultTimeout bounds one request that does not block.
	DefaultTimeout = 5 * time.Second
	// DefaultRetryFor bounds all tries of one operation together.
	DefaultRetryFor = 12 * time.Second
)

// Config says how to reach Consul. The zero value takes everything from the
// environment variables of Consul's own tools (CONSUL_HTTP_ADDR,
// CONSUL_HTTP_TOKEN, CONSUL_CACERT, CONSUL_NAMESPACE …).
type Config struct {
	// Address as in CONSUL_HTTP_ADDR; empty takes the environment's.
	Address string
	// Token and TokenFile are an ACL token, of which the file counts first; empty
	// takes the environment's.
	Token     string
	TokenFile string
	TLS       TLSConfig
	Log       hclog.Logger
	// Timeout bounds one request that does not block; 0 is DefaultTimeout.
	Timeout time.Duration
	// RetryFor bounds all tries of one operation; 0 is DefaultRetryFor.
	RetryFor time.Duration
	// OnRetry is told of an operation that is still tried again after a second, with
	// the error of its last try; it must not block. nil tells nobody.
	OnRetry func(error)
	// Wrap stands between the client and the network: counters, faults.
	Wrap func(http.RoundTripper) http.RoundTripper
}

// Client talks to one Consul. It is safe for concurrent use.
type Client struct {
	api      *api.Client
	addr     string
	log      hclog.Logger
	timeout  time.Duration
	retryFor time.Duration
	// onRetry is never nil.
	onRetry func(error)
	// hasToken is whether requests carry a token of the client's own.
	hasToken bool
	accessor *accessor
}

// New makes a client; it does not connect. An error is about the address, a
// certificate or the token file.
func New(cfg Config) (*Client, error) {
	ac := api.DefaultConfig()
	if os.Getenv(api.HTTPAddrEnvName) == "" {
		// Theirs is a name, which a resolver may send elsewhere, or not know.
		ac.Address = "127.0.0.1:8500"
	}
	if cfg.Address != "" {
		ac.Address = cfg.Address
	}
	if cfg.Token != "" {
		ac.Token = cfg.Token
	}
	file := cfg.TokenFile
	if file == "" && cfg.Token == "" {
		file = ac.TokenFile
	}
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("token file: %w", err)
		}
		ac.Token, ac.TokenFile = strings.TrimSpace(string(b)), ""
	}
	if hasUser(ac.Address) {
		return nil, errors.New("address of Consul: there is a user in it, which Consul's client does not take from there: set CONSUL_HTTP_AUTH to user:password, and the address without them")
	}
	if strings.Contains(ac.Address, "/") && !strings.Contains(ac.Address, "://") {
		return nil, fmt.Errorf("address of Consul %q is not host:port or a URL: set CONSUL_HTTP_ADDR to one such as 127.0.0.1:8500", ac.Address)
	}
	if err := cfg.TLS.into(ac, cfg.Log); err != nil {
		return nil, err
	}
	hc, err := api.NewHttpClient(ac.Transport, ac.TLSConfig)
	if err != nil {
		return nil, fmt.Errorf("TLS settings for Consul: %w", err)
	}
	addr := ac.Address
	// api.NewClient changes the transport for unix sockets only while it owns
	// it, so the checks are put around the transport after it is done.
	ac.HttpClient = hc
	cl, err := api.NewClient(ac)
	if err != nil {
		return nil, fmt.Errorf("client for Consul at %s: %w", addr, err)
	}
	rt := ac.HttpClient.Transport
	if cfg.Wrap != nil {
		rt = cfg.Wrap(rt)
	}
	ac.HttpClient.Transport = &checker{next: rt, secret: ac.Token}

	c := &Client{api: cl, addr: addr, log: cfg.Log, timeout: cfg.Timeout, retryFor: cfg.RetryFor, onRetry: cfg.OnRetry, hasToken: ac.Token != "", accessor: &accessor{}}
	if c.log == nil {
		c.log = hclog.NewNullLogger()
	}
	if c.onRetry == nil {
		c.onRetry = func(error) {}
	}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.retryFor == 0 {
		c.retryFor = DefaultRetryFor
	}
	return c, nil
}

// hasUser reports whether a user, and maybe a password, stands before the host of
// an address. consul/api takes it for a part of the host's name, and names it in
// errors.
func hasUser(addr string) bool {
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok {
		rest = addr
	}
	host, _, _ := strings.Cut(rest, "/")
	return scheme != "unix" && strings.Contains(host, "@")
}

// RetryFor bounds all tries of one operation together.
func (c *Client) RetryFor() time.Duration { return c.retryFor }

// API is the client beneath, for the endpoints that need no care of ours.
// Its errors are classified by Classify.
func (c *Client) API() *api.Client { return c.api }

// Addr is where Consul is, for messages.
func (c *Client) Addr() string { return c.addr }

// consistent returns options for a read that reflects every write committed
// before it: decisions rest on nothing less.
func consistent(ctx context.Context) *api.QueryOptions {
	return (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
}

// HasToken reports whether requests carry a token of the client's own.
func (c *Client) HasToken() bool { return c.hasToken }

// Get reads a key consistently; a missing key is nil and no error.
func (c *Client) Get(ctx context.Context, key string) (*api.KVPair, error) {
	return Retry(ctx, c, "read "+key, func(ctx context.Context) (*api.KVPair, error) {
		p, _, err := c.api.KV().Get(key, consistent(ctx))
		return p, err
	})
}

// List reads all keys under a prefix consistently. That the token may not read
// some of them is an error of kind Denied; see Part.
func (c *Client) List(ctx context.Context, prefix string) (api.KVPairs, error) {
	op := "list " + folder(prefix)
	p, err := Retry(ctx, c, op, func(ctx context.Context) (api.KVPairs, error) {
		p, _, err := c.api.KV().List(prefix, consistent(ctx))
		return p, err
	})
	if err == nil && len(p) == 0 {
		err = c.nothing(ctx, op, prefix)
	}
	return p, err
}

func folder(prefix string) string {
	if prefix == "" {
		return "all keys"
	}
	return prefix
}

// Keys reads the names of all keys under a prefix, up to the separator. That the
// token may not read some of them is an error of kind Denied; see Part.
func (c *Client) Keys(ctx context.Context, prefix, separator string) ([]string, error) {
	op := "list " + folder(prefix)
	k, err := Retry(ctx, c, op, func(ctx context.Context) ([]string, error) {
		k, _, err := c.api.KV().Keys(prefix, separator, consistent(ctx))
		return k, err
	})
	if err == nil && len(k) == 0 {
		err = c.nothing(ctx, op, prefix)
	}
	return k, err
}

// Put writes a key without any check: only for what one writer owns, such as
// a node's own report.
func (c *Client) Put(ctx context.Context, key string, value []byte) error {
	_, err := Retry(ctx, c, "write "+key, func(ctx context.Context) (struct{}, error) {
		_, err := c.api.KV().Put(&api.KVPair{Key: key, Value: value}, (&api.WriteOptions{}).WithContext(ctx))
		return struct{}{}, err
	})
	return err
}

// CAS writes a key if its ModifyIndex still is index (0: if it does not
// exist). It makes one try: after an error the write may or may not stand.
func (c *Client) CAS(ctx context.Context, key string, value []byte, index uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, try(ctx, c.timeout))
	defer cancel()
	ok, _, err := c.api.KV().CAS(&api.KVPair{Key: key, Value: value, ModifyIndex: index}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return false, c.Classify("write "+key, err)
	}
	return ok, nil
}
