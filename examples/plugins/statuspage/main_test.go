package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/plugintest"
)

func TestMain(m *testing.M) { plugintest.Main(m, description()) }

func TestConformance(t *testing.T) {
	page := func(indicator, database string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/api/v2/summary.json" {
				http.NotFound(w, r)
				return
			}
			fmt.Fprintf(w, `{"status":{"indicator":%q,"description":"As\nit is"},"components":[{"name":"Database","status":%q},{"name":"Web","status":"operational"}]}`, indicator, database)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	fine, outage, odd := page("none", "operational"), page("major", "partial_outage"), page("lukewarm", "lukewarm")
	config := func(url, rest string) string { return strings.Replace(`{"url": "`+url+`", `+rest+`}`, ", }", "}", 1) }
	gate := func(name, cfg string, verdict plugin.Verdict) plugintest.Case {
		return plugintest.Case{Name: name, Kind: plugin.KindGate, Config: cfg, Verdict: verdict}
	}
	cases := []plugintest.Case{
		gate("fine", config(fine, ""), plugin.Pass),
		gate("outage", config(outage, ""), plugin.Fail),
		gate("allowed", config(outage, `"allow": "major"`), plugin.Pass),
		gate("another component", config(outage, `"components": ["Web"]`), plugin.Pass),
		gate("this component", config(outage, `"components": ["Web", "Database"]`), plugin.Fail),
		gate("a new word", config(odd, ""), plugin.Undecided),
	}
	cases[0].Refused = []string{`{"url": "here"}`, config(fine, `"allow": "much"`)}
	plugintest.Run(t, &plugintest.Subject{Cases: cases})
}
