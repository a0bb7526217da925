package doctor

import (
	"net/http"
	"sync"
	"time"
)

// Transport stands between the client of an examination and the network, and notes
// what the library does not hand on.
type Transport struct {
	Next http.RoundTripper
	// Now is this machine's clock.
	Now func() time.Time

	mu   sync.Mutex
	seen reading
}

// reading is what one answer said of Consul's clock.
type reading struct {
	there       time.Time
	begun, done time.Time
}

// Wrap is for the configuration of the client.
func (t *Transport) Wrap(next http.RoundTripper) http.RoundTripper {
	t.Next = next
	return t
}

// RoundTrip sends a request.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	begun := t.Now()
	resp, err := t.Next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if there, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		t.mu.Lock()
		t.seen = reading{there: there, begun: begun, done: t.Now()}
		t.mu.Unlock()
	}
	return resp, nil
}

// off is how far this machine's clock is from Consul's agent's by the last answer,
// and how far from right that may be.
func (t *Transport) off() (off, slack time.Duration, ok bool) {
	t.mu.Lock()
	r := t.seen
	t.mu.Unlock()
	if r.there.IsZero() {
		return 0, 0, false
	}
	// The header has whole seconds, cut off, and the answer was somewhere between.
	half := r.done.Sub(r.begun) / 2
	return r.begun.Add(half).Sub(r.there.Add(time.Second / 2)), half + time.Second/2, true
}
