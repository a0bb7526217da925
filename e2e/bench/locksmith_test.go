package bench

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
)

// crowdLocks is how many locks the locksmith watches, held by crowdSessions.
const crowdLocks, crowdSessions = 10_000, 500

// crowd makes locks as holders on other hosts make them.
func crowd(b *testing.B, c *harness.Consul) {
	b.Helper()
	client := c.Client()
	at := 0
	for s := range crowdSessions {
		id, _, err := client.Session().CreateNoChecks(&api.SessionEntry{TTL: "1h"}, nil)
		if err != nil {
			b.Fatal(err)
		}
		var ops api.KVTxnOps
		for ; at < (s+1)*crowdLocks/crowdSessions; at++ {
			name := fmt.Sprintf("job-%05d", at)
			holder := fmt.Sprintf(`{"version":1,"lock":%q,"nonce":%q,"session":%q,"tool":"aimlock","operation":"lock exec","host":"host-%d","node":"server","pid":%d,"start_ticks":77,"started_at":"2026-01-01T00:00:00Z","boot_id":"another","pid_ns":"pid:[1]","user":"ops","acquired_at":"2026-01-01T00:00:00Z","quiesce":15,"ttl":3600}`, name, name, id, s, 4000+at)
			progress := fmt.Sprintf(`{"version":1,"lock":%q,"session":%q,"token":1,"done":3,"total":10,"unit":"hosts","at":"2026-01-01T00:00:00Z"}`, name, id)
			ops = append(ops, &api.KVTxnOp{Verb: api.KVLock, Key: "aimlock/locks/" + name, Value: []byte(holder), Session: id},
				&api.KVTxnOp{Verb: api.KVSet, Key: "aimlock/progress/" + name, Value: []byte(progress)})
		}
		if ok, resp, _, err := client.KV().Txn(ops, nil); err != nil || !ok {
			b.Fatalf("%v, %v", resp, err)
		}
	}
}

var addressOf = regexp.MustCompile(`serving metrics and health: address=(\S+)`)

// BenchmarkLocksmith10kLocks is a locksmith process that watches 10,000 held
// locks of a real Consul: its processor time until it has judged all of them and
// rests, or for twenty seconds more, then in a minute in which nothing changes, and the
// memory that it takes.
func BenchmarkLocksmith10kLocks(b *testing.B) {
	c := harness.StartConsul(b)
	crowd(b, c)
	// A follower only watches, as a dry run does. The leader writes down what it
	// remembers, most of it in its first minutes.
	b.Run("watching", func(b *testing.B) { watch10k(b, c, "-dry-run") })
	b.Run("leading", func(b *testing.B) { watch10k(b, c) })
	// Each lock is written down whole once, with every fact of it.
	b.Run("with a journal", func(b *testing.B) { watch10k(b, c, "-dry-run", "-journal", b.TempDir()) })
}

func watch10k(b *testing.B, c *harness.Consul, args ...string) {
	for b.Loop() {
		p := harness.Start(b, harness.Spec{
			Path: harness.Aimlock.Path(b), Env: c.Env(), Args: append([]string{"locksmith", "-log-level", "info", "-listen", "127.0.0.1:0"}, args...),
		})
		harness.Eventually(b, time.Minute, "all locks are judged", func() bool { return watched(p) >= crowdLocks })
		used := rested(b, p.Pid())
		b.ReportMetric(used.Seconds()*1000, "cpu-ms/start")
		span := time.NewTimer(30 * time.Second)
		<-span.C
		b.ReportMetric(2*(processorTime(b, p.Pid())-used).Seconds()*1000, "cpu-ms/idle-minute")
		b.ReportMetric(memory(b, p.Pid(), "VmRSS"), "MB-rss")
		b.ReportMetric(memory(b, p.Pid(), "VmHWM"), "MB-peak")
		p.Kill()
	}
}

// rested is the processor time of a process once it has used next to none for five
// seconds, or after twenty: it judges all once more when it knows the cluster.
func rested(b *testing.B, pid int) time.Duration {
	b.Helper()
	used, quiet := processorTime(b, pid), 0
	for i := 0; i < 20 && quiet < 5; i++ {
		<-time.After(time.Second)
		now := processorTime(b, pid)
		if quiet++; now-used > 20*time.Millisecond {
			quiet = 0
		}
		used = now
	}
	return used
}

// watched is how many locks a locksmith says that it watches.
func watched(p *harness.Process) int {
	m := addressOf.FindStringSubmatch(p.Stderr())
	if m == nil {
		return 0
	}
	resp, err := http.Get("http://" + m[1] + "/health")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	var h struct {
		Locks int `json:"locks"`
	}
	if json.NewDecoder(resp.Body).Decode(&h) != nil {
		return 0
	}
	return h.Locks
}

// processorTime is what a process has used, from /proc/PID/stat in ticks of 10 ms.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	ticks := 0
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory is a line of /proc/PID/status in MB.
func memory(b *testing.B, pid int, name string) float64 {
	b.Helper()
	mb, err := status(pid, name)
	if err != nil {
		b.Fatal(err)
	}
	return mb
}

// status is one of the sizes in /proc/PID/status, in MB.
func status(pid int, name string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+) kB$`).FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("no %s in the status of process %d", name, pid)
	}
	kb, err := strconv.Atoi(string(m[1]))
	return float64(kb) / 1024, err
}
