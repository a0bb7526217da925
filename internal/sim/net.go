package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"
)

// weather is what becomes of the requests of one actor, until a time. Chances are
// in percent.
type weather struct {
	until time.Time
	// cut: nothing gets through; unsent requests fail at once where refused is set,
	// and else are never answered.
	cut, refused bool
	// lost answers, requests that never arrive, requests that arrive twice, and
	// such that arrive late, after their sender was told that the connection broke.
	lost, dropped, twice, late int
}

var errBroke = errors.New("connection broke")

// exchange is one request under way.
type exchange struct {
	inc    *incarnation
	req    *http.Request
	body   []byte
	what   string
	sentAt time.Time
	answer chan answer
	sent   *effect
	// ops of a transaction; nil: it is none, or nonsense.
	ops []txnOp
	// given: its sender has given it up.
	given atomic.Bool
}

type answer struct {
	resp *http.Response
	err  error
}

// RoundTrip sends a request of this process by the world's network.
func (inc *incarnation) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		_ = req.Body.Close()
		body = skewed(req, body, inc.skew)
	}
	if inc.gone() {
		return refusedToTheDead(req), nil
	}
	ctx := req.Context()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	x := &exchange{inc: inc, req: req, body: body, sentAt: time.Now(), answer: make(chan answer, 1)}
	x.what = inc.String() + " " + req.Method + " " + req.URL.RequestURI()
	if req.Method == http.MethodPut && strings.HasPrefix(req.URL.Path, "/v1/txn") {
		x.ops = txnOf(body)
	}
	if len(body) > 0 {
		x.what += " " + shortHash(body)
	}
	x.sent = &effect{what: x.what, do: x.deliver, inc: inc, leaves: true, void: x.given.Load, extra: inc.w.heldUp(x.ops)}
	inc.w.sched.park(x.sent)
	inc.w.check.sent(x)
	select {
	case a := <-x.answer:
		return a.resp, a.err
	case <-ctx.Done():
		x.given.Store(true)
		return nil, ctx.Err()
	case <-inc.dead:
		x.given.Store(true)
		return refusedToTheDead(req), nil
	}
}

// refusedToTheDead ends every try of a process that was killed: what still runs of
// it is not there, and comes to its end the sooner the better.
func refusedToTheDead(req *http.Request) *http.Response {
	return &http.Response{
		StatusCode: http.StatusBadRequest, Status: "400 Bad Request", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader("this process is dead")), Request: req,
	}
}

func (x *exchange) chance(kind string) int {
	return int(draw(x.inc.w.seed, x.what+" "+kind, uint64(x.sentAt.UnixNano()))%100) + 1
}

// deliver brings the request to the server, or does what the weather does.
func (x *exchange) deliver() {
	w, now := x.inc.w, time.Now()
	if w.opts.Trace && len(x.body) > 0 {
		w.lines = append(w.lines, w.stamp()+"    "+readable(x.body))
	}
	if x.given.Load() && x.chance("given up") <= 50 {
		return // it had not left the machine
	}
	sky := x.inc.net
	if !sky.until.After(now) {
		sky = weather{}
	}
	blocking := x.req.URL.Query().Get("index") != ""
	switch {
	case sky.cut && sky.refused:
		x.reply(nil, dialError())
	case sky.cut, x.chance("dropped") <= sky.dropped:
		// No answer will come.
	case x.chance("late") <= sky.late && !blocking:
		w.note("late: %s", x.what)
		x.reply(nil, errBroke)
		w.after(time.Duration(draw(w.seed, x.what+" how late", uint64(x.sentAt.UnixNano()))%uint64(25*time.Second)), "late "+x.what, func() { x.serve(false) })
	case x.chance("lost") <= sky.lost && !blocking:
		w.note("answer lost: %s", x.what)
		x.serve(false)
		x.reply(nil, errBroke)
	case x.chance("twice") <= sky.twice && !blocking:
		// The agent between a client and the servers repeats what a server did not
		// answer; nothing repeats what was answered.
		w.note("twice: %s", x.what)
		x.serve(false)
		w.after(time.Duration(draw(w.seed, x.what+" how late", uint64(x.sentAt.UnixNano()))%uint64(8*time.Second)), "again "+x.what, func() { x.serve(true) })
	default:
		x.serve(true)
	}
}

func dialError() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
}

// reply sends an answer on its way back. It has the number of its request: two
// requests of one name may be answered in one moment, and which handler comes first
// depends on the addresses of what they wait for.
func (x *exchange) reply(resp *http.Response, err error) {
	x.inc.w.sched.park(&effect{what: x.what + " answer", of: x.sent, inc: x.inc, gone: x.given.Load, do: func() {
		if err == nil {
			x.inc.w.check.answered(x, resp)
		}
		x.answer <- answer{resp, err}
	}})
}

// serve hands the request to the server. A handler that waits for a change goes on
// by itself, for as long as its client waits.
func (x *exchange) serve(answered bool) {
	w := x.inc.w
	ctx, cancel := context.WithCancel(context.Background())
	if answered {
		stop := context.AfterFunc(x.req.Context(), cancel)
		defer func() { _ = stop }()
	}
	in := x.req.Clone(ctx)
	in.Body, in.ContentLength = io.NopCloser(bytes.NewReader(x.body)), int64(len(x.body))
	in.RequestURI, in.Host = x.req.URL.RequestURI(), x.req.URL.Host
	w.serving(x)
	w.handlers.Go(func() {
		defer cancel()
		rec := httptest.NewRecorder()
		w.handle(rec, in)
		if answered {
			resp := rec.Result()
			resp.Request = x.req
			x.reply(resp, nil)
		}
	})
}

// handle serves one request by what the cluster is now.
func (w *World) handle(rec *httptest.ResponseRecorder, in *http.Request) {
	if w.leaderless.Load() {
		rec.WriteHeader(http.StatusInternalServerError)
		_, _ = rec.WriteString("No cluster leader")
		return
	}
	w.srv.Handler().ServeHTTP(rec, in)
}

// readable is a request's body for people: values of a transaction are in base64.
func readable(body []byte) string {
	ops := txnOf(body)
	if ops == nil {
		return string(body)
	}
	var out []string
	for _, op := range ops {
		if op.KV != nil {
			out = append(out, fmt.Sprintf("%s %s %d %s %s", op.KV.Verb, op.KV.Key, op.KV.Index, op.KV.Session, op.KV.Value))
		}
	}
	return strings.Join(out, "; ")
}

// txnOp is what the checks read of a transaction.
type txnOp struct {
	KV *struct {
		Verb, Key, Session string
		Index              uint64
		Value              []byte
	}
}

func txnOf(body []byte) []txnOp {
	var ops []txnOp
	if json.Unmarshal(body, &ops) != nil {
		return nil
	}
	return ops
}
