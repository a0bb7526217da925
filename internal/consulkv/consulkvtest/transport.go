// Package consulkvtest stands between a consulkv.Client and a Consul in tests:
// in the same process and on virtual time, and over a network that delivers
// requests late. It imports nothing of the rest.
package consulkvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
)

// InProcess is for consulkv.Config.Wrap: requests go to h and to no network, so
// that what lasts minutes takes no time in a bubble of testing/synctest.
//
// Two properties of a network are kept: a client that gives up is answered at
// once while its request may still be served, and a handler that aborts looks
// like a connection that broke.
func InProcess(h http.Handler) func(http.RoundTripper) http.RoundTripper {
	return func(http.RoundTripper) http.RoundTripper { return inProcess{h} }
}

type inProcess struct{ h http.Handler }

var _ http.RoundTripper = inProcess{}

var errConnBroke = errors.New("connection broke")

func (t inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	in, err := asServed(ctx, req)
	if err != nil {
		return nil, err
	}
	type answer struct {
		resp *http.Response
		err  error
	}
	ch := make(chan answer, 1)
	go func() {
		rec := httptest.NewRecorder()
		defer func() {
			switch p := recover(); {
			case p == nil:
				resp := rec.Result()
				resp.Request = req
				ch <- answer{resp, nil}
			case p == any(http.ErrAbortHandler):
				ch <- answer{nil, errConnBroke}
			default:
				ch <- answer{nil, fmt.Errorf("handler panicked: %v", p)}
			}
		}()
		t.h.ServeHTTP(rec, in)
	}()
	select {
	case a := <-ch:
		return a.resp, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// asServed is a client's request as a server is given it.
func asServed(ctx context.Context, req *http.Request) (*http.Request, error) {
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		_ = req.Body.Close()
	}
	in := req.Clone(ctx)
	in.Body, in.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	in.RequestURI, in.Host = req.URL.RequestURI(), req.URL.Host
	return in, nil
}

// Late is a network that takes a request, tells its client that the connection
// broke, and delivers it when it is told to: after whatever the client did in
// the meantime. Put Wrap into consulkv.Config.
type Late struct {
	next http.RoundTripper

	mu    sync.Mutex
	match func(*http.Request) bool
	kept  []*http.Request
}

// Wrap puts the network around next.
func (l *Late) Wrap(next http.RoundTripper) http.RoundTripper {
	l.next = next
	return l
}

var _ http.RoundTripper = (*Late)(nil)

// Keep holds back the next request that match picks.
func (l *Late) Keep(match func(*http.Request) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.match = match
}

// Kept is how many requests are held back.
func (l *Late) Kept() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.kept)
}

// Deliver sends what was held back, in order, and returns the status codes of
// the answers.
func (l *Late) Deliver() ([]int, error) {
	l.mu.Lock()
	kept := l.kept
	l.kept = nil
	l.mu.Unlock()
	var codes []int
	for _, req := range kept {
		resp, err := l.next.RoundTrip(req)
		if err != nil {
			return codes, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		codes = append(codes, resp.StatusCode)
	}
	return codes, nil
}

// RoundTrip sends a request, or holds it back.
func (l *Late) RoundTrip(req *http.Request) (*http.Response, error) {
	l.mu.Lock()
	match := l.match
	l.mu.Unlock()
	if match == nil {
		return l.next.RoundTrip(req)
	}
	out, err := asServed(context.WithoutCancel(req.Context()), req)
	if err != nil {
		return nil, err
	}
	out.RequestURI = ""
	if !match(peek(out)) {
		return l.next.RoundTrip(out.WithContext(req.Context()))
	}
	if !l.keep(out) {
		return l.next.RoundTrip(out.WithContext(req.Context()))
	}
	return nil, errConnBroke
}

// keep holds a request back, unless another one was meanwhile.
func (l *Late) keep(req *http.Request) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.match == nil {
		return false
	}
	l.match = nil
	l.kept = append(l.kept, req)
	return true
}

// peek returns a copy of the request whose body can be read without using up
// the original's.
func peek(req *http.Request) *http.Request {
	body, _ := io.ReadAll(req.Body)
	req.Body = io.NopCloser(bytes.NewReader(body))
	c := req.Clone(req.Context())
	c.Body = io.NopCloser(bytes.NewReader(slices.Clone(body)))
	return c
}
