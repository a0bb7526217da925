package runner_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// loseOnce delivers the first transaction that match picks, and loses its answer.
type loseOnce struct {
	next  http.RoundTripper
	match func(body string) bool
	never bool // it delivers none of them at all, and counts them
	lost  atomic.Int32
}

func (l *loseOnce) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil || req.URL.Path != "/v1/txn" {
		return l.next.RoundTrip(req)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	if l.never && l.match(string(body)) {
		l.lost.Add(1)
		return nil, errors.New("the connection broke")
	}
	resp, err := l.next.RoundTrip(req)
	if err == nil && l.match(string(body)) && l.lost.CompareAndSwap(0, 1) {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return nil, errors.New("the connection broke")
	}
	return resp, err
}

// firstHeader tells the transaction that takes a rollout out of the queue.
func firstHeader(body string) bool {
	return strings.Contains(body, "/queue/") && strings.Contains(body, `"check-index"`) && strings.Contains(body, `"delete"`) && strings.Contains(body, "/rollouts/")
}

// The answer to the header that takes a rollout out of the queue is lost: the
// rollout has begun, and its plan stands. To ask again would find the place in the
// queue gone, as if somebody else had ended it.
func TestAnswerToTheFirstHeaderIsLost(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	l := &loseOnce{match: firstHeader}
	kv, err := consulkv.New(consulkv.Config{Address: f.kv.Addr(), Wrap: func(next http.RoundTripper) http.RoundTripper { l.next = next; return l }})
	if err != nil {
		t.Fatal(err)
	}
	f.kv = kv
	out := f.ends(f.begin(f.queued("first", "one", rest)), orchestrator.Succeeded)
	if l.lost.Load() != 1 {
		t.Fatal("no such answer was lost: the test tests nothing")
	}
	heads, err := f.runner().Headers(t.Context())
	if err != nil || len(heads) != 1 || heads[0].ID != out.ID {
		t.Fatalf("%d rollouts, %v", len(heads), err)
	}
	if _, err := f.runner().PlanOf(t.Context(), heads[0]); err != nil {
		t.Error(err)
	}
}

// The header never arrives while all else does: it is tried again with pauses, and
// not as fast as Consul answers, until the bound is over.
func TestFirstHeaderNeverArrives(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	l := &loseOnce{match: firstHeader, never: true}
	kv, err := consulkv.New(consulkv.Config{Address: f.kv.Addr(), RetryFor: time.Second, Wrap: func(next http.RoundTripper) http.RoundTripper { l.next = next; return l }})
	if err != nil {
		t.Fatal(err)
	}
	f.kv = kv
	if _, err := f.runner().Start(t.Context(), f.queued("first", "one", rest)); err == nil || !strings.Contains(err.Error(), "the connection broke") {
		t.Fatalf("%v", err)
	}
	// 50 ms, doubled: five pauses are longer than the bound.
	if n := l.lost.Load(); n < 2 || n > 6 {
		t.Errorf("it was tried %d times in a second", n)
	}
}

// again keeps the first transaction that match picks, and sends it once more when it
// is asked to. The session that it names is never destroyed.
type again struct {
	next  http.RoundTripper
	match func(body string) bool
	mu    sync.Mutex
	kept  *http.Request
	body  []byte
}

func (a *again) RoundTrip(req *http.Request) (*http.Response, error) {
	if id, ok := strings.CutPrefix(req.URL.Path, "/v1/session/destroy/"); ok {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.kept != nil && bytes.Contains(a.body, []byte(id)) {
			return nil, errors.New("the connection broke")
		}
	}
	if req.Body == nil || req.URL.Path != "/v1/txn" {
		return a.next.RoundTrip(req)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	a.mu.Lock()
	if a.kept == nil && a.match(string(body)) {
		a.kept, a.body = req.Clone(context.WithoutCancel(req.Context())), body
	}
	a.mu.Unlock()
	return a.next.RoundTrip(req)
}

func (a *again) deliver(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kept == nil {
		t.Fatal("nothing was kept: the test tests nothing")
	}
	a.kept.Body = io.NopCloser(bytes.NewReader(a.body))
	resp, err := a.next.RoundTrip(a.kept)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("it did not land: %s", resp.Status)
	}
}

// A try to join the queue lands when its rollout has begun, and so has one that
// supersedes it: what the first one has done stands in its header.
func TestLateJoiningOfTheQueue(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	plain := f.kv
	a := &again{match: func(body string) bool { return strings.Contains(body, "/queue/") && strings.Contains(body, `"lock"`) }}
	kv, err := consulkv.New(consulkv.Config{Address: f.kv.Addr(), Wrap: func(next http.RoundTripper) http.RoundTripper { a.next = next; return a }})
	if err != nil {
		t.Fatal(err)
	}
	f.kv = kv
	first := f.begin(f.input("one", orchestrator.Stage{Name: "canary", Nodes: 1, Bake: time.Hour}, orchestrator.Stage{Name: "rest", Percent: 100}))
	f.kv = plain
	f.until("the canary to bake", func() bool {
		list, err := f.runner().List(t.Context(), runner.Filter{})
		return err == nil && len(list.Headers) == 1 && list.Headers[0].State == orchestrator.Baking
	})
	a.deliver(t)
	w := f.waiting(1)[0]
	second := f.ends(f.begin(f.input("two", orchestrator.Stage{Name: "all", Percent: 100})), orchestrator.Succeeded)
	out := f.ends(first, orchestrator.Superseded)
	h, err := f.runner().Show(t.Context(), out.ID)
	switch {
	case err != nil:
		t.Fatal(err)
	case w.ID != out.ID:
		t.Fatalf("%s is back in the queue, want %s", w.ID, out.ID)
	case h.Token == 0, h.SupersededBy != second.ID, strings.Contains(h.Reason, "had not begun"),
		h.Counts != (orchestrator.Counts{orchestrator.ClassApplied: 1, orchestrator.ClassSuperseded: 1}):
		t.Errorf("what it did is forgotten: %+v", h)
	}
	f.waiting(0)
}

// silent never answers what match picks: it ends with the request's own bound.
type silent struct {
	next  http.RoundTripper
	match func(*http.Request) bool
	asked chan struct{}
}

func (s *silent) RoundTrip(req *http.Request) (*http.Response, error) {
	if !s.match(req) {
		return s.next.RoundTrip(req)
	}
	select {
	case s.asked <- struct{}{}:
	default:
	}
	<-req.Context().Done()
	return nil, req.Context().Err()
}

// A renewal of a place in the queue is never answered: the rollout comes to its turn
// and to its end all the same.
func TestRenewalOfAPlaceIsNeverAnswered(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	f.begin(f.queued("first", "one", orchestrator.Stage{Name: "all", Percent: 100, Bake: time.Hour}))
	f.until("the first one to begin", func() bool {
		list, err := f.runner().List(t.Context(), runner.Filter{})
		return err == nil && len(list.Headers) == 1
	})
	plain := f.kv
	s := &silent{asked: make(chan struct{}, 1), match: func(req *http.Request) bool {
		return strings.HasPrefix(req.URL.Path, "/v1/session/renew/")
	}}
	kv, err := consulkv.New(consulkv.Config{Address: f.kv.Addr(), Wrap: func(next http.RoundTripper) http.RoundTripper { s.next = next; return s }})
	if err != nil {
		t.Fatal(err)
	}
	f.kv = kv
	second := f.begin(f.queued("second", "two", orchestrator.Stage{Name: "all", Percent: 100}))
	f.kv = plain
	w := f.waiting(1)[0]
	select {
	case <-s.asked:
	case <-time.After(30 * time.Second):
		t.Fatal("no renewal was tried: the test tests nothing")
	}
	if _, err := f.runner().Command(t.Context(), runner.Order{ID: w.ForRollout, Verb: orchestrator.Abort}); err != nil {
		t.Fatal(err)
	}
	f.ends(second, orchestrator.Succeeded)
}
