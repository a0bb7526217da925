package gates_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

func prometheusGate(url, threshold string) gates.Question {
	return gates.Question{Gate: orchestrator.Gate{Kind: orchestrator.GateKindPrometheus, Prometheus: &orchestrator.GatePrometheus{
		Address: url, Query: "up", Threshold: threshold, MaxAge: time.Minute,
	}}}
}

// vector is the answer of a Prometheus with samples, each as "labels value" and
// as old as age.
func vector(age time.Duration, samples ...string) string {
	var list []string
	at := float64(time.Now().Add(-age).UnixMilli()) / 1000
	for _, s := range samples {
		labels, value, _ := strings.Cut(s, " ")
		list = append(list, fmt.Sprintf(`{"metric":{%s},"value":[%f,%q]}`, labels, at, value))
	}
	return `{"status":"success","data":{"resultType":"vector","result":[` + strings.Join(list, ",") + `]}}`
}

func TestPrometheusAnswers(t *testing.T) {
	t.Parallel()
	one := vector(0, `"node":"a" 0.25`)
	two := vector(0, `"node":"a" 0.25`, `"node":"b" 0.75`)
	for _, c := range []struct {
		name, body, threshold, reduce string
		answer, why                   string
	}{
		{"holds", one, "value < 0.5", "", "pass", "value < 0.5: the value is 0.25"},
		{"does not hold", one, "value > 0.5", "", "fail", "value > 0.5 does not hold: the value is 0.25"},
		{"scalar", `{"status":"success","data":{"resultType":"scalar","result":[9999999999,"3"]}}`, "value == 3", "", "pass", ""},
		{"no sample", vector(0), "value < 0.5", "", "unknown", "no sample that is younger than 1m0s"},
		{"too old", vector(time.Hour, `"node":"a" 0.25`), "value < 0.5", "", "unknown", "old, and max_age is 1m0s"},
		{"NaN", vector(0, `"node":"a" NaN`), "value < 0.5", "", "unknown", "NaN"},
		{"NaN does not pass otherwise", vector(0, `"node":"a" NaN`), "value >= 0.5 || value < 0.5", "", "unknown", "NaN"},
		{"infinite", vector(0, `"node":"a" +Inf`), "value < 0.5", "", "fail", "+Inf"},
		{"all must hold", two, "value < 0.5", "", "fail", `for {node="b"}`},
		{"all hold", two, "value < 1", "", "pass", "holds for all of 2 samples"},
		{"one is unknown", vector(0, `"node":"a" 0.25`, `"node":"b" NaN`), "value < 0.5", "", "unknown", `{node="b"}`},
		{"fail before unknown", vector(0, `"node":"a" NaN`, `"node":"b" 1`), "value < 0.5", "", "fail", `{node="b"}`},
		{"labels", two, `value < 0.5 || labels.node == "b"`, "", "pass", ""},
		{"no such label", one, `value > 0.5 || labels.zone == "b"`, "", "unknown", "Unsupported attribute"},
		{"min", two, "value == 0.25", "min", "pass", ""},
		{"max", two, "value == 0.75", "max", "pass", ""},
		{"sum", two, "value == 1", "sum", "pass", ""},
		{"avg", two, "value == 0.5", "avg", "pass", ""},
		{"NaN in a sum", vector(0, `"node":"a" NaN`, `"node":"b" 1`), "value > 0", "max", "unknown", "NaN"},
		{"matrix", `{"status":"success","data":{"resultType":"matrix","result":[]}}`, "value < 1", "", "unknown", "values at one moment are needed"},
		{"string", `{"status":"success","data":{"resultType":"string","result":[1,"x"]}}`, "value < 1", "", "error", "not that of a Prometheus"},
		{"histogram", `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"histogram":[1,{"count":"1","sum":"1","buckets":[]}]}]}}`, "value < 1", "", "unknown", "histogram"},
		{"warning", strings.Replace(one, `{`, `{"warnings":["a store is away\u001b[31m"],`, 1), "value < 1", "", "unknown", "warns: a store is away"},
		{"error", `{"status":"error","errorType":"bad_data","error":"parse error"}`, "value < 1", "", "error", "parse error"},
		{"not JSON", `<html>`, "value < 1", "", "error", "not that of a Prometheus"},
		{"other JSON", `[1]`, "value < 1", "", "error", ""},
		{"empty object", `{}`, "value < 1", "", "error", "no result"},
		{"no data", `{"status":"success"}`, "value < 1", "", "error", "no result"},
		{"no scalar", `{"status":"success","data":{"resultType":"scalar","result":null}}`, "value < 1", "", "error", "not that of a Prometheus"},
		{"no vector", `{"status":"success","data":{"resultType":"vector","result":null}}`, "value < 1", "", "unknown", "no sample"},
		{"null sample", `{"status":"success","data":{"resultType":"vector","result":[null]}}`, "value < 1", "", "error", "null"},
		{"no value", `{"status":"success","data":{"resultType":"vector","result":[{"metric":{}}]}}`, "value < 1", "", "unknown", ""},
		{"huge", `{"status":"success","x":"` + strings.Repeat("x", 9<<20) + `"}`, "value < 1", "", "error", "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(c.body))
			}))
			defer s.Close()
			q := prometheusGate(s.URL, c.threshold)
			q.Gate.Prometheus.Reduce = c.reduce
			want(t, ask(t, q), c.answer, c.why)
		})
	}
}

// TestPrometheusClock: the age of a sample is told by the server's clock, however
// far that is from this machine's.
func TestPrometheusClock(t *testing.T) {
	t.Parallel()
	var off time.Duration
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
		_, _ = w.Write([]byte(vector(-off, ` 1`)))
	}))
	defer s.Close()
	for _, off = range []time.Duration{-5 * time.Hour, 0, 5 * time.Hour} {
		want(t, ask(t, prometheusGate(s.URL, "value == 1")), "pass", "")
	}
}

func TestPrometheusRequest(t *testing.T) {
	t.Parallel()
	var got *http.Request
	postless := false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if postless && r.Method == http.MethodPost {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		_ = r.ParseForm()
		got = r
		_, _ = w.Write([]byte(vector(0, ` 1`)))
	}))
	defer s.Close()
	q := prometheusGate(s.URL+"/prometheus/", "value == 1")
	q.Updated, q.Rest = []string{"n1", "n.2", `n"3\`}, []string{"m1"}
	q.Gate.Prometheus.Query = `a{node=~"${canary}"} / a{node=~"${rest}"}`
	q.Gate.Prometheus.Headers = map[string]string{"Authorization": "Bearer ${env.SECRET}"}
	for _, postless = range []bool{false, true} {
		want(t, ask(t, q), "pass", "")
		if got.URL.Path != "/prometheus/api/v1/query" || got.Header.Get("Authorization") != "Bearer hunter2" {
			t.Errorf("asked %s with %v", got.URL, got.Header)
		}
		if f := got.Form; f.Get("query") != `a{node=~"(?:n1|n[.]2|n.3.)"} / a{node=~"(?:m1)"}` || f.Get("lookback_delta") != "1m0s" || f.Get("time") != "" {
			t.Errorf("asked %v", f)
		} else if !regexp.MustCompile(`^([0-9]+m)?[0-9]+s$`).MatchString(f.Get("timeout")) {
			t.Errorf("the timeout %q is none that Prometheus can read", f.Get("timeout"))
		}
	}
	got = nil
	q.Rest = nil
	want(t, ask(t, q), "unknown", "no node is left to compare with")
	q.Updated, q.Rest = nil, []string{"m1"}
	want(t, ask(t, q), "unknown", "no node has the revision")
	q.Updated = []string{"n1"}
	for i := range 20_000 {
		q.Rest = append(q.Rest, fmt.Sprintf("node-%d", i))
	}
	want(t, ask(t, q), "unknown", "too much for a query")
	if got != nil {
		t.Error("it was asked all the same")
	}
}

// TestPrometheusTrouble: each kind of trouble is one clear why.
func TestPrometheusTrouble(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	want(t, ask(t, prometheusGate(gone.URL, "value < 1")), "error", "connection refused")
	var code int
	body := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if code == 302 {
			http.Redirect(w, r, "http://other.invalid/", code)
			return
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	defer s.Close()
	for _, c := range []struct {
		code      int
		body, why string
	}{
		{400, `{"status":"error","errorType":"bad_data","error":"1:3: parse error: unexpected \u001b[0m"}`, "parse error"},
		{422, `{"status":"error","errorType":"execution","error":"too many samples"}`, "too many samples"},
		{503, "no server", "503"},
		{404, "404 page not found", "404"},
		{401, "who are you?", "401"},
		{302, "", "another host"},
	} {
		code, body = c.code, c.body
		want(t, ask(t, prometheusGate(s.URL, "value < 1")), "error", c.why)
	}
	want(t, ask(t, prometheusGate("http://[::1", "value < 1")), "unknown", "address")
	want(t, ask(t, prometheusGate(s.URL, "value <")), "unknown", "threshold cannot be read")
}

// FuzzPrometheus: whatever a server answers, there is an answer, and pass is
// none without a sample.
func FuzzPrometheus(f *testing.F) {
	f.Add([]byte(vector(0, ` 1`)))
	f.Add([]byte(`{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}`))
	f.Add([]byte(`{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"histogram":[1,{"count":"1","sum":"1","buckets":[]}]}]}}`))
	f.Add([]byte(`{"status":"error"}`))
	var body []byte
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	f.Cleanup(s.Close)
	set := gates.New(gates.Config{LookupEnv: environ})
	f.Fuzz(func(t *testing.T, b []byte) {
		body = b
		a := set.Ask(t.Context(), prometheusGate(s.URL, "value < 5"))
		if a.Why == "" {
			t.Error("no why")
		}
		if a.Answer == orchestrator.Pass && !json.Valid(b) {
			t.Errorf("%q passes", b)
		}
	})
}

// FuzzNodes: the regular expression of nodes matches each name, in any kind of a
// query's strings.
func FuzzNodes(f *testing.F) {
	f.Add("n1", "n.2")
	f.Add(`a"b`, "c\\d")
	f.Add("[x]", "^$")
	var query string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query = r.FormValue("query")
		_, _ = w.Write([]byte(vector(0, ` 1`)))
	}))
	f.Cleanup(s.Close)
	set := gates.New(gates.Config{LookupEnv: environ})
	f.Fuzz(func(t *testing.T, a, b string) {
		if len(a)+len(b) > 1000 || strings.ContainsAny(a+b, "\n\r") || a == "" || b == "" || !utf8.ValidString(a) || !utf8.ValidString(b) {
			t.Skip()
		}
		q := prometheusGate(s.URL, "value == 1")
		q.Gate.Prometheus.Query, q.Updated = "${canary}", []string{a, b}
		if got := set.Ask(t.Context(), q); got.Answer != orchestrator.Pass {
			t.Fatalf("%+v", got)
		}
		if strings.ContainsAny(query, "\"'`\\") {
			t.Errorf("%q needs to be quoted", query)
		}
		re, err := regexp.Compile("^(?:" + query + ")$")
		if err != nil || !re.MatchString(a) || !re.MatchString(b) || re.MatchString(a+b+"x") {
			t.Errorf("%q does not match %q and %q (%v)", query, a, b, err)
		}
	})
}
