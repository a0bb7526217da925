package consulkv

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/text"
)

// Kind says what went wrong between aimlock and Consul, as far as the caller
// can do something about it.
type Kind string

// Kinds of errors.
const (
	// Unreachable: no connection was made, so nothing was sent.
	Unreachable Kind = "unreachable"
	// Broken: the connection broke or timed out after the request was sent.
	Broken Kind = "broken"
	// NoLeader: the servers have no leader right now.
	NoLeader Kind = "no leader"
	// ServerError: Consul answered with a 5xx.
	ServerError Kind = "server error"
	// Denied: the ACL token is wrong or lacks rights.
	Denied Kind = "denied"
	// NotConsul: something answered that is not Consul.
	NotConsul Kind = "not consul"
	// TLS: no encrypted connection was agreed on, so nothing was sent.
	TLS Kind = "tls"
	// TooLarge: a value or transaction over Consul's limits.
	TooLarge Kind = "too large"
	// RateLimited: Consul refuses for load.
	RateLimited Kind = "rate limited"
	// BadRequest: Consul does not accept the request as it stands.
	BadRequest Kind = "bad request"
)

// Error is a failed operation on Consul. Its message holds the operation, the
// server's address and a way out, and never a value or a token.
type Error struct {
	Kind Kind
	Op   string
	Addr string
	Err  error
	// Tries and Took say how often and how long it was tried.
	Tries int
	Took  time.Duration
	// bare: it was asked without a token.
	bare bool
	// stands: the write was done, and its answer is not whole.
	stands bool
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: Consul at %s: ", e.Op, e.Addr)
	switch e.Kind {
	case Unreachable:
		fmt.Fprintf(&b, "cannot be reached (%v)", root(e.Err))
	case Broken:
		fmt.Fprintf(&b, "did not answer (%v)", root(e.Err))
	case NoLeader:
		b.WriteString("has no cluster leader")
	case NotConsul:
		fmt.Fprintf(&b, "this is not Consul's API (%v)", root(e.Err))
	case Denied:
		fmt.Fprintf(&b, "permission denied (%v)", root(e.Err))
	case TLS:
		fmt.Fprintf(&b, "no TLS connection (%v)", root(e.Err))
	default:
		fmt.Fprintf(&b, "%v", root(e.Err))
	}
	if e.Tries > 1 {
		fmt.Fprintf(&b, " after %d tries in %s", e.Tries, e.Took.Round(100*time.Millisecond))
	}
	if h := e.Hint(); h != "" {
		b.WriteString("; ")
		b.WriteString(h)
	}
	return b.String()
}

// Hint is the way out, in a few words.
func (e *Error) Hint() string {
	switch e.Kind {
	case Unreachable:
		return "is it running there? set CONSUL_HTTP_ADDR"
	case NoLeader:
		return "wait for an election or check the servers' quorum"
	case NotConsul:
		return "check CONSUL_HTTP_ADDR"
	case Denied:
		if h, ok := isHidden(e.Err); ok && h.bare {
			return "no token was given: set CONSUL_HTTP_TOKEN"
		} else if ok {
			return addHint(h.right)
		} else if e.bare && strings.Contains(e.Err.Error(), "ACL not found") {
			// So Consul says it of the token "", too.
			return "no token was given: set CONSUL_HTTP_TOKEN"
		}
		return deniedHint(e.Err.Error())
	case TLS:
		return tlsHint(e.Err)
	case BadRequest:
		if plainToTLS(e.Err) {
			return "it speaks TLS: set CONSUL_HTTP_SSL=true, or write https:// in CONSUL_HTTP_ADDR"
		}
	}
	return ""
}

func (e *Error) Unwrap() error { return e.Err }

// Temporary reports whether the same request may succeed later.
func (e *Error) Temporary() bool {
	switch e.Kind {
	case Unreachable, Broken, NoLeader, ServerError, RateLimited:
		return true
	}
	return false
}

// KindOf returns the kind of an error of this package, and "" for others.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return ""
}

// Silent reports whether nothing of an answer came: no connection was made, or it
// brought none in time.
func Silent(err error) bool {
	return KindOf(err) == Unreachable || KindOf(err) == Broken && errors.Is(err, context.DeadlineExceeded)
}

// Ambiguous reports whether a write that failed with err may stand all the
// same. Only a connection that was never made, and a refusal by Consul
// itself, prove that it does not.
func Ambiguous(err error) bool {
	if err == nil {
		return false
	}
	if _, ok := errors.AsType[*Refused](err); ok {
		return false
	}
	if e, ok := errors.AsType[*Error](err); ok && e.stands {
		return true
	}
	switch KindOf(err) {
	case Unreachable, TLS, Denied, TooLarge, BadRequest, RateLimited:
		return false
	}
	return true
}

// root is the innermost error's text: url.Error and net.OpError around it
// repeat the address.
func root(err error) error {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*notConsulError](err); ok {
		return e
	}
	if e, ok := isHidden(err); ok {
		return e
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return e.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("timed out")
	}
	for {
		u := errors.Unwrap(err)
		if u == nil {
			return err
		}
		err = u
	}
}

// statusError is an answer that the checker turned into an error.
type statusError struct {
	code int
	body string
}

func (e *statusError) Error() string {
	if e.body == "" {
		return fmt.Sprintf("HTTP %d", e.code)
	}
	return fmt.Sprintf("HTTP %d: %s", e.code, e.body)
}

type notConsulError struct{ what string }

func (e *notConsulError) Error() string { return e.what }

// What of an answer is read that is not the data asked for.
const (
	// maxErrorBody bounds a server's error text, in an error.
	maxErrorBody = 300
	// maxRefusal bounds the answer to a refused transaction.
	maxRefusal = 1 << 20
)

// checker turns every answer that is no regular answer of Consul into a typed
// error before consul/api can take it for data: an HTML page with status 404
// must not read as "no such key". It also bounds what is read of an error.
type checker struct {
	next http.RoundTripper
	// secret is the ACL token: a proxy may echo it.
	secret string
}

func (t *checker) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Path == AuthorizePath && req.Method == http.MethodPut {
		// All that the library writes by hand is a PUT, and this takes POST alone.
		req = req.Clone(req.Context())
		req.Method = http.MethodPost
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if ct := resp.Header.Get("Content-Type"); strings.HasPrefix(ct, "text/html") {
		drain(resp)
		return nil, &notConsulError{what: fmt.Sprintf("it answered HTTP %d with a web page", resp.StatusCode)}
	}
	path := req.URL.Path
	switch {
	case resp.StatusCode < 300:
		if err := filtered(req, resp); err != nil {
			drain(resp)
			return nil, err
		}
		if err := drinkOf(req, resp); err != nil {
			return nil, err
		}
		return resp, nil
	case resp.StatusCode == http.StatusNotFound && req.Method == http.MethodGet && strings.Contains(path, "/v1/kv/"):
		if resp.Header.Get("X-Consul-Index") != "" {
			if err := filtered(req, resp); err != nil {
				drain(resp)
				return nil, err
			}
			return resp, nil
		}
		drain(resp)
		return nil, &notConsulError{what: "it answered HTTP 404 to a read of the KV store"}
	case resp.StatusCode == http.StatusNotFound && strings.Contains(path, "/v1/session/renew/"):
		// consul/api takes it for the end of the session, so it must be
		// Consul that says so.
		e := t.status(resp)
		if strings.Contains(e.body, "Session id") {
			resp.Body = http.NoBody
			return resp, nil
		}
		return nil, &notConsulError{what: "it answered HTTP 404 to the renewal of a session"}
	case resp.StatusCode == http.StatusConflict && strings.HasSuffix(path, "/v1/txn"):
		resp.Body = limited{io.LimitReader(resp.Body, maxRefusal), resp.Body}
		return resp, nil
	}
	return nil, t.status(resp)
}

// status is the error that stands for an answer; it closes the answer.
func (t *checker) status(resp *http.Response) *statusError {
	body := make([]byte, 4*maxErrorBody)
	n, _ := io.ReadFull(resp.Body, body)
	drain(resp)
	msg := string(body[:n])
	if t.secret != "" {
		msg = strings.ReplaceAll(msg, t.secret, "[token]")
	}
	return &statusError{code: resp.StatusCode, body: text.Clip(strings.TrimSpace(text.Printable(msg)), maxErrorBody)}
}

type limited struct {
	io.Reader
	io.Closer
}

func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	_ = resp.Body.Close()
}

// Classify makes an *Error of what consul/api returned.
func (c *Client) Classify(op string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	if _, ok := errors.AsType[*Refused](err); ok {
		// Consul's own answer: to ask again would bring the same.
		return err
	}
	e := &Error{Op: op, Addr: c.addr, Err: err, Tries: 1, bare: !c.hasToken}
	if status, ok := errors.AsType[*statusError](err); ok {
		e.Kind = kindOfStatus(status)
		return e
	}
	if _, ok := isHidden(err); ok {
		e.Kind = Denied
		return e
	}
	opErr, isOp := errors.AsType[*net.OpError](err)
	_, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case isNotConsul(err):
		e.Kind = NotConsul
	case isTLS(err):
		e.Kind = TLS
	case isOp && opErr.Op == "dial", isDNS:
		e.Kind = Unreachable
	default:
		e.Kind = Broken
	}
	return e
}

func kindOfStatus(e *statusError) Kind {
	switch {
	case e.code == http.StatusForbidden, e.code == http.StatusUnauthorized:
		return Denied
	case e.code == http.StatusRequestEntityTooLarge:
		return TooLarge
	case e.code == http.StatusTooManyRequests:
		return RateLimited
	case e.code == http.StatusRequestTimeout:
		// A proxy lost patience: with whom is not known.
		return Broken
	case e.code >= 500 && isNoLeader(e.body):
		return NoLeader
	case e.code >= 500 && isDenied(e.body):
		return Denied
	case e.code >= 500:
		return ServerError
	}
	return BadRequest
}

// isNoLeader knows what Consul 1.14.11 says in and after an election: a server
// that knows of no leader, one that knows its address and has not found it among
// the members yet (for up to 30 s after a cut between all servers), and one that
// has just ceased to lead.
func isNoLeader(body string) bool {
	for _, text := range []string{"No cluster leader", "no leader", "Raft leader not found in server lookup mapping", "node is not the leader"} {
		if strings.Contains(body, text) {
			return true
		}
	}
	return false
}

func isDenied(body string) bool {
	return strings.Contains(body, "Permission denied") || strings.Contains(body, "ACL not found")
}

// isNotConsul: a web page, or a body that is not JSON where JSON was due.
func isNotConsul(err error) bool {
	if _, ok := errors.AsType[*notConsulError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return strings.Contains(err.Error(), "malformed HTTP")
	}
	if _, ok := errors.AsType[base64.CorruptInputError](err); ok {
		return true
	}
	// consul/api does not wrap all errors of its decoder.
	s := err.Error()
	return strings.Contains(s, "invalid character") || strings.Contains(s, "cannot unmarshal")
}
