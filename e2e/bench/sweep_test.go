package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

const sweepLocks = 10_000

// others is how many keys that are no locks stand around: AIMLOCK_BENCH_KEYS, or
// 100,000. A million take a minute to write.
func others(b *testing.B) int {
	b.Helper()
	n, err := strconv.Atoi(os.Getenv("AIMLOCK_BENCH_KEYS"))
	if err != nil {
		return 100_000
	}
	return n
}

// countedRequests counts requests.
type countedRequests struct {
	next http.RoundTripper
	n    atomic.Int64
}

func (c *countedRequests) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return c.next.RoundTrip(r)
}

func cpu(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSweep reads 10,000 locks that 10,000 sessions hold, each with its
// progress: by their folder, and among other keys by the whole of KV. The aim is
// 300 ms of this process's CPU; the requests do not depend on the number of
// locks. It ends with `aimlock lock list` as a process of its own.
func BenchmarkSweep(b *testing.B) {
	c := harness.StartConsul(b)
	holdMany(b, c.Client(), sweepLocks)
	count := &countedRequests{}
	kv, err := consulkv.New(consulkv.Config{Address: c.Addr, Wrap: func(next http.RoundTripper) http.RoundTripper {
		count.next = next
		return count
	}})
	if err != nil {
		b.Fatal(err)
	}
	self, err := hostproc.Self()
	if err != nil {
		b.Fatal(err)
	}
	r := &evidence.Reader{Consul: kv, Keys: keys.DefaultPrefix, Self: self}
	sweep := func(name, root string) {
		b.Run(name, func(b *testing.B) {
			count.n.Store(0)
			before := cpu(syscall.RUSAGE_SELF)
			for b.Loop() {
				list, err := r.NewSweep([]string{root}).Read(b.Context())
				if err != nil || len(list) != sweepLocks {
					b.Fatal(len(list), err)
				}
			}
			b.ReportMetric(float64((cpu(syscall.RUSAGE_SELF)-before).Milliseconds())/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(count.n.Load())/float64(b.N), "requests/op")
		})
	}
	sweep("folder", "aimlock/locks/")
	n := others(b)
	fill(b, c.Client(), n)
	sweep(fmt.Sprintf("among-%d", n), "")
	b.Run(fmt.Sprintf("lock-list-among-%d", n), func(b *testing.B) {
		var used time.Duration
		var peak float64
		for b.Loop() {
			p := harness.Start(b, harness.Spec{Path: harness.Aimlock.Path(b), Args: []string{"lock", "list", "-json"}, Env: c.Env()})
			mb := peakOf(p)
			code := p.Wait(limit)
			var list []json.RawMessage
			if err := json.Unmarshal([]byte(p.Stdout()), &list); code != 0 || err != nil || len(list) != sweepLocks {
				b.Fatal(code, len(list), err, p.Stderr())
			}
			used, peak = used+p.CPU(), max(peak, <-mb)
		}
		b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
		b.ReportMetric(peak, "peak-MiB")
	})
}

// holdMany takes n locks of aimlock, each for a session of its own.
func holdMany(b *testing.B, c *api.Client, n int) {
	b.Helper()
	node, err := c.Agent().NodeName()
	if err != nil {
		b.Fatal(err)
	}
	each(b, n, func(i int) error {
		// As a holder's session is, but for the check: it outlives the benchmark.
		id, _, err := c.Session().Create(&api.SessionEntry{Name: "aimlock", TTL: "24h"}, nil)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("lock-%05d.conf", i)
		h := records.Holder{
			Version: records.Version, Lock: name, Nonce: "0123456789abcdef0123456789abcdef", Session: id, Tool: "aimlock",
			Operation: "rollout start", Host: "host-" + strconv.Itoa(i), Node: node, PID: 1000 + i, StartTicks: 123456,
			StartedAt: time.Now(), BootID: "11111111-2222-3333-4444-555555555555", PIDNS: "pid:[4026531836]", User: "deploy",
			AcquiredAt: time.Now(), Quiesce: 15, TTL: 15,
		}
		p := records.Progress{Version: records.Version, Lock: name, Session: id, Done: 5, Total: 100, Unit: "nodes", At: time.Now()}
		ok, resp, _, err := c.Txn().Txn(api.TxnOps{
			{KV: &api.KVTxnOp{Verb: api.KVLock, Key: keys.Prefix(keys.DefaultPrefix).Lock(name), Value: records.Encode(&h), Session: id}},
			{KV: &api.KVTxnOp{Verb: api.KVSet, Key: keys.Prefix(keys.DefaultPrefix).Progress(name), Value: records.Encode(&p)}},
		}, nil)
		if err == nil && !ok {
			err = fmt.Errorf("refused: %v", resp.Errors)
		}
		return err
	})
}

// fill writes n keys of 100 bytes that are no locks.
func fill(b *testing.B, c *api.Client, n int) {
	b.Helper()
	const batch = 64
	value := bytes.Repeat([]byte("x"), 100)
	each(b, (n+batch-1)/batch, func(i int) error {
		var ops api.TxnOps
		for j := i * batch; j < min(n, (i+1)*batch); j++ {
			ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: fmt.Sprintf("app/%03d/setting-%07d", j%997, j), Value: value}})
		}
		ok, resp, _, err := c.Txn().Txn(ops, nil)
		if err == nil && !ok {
			err = fmt.Errorf("refused: %v", resp.Errors)
		}
		return err
	})
}

// each calls f for 0 to n-1, some at a time.
func each(b *testing.B, n int, f func(i int) error) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	for range 8 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					once.Do(func() { failed = err })
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		b.Fatal(failed)
	}
}
