package nomadapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/nomad/api"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/internal/tlsalert"
)

// Error is a failed operation on Nomad. Its message holds no token.
type Error struct {
	Op, Addr, What string
	// Status is that of HTTP, 0 where no answer came.
	Status int
	err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: Nomad at %s: %s; %s", e.Op, e.Addr, e.What, e.hint())
}

func (e *Error) Unwrap() error { return e.err }

// Texts by which Nomad and Go's TLS tell what no type tells.
const (
	noRegion = "No path to region"
	// Of a server that could not ask the one that knows: its own leader, or a server of
	// another region, which it forgets some seconds later.
	notForwarded = "failed to get conn"
	tellsNoAuth  = "ACL token not found"
	tellsExpired = "ACL token expired"
	// To a token that may not read the namespace of an allocation, with 500.
	hiddenAlloc = "Unknown allocation"
	plainToTLS  = "HTTP request to an HTTPS server"
	tlsToPlain  = "HTTP response to HTTPS client"
)

// hint is the way out.
func (e *Error) hint() string {
	has := func(s string) bool { return strings.Contains(e.What, s) }
	alert := tlsalert.Of(e.err)
	var name x509.HostnameError
	switch {
	case has(noRegion):
		return "check the region and NOMAD_REGION, and whether its servers can be reached"
	case has(notForwarded):
		return "it cannot reach the server that knows, of this region or of the one that is asked for"
	case has(hiddenAlloc):
		return "the token may not read its namespace: docs/nomad.md lists what it needs"
	case has(tellsExpired), has(tellsNoAuth):
		return "Nomad does not know the token, or not any more: check NOMAD_TOKEN"
	case e.Status == http.StatusForbidden:
		return "the token may not do this, is not known or has expired: docs/nomad.md lists what it needs; check NOMAD_TOKEN, which another region knows only if it is global"
	case errors.As(e.err, &name):
		return "its certificate is for another name: check NOMAD_TLS_SERVER_NAME, such as server.global.nomad"
	case e.untrusted():
		return "its certificate is of a CA that is not trusted: check NOMAD_CACERT"
	case strings.Contains(alert, "certificate"):
		return "it asks for a client certificate that it knows: check NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY, or renew what they name"
	case alert != "":
		return "it ended the handshake: check NOMAD_CLIENT_CERT, NOMAD_CLIENT_KEY and NOMAD_TLS_SERVER_NAME"
	case has(plainToTLS):
		return "it speaks TLS: NOMAD_ADDR must begin with https://"
	case has(tlsToPlain):
		return "it does not speak TLS: NOMAD_ADDR must begin with http://"
	case e.Status == http.StatusNotFound:
		return "check its name, NOMAD_NAMESPACE and NOMAD_REGION, and whether the token may see it"
	}
	return "check NOMAD_ADDR and NOMAD_TOKEN"
}

// untrusted: the server's certificate was refused here.
func (e *Error) untrusted() bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](e.err)
	return ok
}

// Temporary reports whether another try may succeed: no answer came, or a
// server had no leader or too much to do. A region that nobody knows is answered
// with 500 as well, and does not become known; nor do certificates change.
func (e *Error) Temporary() bool {
	switch {
	case e.Status == 0:
		return !errors.Is(e.err, context.Canceled) && !e.untrusted() && tlsalert.Of(e.err) == "" && !strings.Contains(e.What, tlsToPlain)
	case strings.Contains(e.What, noRegion), strings.Contains(e.What, hiddenAlloc):
		return false
	}
	return e.Status >= 500 || e.Status == http.StatusTooManyRequests
}

// Fail makes an *Error of an error of API. The text of an answer is foreign.
func (c *Client) Fail(op string, err error) error {
	out := &Error{Op: text.Clip(text.Printable(op), 120), Addr: c.Addr(), What: text.Clip(text.Printable(err.Error()), 200), err: err}
	if e, ok := errors.AsType[api.UnexpectedResponseError](err); ok {
		out.Status = e.StatusCode()
		if out.Status != 0 {
			out.What = fmt.Sprintf("HTTP %d: %s", out.Status, text.Clip(text.Printable(strings.TrimSpace(e.Body())), 200))
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
