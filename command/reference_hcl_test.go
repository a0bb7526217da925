package command

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"

	"github.com/aim-control/aimlock/orchestrator/spec"
	"github.com/aim-control/aimlock/plugin/host"
	"github.com/aim-control/aimlock/policies"
)

// configSchemas are the blocks of aimlock.hcl, as Schemas of the other languages.
func configSchemas() map[string]*hcl.BodySchema {
	out := map[string]*hcl.BodySchema{}
	var add func(path string, t reflect.Type)
	add = func(path string, t reflect.Type) {
		out[path], _ = gohcl.ImpliedBodySchema(reflect.New(t).Elem().Interface())
		for i := range t.NumField() {
			name, kind, _ := strings.Cut(t.Field(i).Tag.Get("hcl"), ",")
			inner := t.Field(i).Type
			for inner.Kind() == reflect.Slice || inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if kind == "block" && inner != reflect.TypeFor[PluginConfig]() {
				add(strings.TrimPrefix(path+"."+name, "."), inner)
			}
		}
	}
	add("", reflect.TypeFor[Config]())
	out["plugin"] = host.BlockSchema()
	return out
}

// free are the blocks whose body has no schema of aimlock's.
func freeBlocks() []string {
	return []string{
		"policies locals", "policies policy.break.step.plugin.config", "aimlock.hcl plugin.config",
		"rollouts rollout.config.target", "rollouts rollout.fleet.plugin", "rollouts rollout.gate.plugin",
	}
}

func (w *refWriter) hcl() {
	w.printf("Every block and argument. **bold** is required. Durations are texts such as `\"90s\"`, `\"10m\"`, `\"1h30m\"` or `\"2d\"`; conditions are\n" +
		"expressions. An unknown block or argument is an error, with the nearest name there is.\n")
	docs := hclDocs()
	var names []string
	for _, lang := range []struct {
		name, title, about string
		schemas            map[string]*hcl.BodySchema
	}{
		{"policies", "Policy files", "See [policies](../policies.md); what conditions may read is in [facts](facts.md), what they may call in [functions](functions.md).", policies.Schemas()},
		{"rollouts", "Rollouts", "See [rollouts](../rollouts.md), [gates](../gates.md) and [content](../content.md).", spec.Schemas()},
		{"fleet", "Fleet files", "Or the same in JSON: `[{\"node\": \"n1\", \"meta\": {\"zone\": \"a\"}}]`.", spec.FleetSchemas()},
		{"aimlock.hcl", "aimlock.hcl", "The file that `-config` or `AIMLOCK_CONFIG` names. Relative paths are relative to it. See [the command line](../cli.md#settings).", configSchemas()},
	} {
		w.printf("\n## %s\n\n%s\n", lang.title, lang.about)
		names = append(names, w.hclLanguage(lang.name, lang.schemas, docs)...)
	}
	w.complete("HCL", names, slices.Sorted(maps.Keys(docs)))
}

// hclLanguage writes one language, and returns what stands in it.
func (w *refWriter) hclLanguage(lang string, schemas map[string]*hcl.BodySchema, docs map[string]string) []string {
	var names []string
	seen := map[string]bool{"": true}
	var block func(path string)
	block = func(path string) {
		s := schemas[path]
		if s == nil {
			w.t.Errorf("%s: the block %s has no schema", lang, path)
			return
		}
		if path != "" {
			w.printf("\n### %s\n", strings.ReplaceAll(path, ".", " › "))
		}
		w.printf("\n")
		w.table("name", "", "what")
		id := func(name string) string { return strings.TrimSuffix(lang+" "+path, " ") + " " + name }
		for _, a := range s.Attributes {
			names = append(names, id(a.Name))
			shown := code(a.Name)
			if a.Required {
				shown = "**" + shown + "**"
			}
			w.row(shown, "argument", docs[id(a.Name)])
		}
		var inner []string
		for _, b := range s.Blocks {
			names = append(names, id(b.Type))
			head := b.Type
			for _, l := range b.LabelNames {
				head += " \"" + strings.ToUpper(l) + "\""
			}
			w.row(code(head+" { … }"), "block", docs[id(b.Type)])
			at := strings.TrimPrefix(path+"."+b.Type, ".")
			if !slices.Contains(freeBlocks(), lang+" "+at) {
				inner = append(inner, at)
			}
		}
		for _, at := range inner {
			if at == "policy.break.step" {
				for _, kind := range slices.Sorted(maps.Keys(schemas)) {
					if strings.HasPrefix(kind, at+".") {
						seen[kind] = true
						block(kind)
					}
				}
				continue
			}
			seen[at] = true
			block(at)
		}
	}
	block("")
	for path := range schemas {
		if !seen[path] {
			w.t.Errorf("%s: no block leads to %s", lang, path)
		}
	}
	return names
}

// hclDocs says what each block and argument is, by language, path and name.
func hclDocs() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(hclTexts) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		id, text, _ := strings.Cut(line, ": ")
		out[id] = text
	}
	// What is the same in each step.
	for kind := range policies.Schemas() {
		if strings.HasPrefix(kind, "policy.break.step.") {
			at := "policies " + kind + " "
			out[at+"when"] = "Condition: the step is done while it holds. An unknown one runs a step that only asks, and leaves out one that destroys."
			out[at+"wait"] = "How long to wait after the step for the lock to be let go."
			out[at+"on_error"] = "`\"abort\"` or `\"continue\"`."
		}
	}
	return out
}

const hclTexts = `
policies policy: Judges the locks that it matches. The first that matches a lock counts.
policies variable: A value that is given from outside: ` + "`-var NAME=VALUE` or `-var-file FILE`" + `.
policies locals: Named values, each an argument of this block, for use as ` + "`local.NAME`" + `.
policies test: A case for ` + "`aimlock policy test`" + `: given facts, expected verdict.
policies policy locks: List of patterns. ` + "`*` within a segment, `**` across segments; with a slash at its start: whole keys, for locks of other tools" + `.
policies policy description: For people.
policies policy file: Template of the path of the kernel lock's file that goes with the lock: see [the lock's file](../policies.md#the-locks-file).
policies policy hot: A rule by which the lock is HOT.
policies policy warm: A rule by which the lock is WARM: worth a look, never broken.
policies policy break: What may be done about a HOT lock. Without it nothing is broken.
policies policy.hot when: Condition.
policies policy.hot for: How long it must have held. At once unless set.
policies policy.hot proof: ` + "`true`" + `: the rule rests on proof and not on silence; ` + "`confirm` and `freeze`" + ` do not apply to it.
policies policy.hot reason: Template, for people.
policies policy.warm when: Condition.
policies policy.warm for: How long it must have held. At once unless set.
policies policy.warm proof: Not for a warm rule, which breaks nothing.
policies policy.warm reason: Template, for people.
policies policy.break approval: ` + "`\"auto\"`, `\"manual\"` (the default: somebody approves each break) or `\"never\"`" + `.
policies policy.break quiesce: Raises the pause that the next holder serves; 1h at most.
policies policy.break confirm: How often the verdict is looked at again before it counts.
policies policy.break step: What is done, in the order written. None: take.
policies policy.break budget: How often the policy may break by itself.
policies policy.break freeze: When nothing is broken but on proof.
policies policy.break.confirm observations: How many in a row must be HOT by the same rule. 1 unless set.
policies policy.break.confirm every: How long from one to the next. 1s unless set.
policies policy.break.budget max: At most so many breaks.
policies policy.break.budget per: In so long.
policies policy.break.freeze when: Condition. Unknown freezes too.
policies policy.break.step.exec command: List of texts, run without a shell; they may read facts.
policies policy.break.step.plugin plugin: Name of a plugin of kind breaker.
policies policy.break.step.plugin config: What the plugin is given; its names are the plugin's.
policies policy.break.step.signal signal: ` + "`\"TERM\"`" + ` unless set; KILL, INT, HUP, QUIT, USR1, USR2, CONT.
policies variable default: Its value where none is given. Without it one must be given.
policies variable type: ` + "`string`, `number`, `bool`, `list(…)`" + ` and so on, with quotes or without.
policies variable description: For people.
policies variable validation: A condition on the value.
policies variable.validation condition: Condition over ` + "`var.NAME`" + `.
policies variable.validation error_message: What is said where it does not hold.
policies test lock: The lock's name; with a slash its whole key, as on the command line.
policies test facts: Object of objects: the facts. What is left out is unknown; ` + "`unknown()` and `atleast(N)`" + ` say so for one.
policies test held: For how long the facts have stood so.
policies test expect: What must come out.
policies test.expect state: HELD, WARM, HOT or UNKNOWN.
policies test.expect rule: Name of the rule that decides.
policies test.expect reason: Its reason, with the facts in it.
policies test.expect policy: Name of the policy that judges the lock.
policies test.expect file: The path that the policy's ` + "`file`" + ` comes to.
policies test.expect frozen: Whether the break's freeze holds.
policies test.expect steps: List of the kinds of the steps that would be done.
rollouts rollout: One rollout. A file has exactly one.
rollouts rollout node_deadline: How long a node has to answer its order before it is unreachable. 2m unless set.
rollouts rollout deadline: Bounds the whole rollout; past it the ` + "`then`" + ` of ` + "`failure`" + ` happens. None unless set.
rollouts rollout conflict: What becomes of an unfinished rollout of the same config: ` + "`\"supersede\"` (the default) takes its place, `\"queue\"`" + ` waits for its end.
rollouts rollout config: A file to deliver. At least one; several are applied all or none.
rollouts rollout fleet: The nodes. Required.
rollouts rollout lock: How its locks are taken.
rollouts rollout stage: A part of the fleet, in the order written. None: one with everything.
rollouts rollout gate: A question that stages ask.
rollouts rollout failure: How much may fail, and what happens past that.
rollouts rollout retry: Failed nodes are given their order again.
rollouts rollout window: When nodes may be put at risk.
rollouts rollout.config source: The content's file, relative to the spec's file. At most 64 MiB.
rollouts rollout.config destination: Absolute path on the node.
rollouts rollout.config mode: Permission in octal: ` + "`\"0644\"` unless set, `\"0600\"`" + ` with secrets.
rollouts rollout.config owner: User that the file shall belong to.
rollouts rollout.config group: Its group.
rollouts rollout.config validate: Command, a list, run on the staged copy before it is put in place. ` + "`$${staged}` and `$${destination}`" + ` are the paths.
rollouts rollout.config reload: Command run after the file was put in place.
rollouts rollout.config healthy: Command that says whether it is well after that; if not, the last good file is put back.
rollouts rollout.config timeout: Bounds each of the three commands. 30s unless set.
rollouts rollout.config template: ` + "`true`" + `: the source is rendered for each node.
rollouts rollout.config drift: About a file that somebody else changed: ` + "`\"leave\"` (the default) reports it, `\"restore\"`" + ` puts it back.
rollouts rollout.config secret: A value that only the nodes read.
rollouts rollout.config target: The agents' plugin that writes the config, and what it is given.
rollouts rollout.config.secret consul_key: Consul key that the node reads it from. This or ` + "`env`" + `.
rollouts rollout.config.secret env: Variable of the agent's environment.
rollouts rollout.config.secret version: Raise it to deliver a new value.
rollouts rollout.fleet spread: Metadata key over whose values each stage takes its nodes evenly.
rollouts rollout.fleet consul: Nodes from Consul's catalog.
rollouts rollout.fleet file: Nodes from a file.
rollouts rollout.fleet nomad: Nodes from Nomad.
rollouts rollout.fleet plugin: Nodes from a plugin of kind fleet; its arguments are the plugin's.
rollouts rollout.fleet.consul service: The machines that offer this service.
rollouts rollout.fleet.consul nodes: ` + "`true`" + `: all Consul nodes. This or ` + "`service`" + `.
rollouts rollout.fleet.consul filter: Expression of Consul's filter language.
rollouts rollout.fleet.nomad region: The region; that of the environment unless set.
rollouts rollout.fleet.nomad node_pool: Clients of this node pool only.
rollouts rollout.fleet.nomad node_class: Of this class only.
rollouts rollout.fleet.nomad datacenter: Of this datacenter only.
rollouts rollout.fleet.nomad meta: Object: with this metadata only.
rollouts rollout.fleet.nomad filter: Expression of Nomad's filter language.
rollouts rollout.fleet.file path: Fleet file in JSON or HCL, relative to the spec's file.
rollouts rollout.lock ttl: TTL of the session, 10s to 24h. 15s unless set.
rollouts rollout.lock wait: How long to wait for the locks. 10m unless set.
rollouts rollout.stage nodes: The stage takes so many more nodes.
rollouts rollout.stage percent: So much of the whole fleet is done when the stage ends, rounded up.
rollouts rollout.stage select: Only nodes that match: an expression over ` + "`node` and `meta`" + `.
rollouts rollout.stage order: These nodes first; alone, exactly these.
rollouts rollout.stage max_parallel: At most so many in flight at a time. All unless set.
rollouts rollout.stage bake: How long to wait after its last node. It runs on while the rollout is paused or nobody drives it.
rollouts rollout.stage gate: List of names of gates; all must pass.
rollouts rollout.stage promote: ` + "`\"manual\"`: waits at its end for `aimlock rollout promote`" + `.
rollouts rollout.stage failure: A budget of this stage's own.
rollouts rollout.stage.failure max_failed: More failed nodes of this stage than this act.
rollouts rollout.stage.failure max_unreachable_percent: More unreachable nodes, of this stage, than this act.
rollouts rollout.stage.failure then: ` + "`\"pause\"`, `\"rollback\"` or `\"abort\"`" + `; the rollout's unless set.
rollouts rollout.failure max_failed: So many failed nodes are tolerated over all stages. 0 unless set.
rollouts rollout.failure max_unreachable_percent: So much of the fleet may be unreachable. 100 unless set.
rollouts rollout.failure then: What happens past that: ` + "`\"pause\"` (the default), `\"rollback\"` or `\"abort\"`" + `.
rollouts rollout.retry attempts: How often in all, the first one included.
rollouts rollout.retry delay: Before the second; each further one waits twice as long. 10s unless set.
rollouts rollout.retry max_delay: The longest of these waits. 5m unless set.
rollouts rollout.window schedule: When it opens: five fields, as in cron.
rollouts rollout.window duration: For how long; 1m to 7 days.
rollouts rollout.window timezone: Whose clock is meant. UTC unless set.
rollouts rollout.gate interval: From one answer to the next question. 10s unless set.
rollouts rollout.gate timeout: Bounds one question. 30s unless set.
rollouts rollout.gate success_limit: Passes that are needed. 1 unless set.
rollouts rollout.gate failure_limit: Fails that are tolerated. 0 unless set.
rollouts rollout.gate unknown_limit: Unknown answers that are tolerated. 0 unless set.
rollouts rollout.gate consecutive_error_limit: Questions in a row that could not be asked and are tolerated. 4 unless set.
rollouts rollout.gate during: ` + "`\"after\"` (the default): asked when the bake is over; `\"bake\"`" + `: all through it.
rollouts rollout.gate consul_checks: Asks Consul's health checks. A gate has one of these blocks.
rollouts rollout.gate http: Asks a web server.
rollouts rollout.gate prometheus: Asks Prometheus.
rollouts rollout.gate exec: Runs a program.
rollouts rollout.gate nomad_deployment: Asks for a job's last deployment.
rollouts rollout.gate plugin: Asks a plugin of kind gate; its arguments are the plugin's.
rollouts rollout.gate.consul_checks service: The service whose checks count.
rollouts rollout.gate.consul_checks min_passing_percent: At least so many instances pass, 1 to 100. 100 unless set.
rollouts rollout.gate.consul_checks filter: Expression of Consul's filter language.
rollouts rollout.gate.consul_checks compare: ` + "`true`" + `: a fail counts only where the nodes still to come are better off.
rollouts rollout.gate.http url: What is asked.
rollouts rollout.gate.http method: GET, HEAD, POST or PUT. GET unless set.
rollouts rollout.gate.http headers: Object; ` + "`${env.NAME}`" + ` stands for a variable of the orchestrator.
rollouts rollout.gate.http status: List of good statuses. 200 to 299 unless set.
rollouts rollout.gate.http body: Condition over ` + "`status`, `body` and `json`" + `.
rollouts rollout.gate.http ca_file: File with the CA's certificate.
rollouts rollout.gate.prometheus address: Prometheus's URL.
rollouts rollout.gate.prometheus query: Instant query; ` + "`${canary}` and `${rest}`" + ` match the nodes that have the revision and that have not.
rollouts rollout.gate.prometheus threshold: Condition over ` + "`value` and `labels`" + `.
rollouts rollout.gate.prometheus reduce: Makes one of several samples: ` + "`\"min\"`, `\"max\"`, `\"avg\"` or `\"sum\"`" + `. All must hold unless set.
rollouts rollout.gate.prometheus max_age: Older samples are unknown. 5m unless set.
rollouts rollout.gate.prometheus headers: As for http.
rollouts rollout.gate.prometheus ca_file: File with the CA's certificate.
rollouts rollout.gate.exec command: List: program and arguments. Exit 0 is pass, 1 is fail, all else unknown.
rollouts rollout.gate.exec env: Object of variables; ` + "`${env.NAME}`" + ` as for http.
rollouts rollout.gate.nomad_deployment job: The job.
rollouts rollout.gate.nomad_deployment namespace: Its namespace.
rollouts rollout.gate.nomad_deployment region: Its region.
rollouts rollout.gate.nomad_deployment wait: How long a running deployment is waited for.
fleet node: One node, under the name that its agent runs under.
fleet node meta: Object of texts, for ` + "`spread`, `select`" + ` and templates.
aimlock.hcl prefix: Where all keys stand in Consul's KV; ` + "`aimlock/`" + ` unless set.
aimlock.hcl policies: List of files and folders of policies.
aimlock.hcl journal: Folder of the locksmith's journal.
aimlock.hcl log_level: trace, debug, info, warn, error or off.
aimlock.hcl log_json: ` + "`true`" + `: one JSON object a line.
aimlock.hcl plugin_dir: Folder in which plugins are looked for.
aimlock.hcl consul: Where Consul is.
aimlock.hcl nomad: Where Nomad is.
aimlock.hcl hook: Who is told of what becomes of locks. Any number.
aimlock.hcl plugin: How a plugin is started. Any number.
aimlock.hcl consul address: As ` + "`CONSUL_HTTP_ADDR`" + `.
aimlock.hcl consul token_file: File with the ACL token.
aimlock.hcl consul ca_cert: File with the CA's certificate, PEM.
aimlock.hcl consul client_cert: File with the client's certificate, PEM.
aimlock.hcl consul client_key: File with its key, PEM.
aimlock.hcl consul tls_server_name: The name that the server's certificate must have.
aimlock.hcl nomad address: As ` + "`NOMAD_ADDR`" + `, a URL.
aimlock.hcl nomad region: The region.
aimlock.hcl nomad namespace: The namespace.
aimlock.hcl nomad token_file: File with the ACL token.
aimlock.hcl nomad ca_cert: File with the CA's certificate, PEM.
aimlock.hcl nomad client_cert: File with the client's certificate, PEM.
aimlock.hcl nomad client_key: File with its key, PEM.
aimlock.hcl nomad tls_server_name: The name that the server's certificate must have.
aimlock.hcl hook on: List of events: see [hooks](../cli.md#hooks).
aimlock.hcl hook url: Where a POST goes. This or ` + "`command`" + `.
aimlock.hcl hook command: List: a program that reads the event on stdin.
aimlock.hcl hook headers: Object of headers.
aimlock.hcl hook header_env: Object: headers, and the variables that their values are in.
aimlock.hcl hook secret_env: Variable with the secret that the body is signed with.
aimlock.hcl hook secret_file: File with it.
aimlock.hcl hook timeout: Bounds one delivery. 10s unless set.
aimlock.hcl hook unknown_after: How long a lock must have been UNKNOWN to be told of. 10m unless set.
aimlock.hcl plugin path: The plugin's file, whose checksum is pinned. Unless set it is looked for in the folder of plugins.
aimlock.hcl plugin command: List: an interpreter that runs it, by its whole path.
aimlock.hcl plugin args: List of further arguments.
aimlock.hcl plugin sha256: The file's SHA-256 in hex. Without it the plugin is not started.
aimlock.hcl plugin auto_mtls: ` + "`false`" + `: for plugins that cannot speak TLS.
aimlock.hcl plugin env: List of names of variables that it is given.
aimlock.hcl plugin start_timeout: Bounds its start. 10s unless set.
aimlock.hcl plugin timeout: Bounds one call. 30s unless set.
aimlock.hcl plugin interval: How long an answer of an evidence plugin counts. 10s unless set.
aimlock.hcl plugin config: What it is given; its names are the plugin's.
`
