package consulkv_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
)

const secret = "b1a5c0de-0000-4000-8000-5ec2e75ec2e7"

// serve makes a client of a handler in this process.
func serve(t *testing.T, h http.HandlerFunc, mod ...func(*consulkv.Config)) *consulkv.Client {
	t.Helper()
	cfg := consulkv.Config{Address: "consul.test:8500", Token: secret, Wrap: consulkvtest.InProcess(h)}
	for _, m := range mod {
		m(&cfg)
	}
	c, err := consulkv.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// answer is a handler that always says the same, and counts.
func answer(n *atomic.Int64, code int, contentType, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if n != nil {
			n.Add(1)
		}
		w.Header().Set("Content-Type", contentType)
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

const (
	plain  = "text/plain; charset=utf-8"
	asJSON = "application/json"
)

// once makes a client that tries each operation one time.
func once(c *consulkv.Config) { c.RetryFor = time.Nanosecond }

func get(c *consulkv.Client) error {
	_, err := c.Get(context.Background(), "k")
	return err
}

func txn(c *consulkv.Client) error {
	_, err := c.Txn(context.Background(), consulkv.Set("k", []byte("the value")))
	return err
}

// clean fails if an error's text shows what it must not.
func clean(t *testing.T, err error) {
	t.Helper()
	msg := err.Error()
	for _, bad := range []string{secret, "the value", "dGhlIHZhbHVl", "\x1b", "\n", "\r"} {
		if strings.Contains(msg, bad) {
			t.Errorf("the error shows %q: %q", bad, msg)
		}
	}
	if len(msg) > 800 {
		t.Errorf("the error has %d bytes", len(msg))
	}
	for _, want := range []string{"consul.test:8500", "k"} {
		if !strings.Contains(msg, want) {
			t.Errorf("the error does not name %q: %q", want, msg)
		}
	}
}
