package hooks

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/aim-control/aimlock/internal/version"
)

// SignatureHeader carries "sha256=" and the HMAC-SHA256 of the body in hex.
const SignatureHeader = "Aimlock-Signature"

// maxRetryAfter bounds what a receiver can ask for.
const maxRetryAfter = 60

func newHTTPClient(rt http.RoundTripper) *http.Client {
	if rt == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost, t.IdleConnTimeout, t.ResponseHeaderTimeout = 1, 30*time.Second, MaxTimeout
		rt = t
	}
	// A redirect turns a POST into a GET and may carry secrets to another host.
	return &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// post makes what delivers an event to the hook's URL.
func (h *hook) post(client *http.Client) func(context.Context, *Event) error {
	return func(ctx context.Context, e *Event) error {
		body, err := json.Marshal(e)
		if err != nil {
			return &finalError{err}
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.cfg.URL, bytes.NewReader(body))
		if err != nil {
			return &finalError{errors.New("the request cannot be made of this url")}
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("User-Agent", "aimlock/"+version.Get().Version)
		req.Header.Set("Aimlock-Event", e.Kind)
		req.Header.Set("Aimlock-Event-Id", e.ID)
		for k, v := range h.cfg.Headers {
			req.Header.Set(k, v)
		}
		if len(h.cfg.Secret) > 0 {
			mac := hmac.New(sha256.New, h.cfg.Secret)
			mac.Write(body)
			req.Header.Set(SignatureHeader, "sha256="+hex.EncodeToString(mac.Sum(nil)))
		}
		resp, err := client.Do(req)
		if err != nil {
			return withoutURL(err)
		}
		defer func() { _ = resp.Body.Close() }()
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // for the connection to be used again
		return answered(resp)
	}
}

// withoutURL drops the URL that net/http puts into its errors.
func withoutURL(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%s: %w", oe.Op, oe.Err)
	}
	return err
}

// answered makes an error of what is no success.
func answered(resp *http.Response) error {
	err := fmt.Errorf("it answered HTTP %d", resp.StatusCode)
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		return &finalError{fmt.Errorf("%w: redirects are not followed; give the url that it leads to", err)}
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		if s, perr := strconv.Atoi(resp.Header.Get("Retry-After")); perr == nil && s > 0 {
			return backoff.RetryAfter(min(s, maxRetryAfter))
		}
		return err
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code >= 500:
		return err
	}
	return &finalError{err}
}
