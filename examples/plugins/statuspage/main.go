// Statuspage is a gate: a rollout goes on while the status page of somebody it
// depends on (a cloud, a payment provider) shows nothing worse than allowed. It reads
// the public API of Atlassian Statuspage, which many pages speak.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/plugin"
)

func main() { plugin.Serve(description()) }

func description() plugin.Plugin {
	return plugin.Plugin{
		Name: "statuspage", Version: "1.0.0", Doc: "Holds a rollout back while a status page shows trouble.",
		Gate: func() plugin.Gate { return &gate{Allow: "none"} },
	}
}

type gate struct {
	URL        string   `config:"url,required" doc:"The page, such as https://www.githubstatus.com."`
	Allow      string   `config:"allow" doc:"The worst that passes: none, minor, major or critical."`
	Components []string `config:"components" doc:"Only these components count; none is the whole page."`
}

// The words of the API, the worse the later.
var (
	indicators = []string{"none", "minor", "major", "critical"}
	statuses   = map[string]string{
		"operational": "none", "degraded_performance": "minor", "under_maintenance": "minor", "partial_outage": "major", "major_outage": "critical",
	}
)

// Validate checks what the schema cannot.
func (g *gate) Validate(context.Context) error {
	var problems plugin.Problems
	if u, err := url.Parse(g.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		problems.Add("url", "it must be the address of a page, such as https://www.githubstatus.com")
	}
	if !slices.Contains(indicators, g.Allow) {
		problems.Add("allow", "%q is none of %s", g.Allow, strings.Join(indicators, ", "))
	}
	return problems.Err()
}

type summary struct {
	Status     struct{ Indicator, Description string }
	Components []struct{ Name, Status string }
}

// Ask reads the page. A page that does not answer is no reason to go on: unknown.
func (g *gate) Ask(ctx context.Context, _ *plugin.Question) (*plugin.Answer, error) {
	s, err := g.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", plugin.ErrUnavailable, err)
	}
	worst, why := s.Status.Indicator, s.Status.Description
	if len(g.Components) > 0 {
		if worst, why, err = g.ofComponents(s); err != nil {
			return nil, err
		}
	}
	at := slices.Index(indicators, worst)
	switch {
	case at < 0:
		return &plugin.Answer{Verdict: plugin.Undecided, Value: worst, Why: "the page says a word that is not known"}, nil
	case at > slices.Index(indicators, g.Allow):
		return &plugin.Answer{Verdict: plugin.Fail, Value: worst, Why: line(why)}, nil
	}
	return &plugin.Answer{Verdict: plugin.Pass, Value: worst, Why: line(why)}, nil
}

func (g *gate) ofComponents(s *summary) (worst, why string, err error) {
	worst, why = "none", "all of them are operational"
	for _, want := range g.Components {
		i := slices.IndexFunc(s.Components, func(c struct{ Name, Status string }) bool { return c.Name == want })
		if i < 0 {
			return "", "", fmt.Errorf("the page has no component %q: %w", want, plugin.ErrNotFound)
		}
		is, known := statuses[s.Components[i].Status]
		if !known {
			return s.Components[i].Status, "", nil
		}
		if slices.Index(indicators, is) > slices.Index(indicators, worst) {
			worst, why = is, want+" is "+s.Components[i].Status
		}
	}
	return worst, why, nil
}

func (g *gate) read(ctx context.Context) (*summary, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(g.URL, "/")+"/api/v2/summary.json", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the page answers %s", res.Status)
	}
	var s summary
	if err := json.NewDecoder(io.LimitReader(res.Body, 4<<20)).Decode(&s); err != nil {
		return nil, fmt.Errorf("the page's summary cannot be read: %w", err)
	}
	return &s, nil
}

// line makes one plain line of a foreign text.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
