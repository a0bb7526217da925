package supervise

import (
	"bytes"
	"cmp"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// order is what a parent sends. Kind says which of the fields count.
type order struct {
	Kind orderKind

	// orderStart. The descriptors travel beside it: stdin, stdout, stderr, then
	// those that the command gets as 3, 4, ….
	Argv, Env []string
	Files     int
	// Pgrp is the parent's process group, whose terminal may be lent.
	Pgrp int

	// Until is the end of a lease on the boot clock.
	Until time.Duration
	// Grace of orderSetUp and orderStop.
	Grace       time.Duration
	OrphanGrace time.Duration
	Signal      int
}

type orderKind int

const (
	orderSetUp orderKind = iota + 1
	orderStart
	orderLease
	orderSignal
	orderStop
)

// event is what a supervisor sends back.
type event struct {
	Kind  eventKind
	PID   int
	Ticks uint64
	Code  int
	Text  string
	Why   reason
	// Keyboard, of eventExit: an interrupt from its terminal ended it.
	Keyboard bool
}

type eventKind int

const (
	eventReady eventKind = iota + 1
	// eventStarted: the command runs; PID and Ticks name it.
	eventStarted
	// eventFailed: it could not be started; Code and Text say why.
	eventFailed
	// eventEnding: the tree is being ended, Why.
	eventEnding
	// eventExit: the command ended with Code.
	eventExit
	// eventStuck: what could not be killed for a while; Text names it.
	eventStuck
	// eventGone: nothing is left of the tree.
	eventGone
	eventWarn
)

// sendTimeout bounds the write of one message: the other end may be stopped.
const sendTimeout = 5 * time.Second

// link is one end of the socket pair. Only one goroutine receives; any may send.
type link struct {
	conn *os.File
	raw  syscall.RawConn
	dec  *gob.Decoder
	// fds came with what was read and belong to nobody yet, in the order in which
	// they were sent. They are for the receiving goroutine.
	fds []int

	mu  sync.Mutex
	buf bytes.Buffer
	enc *gob.Encoder
	// broken: a message was cut off, so that nothing can follow it.
	broken error
}

// newLink takes f over, whatever comes of it. Package net is left out of this: see
// init in main.go.
func newLink(f *os.File) (*link, error) {
	conn, err := pollable(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn}
	if l.raw, err = conn.SyscallConn(); err != nil {
		conn.Close()
		return nil, err
	}
	l.enc = gob.NewEncoder(&l.buf)
	l.dec = gob.NewDecoder(linkReader{l})
	return l, nil
}

// pollable returns a unix socket anew, as a file that takes deadlines.
func pollable(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := raw.Control(func(old uintptr) {
		if _, err = unix.GetsockoptInt(int(old), unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			err = fmt.Errorf("not a unix socket: %w", err)
			return
		}
		if fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), "link"), nil
}

func (l *link) close() { l.conn.Close() }

// send writes v whole, with files beside its first byte, or breaks the link.
func (l *link) send(v any, files ...*os.File) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	l.buf.Reset()
	if err := l.enc.Encode(v); err != nil {
		l.broken = err
		return err
	}
	b := l.buf.Bytes()
	if err := l.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		l.broken = err
		return err
	}
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			// Fd makes blocking again what package os made non-blocking, as the
			// command expects it.
			fds[i] = int(f.Fd())
		}
		n, err := l.sendWith(b[:1], unix.UnixRights(fds...))
		if err != nil {
			l.broken = err
			return err
		}
		b = b[n:]
	}
	_, err := l.conn.Write(b)
	l.broken = err
	return err
}

// sendWith sends b with control messages beside it.
func (l *link) sendWith(b, oob []byte) (n int, err error) {
	werr := l.raw.Write(func(fd uintptr) bool {
		for {
			if n, err = unix.SendmsgN(int(fd), b, oob, nil, 0); !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	return n, cmp.Or(werr, err)
}

// receiveWith is the same for what comes.
func (l *link) receiveWith(b, oob []byte) (n, oobn, flags int, err error) {
	rerr := l.raw.Read(func(fd uintptr) bool {
		for {
			if n, oobn, flags, _, err = unix.Recvmsg(int(fd), b, oob, receiveFlags); !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	return max(n, 0), oobn, flags, cmp.Or(rerr, err)
}

func (l *link) receive(v any) error { return l.dec.Decode(v) }

// takeFiles gives the descriptors of the message just received to the caller.
// Those of later ones may be there already.
func (l *link) takeFiles(n int) ([]*os.File, error) {
	if n < 0 || n > len(l.fds) {
		return nil, fmt.Errorf("%d descriptors came, %d were sent", len(l.fds), n)
	}
	files := make([]*os.File, n)
	for i, fd := range l.fds[:n] {
		files[i] = os.NewFile(uintptr(fd), fmt.Sprintf("descriptor %d", i))
	}
	l.fds = l.fds[n:]
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// maxFiles is the most descriptors that one order carries (the kernel's limit
// is 253).
const maxFiles = 64

// linkReader collects the descriptors that come beside the bytes.
type linkReader struct{ l *link }

func (r linkReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, err := r.l.receiveWith(p, oob)
	if err != nil {
		return n, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return n, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd) // where receiveFlags cannot ask for it
		}
		r.l.fds = append(r.l.fds, fds...)
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return n, errors.New("descriptors were cut off")
	}
	if n == 0 {
		return 0, errClosed
	}
	return n, nil
}

var errClosed = errors.New("the other end is closed")
