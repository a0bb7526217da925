package guard

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// benchLocks is how many locks the benchmarks watch, held by benchSessions.
const benchLocks, benchSessions = 10_000, 500

// crowd is a Consul that holds many locks, served over HTTP by this process.
func crowd(b *testing.B, wrap func(http.RoundTripper) http.RoundTripper) *locksmith.Client {
	b.Helper()
	srv, err := devconsul.New(devconsul.Config{NodeName: "node-1"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = srv.Close() })
	ts := httptest.NewServer(srv.Handler())
	b.Cleanup(ts.CloseClientConnections)
	kv, err := consulkv.New(consulkv.Config{Address: ts.URL, Wrap: wrap})
	if err != nil {
		b.Fatal(err)
	}
	fill(b, kv)
	c, err := locksmith.New(locksmith.Config{Consul: kv})
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// fill makes the locks, as holders on other hosts make them.
func fill(b *testing.B, kv *consulkv.Client) {
	b.Helper()
	k := keys.Prefix(keys.DefaultPrefix)
	at := 0
	for s := range benchSessions {
		id, _, err := kv.API().Session().CreateNoChecks(&api.SessionEntry{TTL: "1h", LockDelay: time.Millisecond}, nil)
		if err != nil {
			b.Fatal(err)
		}
		var ops []consulkv.Op
		for ; at < (s+1)*benchLocks/benchSessions; at++ {
			name := fmt.Sprintf("job-%05d", at)
			ops = append(ops, consulkv.Lock(k.Lock(name), records.Encode(&records.Holder{
				Version: 1, Lock: name, Nonce: name, Session: id, Tool: "aimlock", Operation: "lock exec", Host: fmt.Sprintf("host-%d", s), Node: "node-1",
				PID: 4000 + at, StartTicks: 77, BootID: "another", PIDNS: "pid:[1]", User: "ops", AcquiredAt: time.Now(), Quiesce: 15, TTL: 3600,
			}), id), consulkv.Set(k.Progress(name), records.Encode(&records.Progress{Version: 1, Lock: name, Session: id, Done: 3, Total: 10, Unit: "hosts", At: time.Now()})))
		}
		if _, err := kv.Txn(context.Background(), ops...); err != nil {
			b.Fatal(err)
		}
	}
}

// cpu is what this process has used of its processors.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkFirstJudgement is the first verdict on each of 10,000 locks by the
// shipped default policy: what a locksmith does beside reading when it starts.
func BenchmarkFirstJudgement(b *testing.B) {
	c := crowd(b, nil)
	snaps, err := Sweeps(c.Reader())([]string{keys.DefaultPrefix + "locks/"}).Read(b.Context())
	if err != nil || len(snaps) != benchLocks {
		b.Fatalf("%d locks, %v", len(snaps), err)
	}
	b.ReportAllocs()
	used, n := cpu(b), 0
	for b.Loop() {
		n++
		g, err := New(Config{Client: c, Source: Sweeps(c.Reader())})
		if err != nil {
			b.Fatal(err)
		}
		g.source = &feed{}
		g.update(batch{from: g.source, first: true, locks: snaps})
		if g.judged != benchLocks {
			b.Fatalf("%d verdicts", g.judged)
		}
	}
	b.ReportMetric((cpu(b)-used).Seconds()*1000/float64(n), "cpu-ms/op")
}

// taped is a Consul that was asked before: what it answered is told again from
// memory, so that only who asks is measured.
type taped struct {
	next http.RoundTripper
	mu   sync.Mutex
	tape map[string]answer
	on   bool
}

type answer struct {
	resp http.Response
	body []byte
}

func (t *taped) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, ok := t.tape[r.URL.String()]
	if !ok || !t.on {
		resp, err := t.next.RoundTrip(r)
		if err != nil || !t.on {
			return resp, err
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return nil, err
		}
		a = answer{*resp, body}
		t.tape[r.URL.String()] = a
	}
	resp := a.resp
	resp.Request, resp.Body = r, io.NopCloser(bytes.NewReader(a.body))
	return &resp, nil
}

// BenchmarkFirstSweep is the first sweep of 10,000 locks and the verdict on each
// by the shipped default policy: all that a locksmith does when it starts, from
// the bytes of Consul's answers on.
func BenchmarkFirstSweep(b *testing.B) {
	t := &taped{tape: map[string]answer{}}
	c := crowd(b, func(next http.RoundTripper) http.RoundTripper { t.next = next; return t })
	t.on = true
	source := func() Source { return Sweeps(c.Reader())([]string{keys.DefaultPrefix + "locks/"}) }
	if _, err := source().Read(b.Context()); err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	b.ReportAllocs()
	var read, judged time.Duration
	n := 0
	for b.Loop() {
		n++
		used := cpu(b)
		snaps, err := source().Read(b.Context())
		if err != nil || len(snaps) != benchLocks {
			b.Fatalf("%d locks, %v", len(snaps), err)
		}
		read += cpu(b) - used
		used = cpu(b)
		g, err := New(Config{Client: c, Source: Sweeps(c.Reader())})
		if err != nil {
			b.Fatal(err)
		}
		g.source = &feed{}
		g.update(batch{from: g.source, first: true, locks: snaps})
		if g.judged != benchLocks {
			b.Fatalf("%d verdicts", g.judged)
		}
		judged += cpu(b) - used
	}
	b.ReportMetric(read.Seconds()*1000/float64(n), "cpu-ms/read")
	b.ReportMetric(judged.Seconds()*1000/float64(n), "cpu-ms/judge")
}

// BenchmarkFirstRecord is what a journal costs when a locksmith starts: the first
// verdict on each of 10,000 locks, made and written down.
func BenchmarkFirstRecord(b *testing.B) {
	c := crowd(b, nil)
	source := func() Source { return Sweeps(c.Reader())([]string{keys.DefaultPrefix + "locks/"}) }
	b.ReportAllocs()
	var used time.Duration
	n := 0
	for b.Loop() {
		n++
		b.StopTimer()
		w, err := journal.Open(b.TempDir(), journal.Options{})
		if err != nil {
			b.Fatal(err)
		}
		rec := locksmith.NewRecorder(w)
		snaps, err := source().Read(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		g, err := New(Config{Client: c, Source: Sweeps(c.Reader()), Journal: rec})
		if err != nil {
			b.Fatal(err)
		}
		g.source = &feed{}
		b.StartTimer()
		before := cpu(b)
		g.update(batch{from: g.source, first: true, locks: snaps})
		used += cpu(b) - before
		if g.judged != benchLocks {
			b.Fatalf("%d verdicts", g.judged)
		}
		b.StopTimer()
		if err := rec.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(used.Seconds()*1000/float64(n), "cpu-ms/op")
}

// BenchmarkOneChange is what one changed lock of 10,000 costs, and what standing
// still costs: nothing is due.
func BenchmarkOneChange(b *testing.B) {
	c := crowd(b, nil)
	snaps, err := Sweeps(c.Reader())([]string{keys.DefaultPrefix + "locks/"}).Read(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	g, err := New(Config{Client: c, Source: Sweeps(c.Reader())})
	if err != nil {
		b.Fatal(err)
	}
	g.source = &feed{}
	g.update(batch{from: g.source, first: true, locks: snaps})
	before, n := g.judged, 0
	if due := g.table.due(time.Now().Add(time.Minute), benchLocks); len(due) > 0 {
		b.Fatalf("%d of %d locks that stand still are due within a minute", len(due), benchLocks)
	}
	b.ReportAllocs()
	for b.Loop() {
		g.update(batch{from: g.source, locks: snaps[n%benchLocks : n%benchLocks+1]})
		n++
	}
	if g.judged-before != int64(n) {
		b.Fatalf("%d verdicts for %d changes", g.judged-before, n)
	}
}

// BenchmarkWatch10kLocks is a locksmith with a sweep over HTTP: its memory, and
// what a second of standing still costs it. The Consul is in the same process,
// so the memory counted is what remains when its own is taken off.
func BenchmarkWatch10kLocks(b *testing.B) {
	c := crowd(b, nil)
	heap := func() float64 {
		debug.FreeOSMemory()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return float64(ms.HeapAlloc) / (1 << 20)
	}
	for b.Loop() { // what is measured is told below
	}
	without := heap()
	g, err := New(Config{Client: c, Source: Sweeps(c.Reader()), DryRun: true})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	start, used := time.Now(), cpu(b)
	go func() { defer close(done); _ = g.Run(ctx) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		// No holder can be looked at from here.
		if g.board.fresh() && g.board.count(locksmith.Unknown) == benchLocks {
			break
		}
		if <-tick.C; time.Since(start) > time.Minute {
			b.Fatalf("it sees %d locks", g.board.count(locksmith.Unknown))
		}
	}
	b.ReportMetric((cpu(b)-used).Seconds()*1000, "cpu-ms/first-sweep")
	b.ReportMetric(heap()-without, "MB-heap")
	const span = 20 * time.Second
	used = cpu(b)
	end := time.NewTimer(span)
	<-end.C
	b.ReportMetric((cpu(b)-used).Seconds()*1000*float64(time.Minute/span), "cpu-ms/idle-minute")
	b.ReportMetric(0, "ns/op")
	cancel()
	<-done
}
