package tlsalert_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/aim-control/aimlock/internal/tlsalert"
)

func TestOf(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	go func() {
		// No certificate at all: the handshake ends by an alert.
		srv := tls.Server(there, &tls.Config{MinVersion: tls.VersionTLS13})
		_ = srv.HandshakeContext(t.Context())
		_ = srv.Close()
	}()
	err := tls.Client(here, &tls.Config{ServerName: "h", MinVersion: tls.VersionTLS13}).HandshakeContext(t.Context())
	if got := tlsalert.Of(fmt.Errorf("asked: %w", err)); got != "tls: internal error" && got != "tls: unrecognized name" {
		t.Errorf("%q of %v", got, err)
	}
	for _, err := range []error{
		nil, io.EOF, errors.New("remote error: tls: bad certificate"),
		&net.OpError{Op: "write", Err: errors.New("tls: bad certificate")}, &net.OpError{Op: "remote error"},
	} {
		if got := tlsalert.Of(err); got != "" {
			t.Errorf("%q of %v", got, err)
		}
	}
}
