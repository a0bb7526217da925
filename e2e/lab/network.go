package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Link is what befalls the frames from one host to another. The zero value is a
// link on which nothing does.
type Link struct {
	// Cut loses all of them.
	Cut bool
	// Delay is added, and up to Jitter more. Their order stays.
	Delay, Jitter time.Duration
	// Loss is the share that is lost, from 0 to 1.
	Loss float64
}

// Network is hosts that reach each other by a hub. Its methods may be used from
// several goroutines.
type Network struct {
	id  int // of this process's networks
	hub *netlink.Handle
	wg  sync.WaitGroup

	mu    sync.Mutex
	hosts []*Host
	links map[pair]Link
	last  map[pair]time.Time // when the newest delayed frame of a link is due
	rng   *rand.Rand
	late  *late
}

type pair struct{ from, to *Host }

// Host is a host of the network.
type Host struct {
	// Name is its host name.
	Name string
	// IP is its address.
	IP string

	addr     netip.Addr
	mac      net.HardwareAddr
	eth      string          // the name of its interface
	link     netlink.Link    // its end of the pair
	at       *netlink.Handle // netlink of its namespace
	net, uts *os.File        // nil for the test's own host
	port     *os.File        // the hub's end, a packet socket
}

// networks counts those of this process: several can be there at once.
var networks atomic.Int32

// New makes a network without hosts, which ends with the test. The test must run
// by Main, and Why be "".
func New(t testing.TB, seed uint64) *Network {
	t.Helper()
	if why != "" {
		t.Fatalf("there is no network of namespaces here: %s", why)
	}
	n, err := open()
	if err != nil {
		t.Fatal(err)
	}
	n.rng = rand.New(rand.NewPCG(seed, 3))
	t.Cleanup(n.Close)
	return n
}

func open() (*Network, error) {
	hub, err := netlink.NewHandle()
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	n := &Network{id: int(networks.Add(1)), hub: hub, links: map[pair]Link{}, last: map[pair]time.Time{}, rng: rand.New(rand.NewPCG(1, 3))}
	n.late = newLate(n)
	if err := up(hub, "lo"); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close ends the network: nobody reaches anybody any more.
func (n *Network) Close() {
	n.mu.Lock()
	hosts := n.hosts
	n.hosts = nil
	n.mu.Unlock()
	for _, h := range hosts {
		h.close()
		// Both ends of the pair go with one.
		if l, err := n.hub.LinkByName(n.end(h)); err == nil {
			_ = n.hub.LinkDel(l) // the namespace, which ends soon, has it else
		}
	}
	n.late.stop()
	n.wg.Wait()
	n.hub.Close()
}

// Host adds a host. Its name has at most 11 bytes; a
// process has at most 99 networks.
func (n *Network) Host(t testing.TB, name string) *Host {
	t.Helper()
	h, err := n.add(name)
	if err != nil {
		t.Fatalf("host %s: %v", name, err)
	}
	return h
}

// Self adds the test's own process as a host, so that it can talk to the others.
func (n *Network) Self(t testing.TB) *Host {
	t.Helper()
	h, err := n.join(&Host{Name: "self"})
	if err != nil {
		t.Fatalf("the test as a host: %v", err)
	}
	return h
}

// add makes a host with namespaces of its own.
func (n *Network) add(name string) (*Host, error) {
	h := &Host{Name: name}
	made := make(chan error, 1)
	go func() {
		// The thread has left the namespaces of the process, and ends with this
		// goroutine, since that does not unlock it.
		runtime.LockOSThread()
		made <- h.unshare()
	}()
	if err := <-made; err != nil {
		h.close()
		return nil, err
	}
	return n.join(h)
}

func (h *Host) unshare() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Sethostname([]byte(h.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	var err error
	if h.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	h.uts, err = os.Open("/proc/thread-self/ns/uts")
	return err
}

// Enter moves the calling thread to the host. The caller has locked it, and does
// not unlock it any more; processes that it starts are on the host.
func (h *Host) Enter() error {
	if h.net == nil {
		return nil
	}
	if err := unix.Setns(int(h.net.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network of %s: %w", h.Name, err)
	}
	if err := unix.Setns(int(h.uts.Fd()), unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("enter the name of %s: %w", h.Name, err)
	}
	return nil
}

func (h *Host) close() {
	for _, f := range []*os.File{h.port, h.net, h.uts} {
		if f != nil {
			f.Close()
		}
	}
	if h.at != nil {
		h.at.Close()
	}
}

// join lays the host's cable to the hub.
func (n *Network) join(h *Host) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := len(n.hosts) + 1
	if id > 250 {
		return nil, errors.New("a network has at most 250 hosts")
	}
	h.addr = netip.AddrFrom4([4]byte{10, 77, byte(n.id), byte(id)})
	h.IP = h.addr.String()
	h.mac = net.HardwareAddr{2, 0, 10, 77, byte(n.id), byte(id)}
	h.eth = "eth0"
	if h.net == nil {
		h.eth = fmt.Sprintf("self-%d", n.id)
	}
	if err := n.cable(h); err != nil {
		h.close()
		return nil, err
	}
	for _, other := range n.hosts {
		if err := errors.Join(h.knows(other), other.knows(h)); err != nil {
			h.close()
			return nil, err
		}
	}
	n.hosts = append(n.hosts, h)
	n.wg.Go(func() { n.read(h) })
	return h, nil
}

func (n *Network) cable(h *Host) (err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.end(h)
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: h.eth, PeerHardwareAddr: h.mac}
	if h.net != nil {
		v.PeerNamespace = netlink.NsFd(h.net.Fd())
		h.at, err = netlink.NewHandleAt(netns.NsHandle(h.net.Fd()))
	} else {
		h.at, err = netlink.NewHandle()
	}
	if err != nil {
		return fmt.Errorf("netlink of %s: %w", h.Name, err)
	}
	if err := n.hub.LinkAdd(v); err != nil {
		return fmt.Errorf("a pair of interfaces: %w", err)
	}
	if err := up(n.hub, attrs.Name); err != nil {
		return err
	}
	if err := up(h.at, "lo"); err != nil {
		return err
	}
	if h.link, err = h.at.LinkByName(h.eth); err != nil {
		return fmt.Errorf("%s of %s: %w", h.eth, h.Name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: h.addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := h.at.AddrAdd(h.link, addr); err != nil {
		return fmt.Errorf("address of %s: %w", h.Name, err)
	}
	if err := up(h.at, h.eth); err != nil {
		return err
	}
	end, err := n.hub.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	h.port, err = packets(end.Attrs().Index)
	return err
}

// end is the name of the hub's end of a host's cable.
func (n *Network) end(h *Host) string { return fmt.Sprintf("n%d-%s", n.id, h.Name) }

// knows tells a host where another one is, so that nobody asks by ARP.
func (h *Host) knows(other *Host) error {
	return h.at.NeighSet(&netlink.Neigh{
		LinkIndex: h.link.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: other.addr.AsSlice(), HardwareAddr: other.mac,
	})
}

func up(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

// Set makes the link from one host to another so; the way back stays as it is.
func (n *Network) Set(from, to *Host, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[pair{from, to}] = l
}

// Heal makes all links whole.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
}

// Pids are the processes on a host now.
func (h *Host) Pids() ([]int, error) {
	if h.net == nil {
		return nil, errors.New("the test's own host has other processes too")
	}
	here, err := h.net.Stat()
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, path := range dirs {
		there, err := os.Stat(path)
		if err != nil || !os.SameFile(here, there) {
			continue // it has ended, or is none of ours
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			return nil, err
		}
		out = append(out, pid)
	}
	return out, nil
}
