package host

import (
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/plugin"
)

// Who asks anew is answered anew, however young the last answer is, and no older answer
// is told to him.
func TestAskAnew(t *testing.T) {
	t.Parallel()
	s := pinned(t, prints, "")
	s.Interval = time.Hour
	h, _ := hosting(t, s)
	l := &plugin.Lock{Key: "k", Session: "s", Token: 7}
	want := map[string][]string{"p": {"on_call"}}
	known := func(since time.Time) string {
		f := h.Facts(l, want, since, time.Now())["plugin.p"]["on_call"]
		if f.Value.IsKnown() {
			return "known"
		}
		return f.Why
	}
	var last time.Time
	for range 3 {
		since := h.AskAnew(t.Context(), l, want)
		if got := known(since); got != "known" {
			t.Fatalf("asked anew: %s", got)
		}
		if !since.After(last) {
			t.Fatal("the same question again")
		}
		last = since
		h.Ask(t.Context(), l, want)
		if got := known(time.Now()); !strings.HasSuffix(got, "has not answered again yet") {
			t.Fatalf("an answer of before: %s", got)
		}
		if got := known(time.Time{}); got != "known" {
			t.Fatalf("for who only looks: %s", got)
		}
	}
}
