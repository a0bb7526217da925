package harness

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Relay stands between a process and a server, and can be cut: then nothing passes,
// and nobody is told, as when a network drops packets.
type Relay struct {
	// Addr is where it listens.
	Addr string

	cut atomic.Bool
	mu  sync.Mutex
	// open are the connections to be closed at the end; over: it has come.
	open []net.Conn
	over bool
}

// StartRelay passes connections on to a server until the test ends.
func StartRelay(t testing.TB, target string) *Relay {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{Addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			r.keep(client)
			var d net.Dialer
			server, err := d.DialContext(context.Background(), "tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			r.keep(server)
			wg.Go(func() { r.pass(server, client) })
			wg.Go(func() { r.pass(client, server) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.mu.Lock()
		r.over = true
		for _, c := range r.open {
			_ = c.Close()
		}
		r.mu.Unlock()
		wg.Wait()
	})
	return r
}

// Cut has nothing pass any more.
func (r *Relay) Cut() { r.cut.Store(true) }

func (r *Relay) keep(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		_ = c.Close()
		return
	}
	r.open = append(r.open, c)
}

func (r *Relay) pass(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if r.cut.Load() {
			// What comes is thrown away, and an end is not told.
			_, _ = io.Copy(io.Discard, from)
			return
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}
