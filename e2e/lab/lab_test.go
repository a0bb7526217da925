package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/e2e/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

const limit = 20 * time.Second

// on calls something on a thread that is on the host.
func on(t *testing.T, h *lab.Host, do func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good
		done <- errors.Join(h.Enter(), do())
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// ends are two hosts that talk by UDP.
type ends struct {
	t    *testing.T
	net  *lab.Network
	a, b *lab.Host
	atA  net.PacketConn
	atB  net.PacketConn
}

func newEnds(t *testing.T) *ends {
	t.Helper()
	if why := lab.Why(); why != "" {
		t.Skipf("no namespaces here: %s", why)
	}
	e := &ends{t: t, net: lab.New(t, 1)}
	e.a, e.b = e.net.Self(t), e.net.Host(t, "b")
	listen := func(h *lab.Host, c *net.PacketConn) {
		on(t, h, func() (err error) {
			*c, err = net.ListenPacket("udp4", h.IP+":7")
			return err
		})
		t.Cleanup(func() { (*c).Close() })
	}
	listen(e.a, &e.atA)
	listen(e.b, &e.atB)
	return e
}

// crosses tells whether a datagram arrives, and when.
func (e *ends) crosses(from, to net.PacketConn, wait time.Duration) (time.Duration, bool) {
	e.t.Helper()
	start := time.Now()
	if _, err := from.WriteTo([]byte("x"), to.LocalAddr()); err != nil {
		e.t.Fatal(err)
	}
	if err := to.SetReadDeadline(start.Add(wait)); err != nil {
		e.t.Fatal(err)
	}
	_, _, err := to.ReadFrom(make([]byte, 16))
	return time.Since(start), err == nil
}

func (e *ends) want(name string, ab, ba bool) {
	e.t.Helper()
	wait := func(want bool) time.Duration {
		if want {
			return limit
		}
		return 100 * time.Millisecond
	}
	if _, ok := e.crosses(e.atA, e.atB, wait(ab)); ok != ab {
		e.t.Errorf("%s: a to b: %v", name, ok)
	}
	if _, ok := e.crosses(e.atB, e.atA, wait(ba)); ok != ba {
		e.t.Errorf("%s: b to a: %v", name, ok)
	}
}

func TestCut(t *testing.T) {
	e := newEnds(t)
	e.want("whole", true, true)
	e.net.Set(e.a, e.b, lab.Link{Cut: true})
	e.want("cut from a to b", false, true)
	e.net.Set(e.b, e.a, lab.Link{Cut: true})
	e.want("cut", false, false)
	e.net.Set(e.a, e.b, lab.Link{})
	e.want("cut from b to a", true, false)
	e.net.Heal()
	e.want("healed", true, true)
}

func TestSlow(t *testing.T) {
	e := newEnds(t)
	e.net.Set(e.a, e.b, lab.Link{Delay: 200 * time.Millisecond, Jitter: 50 * time.Millisecond})
	if d, ok := e.crosses(e.atA, e.atB, limit); !ok || d < 200*time.Millisecond {
		t.Errorf("arrived %v after %v", ok, d)
	}
	e.net.Set(e.a, e.b, lab.Link{Loss: 0.5})
	lost := 0
	for range 100 {
		if _, ok := e.crosses(e.atA, e.atB, 20*time.Millisecond); !ok {
			lost++
		}
	}
	if lost < 20 || lost > 80 {
		t.Errorf("%d of 100 were lost at a loss of half of them", lost)
	}
}

// Much data crosses whole by TCP, by segments that the kernel cuts late and
// checksums that it leaves to the card, also where it waits on its way.
func TestStream(t *testing.T) {
	e := newEnds(t)
	const size = 8 << 20
	e.net.Set(e.b, e.a, lab.Link{Delay: 2 * time.Millisecond, Jitter: time.Millisecond})
	var l net.Listener
	on(t, e.b, func() (err error) {
		l, err = net.Listen("tcp4", e.b.IP+":8")
		return err
	})
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			sent <- err
			return
		}
		defer c.Close()
		_, err = c.Write(make([]byte, size))
		sent <- err
	}()
	c, err := net.DialTimeout("tcp4", l.Addr().String(), limit)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	got, buf := 0, make([]byte, 1<<16)
	for got < size {
		n, err := c.Read(buf)
		got += n
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

const orphanMaker = "LAB_TEST_ORPHAN_MAKER"

// What runs on a host dies with the test, also where the program that the user sees
// is killed, which is the one outside of the namespaces.
func TestNothingOutlivesTheTest(t *testing.T) {
	if os.Getenv(orphanMaker) != "" {
		e := newEnds(t)
		p := harness.Start(t, harness.Spec{Path: "/bin/sh", Args: []string{"-c", "exec sleep 600"}, Enter: e.b.Enter})
		fmt.Println("pid", p.Pid())
		<-p.Done()
		return
	}
	if why := lab.Why(); why != "" {
		t.Skipf("no namespaces here: %s", why)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNothingOutlivesTheTest$")
	cmd.Env = append(os.Environ(), orphanMaker+"=1")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "pid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
	harness.Eventually(t, limit, "the process on the host is gone", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || bytes.Contains(b, []byte(") Z "))
	})
}

// What is started on a host has the host's name and address.
func TestProcess(t *testing.T) {
	e := newEnds(t)
	out := harness.Output(t, limit, harness.Spec{Path: "/bin/sh", Args: []string{"-c", "hostname; cat /proc/net/fib_trie"}, Enter: e.b.Enter})
	if want := "b\n"; len(out) < 2 || out[:2] != want {
		t.Errorf("the host is called %.20q", out)
	}
}
