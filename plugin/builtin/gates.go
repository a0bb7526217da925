package builtin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
	"github.com/aim-control/aimlock/orchestrator/gates/condition"
	"github.com/aim-control/aimlock/plugin"
)

func gatePlugins() []plugin.Plugin {
	list := []struct {
		name, doc string
		make      func() plugin.Gate
	}{
		{orchestrator.GateKindHTTP, "Asks a web server.", func() plugin.Gate { return &httpGate{} }},
		{orchestrator.GateKindPrometheus, "Asks a Prometheus an instant query.", func() plugin.Gate { return &prometheusGate{MaxAge: 5 * time.Minute} }},
		{orchestrator.GateKindExec, "Runs a program of this machine.", func() plugin.Gate { return &execGate{} }},
		{orchestrator.GateConsulChecks, "Asks Consul for the health of a service.", func() plugin.Gate { return &consulGate{MinPassing: 100} }},
		{orchestrator.GateKindNomadDeploy, "Looks at a Nomad job's last deployment.", func() plugin.Gate { return &nomadGate{} }},
	}
	var out []plugin.Plugin
	for _, g := range list {
		p := named(g.name, g.doc)
		p.Gate = g.make
		out = append(out, p)
	}
	return out
}

// asker puts the question of a plugin to a set of gates.
type asker struct{ set *gates.Set }

func (a *asker) ask(ctx context.Context, g orchestrator.Gate, q *plugin.Question) (*plugin.Answer, error) {
	if a.set == nil {
		return nil, errors.New("it was not started")
	}
	g.Name = q.Gate
	if end, ok := ctx.Deadline(); ok {
		// The caller's bound is the only one.
		g.Timeout = max(time.Until(end), time.Millisecond)
	}
	got := a.set.Ask(ctx, gates.Question{
		Gate: g, Rollout: q.Rollout, Stage: q.Stage, Epoch: q.Epoch, Token: q.Token, Updated: q.Updated, Rest: q.Rest, Dir: q.Dir,
	})
	return &plugin.Answer{Verdict: plugin.Verdict(got.Answer), Value: got.Value, Why: got.Why, Retry: got.Error}, nil
}

type httpGate struct {
	URL     string            `config:"url,required" doc:"what is asked, such as https://example.com/health"`
	Method  string            `config:"method" doc:"GET, HEAD, POST or PUT; left out: GET"`
	Headers map[string]string `config:"headers,secret" doc:"headers of the request; \\${env.NAME} is put in when it is asked"`
	Status  []int             `config:"status" doc:"the codes that are expected; left out: 200 to 299"`
	Body    string            `config:"body" doc:"a condition over status, body and json"`
	CAFile  string            `config:"ca_file" doc:"certificates of the server's authority, as PEM"`
	asker
}

func (g *httpGate) Validate(context.Context) error {
	var problems plugin.Problems
	checkURL(&problems, "url", g.URL)
	if g.Method = strings.ToUpper(g.Method); !slices.Contains([]string{"", http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut}, g.Method) {
		problems.Add("method", "it must be GET, HEAD, POST or PUT")
	}
	for _, s := range g.Status {
		if s < 100 || s > 599 {
			problems.Add("status", "%d is no status of HTTP", s)
		}
	}
	checkCondition(&problems, "body", g.Body, condition.BodyVars())
	return problems.Err()
}

func (g *httpGate) Start(context.Context) error {
	g.set = gates.New(gates.Config{})
	return nil
}

func (g *httpGate) Ask(ctx context.Context, q *plugin.Question) (*plugin.Answer, error) {
	return g.ask(ctx, orchestrator.Gate{Kind: orchestrator.GateKindHTTP, HTTP: &orchestrator.GateHTTP{
		URL: g.URL, Method: g.Method, Headers: g.Headers, Status: g.Status, Body: g.Body, CAFile: g.CAFile,
	}}, q)
}

type prometheusGate struct {
	Address   string            `config:"address,required" doc:"URL of Prometheus"`
	Query     string            `config:"query,required" doc:"an instant query; \\${canary} and \\${rest} are the names of the nodes that have the revision, and of the others"`
	Threshold string            `config:"threshold,required" doc:"a condition over value and labels"`
	Reduce    string            `config:"reduce" doc:"min, max, avg or sum of several samples"`
	MaxAge    time.Duration     `config:"max_age" doc:"how old a sample may be"`
	Headers   map[string]string `config:"headers,secret" doc:"headers of the request"`
	CAFile    string            `config:"ca_file" doc:"certificates of the server's authority, as PEM"`
	asker
}

func (g *prometheusGate) Validate(context.Context) error {
	var problems plugin.Problems
	checkURL(&problems, "address", g.Address)
	if !slices.Contains([]string{"", "min", "max", "avg", "sum"}, g.Reduce) {
		problems.Add("reduce", "it must be min, max, avg or sum")
	}
	if g.MaxAge < time.Second || g.MaxAge > 24*time.Hour {
		problems.Add("max_age", "it must be 1s to 24h")
	}
	checkCondition(&problems, "threshold", g.Threshold, condition.ThresholdVars())
	return problems.Err()
}

func (g *prometheusGate) Start(context.Context) error {
	g.set = gates.New(gates.Config{})
	return nil
}

func (g *prometheusGate) Ask(ctx context.Context, q *plugin.Question) (*plugin.Answer, error) {
	return g.ask(ctx, orchestrator.Gate{
		Kind: orchestrator.GateKindPrometheus, Compare: strings.Contains(g.Query, "${rest}"),
		Prometheus: &orchestrator.GatePrometheus{
			Address: g.Address, Query: g.Query, Threshold: g.Threshold, Reduce: g.Reduce, MaxAge: g.MaxAge, Headers: g.Headers, CAFile: g.CAFile,
		},
	}, q)
}

type execGate struct {
	Command []string          `config:"command,required" doc:"the program and its arguments; there is no shell"`
	Env     map[string]string `config:"env,secret" doc:"variables that are added to its environment"`
	asker
}

func (g *execGate) Validate(context.Context) error {
	if len(g.Command) == 0 || g.Command[0] == "" {
		return plugin.Invalid("command", "it names no program")
	}
	return nil
}

func (g *execGate) Start(context.Context) error {
	g.set = gates.New(gates.Config{})
	return nil
}

func (g *execGate) Ask(ctx context.Context, q *plugin.Question) (*plugin.Answer, error) {
	return g.ask(ctx, orchestrator.Gate{Kind: orchestrator.GateKindExec, Exec: &orchestrator.GateExec{Command: g.Command, Env: g.Env}}, q)
}

type consulGate struct {
	Service    string `config:"service,required" doc:"the service whose instances count"`
	MinPassing int    `config:"min_passing_percent" doc:"how many of them must pass all their checks, 1 to 100"`
	Filter     string `config:"filter" doc:"an expression in Consul's own filter language"`
	Compare    bool   `config:"compare" doc:"hold the nodes that have the revision against the others"`
	consulConfig
	asker
}

func (g *consulGate) Validate(context.Context) error {
	if g.MinPassing < 1 || g.MinPassing > 100 {
		return plugin.Invalid("min_passing_percent", "it must be 1 to 100")
	}
	return nil
}

func (g *consulGate) Start(context.Context) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	g.set = gates.New(gates.Config{Consul: c})
	return nil
}

func (g *consulGate) Ask(ctx context.Context, q *plugin.Question) (*plugin.Answer, error) {
	return g.ask(ctx, orchestrator.Gate{
		Kind: orchestrator.GateConsulChecks, Service: g.Service, MinPassingPercent: g.MinPassing, Filter: g.Filter, Compare: g.Compare,
	}, q)
}

type nomadGate struct {
	Job       string `config:"job,required" doc:"the job whose last deployment is looked at"`
	Namespace string `config:"namespace" doc:"its namespace"`
	Region    string `config:"region" doc:"its region"`
	nomadConfig
	asker
}

func (g *nomadGate) Start(context.Context) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	g.set = gates.New(gates.Config{Nomad: func() (*nomadapi.Client, error) { return c, nil }})
	return nil
}

func (g *nomadGate) Ask(ctx context.Context, q *plugin.Question) (*plugin.Answer, error) {
	return g.ask(ctx, orchestrator.Gate{
		Kind:            orchestrator.GateKindNomadDeploy,
		NomadDeployment: &orchestrator.GateNomadDeployment{Job: g.Job, Namespace: g.Namespace, Region: g.Region},
	}, q)
}

func checkURL(problems *plugin.Problems, path, s string) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		problems.Add(path, "it must be a URL such as https://example.com/health")
	case u.User != nil:
		problems.Add(path, "a URL is shown, and this one holds a password: put it into headers")
	}
}

func checkCondition(problems *plugin.Problems, path, src string, vars condition.Vars) {
	if src == "" {
		return
	}
	_, diags := condition.Parse(src, path, hcl.InitialPos, vars)
	for _, d := range diags {
		problems.Add(path, "%s: %s", d.Summary, d.Detail)
	}
}

var (
	_ plugin.Gate = (*httpGate)(nil)
	_ plugin.Gate = (*prometheusGate)(nil)
	_ plugin.Gate = (*execGate)(nil)
	_ plugin.Gate = (*consulGate)(nil)
	_ plugin.Gate = (*nomadGate)(nil)
)
