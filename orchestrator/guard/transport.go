package guard

import (
	"context"
	"errors"
	"net/http"
)

// Count is for consulkv.Config.Wrap: it counts the requests to Consul by how
// they ended. A request that its own sender gave up is not counted.
func (m *Metrics) Count(next http.RoundTripper) http.RoundTripper { return counted{m, next} }

type counted struct {
	m    *Metrics
	next http.RoundTripper
}

var _ http.RoundTripper = counted{}

// RoundTrip sends a request and counts how it ended.
func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	result := "ok"
	switch {
	case errors.Is(err, context.Canceled):
		return resp, err
	case err != nil:
		result = "broken"
	case resp.StatusCode >= http.StatusInternalServerError:
		result = "failed"
	case resp.StatusCode >= http.StatusBadRequest && resp.StatusCode != http.StatusNotFound:
		// Of a key that does not exist Consul says 404, and that is an answer.
		result = "refused"
	}
	c.m.requests.WithLabelValues(result).Inc()
	return resp, err
}
