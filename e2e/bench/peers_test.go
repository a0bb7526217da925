package bench

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

// BenchmarkPeers is what comes of a holder that is killed (kill -9), stopped
// (SIGSTOP), or cut off from its servers, without being told, under consul lock, etcdctl lock and lock exec: the time until the
// next one's command starts, and how many commands then run at once. All wait at
// the same time, each on its own lock.
func BenchmarkPeers(b *testing.B) {
	c := harness.StartConsul(b)
	etcd := startEtcd(b)
	peers := []struct {
		name   string
		server string
		spec   func(server, lock, script string) harness.Spec
	}{
		{"consul-lock", c.Addr, func(server, lock, script string) harness.Spec {
			return harness.Spec{Path: harness.ConsulBin.Path(b), Args: []string{"lock", "-http-addr", server, lock, script}, Env: c.Env()}
		}},
		{"etcdctl-lock", etcd, func(server, lock, script string) harness.Spec {
			return harness.Spec{Path: harness.Etcdctl.Path(b), Args: []string{"--endpoints", "http://" + server, "lock", "--ttl=10", lock, "--", "sh", "-c", script}}
		}},
		{"lock-exec", c.Addr, func(server, lock, script string) harness.Spec {
			return harness.Spec{Path: harness.Aimlock.Path(b), Args: []string{"lock", "exec", "-http-addr", server, lock, "--", "sh", "-c", script}, Env: c.Env()}
		}},
	}
	ends := []string{"kill", "stop", "cut"}
	type outcome struct {
		took    time.Duration
		writers int
	}
	results := map[string]outcome{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	dir := b.TempDir()
	for _, p := range peers {
		for _, how := range ends {
			wg.Go(func() {
				name := p.name + "-" + how
				relay := harness.StartRelay(b, p.server)
				first := func(script string) harness.Spec { return p.spec(relay.Addr, "peers-"+how, script) }
				second := func(script string) harness.Spec { return p.spec(p.server, "peers-"+how, script) }
				took, writers := succession(b, filepath.Join(dir, name), how, relay, first, second)
				mu.Lock()
				defer mu.Unlock()
				results[name] = outcome{took, writers}
			})
		}
	}
	wg.Wait()
	for _, p := range peers {
		for _, how := range ends {
			b.Run(p.name+"/"+how, func(b *testing.B) {
				r := results[p.name+"-"+how]
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(r.took.Seconds(), "s-to-next")
				b.ReportMetric(float64(r.writers), "commands-at-once")
			})
		}
	}
}

// succession starts two holders, ends, stops or cuts off the first, and counts the commands
// that write when the second one's has run for a while.
func succession(b *testing.B, dir, how string, relay *harness.Relay, one, other func(script string) harness.Spec) (took time.Duration, writers int) {
	b.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	start := func(who string, spec func(script string) harness.Spec) (*harness.Process, string) {
		file := filepath.Join(dir, who)
		return harness.Start(b, spec(fmt.Sprintf("while :; do echo works >>%s; sleep 0.05; done", file))), file
	}
	first, a := start("first", one)
	harness.Eventually(b, limit, "the first command works", func() bool { return exists(a) })
	second, z := start("second", other)
	// Nothing common tells that it waits: it has tried by then.
	pause := time.NewTimer(3 * time.Second)
	<-pause.C
	begin := time.Now()
	switch how {
	case "kill":
		first.Kill()
	case "stop":
		first.Freeze()
	default:
		relay.Cut()
	}
	await(b, dir+": the second command works", func() bool { return exists(z) })
	took = time.Since(begin)
	before := []int64{size(a), size(z)}
	pause.Reset(time.Second)
	<-pause.C
	for i, file := range []string{a, z} {
		if size(file) > before[i] {
			writers++
		}
	}
	second.KillGroup()
	first.KillGroup()
	return took, writers
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// startEtcd starts one server, and returns where it serves.
func startEtcd(b *testing.B) string {
	b.Helper()
	var urls []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		urls = append(urls, "http://"+l.Addr().String())
		l.Close()
	}
	p := harness.Start(b, harness.Spec{Path: harness.Etcd.Path(b), Args: []string{
		"--data-dir", b.TempDir(), "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], "--initial-cluster", "default=" + urls[1],
	}})
	harness.Eventually(b, limit, "etcd serves", func() bool {
		return strings.Contains(p.Stderr(), "ready to serve client requests")
	})
	return strings.TrimPrefix(urls[0], "http://")
}
