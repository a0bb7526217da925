package lab

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// vnet is the length of the header of virtio-net, which stands before each
	// frame: by it the kernel hands on what a network card would do later,
	// checksums and the cutting of large segments.
	vnet = 10
	// ether is the length of an Ethernet header.
	ether = 14
	// largest is a frame before it is cut.
	largest = vnet + ether + 1<<16
	// queued bounds the frames that wait on slow links, all together.
	queued = 1 << 14
)

// packets opens a packet socket on an interface of this namespace. It reads the
// IPv4 frames that come in there, and not what it writes itself.
func packets(index int) (*os.File, error) {
	proto := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_IP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("a packet socket: %w", err)
	}
	// A burst shall wait here and not be lost.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	if err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("a packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "packets"), nil
}

// read passes on what a host sends, until the host's port is closed.
func (n *Network) read(from *Host) {
	buf := make([]byte, largest)
	for {
		size, err := from.port.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil || size < vnet+ether+20 {
			continue // an interface that is going down says so once
		}
		n.pass(from, buf[:size])
	}
}

func (n *Network) pass(from *Host, frame []byte) {
	addr, _ := netip.AddrFromSlice(frame[vnet+ether+16:][:4])
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, to := range n.hosts {
		if to.addr != addr {
			continue
		}
		p := pair{from, to}
		l := n.links[p]
		if l.Cut || (l.Loss > 0 && n.rng.Float64() < l.Loss) {
			return
		}
		due := time.Now().Add(l.Delay)
		if l.Jitter > 0 {
			due = due.Add(time.Duration(n.rng.Int64N(int64(l.Jitter))))
		}
		if l.Delay > 0 || l.Jitter > 0 || n.late.waiting[p] > 0 {
			if last := n.last[p]; !due.After(last) {
				due = last.Add(1)
			}
			n.last[p] = due
			n.late.add(delayed{p, due, append([]byte(nil), frame...)})
			return
		}
		// A frame that the host has no room for is lost, as on any network.
		_, _ = to.port.Write(frame)
		return
	}
}

type delayed struct {
	pair
	due   time.Time
	frame []byte
}

// late keeps the frames of slow links until they are due. Network.mu guards it.
type late struct {
	n       *Network
	queue   frames
	waiting map[pair]int
	wake    chan struct{}
	end     chan struct{}
	once    sync.Once
}

func newLate(n *Network) *late {
	l := &late{n: n, waiting: map[pair]int{}, wake: make(chan struct{}, 1), end: make(chan struct{})}
	n.wg.Go(l.run)
	return l
}

func (l *late) stop() { l.once.Do(func() { close(l.end) }) }

func (l *late) add(d delayed) {
	if len(l.queue) >= queued {
		return
	}
	heap.Push(&l.queue, d)
	l.waiting[d.pair]++
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *late) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-l.end:
			return
		case <-l.wake:
		case <-timer.C:
		}
		timer.Reset(l.deliver(time.Now()))
	}
}

// deliver writes what is due, and tells when the next frame is.
func (l *late) deliver(now time.Time) time.Duration {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	for len(l.queue) > 0 {
		if wait := l.queue[0].due.Sub(now); wait > 0 {
			return wait
		}
		d := heap.Pop(&l.queue).(delayed)
		l.waiting[d.pair]--
		if l.n.links[d.pair].Cut {
			continue // it was on its way when the link was cut
		}
		_, _ = d.to.port.Write(d.frame)
	}
	return time.Hour
}

// frames is a heap by the time that they are due, which no two of a link share.
type frames []delayed

func (f frames) Len() int           { return len(f) }
func (f frames) Less(i, j int) bool { return f[i].due.Before(f[j].due) }
func (f frames) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *frames) Push(x any)        { *f = append(*f, x.(delayed)) }
func (f *frames) Pop() any {
	last := len(*f) - 1
	d := (*f)[last]
	*f = (*f)[:last]
	return d
}
