package locksmith

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// TestTimeline tells stories from scripts in testdata/timeline. A script names
// what Consul and a journal have of the lock app.conf, one thing a line:
//
//	break KEY {a break record}
//	holder {the holder record}
//	progress {the progress record}
//	request|approval|silence {the record}
//	fact OBJECT.ATTRIBUTE JSON       what an observer knows now
//	journal {an entry}
//
// and the argument state is the lock's state now; index is that of a free lock's
// key; held says that it is judged by
// the shipped default. All happens on one day, and the story shows the time.
func TestTimeline(t *testing.T) {
	datadriven.Walk(t, "testdata/timeline", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd != "story" {
				d.Fatalf(t, "unknown command %q", d.Cmd)
			}
			return showStory(tellScript(t, d))
		})
	})
}

func tellScript(t *testing.T, d *datadriven.TestData) *Story {
	t.Helper()
	s := &evidence.Snapshot{Name: "app.conf", Key: "aimlock/locks/app.conf", Own: true, Tool: "aimlock", Pair: &api.KVPair{}}
	now := time.Date(2026, 3, 1, 13, 0, 0, 0, time.UTC)
	v := &Verdict{Snapshot: s, State: Free, At: now, Facts: policies.Facts{}}
	in := &told{verdict: v}
	var entries strings.Builder
	for _, line := range strings.Split(d.Input, "\n") {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "break":
			key, rec, _ := strings.Cut(rest, " ")
			b := keyedBreak{key: key}
			decodeLine(t, d, rec, &b.rec)
			in.breaks = append(in.breaks, b)
		case "lost":
			in.lost = append(in.lost, rest)
		case "holder":
			decodeLine(t, d, rest, &s.Holder)
		case "progress":
			decodeLine(t, d, rest, &s.Progress)
		case "request":
			decodeLine(t, d, rest, &s.Request)
		case "approval":
			decodeLine(t, d, rest, &s.Approval)
		case "silence":
			decodeLine(t, d, rest, &s.Silence)
		case "fact":
			name, value, _ := strings.Cut(rest, " ")
			object, attr, _ := policies.SplitFact(name)
			if v.Facts[object] == nil {
				v.Facts[object] = map[string]policies.Fact{}
			}
			val, err := ctyjson.Unmarshal([]byte(value), policies.Schema()[object][attr].Type)
			if err != nil {
				d.Fatalf(t, "%s: %v", line, err)
			}
			v.Facts[object][attr] = policies.Known(val, "this observer", now)
		case "journal":
			entries.WriteString(rest + "\n")
		default:
			d.Fatalf(t, "what is %q?", line)
		}
	}
	if d.HasArg("held") {
		var token int
		d.ScanArgs(t, "held", &token)
		s.Pair.ModifyIndex = uint64(token)
		if s.Holder != nil {
			s.Pair.Session = s.Holder.Session
		} else {
			s.Pair.Session, s.Tool = "s-foreign", "consul-lock"
		}
		set, err := policies.Builtin("default")
		if err != nil {
			t.Fatal(err)
		}
		for object, facts := range policies.Schema() { // what the script does not name cannot apply
			if v.Facts[object] == nil {
				v.Facts[object] = map[string]policies.Fact{}
			}
			for name, def := range facts {
				if _, ok := v.Facts[object][name]; !ok {
					v.Facts[object][name] = policies.Known(cty.NullVal(def.Type), "script", now)
				}
			}
		}
		var m policies.Memory
		v.Policy = set.Policies[0]
		v.Policy.Judge(v.Facts, &m, s.Hold(), 0)
		v.Judgement = v.Policy.Judge(v.Facts, &m, s.Hold(), time.Hour)
		v.State = v.Judgement.State
	}
	if d.HasArg("index") {
		d.ScanArgs(t, "index", &s.Pair.ModifyIndex)
	}
	if d.HasArg("cooling") {
		v.State = Cooling
	}
	var fold journal.Fold
	for e, err := range journal.ReadFrom(strings.NewReader(entries.String()), "script") {
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		in.entry(&fold, &e)
	}
	return in.story()
}

func decodeLine(t *testing.T, d *datadriven.TestData, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		d.Fatalf(t, "%s: %v", text, err)
	}
}

func showStory(s *Story) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cause: %s\n", s.Cause)
	for _, e := range s.Events {
		if e.AtLatest {
			b.WriteString("by ")
		}
		fmt.Fprintf(&b, "%s %s", e.At.Format("15:04:05"), e.What)
		if e.By != "" {
			fmt.Fprintf(&b, " by %s", e.By)
		}
		if e.Detail != "" {
			fmt.Fprintf(&b, ": %s", e.Detail)
		}
		fmt.Fprintf(&b, " [%s; %s]\n", e.Clock, e.Source)
	}
	return b.String()
}

// How a break ended is told in plain words; what is no outcome stands as it is.
func TestBreakEndsInPlainWords(t *testing.T) {
	t.Parallel()
	for what, want := range map[string]string{
		"break " + records.OutcomeTaken:             "broken, and the lock taken over by ann@n2",
		"break " + records.OutcomeUnlocked:          "broken, and the lock freed by ann@n2",
		"break " + records.OutcomeEnded:             "broken, by a step that ended the hold by ann@n2",
		"break " + records.OutcomeReleased:          "break called off by ann@n2: its holder let go",
		"break " + records.OutcomeAborted:           "break given up by ann@n2",
		"dry run: break " + records.OutcomeUnlocked: "dry run: broken, and the lock freed by ann@n2",
		"break begun":    "break begun by ann@n2",
		"break approved": "break approved by ann@n2",
		"released":       "released by ann@n2",
	} {
		e := Event{What: what, By: "ann@n2"}
		if got := e.Text(); got != want {
			t.Errorf("%s: %q, and not %q", what, got, want)
		}
	}
	now := time.Date(2026, 3, 1, 13, 0, 0, 0, time.UTC)
	for want, b := range map[string]records.Break{
		"break over: its holder, bob@n1, let go, as asked by ann@n2": {Steps: []records.BreakStep{{Step: "request", Result: "done"}}},
		"break called off by ann@n2: its holder, bob@n1, let go":     {Steps: []records.BreakStep{{Step: "request", Result: "failed"}}},
		"break called off by ann@n2 (token accessor a-1)":            {Detail: "its hold is over", Who: records.Who{Accessor: "a-1"}},
	} {
		b.Outcome, b.By, b.EndedAt, b.Holder = records.OutcomeReleased, "ann@n2", &now, &records.Holder{User: "bob", Host: "n1"}
		s := &storyteller{known: map[string]bool{}, holders: map[uint64]string{}}
		s.breakRecord("key", &b)
		if got := s.events[len(s.events)-1].Text(); got != want {
			t.Errorf("%q, and not %q", got, want)
		}
	}
}
