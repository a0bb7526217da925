package gates

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates/condition"
)

const (
	// maxBody bounds the body of an answer that a condition reads, unpacked.
	maxBody = 1 << 20
	// maxRedirects bounds the redirects that are followed, on one host only.
	maxRedirects = 5
)

// httpGate asks a web server.
type httpGate struct{ env environment }

var _ Kind = (*httpGate)(nil)

func (k *httpGate) Ask(ctx context.Context, q Question) Answer {
	g := q.Gate.HTTP
	if g == nil {
		return unknown("the gate has no URL")
	}
	var cond *condition.Condition
	if g.Body != "" {
		var diags hcl.Diagnostics
		if cond, diags = condition.Parse(g.Body, "body", hcl.InitialPos, condition.BodyVars()); diags.HasErrors() {
			return unknown("its condition cannot be read: %s", diags[0].Detail)
		}
	}
	headers, err := k.env.headers(g.Headers)
	if err != nil {
		return failed("%v", err)
	}
	client, done, err := newHTTPClient(inDir(q.Dir, g.CAFile), slices.ContainsFunc(g.Status, func(n int) bool { return n/100 == 3 }))
	if err != nil {
		return failed("%v", err)
	}
	defer done()
	method := g.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, g.URL, http.NoBody)
	if err != nil {
		return unknown("%v", withoutURL(err))
	}
	req.Header = headers
	if host := headers.Get("Host"); host != "" {
		req.Host = host
	}
	what := method + " " + showURL(req.URL)
	resp, err := client.Do(req)
	if err != nil {
		return failed("%s: %v", what, withoutURL(err))
	}
	defer resp.Body.Close()
	if a, decided := judgeStatus(g, resp.StatusCode, what); decided || cond == nil {
		return a
	}
	return judgeBody(g, cond, resp, what)
}

// notAsked are the codes that tell about the asker, or about what stands between
// him and the server, and not about what the server was asked.
var notAsked = []int{
	http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusRequestTimeout,
	http.StatusTooEarly, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusGatewayTimeout,
}

// judgeStatus is decided unless the status is as it should be and a body is
// still to be read.
func judgeStatus(g *orchestrator.GateHTTP, status int, what string) (a Answer, decided bool) {
	want := "200 to 299"
	ok := status/100 == 2
	if len(g.Status) > 0 {
		ok = slices.Contains(g.Status, status)
		want = strings.Trim(strings.Join(strings.Fields(fmt.Sprint(g.Status)), ", "), "[]")
	}
	value := fmt.Sprintf("HTTP %d", status)
	switch {
	case ok:
		return answer(orchestrator.Pass, value, "%s answered %d", what, status), false
	case slices.Contains(notAsked, status):
		a = failed("%s answered %d (%s), which says nothing of what was asked", what, status, http.StatusText(status))
	default:
		a = answer(orchestrator.Fail, value, "%s answered %d, and %s must come", what, status, want)
	}
	a.Value = value
	return a, true
}

func judgeBody(g *orchestrator.GateHTTP, cond *condition.Condition, resp *http.Response, what string) Answer {
	value := fmt.Sprintf("HTTP %d", resp.StatusCode)
	not := func(format string, args ...any) Answer {
		a := failed("%s: %s", what, fmt.Sprintf(format, args...))
		a.Value = value
		return a
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return not("its answer broke off: %v", withoutURL(err))
	case len(body) > maxBody:
		return not("its answer has more than %d bytes", maxBody)
	case !utf8.Valid(body):
		return not("its answer is not text in UTF-8")
	}
	vars := condition.Vars{
		"status": cty.NumberIntVal(int64(resp.StatusCode)), "body": cty.StringVal(string(body)), "json": cty.DynamicVal,
	}
	if cond.Uses["json"] {
		if why := noJSON(resp.Header.Get("Content-Type")); why != "" {
			return not("%s", why)
		}
		if vars["json"], err = condition.JSON(body); err != nil {
			return not("its answer is not JSON: %v", err)
		}
	}
	ok, err := cond.Holds(vars)
	show := text.Clip(text.Printable(g.Body), 120)
	switch {
	case err != nil:
		a := unknown("%s: %s is neither true nor false: %v", what, show, err)
		a.Value = value
		return a
	case ok:
		return answer(orchestrator.Pass, value, "%s: %s", what, show)
	}
	return answer(orchestrator.Fail, value, "%s: %s does not hold", what, show)
}

// noJSON says why an answer of a content type is not read as JSON. Servers that
// name none, or a plain one, are common, and are read.
func noJSON(contentType string) string {
	if contentType == "" {
		return ""
	}
	t, _, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil:
		return fmt.Sprintf("its content type %q cannot be read", text.Clip(text.Printable(contentType), 60))
	case t == "application/json", strings.HasSuffix(t, "+json"), t == "text/json", t == "text/plain", t == "application/octet-stream":
		return ""
	}
	return fmt.Sprintf("its answer is %s, and JSON is wanted: is this a page to log in?", text.Clip(text.Printable(t), 60))
}

// headers puts the secrets into headers.
func (e environment) headers(set map[string]string) (http.Header, error) {
	h := http.Header{}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		v, err := e.expand(fmt.Sprintf("header %q", name), set[name])
		if err != nil {
			return nil, err
		}
		if v = strings.TrimRight(v, "\r\n"); strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			// A line break would begin another header.
			return nil, fmt.Errorf("the value of header %q holds a control character", name)
		}
		h.Set(name, v)
	}
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", "aimlock")
	}
	return h, nil
}

// newHTTPClient makes the client of one question: nothing of it outlives done.
// Redirects are followed on one host only, since the headers may be secret.
func newHTTPClient(caFile string, redirectIsAnswer bool) (c *http.Client, done func(), err error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxResponseHeaderBytes = 64 << 10
	t.TLSHandshakeTimeout = 10 * time.Second
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, nil, fmt.Errorf("ca_file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("ca_file %s holds no certificate in PEM", caFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	c = &http.Client{Transport: t, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		first := via[0].URL
		switch {
		case redirectIsAnswer:
			return http.ErrUseLastResponse
		case len(via) > maxRedirects:
			return fmt.Errorf("it redirects more than %d times", maxRedirects)
		case req.URL.Host != first.Host || req.URL.Scheme != first.Scheme:
			return fmt.Errorf("it redirects to %s, which is another host: ask that one", showHost(req.URL))
		}
		return nil
	}}
	return c, t.CloseIdleConnections, nil
}

// inDir is a path of a spec: relative to the folder of its file.
func inDir(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

func showHost(u *url.URL) string { return text.Clip(text.Printable(u.Scheme+"://"+u.Host), 80) }

// showURL is a URL without what may be secret: user, query and fragment.
func showURL(u *url.URL) string {
	return text.Clip(text.Printable(u.Scheme+"://"+u.Host+u.EscapedPath()), 120)
}

// withoutURL drops the URL that errors of package http repeat.
func withoutURL(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
