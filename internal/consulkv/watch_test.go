package consulkv_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// step is one answer to a watcher: after how long, with which index and value,
// or an error.
type step struct {
	after time.Duration
	index string // the header; empty: none
	value string
	code  int // 0 is 200
}

// scripted answers one step after the other, the last for ever, and notes when
// it was asked for which index.
type scripted struct {
	steps []step
	start time.Time
	asked []string
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked = append(s.asked, fmt.Sprintf("%s@%s", orZero(r.URL.Query().Get("index")), time.Since(s.start).Round(time.Millisecond)))
	st := s.steps[min(len(s.asked), len(s.steps))-1]
	select {
	case <-time.After(st.after):
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
	if st.code != 0 {
		answer(nil, st.code, plain, "no")(w, r)
		return
	}
	body := fmt.Sprintf(`[{"Key":"k","Value":"","Flags":0,"Session":%q,"ModifyIndex":1}]`, st.value)
	if st.index == "" {
		answer(nil, 200, asJSON, body)(w, r)
		return
	}
	answer(nil, 200, asJSON, body, "X-Consul-Index", st.index)(w, r)
}

func orZero(s string) string {
	if _, err := strconv.Atoi(s); err != nil {
		return "0"
	}
	return s
}

func watch(t *testing.T, s *scripted, opts consulkv.WatchOptions) *consulkv.Watcher[*api.KVPair] {
	t.Helper()
	s.start = time.Now()
	c := serve(t, s.ServeHTTP, once)
	opts.Name = "k"
	return consulkv.NewWatcher(c, opts, func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
		return c.API().KV().Get("k", q)
	})
}

func TestWatcherFollowsTheIndex(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		steps []step
		opts  consulkv.WatchOptions
		want  []string // values told, and when
		asked []string // indexes asked for, and when
	}{
		{
			"each change is told once",
			[]step{{0, "5", "a", 0}, {2 * time.Second, "9", "b", 0}, {time.Minute, "12", "c", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "b@2s", "c@1m2s"},
			[]string{"0@0s", "5@0s", "9@2s"},
		},
		{
			"an equal index says nothing, and is asked for again",
			[]step{{0, "5", "a", 0}, {time.Minute, "5", "a", 0}, {time.Minute, "5", "a", 0}, {10 * time.Second, "6", "b", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "b@2m10s"},
			[]string{"0@0s", "5@0s", "5@1m0s", "5@2m0s"},
		},
		{
			"a lower index starts anew from 0: a restored server",
			[]step{{0, "500", "a", 0}, {3 * time.Second, "20", "b", 0}, {0, "20", "b", 0}, {5 * time.Second, "21", "c", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "b@3s", "b@3s", "c@8s"},
			[]string{"0@0s", "500@0s", "0@3s", "20@3s"},
		},
		{
			"index 0 is never asked for after an answer, or it would not block",
			[]step{{0, "0", "a", 0}, {7 * time.Second, "3", "b", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "b@7s"},
			[]string{"0@0s", "1@0s"},
		},
		{
			"an answer that does not block is not asked for without end",
			[]step{{0, "", "a", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "a@0s", "a@1s", "a@1s", "a@2s"},
			[]string{"0@0s", "1@0s", "0@1s", "1@1s", "0@2s"},
		},
		{
			"nor one whose index stands still at once",
			[]step{{0, "5", "a", 0}, {0, "5", "a", 0}, {0, "5", "a", 0}, {0, "6", "b", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "a@1s", "b@2s"},
			[]string{"0@0s", "5@0s", "0@1s", "5@2s"},
		},
		{
			"a restore ends a query early, with what stood before it",
			[]step{{0, "9", "a", 0}, {10 * time.Second, "9", "a", 0}, {0, "4", "b", 0}, {0, "4", "b", 0}, {time.Minute, "4", "b", 0}, {0, "5", "c", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "b@10s", "b@11s", "c@1m11s"},
			[]string{"0@0s", "9@0s", "0@10s", "0@11s", "4@11s", "4@1m11s"},
		},
		{
			"however late in its wait",
			[]step{{0, "9", "a", 0}, {59 * time.Second, "9", "a", 0}, {0, "4", "b", 0}, {0, "4", "b", 0}, {time.Minute, "5", "c", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "b@59s", "b@1m0s", "c@2m0s"},
			[]string{"0@0s", "9@0s", "0@59s", "0@1m0s", "4@1m0s"},
		},
		{
			"an answer that was kept from us may have been early",
			[]step{{0, "9", "a", 0}, {67 * time.Second, "9", "a", 0}, {0, "9", "b", 0}, {time.Minute, "10", "c", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "b@1m7s", "c@2m8s"},
			[]string{"0@0s", "9@0s", "0@1m7s", "9@1m8s"},
		},
		{
			"restored servers give an index out again: another value may stand there",
			[]step{{0, "9", "a", 0}, {10 * time.Second, "9", "a", 0}, {0, "9", "b", 0}, {time.Minute, "9", "b", 0}, {0, "10", "c", 0}},
			consulkv.WatchOptions{},
			[]string{"a@0s", "b@10s", "c@1m11s"},
			[]string{"0@0s", "9@0s", "0@10s", "9@11s", "9@1m11s"},
		},
		{
			"a busy prefix is read at the least interval",
			[]step{{0, "5", "a", 0}, {0, "6", "b", 0}, {0, "7", "c", 0}, {time.Minute, "8", "d", 0}},
			consulkv.WatchOptions{MinInterval: 4 * time.Second},
			[]string{"a@0s", "b@4s", "c@8s", "d@1m12s"},
			[]string{"0@0s", "5@4s", "6@8s", "7@12s"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{steps: tc.steps}
				w := watch(t, s, tc.opts)
				for i, want := range tc.want {
					p, err := w.Next(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if got := fmt.Sprintf("%s@%s", p.Session, time.Since(s.start).Round(time.Millisecond)); got != want {
						t.Errorf("answer %d is %s, want %s", i, got, want)
					}
				}
				for i, want := range tc.asked {
					if s.asked[i] != want {
						t.Errorf("question %d is %s, want %s", i, s.asked[i], want)
					}
				}
			})
		})
	}
}

// After an error the watcher goes on where it was: no change is missed.
func TestWatcherResumesAfterAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{steps: []step{{0, "5", "a", 0}, {time.Second, "", "", 500}, {0, "", "", 403}, {2 * time.Second, "6", "b", 0}}}
		w := watch(t, s, consulkv.WatchOptions{})
		if p, err := w.Next(t.Context()); err != nil || p.Session != "a" || w.Index() != 5 {
			t.Fatalf("%v, %v, index %d", p, err, w.Index())
		}
		for _, kind := range []consulkv.Kind{consulkv.ServerError, consulkv.Denied} {
			_, err := w.Next(t.Context())
			if e, ok := errors.AsType[*consulkv.Error](err); !ok || e.Kind != kind || w.Index() != 5 {
				t.Fatalf("%v, index %d", err, w.Index())
			}
		}
		if p, err := w.Next(t.Context()); err != nil || p.Session != "b" {
			t.Fatalf("%v, %v", p, err)
		}
		if s.asked[3] != "0@1s" {
			t.Fatalf("asked %v", s.asked)
		}
	})
}

// A server that comes back with lower indexes would keep a query by an old one
// waiting: after an error, what stands is asked for and told.
func TestWatcherAfterAnErrorAsksForWhatStands(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{steps: []step{{0, "500", "a", 0}, {time.Second, "", "", 500}, {0, "20", "b", 0}, {0, "20", "b", 0},
			{time.Second, "", "", 500}, {0, "20", "d", 0}, {3 * time.Second, "21", "c", 0}}}
		w := watch(t, s, consulkv.WatchOptions{})
		var told []string
		for len(told) < 5 {
			p, err := w.Next(t.Context())
			if err == nil {
				told = append(told, fmt.Sprintf("%s@%s", p.Session, time.Since(s.start).Round(time.Second)))
			}
		}
		// "b" is told again once: what went back starts anew.
		if want := []string{"a@0s", "b@1s", "b@2s", "d@3s", "c@7s"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q; asked %q", told, want, s.asked)
		}
	})
}

// A query that blocks is given its whole wait, and one that hangs beyond it is
// given up.
func TestWatcherTimeouts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{steps: []step{{0, "5", "a", 0}, {63 * time.Second, "6", "b", 0}, {time.Hour, "7", "c", 0}}}
		w := watch(t, s, consulkv.WatchOptions{})
		for _, want := range []string{"a", "b"} {
			if p, err := w.Next(t.Context()); err != nil || p.Session != want {
				t.Fatalf("%v, %v", p, err)
			}
		}
		start := time.Now()
		if _, err := w.Next(t.Context()); consulkv.KindOf(err) != consulkv.Broken {
			t.Fatalf("got %v", err)
		}
		if took := time.Since(start); took > 80*time.Second {
			t.Fatalf("hung for %s", took)
		}
	})
}
