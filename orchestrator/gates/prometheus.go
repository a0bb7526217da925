package gates

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	papi "github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates/condition"
)

const (
	// maxMetrics bounds the answer of a Prometheus.
	maxMetrics = 8 << 20
	// maxNodes bounds the regular expression of nodes in a query.
	maxNodes = 128 << 10
)

// prometheusGate asks a Prometheus, or what speaks its API, an instant query.
type prometheusGate struct{ env environment }

var _ Kind = (*prometheusGate)(nil)

func (k *prometheusGate) Ask(ctx context.Context, q Question) Answer {
	g := q.Gate.Prometheus
	if g == nil {
		return unknown("the gate has no query")
	}
	cond, diags := condition.Parse(g.Threshold, "threshold", hcl.InitialPos, condition.ThresholdVars())
	if diags.HasErrors() {
		return unknown("its threshold cannot be read: %s", diags[0].Detail)
	}
	query, err := nodesIn(g.Query, &q)
	if err != nil {
		return unknown("%v", err)
	}
	headers, err := k.env.headers(g.Headers)
	if err != nil {
		return failed("%v", err)
	}
	client, done, err := newHTTPClient(inDir(q.Dir, g.CAFile), false)
	if err != nil {
		return failed("%v", err)
	}
	defer done()
	wire := &promWire{next: client.Transport, headers: headers}
	client.Transport = wire
	c, err := papi.NewClient(papi.Config{Address: g.Address, Client: client})
	if err != nil {
		return unknown("the address of Prometheus: %v", withoutURL(err))
	}
	// Samples that are older do not exist for the query. What looks back further
	// by itself, such as rate(x[1h]), is not bounded by it.
	opts := []promv1.Option{promv1.WithLookbackDelta(promDuration(g.MaxAge))}
	if t, ok := ctx.Deadline(); ok {
		opts = append(opts, promv1.WithTimeout(promDuration(time.Until(t))))
	}
	v, warnings, _, err := promv1.NewAPI(c).Query(ctx, query, time.Time{}, opts...)
	what := "Prometheus at " + showURL(c.URL("", nil))
	switch {
	case err != nil:
		return failed("%s: %s", what, promError(err))
	case len(warnings) > 0:
		// A part of the servers that it asks did not answer, for one.
		return unknown("%s warns: %s", what, text.Printable(strings.Join(warnings, "; ")))
	}
	return judgeSamples(g, cond, v, wire.date)
}

// promDuration is d, or a little less, as Prometheus can read it: the client sends
// what String gives, and Prometheus refuses fractions such as "29.99s".
func promDuration(d time.Duration) time.Duration {
	if d >= time.Second {
		return d.Truncate(time.Second)
	}
	return max(d.Truncate(time.Millisecond), time.Millisecond)
}

// promWire bounds what is read, adds headers, and keeps the server's own clock.
// It is used for one question, by one goroutine.
type promWire struct {
	next    http.RoundTripper
	headers http.Header
	date    time.Time
}

func (w *promWire) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	for name, v := range w.headers {
		req.Header[name] = v
	}
	resp, err := w.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	w.date = time.Now()
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		w.date = t
	}
	resp.Body = &bounded{ReadCloser: resp.Body, left: maxMetrics}
	return resp, nil
}

// bounded is a body that must not be longer than left.
type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, fmt.Errorf("its answer has more than %d bytes", maxMetrics)
	}
	return n, err
}

func promError(err error) string {
	err = withoutURL(err)
	if pe, ok := errors.AsType[*promv1.Error](err); ok {
		s := string(pe.Type) + ": " + pe.Msg
		if pe.Type == promv1.ErrBadResponse {
			s = "its answer is not that of a Prometheus: " + pe.Msg
		}
		return text.Clip(text.Printable(s), 200)
	}
	return text.Clip(text.Printable(err.Error()), 200)
}

// sample is one value of an answer.
type sample struct {
	labels model.Metric
	value  float64
	at     time.Time
}

// judgeSamples judges what came back. server is the time of the server's clock,
// which is the one that dates the samples.
func judgeSamples(g *orchestrator.GatePrometheus, cond *condition.Condition, v model.Value, server time.Time) Answer {
	var list []sample
	switch v := v.(type) {
	case model.Vector:
		for _, s := range v {
			if s == nil {
				return failed("the answer holds a sample that is null")
			}
			if s.Histogram != nil {
				return unknown("the query gives a histogram: take a quantile or a count of it")
			}
			list = append(list, sample{s.Metric, float64(s.Value), s.Timestamp.Time()})
		}
	case nil:
		return failed("the answer has no result")
	case *model.Scalar:
		if v == nil {
			return failed("the answer has no result")
		}
		list = append(list, sample{nil, float64(v.Value), v.Timestamp.Time()})
	default:
		return unknown("the query gives a %s, and values at one moment are needed", v.Type())
	}
	if len(list) == 0 {
		return unknown("the query gives no sample that is younger than %s", g.MaxAge)
	}
	for _, s := range list {
		// Dates have whole seconds.
		if age := server.Sub(s.at); g.MaxAge > 0 && age > g.MaxAge+time.Second {
			return unknown("the sample%s is %s old, and max_age is %s", of(list, s), age.Round(time.Second), g.MaxAge)
		}
	}
	if g.Reduce != "" {
		list = []sample{{value: reduce(g.Reduce, list), at: server}}
	}
	return judgeValues(g, cond, list)
}

// judgeValues: one value that does not hold fails the gate, whatever the others
// are; it passes if every one of them holds.
func judgeValues(g *orchestrator.GatePrometheus, cond *condition.Condition, list []sample) Answer {
	held, show := 0, text.Clip(text.Printable(g.Threshold), 120)
	var doubt *Answer
	for _, s := range list {
		value := number(s.value)
		var ok bool
		var err error
		if math.IsNaN(s.value) {
			err = errors.New("the value is NaN: nothing was counted, perhaps")
		} else {
			ok, err = cond.Holds(condition.Vars{"value": cty.NumberFloatVal(s.value), "labels": labels(s.labels)})
		}
		switch {
		case err != nil:
			if doubt == nil {
				a := unknown("%s%s: %v", show, of(list, s), err)
				a.Value = value
				doubt = &a
			}
		case ok:
			held++
		default:
			return answer(orchestrator.Fail, value, "%s does not hold%s: the value is %s", show, of(list, s), value)
		}
	}
	if doubt != nil {
		return *doubt
	}
	if len(list) == 1 {
		value := number(list[0].value)
		return answer(orchestrator.Pass, value, "%s: the value is %s", show, value)
	}
	return answer(orchestrator.Pass, fmt.Sprintf("%d samples", held), "%s holds for all of %d samples", show, held)
}

// of names a sample where there are several.
func of(list []sample, s sample) string {
	if len(list) < 2 {
		return ""
	}
	return " for " + text.Clip(text.Printable(s.labels.String()), 100)
}

func number(f float64) string { return strconv.FormatFloat(f, 'g', 6, 64) }

func labels(m model.Metric) cty.Value {
	out := map[string]cty.Value{}
	for k, v := range m {
		out[string(k)] = cty.StringVal(string(v))
	}
	return cty.ObjectVal(out)
}

// reduce makes one value of several; a NaN among them makes it NaN.
func reduce(how string, list []sample) float64 {
	out := list[0].value
	for _, s := range list[1:] {
		switch how {
		case "min":
			out = math.Min(out, s.value)
		case "max":
			out = math.Max(out, s.value)
		default:
			out += s.value
		}
	}
	if how == "avg" {
		out /= float64(len(list))
	}
	return out
}

// nodesIn puts the names of nodes into a query.
func nodesIn(query string, q *Question) (string, error) {
	for _, side := range []struct {
		ref, none string
		nodes     []string
	}{
		{"${canary}", "no node has the revision", q.Updated},
		{"${rest}", "no node is left to compare with", q.Rest},
	} {
		if !strings.Contains(query, side.ref) {
			continue
		}
		if len(side.nodes) == 0 {
			return "", errors.New(side.none)
		}
		re := oneOf(side.nodes)
		if len(re) > maxNodes {
			return "", fmt.Errorf("%s stands for %s, which is too much for a query: say !~ with the other side", side.ref, text.Count(len(side.nodes), "node"))
		}
		query = strings.ReplaceAll(query, side.ref, re)
	}
	return query, nil
}

// oneOf is a regular expression that matches the names. It holds no backslash
// and no quote, so that it is the same in each kind of a query's strings.
func oneOf(names []string) string {
	var b strings.Builder
	b.WriteString("(?:")
	for i, n := range names {
		if i > 0 {
			b.WriteByte('|')
		}
		for _, r := range n {
			switch {
			case strings.ContainsRune(".+*?()|{}$]", r):
				b.WriteString("[" + string(r) + "]")
			case strings.ContainsRune("^[\"'`\\", r) || r == utf8.RuneError:
				b.WriteByte('.') // nothing else stands for it everywhere
			default:
				b.WriteRune(r)
			}
		}
	}
	b.WriteByte(')')
	return b.String()
}
