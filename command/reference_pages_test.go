package command

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/metrics"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/guard"
	"github.com/aim-control/aimlock/orchestrator/spec"
	"github.com/aim-control/aimlock/policies"
)

// complete reports what stands in one of two sets only.
func (w *refWriter) complete(what string, code, described []string) {
	w.t.Helper()
	for _, c := range code {
		if !slices.Contains(described, c) {
			w.t.Errorf("%s %q is in the code and is not described", what, c)
		}
	}
	for _, d := range described {
		if !slices.Contains(code, d) {
			w.t.Errorf("%s %q is described and is not in the code", what, d)
		}
	}
}

func (w *refWriter) facts() {
	w.printf("A fact is `object.name` in an expression of a [policy](../policies.md). It is **null** where it does not apply, and **unknown**\n" +
		"where it should be there and could not be had: [evidence](../evidence.md) says when, and what each can prove. Ages are\n" +
		"seconds that an observer saw pass on its own clock. The facts of an evidence plugin `p` are `plugin.p.NAME`; the plugin declares\n" +
		"them.\n")
	schema := policies.Schema()
	for _, object := range slices.Sorted(maps.Keys(schema)) {
		w.printf("\n## %s\n\n", object)
		w.table("fact", "type", "what", "grows by itself")
		for _, name := range slices.Sorted(maps.Keys(schema[object])) {
			def := schema[object][name]
			what, age := def.Doc, ""
			if len(def.Values) > 0 {
				what += ": " + strings.Join(def.Values, ", ")
			}
			if def.Age {
				age = "yes"
			}
			w.row(code(object+"."+name), typeName(def.Type), what, age)
		}
	}
}

// typeName is a type as people write it.
func typeName(t cty.Type) string {
	switch {
	case t == cty.DynamicPseudoType:
		return "any"
	case t.IsListType():
		return "list of " + typeName(t.ElementType())
	case t.IsSetType():
		return "set of " + typeName(t.ElementType())
	case t.IsMapType():
		return "map of " + typeName(t.ElementType())
	case t.IsObjectType():
		return "object of " + strings.Join(slices.Sorted(maps.Keys(t.AttributeTypes())), ", ")
	}
	return t.FriendlyName()
}

func (w *refWriter) functions() {
	w.printf("All are pure: they read no file, no environment, no network, no clock and no chance. [Policies](../policies.md#functions) has an\n" +
		"example of each that policies have. In policies a function that is given null answers null, but for `coalesce`, `try` and `can`;\n" +
		"one that is given an unknown value answers unknown.\n\n")
	inPolicy, inTemplate := policies.Functions(), spec.Functions()
	all := maps.Clone(inTemplate)
	maps.Copy(all, inPolicy)
	w.table("function", "gives", "in", "what")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := all[name]
		where := "policies, templates"
		if _, ok := inTemplate[name]; !ok {
			where = "policies"
		} else if _, ok := inPolicy[name]; !ok {
			where = "templates"
		}
		w.row(code(signature(name, f)), gives(f), where, describe(name, f))
	}
}

func signature(name string, f function.Function) string {
	var params []string
	for _, p := range f.Params() {
		params = append(params, p.Name)
	}
	if v := f.VarParam(); v != nil {
		params = append(params, v.Name+"…")
	}
	return name + "(" + strings.Join(params, ", ") + ")"
}

// gives is the type of a function's result where it does not hang on its arguments.
func gives(f function.Function) string {
	var args []cty.Type
	for _, p := range f.Params() {
		args = append(args, p.Type)
	}
	if v := f.VarParam(); v != nil {
		args = append(args, v.Type)
	}
	t, err := f.ReturnType(args)
	if err != nil || t.IsObjectType() {
		return "any"
	}
	return typeName(t)
}

// describe is a function in a sentence: its own, or for one of cty's without any,
// what stands here.
func describe(name string, f function.Function) string {
	if d := f.Description(); d != "" {
		return strings.ReplaceAll(d, `\"`, `"`)
	}
	return map[string]string{
		"startswith":  "The string begins with the prefix.",
		"endswith":    "The string ends in the suffix.",
		"strcontains": "The string holds the substring.",
		"try":         "The first expression that can be evaluated.",
		"can":         "Whether the expression can be evaluated.",
		"indent":      "Adds so many spaces, 256 at most, to the beginning of all but the first line of the given multi-line string.",
	}[name]
}

func (w *refWriter) metrics() {
	w.printf("Three processes serve `/metrics` where `-listen ADDRESS` says so: see [metrics](../metrics.md). Each has those of its process and\n" +
		"of Go beside these.\n")
	rollout := metrics.NewRollout()
	rollout.Tell(&orchestrator.Header{Name: "r", Stages: make([]orchestrator.HeaderStage, 1)})
	agentOf := metrics.NewAgent(func() agent.Standing {
		return agent.Standing{Reports: map[string]*records.Actual{"c": {Time: time.Unix(1, 0)}}, Answers: map[string]uint64{records.ResultApplied: 1}}
	})
	for _, part := range []struct {
		title string
		from  *prometheus.Registry
	}{
		{"The locksmith", guard.AllMetrics()},
		{"The agent", agentOf.Registry},
		{"A rollout", rollout.Registry},
	} {
		w.printf("\n## %s\n\n", part.title)
		w.table("metric", "type", "labels", "what")
		for _, m := range w.gathered(part.from) {
			w.row(code(m.name), m.kind, m.labels, m.help)
		}
	}
}

type refMetric struct{ name, kind, labels, help string }

var descPattern = regexp.MustCompile(`^Desc\{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"), unit: "", constLabels: \{\}, variableLabels: \{([^}]*)\}\}$`)

// gathered are aimlock's own metrics of a registry: all that it describes, with
// the types of those that it has now. The others are counters by labels that no event
// has made yet, which their names say and promlint holds.
func (w *refWriter) gathered(from *prometheus.Registry) []refMetric {
	families, err := from.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	kinds := map[string]string{}
	for _, f := range families {
		kinds[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	ch := make(chan *prometheus.Desc, 1000)
	from.Describe(ch)
	close(ch)
	var out []refMetric
	for d := range ch {
		m := descPattern.FindStringSubmatch(d.String())
		if m == nil {
			if strings.Contains(d.String(), `"aimlock_`) {
				w.t.Errorf("not understood: %s", d)
			}
			continue
		}
		name, _ := strconv.Unquote(m[1])
		help, _ := strconv.Unquote(m[2])
		if !strings.HasPrefix(name, "aimlock_") {
			continue
		}
		kind := kinds[name]
		if kind == "" && strings.HasSuffix(name, "_total") {
			kind = "counter"
		}
		if kind == "" {
			w.t.Errorf("%s has no type", name)
		}
		var labels []string
		for l := range strings.SplitSeq(m[3], ",") {
			labels = append(labels, code(l))
		}
		out = append(out, refMetric{name, kind, strings.Join(labels, ", "), help})
	}
	slices.SortFunc(out, func(a, b refMetric) int { return strings.Compare(a.name, b.name) })
	return out
}

// keyRecords says what stands at each key, by the method of keys.Prefix that makes
// it: the name of a record of json.md, or words.
func keyRecords() map[string]string {
	return map[string]string{
		"Epoch":           "the number, in decimal",
		"Lock":            "records.Holder",
		"Progress":        "records.Progress",
		"Fence":           "records.Fence",
		"Writes":          "a random text",
		"Request":         "records.Request",
		"Approval":        "records.Approval",
		"Break":           "records.Break",
		"Budget":          "records.Budget",
		"Observed":        "records.Observed",
		"PolicyActive":    "records.PolicyActive",
		"PolicySuspended": "records.PolicySuspended",
		"PolicyVersion":   "records.PolicyVersion",
		"Silence":         "records.Silence",
		"ConfigChunk":     "a piece of the content, as it is",
		"Desired":         "records.Desired",
		"Actual":          "records.Actual",
		"Rollout":         "orchestrator.Header",
		"RolloutPart":     "of the part `plan`: chunk 0 orchestrator.planHead, the others orchestrator.planPart; of the part `events`: records.RolloutEvents",
		"RolloutCommand":  "runner.commandRecord",
		"Queued":          "runner.queuedRecord",
	}
}

func (w *refWriter) keys() {
	w.printf("All stand under one prefix, `%s` unless `-prefix` or `AIMLOCK_PREFIX` say otherwise. Names are path-escaped: a slash in one is\n"+
		"`%%2F`. A [lock](../cli.md#names-of-locks) whose name has a slash is a whole key. [JSON](json.md#records) has the fields of the records.\n\n", keys.DefaultPrefix)
	docs := methodDocs(w, "../internal/keys/keys.go", "Prefix")
	described := keyRecords()
	var values, folders [][]string
	var names []string
	p := keys.Prefix("")
	for i := range reflect.TypeOf(p).NumMethod() {
		m := reflect.TypeOf(p).Method(i)
		if m.Type.NumOut() != 1 || m.Type.Out(0).Kind() != reflect.String {
			continue
		}
		pattern := keyPattern(w, p, m, docs[m.Name].params)
		row := []string{code(pattern), docs[m.Name].doc}
		if strings.HasSuffix(pattern, "/") {
			folders = append(folders, row)
			continue
		}
		names = append(names, m.Name)
		values = append(values, []string{row[0], recordLink(described[m.Name]), row[1]})
	}
	w.complete("key", names, slices.Collect(maps.Keys(described)))
	byKey := func(a, b []string) int { return strings.Compare(a[0], b[0]) }
	slices.SortFunc(values, byKey)
	slices.SortFunc(folders, byKey)
	w.printf("## Keys with a value\n\n")
	w.table("key", "value", "what")
	for _, r := range values {
		w.row(r...)
	}
	w.printf("\n## Folders\n\nA blocking query of a folder follows all that stands in it.\n\n")
	w.table("folder", "what")
	for _, r := range folders {
		w.row(r...)
	}
}

var recordName = regexp.MustCompile(`\b(records|orchestrator|runner)\.([A-Za-z]+)\b`)

// recordLink makes links of the records that a text names.
func recordLink(s string) string {
	return recordName.ReplaceAllStringFunc(s, func(n string) string {
		return fmt.Sprintf("[%s](json.md#%s)", n, anchor(n))
	})
}

// anchor is that of a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

// keyPattern calls a method with its parameters' names, and returns the key with
// these in it.
func keyPattern(w *refWriter, p keys.Prefix, m reflect.Method, params []string) string {
	args := []reflect.Value{reflect.ValueOf(p)}
	marks := map[string]string{}
	for i := 1; i < m.Type.NumIn(); i++ {
		v := reflect.New(m.Type.In(i)).Elem()
		switch name := params[i-1]; v.Kind() {
		case reflect.String:
			v.SetString("q" + name + "q")
			marks["q"+name+"q"] = "<" + name + ">"
		case reflect.Int, reflect.Uint64:
			n := 90 + i
			v.Set(reflect.ValueOf(n).Convert(v.Type()))
			marks[fmt.Sprint(n)] = "<" + name + ">"
		default:
			w.t.Fatalf("%s has a parameter of type %s", m.Name, v.Type())
		}
		args = append(args, v)
	}
	out := m.Func.Call(args)[0].String()
	if m.Name == "Actual" { // the bucket hangs on the node's name
		out = strings.Replace(out, fmt.Sprintf("/%02d/", keys.Bucket("qnodeq")), "/<bucket>/", 1)
	}
	for mark, name := range marks {
		out = regexp.MustCompile("0*"+mark).ReplaceAllLiteralString(out, name)
	}
	return out
}

func capital(s string) string {
	n := min(1, len(s))
	return strings.ToUpper(s[:n]) + s[n:]
}

type methodDoc struct {
	doc    string
	params []string
}

// methodDocs are the comments of a type's methods in one file, and the names of
// their parameters.
func methodDocs(w *refWriter, path, typ string) map[string]methodDoc {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]methodDoc{}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv == nil || fmt.Sprint(fn.Recv.List[0].Type) != typ {
			continue
		}
		m := methodDoc{doc: strings.TrimSpace(strings.TrimPrefix(oneLine(fn.Doc.Text()), fn.Name.Name+" "))}
		m.doc = capital(strings.TrimPrefix(m.doc, "is "))
		for _, p := range fn.Type.Params.List {
			for _, n := range p.Names {
				m.params = append(m.params, n.Name)
			}
		}
		out[fn.Name.Name] = m
	}
	return out
}

// variable is one of the environment.
type variable struct{ name, who, what string }

// variables are all that the code names.
func variables() []variable {
	const (
		settings = "settings"
		consul   = "Consul"
		nomad    = "Nomad"
		child    = "a command under `lock exec`"
		node     = "commands on a node"
		gate     = "an `exec` gate"
		step     = "an `exec` step of a policy"
		hook     = "a hook's command"
		otel     = "OpenTelemetry, for [traces](../traces.md)"
		device   = "a Nomad task with a device"
		inner    = "aimlock itself"
	)
	return []variable{
		{"AIMLOCK_CONFIG", settings, "The config file; flag `-config`."},
		{"AIMLOCK_PREFIX", settings, "Where all keys stand in Consul's KV; flag `-prefix`."},
		{"AIMLOCK_LOG", settings, "The level of the log; flag `-log-level`."},
		{"AIMLOCK_JOURNAL", settings, "The folder of the journal; flag `-journal`."},
		{"AIMLOCK_PLUGIN_DIR", settings, "The folder of plugins; flag `-plugin-dir`."},
		{"AIMLOCK_NODE", settings, "The node's name; flag `-node` of the agent."},
		{"AIMLOCK_STATE_DIR", settings, "The folder of the agent's state; flag `-state-dir` of the agent."},
		{api.HTTPAddrEnvName, consul, "Address of the Consul agent: `host:port`, `https://…` or `unix://…`; flag `-http-addr`."},
		{api.HTTPTokenEnvName, consul, "The ACL token."},
		{api.HTTPTokenFileEnvName, consul, "A file with the ACL token; flag `-token-file`."},
		{api.HTTPAuthEnvName, consul, "`user:password` of HTTP basic authentication."},
		{api.HTTPSSLEnvName, consul, "`true`: by HTTPS."},
		{api.HTTPSSLVerifyEnvName, consul, "`false`: the server's certificate is not verified, which is warned of."},
		{api.HTTPCAFile, consul, "A file with the CA's certificate."},
		{api.HTTPCAPath, consul, "A folder of CA certificates."},
		{api.HTTPClientCert, consul, "A file with the client's certificate."},
		{api.HTTPClientKey, consul, "A file with its key."},
		{api.HTTPTLSServerName, consul, "The name that the server's certificate must have."},
		{api.HTTPNamespaceEnvName, consul, "Consul Enterprise's namespace."},
		{api.HTTPPartitionEnvName, consul, "Consul Enterprise's partition."},
		{"NOMAD_ADDR", nomad, "Address of Nomad, a URL. Without it, and without a `nomad` block, Nomad is not asked for evidence."},
		{"NOMAD_TOKEN", nomad, "The ACL token."},
		{"NOMAD_REGION", nomad, "The region; in a task also that of the holder's allocation."},
		{"NOMAD_NAMESPACE", nomad, "The namespace; in a task also that of the holder's allocation."},
		{"NOMAD_HTTP_AUTH", nomad, "`user:password` of HTTP basic authentication."},
		{"NOMAD_CACERT", nomad, "A file with the CA's certificate."},
		{"NOMAD_CAPATH", nomad, "A folder of CA certificates."},
		{"NOMAD_CLIENT_CERT", nomad, "A file with the client's certificate."},
		{"NOMAD_CLIENT_KEY", nomad, "A file with its key."},
		{"NOMAD_TLS_SERVER_NAME", nomad, "The name that the server's certificate must have."},
		{"NOMAD_SKIP_VERIFY", nomad, "`true`: the server's certificate is not verified."},
		{"NOMAD_ALLOC_ID", nomad, "In a task, the allocation: a holder's record names it."},
		{"NOMAD_JOB_ID", nomad, "In a task, its job: a holder's record names it, for people."},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", otel, "Where traces go, such as `http://127.0.0.1:4318`. This one, the next one or `OTEL_TRACES_EXPORTER=otlp` turns them on."},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", otel, "The same for traces alone."},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", otel, "`http/protobuf`, which is all that is spoken."},
		{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", otel, "The same for traces alone."},
		{"OTEL_TRACES_EXPORTER", otel, "`otlp` turns them on, `none` off."},
		{"OTEL_SDK_DISABLED", otel, "`true`: no traces."},
		{"OTEL_RESOURCE_ATTRIBUTES", otel, "What stands in each trace, such as `deployment.environment=prod`."},
		{"NO_COLOR", "the terminal", "Not empty: no colours."},
		{"TERM", "the terminal", "`dumb`: no colours, and no full-screen view."},
		{"LC_ALL", "the terminal", "Whether it shows UTF-8; before `LC_CTYPE`, and that before `LANG`."},
		{"LC_CTYPE", "the terminal", "As `LC_ALL`."},
		{"LANG", "the terminal", "As `LC_ALL`."},
		{"COMP_LINE", "the shell", "Set by a shell that completes: aimlock answers with proposals."},
		{"AIMLOCK_LOCK", child, "The lock's name. Also given to a hook's command and to a step."},
		{"AIMLOCK_TOKEN", child, "The fencing token. Also given to a step (the broken hold's), and to commands on a node (the order's)."},
		{"AIMLOCK_EPOCH", child, "The epoch, which stands before the token. Also given to commands on a node."},
		{"AIMLOCK_SLOT", child, "With `-n`: the number of the slot."},
		{"AIMLOCK_PROGRESS_FD", child, "With `-progress-fd`: the file descriptor on which progress is read."},
		{"AIMLOCK_PROGRESS_FILE", child, "With `-progress-file`: the file in which progress is read."},
		{"AIMLOCK_NONCE", child, "Random for each hold, and kept by all that the command starts: by it the processes of a hold are found on its host."},
		{"AIMLOCK_CONFIG_NAME", node, "The config's name."},
		{"AIMLOCK_REVISION", node, "Its revision."},
		{"AIMLOCK_SEQ", node, "The third part of the order, after epoch and token."},
		{"AIMLOCK_DESTINATION", node, "The file's path."},
		{"AIMLOCK_STAGED", node, "For `validate`: the staged copy's path."},
		{"AIMLOCK_GATE", gate, "The gate's name."},
		{"AIMLOCK_ROLLOUT", gate, "The rollout's id."},
		{"AIMLOCK_STAGE", gate, "The stage's name."},
		{"AIMLOCK_UPDATED_NODES", gate, "A file with the names of the nodes that are done, one a line."},
		{"AIMLOCK_REST_NODES", gate, "A file with the names of the nodes still to come, one a line."},
		{"AIMLOCK_RULE", step, "The rule by which the lock is HOT."},
		{"AIMLOCK_SESSION", step, "The session that is broken."},
		{"AIMLOCK_EVENT", hook, "The kind of the event."},
		{"AIMLOCK_EVENT_ID", hook, "Its id: an event that is told twice has the same."},
		{"AIMLOCK_STATE", hook, "The lock's state."},
		{"AIMLOCK_CONFIG_", device, "The beginning of what a task is told of a config's revision and token: see [Nomad devices](../nomad-device.md)."},
		{"AIMLOCK_PLUGIN", inner, "The cookie of the plugins' handshake, given to a plugin: one that is started by hand says so and ends."},
		{"NOMAD_PLUGIN_MAGIC_COOKIE", inner, "The cookie of Nomad's handshake, given by a Nomad client to `nomad-device-plugin`."},
	}
}

func (w *refWriter) environment() {
	w.printf("A flag stands before a variable, and that before the [config file](hcl.md#aimlockhcl). Programs that aimlock starts for others (hooks,\ngates, steps, commands on a node, plugins) are given `PATH`, `HOME`, `LANG`, `LC_ALL`, `TZ` and what stands here, and never Consul's token.\n")
	var names []string
	heading := ""
	for _, v := range variables() {
		names = append(names, v.name)
		if v.who != heading {
			heading = v.who
			title := "Read: " + v.who
			if strings.HasPrefix(v.who, "a") || v.who == "commands on a node" {
				title = "Given to " + v.who
			}
			if v.who == "aimlock itself" {
				title = "Between programs"
			}
			w.printf("\n## %s\n\n", title)
			w.table("variable", "what")
		}
		w.row(code(v.name), v.what)
	}
	for _, name := range codeVariables(w) {
		if !slices.Contains(names, name) {
			w.t.Errorf("variable %q is in the code and is not described", name)
		}
	}
	// What a library reads stands in no literal of ours.
	ours := codeVariables(w)
	for _, name := range names {
		if strings.HasPrefix(name, "AIMLOCK_") && !slices.Contains(ours, name) {
			w.t.Errorf("variable %q is described and is not in the code", name)
		}
	}
}

// codeVariables are the names of variables in the string literals of the code.
func codeVariables(w *refWriter) []string {
	found := map[string]bool{}
	name := regexp.MustCompile(`\b(?:AIMLOCK|CONSUL|NOMAD|OTEL)_[A-Z_]+`)
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (slices.Contains([]string{"e2e", "testdata", "plugintest", "nomadtest", "examples", "sim"}, e.Name()) || strings.HasPrefix(e.Name(), ".") && e.Name() != ".."):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				for _, m := range name.FindAllString(lit.Value, -1) {
					found[m] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(found))
}
