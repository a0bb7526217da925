package schedule_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/schedule"
)

// TestChangesOfTheClock follows windows through the nights in which clocks are
// changed, in both hemispheres, and over other odd days. Each line is one state:
// since when, open or not.
func TestChangesOfTheClock(t *testing.T) {
	type state struct {
		at   string
		open bool
	}
	for _, tc := range []struct {
		name       string
		w          orchestrator.Window
		from, till string
		want       []state
	}{
		{
			// 02:00 becomes 03:00: the window is an hour of real time shorter by
			// the clock, and as long as it says.
			name: "spans the gap, north", w: orchestrator.Window{Schedule: "0 1 * * *", Duration: 4 * time.Hour, Timezone: "Europe/Berlin"},
			from: "2026-03-28T23:00:00Z", till: "2026-03-29T12:00:00Z",
			want: []state{{"2026-03-29T00:00:00Z", true}, {"2026-03-29T04:00:00Z", false}},
		},
		{
			name: "begins in the gap, north", w: orchestrator.Window{Schedule: "15 2 * * *", Duration: time.Hour, Timezone: "America/New_York"},
			from: "2026-03-07T12:00:00Z", till: "2026-03-09T12:00:00Z",
			want: []state{{"2026-03-09T06:15:00Z", true}, {"2026-03-09T07:15:00Z", false}},
		},
		{
			name: "spans the hour that comes twice, north", w: orchestrator.Window{Schedule: "0 1 * * *", Duration: 4 * time.Hour, Timezone: "Europe/Berlin"},
			from: "2026-10-24T20:00:00Z", till: "2026-10-25T12:00:00Z",
			want: []state{{"2026-10-24T23:00:00Z", true}, {"2026-10-25T03:00:00Z", false}},
		},
		{
			// Sydney: 02:00 becomes 03:00 in October, 03:00 becomes 02:00 in April.
			name: "begins in the gap, south", w: orchestrator.Window{Schedule: "30 2 * * *", Duration: 30 * time.Minute, Timezone: "Australia/Sydney"},
			from: "2026-10-03T12:00:00Z", till: "2026-10-05T12:00:00Z",
			want: []state{{"2026-10-04T15:30:00Z", true}, {"2026-10-04T16:00:00Z", false}},
		},
		{
			name: "begins twice, south", w: orchestrator.Window{Schedule: "30 2 * * *", Duration: 30 * time.Minute, Timezone: "Australia/Sydney"},
			from: "2026-04-04T12:00:00Z", till: "2026-04-05T12:00:00Z",
			want: []state{
				{"2026-04-04T15:30:00Z", true}, {"2026-04-04T16:00:00Z", false},
				{"2026-04-04T16:30:00Z", true}, {"2026-04-04T17:00:00Z", false},
			},
		},
		{
			// Lord Howe Island moves by half an hour.
			name: "half an hour", w: orchestrator.Window{Schedule: "0 1 * * *", Duration: 3 * time.Hour, Timezone: "Australia/Lord_Howe"},
			from: "2026-10-03T12:00:00Z", till: "2026-10-04T12:00:00Z",
			want: []state{{"2026-10-03T14:30:00Z", true}, {"2026-10-03T17:30:00Z", false}},
		},
		{
			name: "every minute", w: orchestrator.Window{Schedule: "* * * * *", Duration: time.Minute, Timezone: "Europe/Berlin"},
			from: "2026-03-28T12:00:00Z", till: "2026-03-30T12:00:00Z",
			want: nil,
		},
		{
			name: "leap day", w: orchestrator.Window{Schedule: "0 0 29 2 *", Duration: time.Hour},
			from: "2026-11-25T00:00:00Z", till: "2033-01-01T00:00:00Z",
			want: []state{{"2028-02-29T00:00:00Z", true}, {"2028-02-29T01:00:00Z", false}, {"2032-02-29T00:00:00Z", true}, {"2032-02-29T01:00:00Z", false}},
		},
		{
			name: "over the new year", w: orchestrator.Window{Schedule: "0 22 31 12 *", Duration: 6 * time.Hour, Timezone: "Pacific/Auckland"},
			from: "2026-12-01T00:00:00Z", till: "2027-02-01T00:00:00Z",
			want: []state{{"2026-12-31T09:00:00Z", true}, {"2026-12-31T15:00:00Z", false}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := schedule.Parse(tc.w)
			if err != nil {
				t.Fatal(err)
			}
			var got []state
			now, till := at(t, tc.from), at(t, tc.till)
			for range 10 {
				_, change := s.At(now)
				if change.IsZero() || change.After(till) {
					break
				}
				if !change.After(now) {
					t.Fatalf("at %s it changes at %s", now, change)
				}
				now = change
				open, _ := s.At(now)
				got = append(got, state{now.UTC().Format(time.RFC3339), open})
			}
			if len(got) != len(tc.want) {
				t.Fatalf("%v, want %v", got, tc.want)
			}
			for i := range got {
				if got[i] != tc.want[i] {
					t.Errorf("%v, want %v", got, tc.want)
				}
			}
		})
	}
}

func at(t *testing.T, s string) time.Time {
	t.Helper()
	out, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestStandsUntilItChanges: whatever the schedule and the zone, what At says holds
// until the change that it names, and not a moment longer.
func TestStandsUntilItChanges(t *testing.T) {
	zones := []string{"", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca", "America/St_Johns"}
	rapid.Check(t, func(t *rapid.T) {
		// Openings of every minute are many to follow: one draw in some twenty is enough.
		// Rapid draws the ends of a range more often than what is between.
		often := rapid.IntRange(0, 19).Draw(t, "often") == 11
		w := orchestrator.Window{
			Schedule: rapid.SampledFrom([]string{"30 2 * * *", "*/7 1-4 * * *", "0 0 * * 0", "59 23 31 * *", "0 3 29 2 *"}).Draw(t, "schedule"),
			Duration: time.Duration(rapid.IntRange(1, 7*24*60).Draw(t, "minutes")) * time.Minute,
			Timezone: rapid.SampledFrom(zones).Draw(t, "zone"),
		}
		if often {
			w.Schedule = rapid.SampledFrom([]string{"* * * * *", "0 * * * *"}).Draw(t, "every")
		}
		s, err := schedule.Parse(w)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.Int64Range(0, 2*365*24*3600).Draw(t, "second")) * time.Second)
		open, change := s.At(now)
		if change.IsZero() {
			return
		}
		if !change.After(now) {
			t.Fatalf("%+v at %s changes at %s", w, now, change)
		}
		between := now.Add(time.Duration(rapid.Float64Range(0, 1).Draw(t, "part") * float64(change.Sub(now)-time.Second)))
		long := open && change.Sub(now) > 6*24*time.Hour
		if fresh, err := schedule.Parse(w); err != nil {
			t.Fatal(err)
		} else if o, c := fresh.At(between); between.After(now) && (o != open || !c.Equal(change) && !long) {
			t.Fatalf("%+v at %s: %v until %s, but at %s %v until %s", w, now, open, change, between, o, c)
		}
		if o, _ := s.At(change); o == open && !long {
			t.Fatalf("%+v at %s: %v until %s, where nothing changes", w, now, open, change)
		}
		// What was asked before changes no answer.
		away := now.Add(time.Duration(rapid.Int64Range(-5000, 5000).Draw(t, "away")) * time.Second)
		fresh, err := schedule.Parse(w)
		if err != nil {
			t.Fatal(err)
		}
		if o, c := s.At(away); !long {
			if fo, fc := fresh.At(away); fo != o || !fc.Equal(c) {
				t.Fatalf("%+v at %s: %v until %s, where one that was asked nothing before says %v until %s", w, away, o, c, fo, fc)
			}
		}
	})
}
