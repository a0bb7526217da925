package schedule_test

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/schedule"
)

func TestAt(t *testing.T) {
	nights := orchestrator.Window{Schedule: "0 2 * * 1-5", Duration: 4 * time.Hour, Timezone: "UTC"}
	berlin := orchestrator.Window{Schedule: "30 2 * * *", Duration: 2 * time.Hour, Timezone: "Europe/Berlin"}
	for _, tc := range []struct {
		name   string
		w      orchestrator.Window
		now    string
		open   bool
		change string
	}{
		{"before", nights, "2026-11-24T01:59:59Z", false, "2026-11-24T02:00:00Z"},
		{"opens", nights, "2026-11-24T02:00:00Z", true, "2026-11-24T06:00:00Z"},
		{"last second", nights, "2026-11-24T05:59:59Z", true, "2026-11-24T06:00:00Z"},
		{"closed", nights, "2026-11-24T06:00:00Z", false, "2026-11-25T02:00:00Z"},
		{"weekend", nights, "2026-11-27T06:00:00Z", false, "2026-11-30T02:00:00Z"},
		{"zone", berlin, "2026-11-24T01:30:00Z", true, "2026-11-24T03:30:00Z"},
		// 2026-03-29 02:30 does not exist in Berlin: that night is left out.
		{"summer time begins", berlin, "2026-03-29T01:00:00Z", false, "2026-03-30T00:30:00Z"},
		// 2026-10-25 02:30 comes twice: it opens at both.
		{"summer time ends", berlin, "2026-10-25T01:00:00Z", true, "2026-10-25T03:30:00Z"},
		{"overlap", orchestrator.Window{Schedule: "0 * * * *", Duration: 2 * time.Hour}, "2026-11-24T06:30:00Z", true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := schedule.Parse(tc.w)
			if err != nil {
				t.Fatal(err)
			}
			now, err := time.Parse(time.RFC3339, tc.now)
			if err != nil {
				t.Fatal(err)
			}
			open, change := s.At(now)
			got := ""
			if !change.IsZero() {
				got = change.UTC().Format(time.RFC3339)
			}
			if open != tc.open || got != tc.change {
				t.Errorf("open %v until %s, want %v until %s", open, got, tc.open, tc.change)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	good := orchestrator.Window{Schedule: "0 2 * * *", Duration: time.Hour}
	for name, change := range map[string]func(*orchestrator.Window){
		"no fields":      func(w *orchestrator.Window) { w.Schedule = "" },
		"six fields":     func(w *orchestrator.Window) { w.Schedule = "0 0 2 * * *" },
		"out of range":   func(w *orchestrator.Window) { w.Schedule = "0 25 * * *" },
		"macro":          func(w *orchestrator.Window) { w.Schedule = "@daily" },
		"zone in it":     func(w *orchestrator.Window) { w.Schedule = "TZ=UTC 0 2 * * *" },
		"never":          func(w *orchestrator.Window) { w.Schedule = "0 2 30 2 *" },
		"short":          func(w *orchestrator.Window) { w.Duration = time.Second },
		"negative":       func(w *orchestrator.Window) { w.Duration = -time.Hour },
		"long":           func(w *orchestrator.Window) { w.Duration = 8 * 24 * time.Hour },
		"no such zone":   func(w *orchestrator.Window) { w.Timezone = "Mars/Base" },
		"local":          func(w *orchestrator.Window) { w.Timezone = "Local" },
		"path as a zone": func(w *orchestrator.Window) { w.Timezone = "../../etc/passwd" },
	} {
		w := good
		change(&w)
		if _, err := schedule.Parse(w); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := schedule.Parse(good); err != nil {
		t.Error(err)
	}
}
