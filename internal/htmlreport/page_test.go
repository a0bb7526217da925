package htmlreport

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

var keep = flag.String("page", "", "write the page of 10,000 nodes to this file, to be looked at")

var now = time.Date(2026, 11, 25, 20, 0, 0, 0, time.UTC)

// attack is what a node could write to get out of the text that it belongs to.
const attack = `</pre></td></style></title><script>alert(1)</script><img src="http://evil.example/x" onerror=alert(1)>" onmouseover="alert(1)` + "\x1b[31m\u202e\x00'`{{.}}"

// story is a rollout of n nodes that was rolled back, every text of which is s.
func story(t *testing.T, n int, s string) *runner.Story {
	t.Helper()
	var fleet []orchestrator.Node
	for i := range n {
		fleet = append(fleet, orchestrator.Node{Name: fmt.Sprintf("drone-%05d%s", i, s)})
	}
	spec := orchestrator.Spec{
		Name: "aim" + s, Configs: []orchestrator.Config{{Name: "aim.conf" + s, Revision: "0f1e2d3c4b5a", Destination: "/etc/aim.conf" + s}},
		Stages:  []orchestrator.Stage{{Name: "canary" + s, Nodes: 1}, {Name: "tenth" + s, Percent: 10}, {Name: "rest" + s, Percent: 100}},
		Failure: orchestrator.Failure{MaxFailed: 5, Then: orchestrator.ThenRollback},
	}
	plan, err := orchestrator.NewPlan("aim-1"+s, spec, fleet, now.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	h := orchestrator.NewHeader(plan.ID, spec, plan.CreatedAt)
	begin, end := now.Add(-50*time.Minute), now.Add(-5*time.Minute)
	h.State, h.Reason, h.StartedAt, h.FinishedAt, h.Total = orchestrator.RolledBack, "6 failed, and max_failed is 5"+s, &begin, &end, n
	for i := range h.Stages {
		h.Stages[i].From, h.Stages[i].End = plan.Stage(i)
	}
	h.StageIndex = 1
	h.Gates = []orchestrator.GateStatus{{Stage: "canary" + s, Name: "passing" + s, Kind: "http", State: "passed", Passed: 3, Needs: 3, Last: orchestrator.Pass, Value: "99.7" + s, Why: s, At: &end}}
	h.Follows, h.SupersededBy = s, s
	out := &runner.Story{Header: &h, Plan: plan, MoreFailures: 2}
	for i := range n {
		c := orchestrator.ClassRolledBack
		switch {
		case i >= h.Stages[1].End:
			c = orchestrator.ClassSkipped
		case i%97 == 3:
			c = orchestrator.ClassFailed
			out.Failures = append(out.Failures, runner.NodeFailure{Node: plan.Nodes[i], Stage: "tenth" + s, Class: c, Why: "reload: exit status 1\nline two " + s, At: end})
		case i%97 == 50:
			c = orchestrator.ClassUnreachable
		}
		h.Counts[c]++
		out.Classes = append(out.Classes, c)
	}
	add := func(at time.Duration, stage string, state orchestrator.Status, kind, text string, applied int) {
		e := records.RolloutEvent{N: uint64(len(out.Events) + 1), At: begin.Add(at), Kind: kind, Stage: stage, State: state, Text: text, Token: 44}
		if kind == records.EventCounts {
			e.Counts = &orchestrator.Counts{}
			e.Counts[orchestrator.ClassApplied], e.Counts[orchestrator.ClassPending] = applied, n-applied
		}
		out.Events = append(out.Events, e)
	}
	add(0, "canary"+s, orchestrator.Running, records.EventHold, "driven by "+s, 0)
	add(2*time.Minute, "canary"+s, orchestrator.Baking, records.EventCounts, "", 1)
	add(12*time.Minute, "tenth"+s, orchestrator.Running, records.EventStage, `stage "tenth"`+s, 0)
	for i := range 20 {
		add(time.Duration(13+i)*time.Minute, "tenth"+s, orchestrator.Running, records.EventCounts, "", 1+i*(h.Stages[1].End-1)/20)
	}
	add(40*time.Minute, "tenth"+s, orchestrator.RollingBack, records.EventStatus, "rolling_back: 6 failed"+s, 0)
	out.Breaks = []records.Break{{
		Lock: "aim.conf" + s, Token: 41, StartedAt: begin, By: "ops" + s, Rule: "silent" + s, Reason: s, Outcome: "taken", Detail: s, Quiesce: 15,
		Holder: &records.Holder{Operation: s, Host: s, PID: 7},
	}}
	return out
}

func render(t *testing.T, s *runner.Story) ([]byte, *html.Node) {
	t.Helper()
	var page bytes.Buffer
	if err := Write(&page, s, now); err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(bytes.NewReader(page.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return page.Bytes(), doc
}

// Whatever names, outputs and records hold, the page has the elements and the
// attributes of its template and no others: nothing runs, nothing is fetched.
func TestForeignTextIsInert(t *testing.T) {
	t.Parallel()
	elements := strings.Fields("html head meta title style body main h1 h2 h3 span p ul li i dl div dt dd figure svg polygon line figcaption table thead tbody tr th td details summary b pre")
	attributes := strings.Fields("lang charset http-equiv content name class viewBox preserveAspectRatio role points x1 x2 y1 y2 tabindex title")
	page, doc := render(t, story(t, 120, attack))
	seen := 0
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		seen++
		if !contains(elements, n.Data) {
			t.Errorf("the page has an element <%s>", n.Data)
		}
		for _, a := range n.Attr {
			if !contains(attributes, a.Key) {
				t.Errorf("<%s> has an attribute %s=%q", n.Data, a.Key, a.Val)
			}
			if a.Key != "title" && (strings.Contains(a.Val, "evil") || strings.Contains(a.Val, "alert")) {
				t.Errorf("<%s> has foreign text in %s", n.Data, a.Key)
			}
		}
		if n.Data == "style" && n.FirstChild.Data != style {
			t.Error("the style is not our own")
		}
	}
	if seen < 300 {
		t.Errorf("only %d elements were looked at", seen)
	}
	for _, bad := range []string{"\x1b", "\x00", "\u202e", "ZgotmplZ"} {
		if bytes.Contains(page, []byte(bad)) {
			t.Errorf("the page holds %q", bad)
		}
	}
	if !strings.Contains(words(doc), "<script>alert(1)</script>") {
		t.Error("what a node said is not shown as it is")
	}
}

// The policy lets nothing in but the page's own style, whose hash it names.
func TestPolicy(t *testing.T) {
	t.Parallel()
	_, doc := render(t, story(t, 3, ""))
	policy := ""
	for n := range doc.Descendants() {
		for _, a := range n.Attr {
			if n.Data == "meta" && a.Key == "http-equiv" && a.Val == "Content-Security-Policy" {
				policy = n.Attr[1].Val
			}
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") {
		t.Errorf("the policy is %q", policy)
	}
	for _, s := range []string{"@import", "url(", "http"} {
		if strings.Contains(style, s) {
			t.Errorf("the style has %s", s)
		}
	}
}

// Every node is in the grid, in its class, also of ten thousand; and the page
// stays small enough to be mailed.
func TestTenThousand(t *testing.T) {
	t.Parallel()
	s := story(t, 10_000, "")
	page, doc := render(t, s)
	if *keep != "" {
		if err := os.WriteFile(*keep, page, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cells := map[string]int{}
	for n := range doc.Descendants() {
		if n.Data == "i" && len(n.Attr) == 2 && n.Attr[1].Key == "title" {
			cells[n.Attr[0].Val]++
		}
	}
	for _, c := range []orchestrator.Class{orchestrator.ClassFailed, orchestrator.ClassUnreachable, orchestrator.ClassRolledBack, orchestrator.ClassSkipped} {
		if cells[c.String()] != s.Header.Counts[c] || cells[c.String()] == 0 {
			t.Errorf("%d nodes are drawn as %s, and %d are", cells[c.String()], c, s.Header.Counts[c])
		}
	}
	if len(page) > 1<<20 {
		t.Errorf("the page has %d bytes", len(page))
	}
	all := words(doc)
	for _, want := range []string{"rolled back", "6 failed, and max_failed is 5", "silent", "99.7", "line two", "45m0s", "Over time"} {
		if !strings.Contains(all, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	// Larger fleets are counted, and not drawn.
	large, _ := render(t, story(t, gridNodes+1, ""))
	if len(large) > len(page) || bytes.Contains(large, []byte(`title="drone-00001`)) {
		t.Errorf("the page of %d nodes has %d bytes", gridNodes+1, len(large))
	}
}

// A rollout of which next to nothing is known has a page as well.
func TestBare(t *testing.T) {
	t.Parallel()
	h := orchestrator.NewHeader("x-1", orchestrator.Spec{Name: "x", Stages: []orchestrator.Stage{{Name: "all", Percent: 100}}}, now)
	_, doc := render(t, &runner.Story{Header: &h})
	if !strings.Contains(words(doc), "waiting") {
		t.Error("the page does not say how it stands")
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func words(doc *html.Node) string {
	var b strings.Builder
	for n := range doc.Descendants() {
		if n.Type == html.TextNode {
			b.WriteString(n.Data)
		}
	}
	return b.String()
}
