package doctor

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// through has what Consul answers pass by change.
func through(change func(*http.Request, *http.Response)) func(*Config) {
	return func(cfg *Config) {
		next := cfg.Transport.Next
		cfg.Transport.Next = roundTrip(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil {
				change(req, resp)
			}
			return resp, err
		})
	}
}

// says is a response of another status.
func says(resp *http.Response, status int, body string) {
	_ = resp.Body.Close()
	resp.StatusCode, resp.Body = status, io.NopCloser(strings.NewReader(body))
}

// The header has whole seconds, and an answer that took long leaves the more open:
// only what is beyond both is told.
func TestClockRow(t *testing.T) {
	t.Parallel()
	slow := through(func(*http.Request, *http.Response) { time.Sleep(4 * time.Second) })
	for name, tc := range map[string]struct {
		skew   time.Duration
		mod    func(*Config)
		result string
		detail string
	}{
		"together":                    {0, nil, OK, "are less than 1s apart; Consul tells whole seconds"},
		"at the bound":                {6 * time.Second, nil, OK, "are less than 6s apart"},
		"beyond it":                   {6100 * time.Millisecond, nil, Warning, "this machine's clock is 6s off"},
		"behind, at the bound":        {-5 * time.Second, nil, OK, "are less than 6s apart"},
		"behind, beyond it":           {-5100 * time.Millisecond, nil, Warning, "this machine's clock is -6s off"},
		"a slow answer, at the bound": {6 * time.Second, slow, OK, "are less than 10s apart"},
		"a slow answer, beyond it":    {6100 * time.Millisecond, slow, Warning, "this machine's clock is 8s off"},
		"no date":                     {time.Hour, through(func(_ *http.Request, resp *http.Response) { resp.Header.Del("Date") }), Note, "does not tell its time"},
		"a date that is none":         {time.Hour, through(func(_ *http.Request, resp *http.Response) { resp.Header.Set("Date", "noon") }), Note, "does not tell its time"},
		"not to be read": {time.Hour, through(func(req *http.Request, resp *http.Response) {
			if req.URL.Path == "/v1/status/leader" {
				says(resp, http.StatusForbidden, "Permission denied")
			}
		}), Note, "the clock of Consul's agent cannot be read: "},
	} {
		synctest.Test(t, func(t *testing.T) {
			var mods []func(*Config)
			if tc.mod != nil {
				mods = append(mods, tc.mod)
			}
			got := examine(t, tc.skew, mods...)["clock"]
			if got.Result != tc.result || !strings.Contains(got.Detail, tc.detail) || (got.Mend != "") != (tc.result == Warning) {
				t.Errorf("%s: %+v", name, got)
			}
		})
	}
}

// A Consul that takes smaller transactions than the protocol makes, or none of this
// token, does not do, and each is told its own way out.
func TestTransactionsRow(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status       int
		body         string
		result       string
		detail, mend string
	}{
		"taken":           {0, "", OK, "Consul takes those of 128 operations", ""},
		"too many":        {http.StatusBadRequest, "Transaction contains too many operations (128 > 64)", Failed, "too many operations", "use Consul " + tested + " or a later one"},
		"for this token":  {http.StatusForbidden, "Permission denied", Failed, "ermission", "give the token a role: `aimlock acl`"},
		"no leader there": {http.StatusInternalServerError, "No cluster leader", Failed, "", "try again: " + reachHint},
	} {
		synctest.Test(t, func(t *testing.T) {
			got := examine(t, 0, through(func(req *http.Request, resp *http.Response) {
				if req.URL.Path == "/v1/txn" && tc.status != 0 {
					says(resp, tc.status, tc.body)
				}
			}))["transactions"]
			if got.Result != tc.result || !strings.Contains(got.Detail, tc.detail) || !strings.HasPrefix(got.Mend, tc.mend) || (got.Mend == "") != (tc.mend == "") {
				t.Errorf("%s: %+v", name, got)
			}
		})
	}
}
