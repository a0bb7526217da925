// Package tlsalert tells whether the other side of a connection ended it by an
// alert of TLS, such as for a client certificate that it does not take. It
// imports only the standard library.
package tlsalert

import (
	"errors"
	"net"
	"strings"
)

// Of is the alert by which the other side ended a connection, such as "tls:
// certificate required"; "" where there was none. With TLS 1.3 it may come after
// the request was sent, which the other side then has not read; the words are
// those of crypto/tls, which does not export the type of it.
//
// An error of writing may come in its place: the other side has closed the
// connection, and the alert was not read yet. Whoever tries again meets it.
func Of(err error) string {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" || op.Err == nil || !strings.HasPrefix(op.Err.Error(), "tls: ") {
		return ""
	}
	return op.Err.Error()
}
