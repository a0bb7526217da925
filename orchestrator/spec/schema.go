package spec

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// What may stand in each block of a rollout's file and of a fleet file. Nothing
// else in this package makes a schema, so that Schemas is the whole language.
var (
	rootSchema    = &hcl.BodySchema{Blocks: blocks("rollout name")}
	rolloutSchema = &hcl.BodySchema{
		Attributes: attrs("node_deadline", "deadline", "conflict"),
		Blocks:     blocks("config name", "fleet", "lock", "stage name", "gate name", "failure", "retry", "window"),
	}
	configSchema = &hcl.BodySchema{
		Attributes: attrs("source!", "destination!", "mode", "owner", "group", "validate", "reload", "healthy", "timeout", "template", "drift"),
		Blocks:     blocks("secret name", "target name"),
	}
	secretSchema = &hcl.BodySchema{Attributes: attrs("consul_key", "env", "version")}
	fleetSchema  = &hcl.BodySchema{Attributes: attrs("spread"), Blocks: blocks("consul", "file", "nomad", "plugin name")}
	consulSchema = &hcl.BodySchema{Attributes: attrs("service", "nodes", "filter")}
	nomadSchema  = &hcl.BodySchema{Attributes: attrs("region", "node_pool", "node_class", "datacenter", "meta", "filter")}
	fileSchema   = &hcl.BodySchema{Attributes: attrs("path!")}
	lockSchema   = &hcl.BodySchema{Attributes: attrs("ttl", "wait")}
	stageSchema  = &hcl.BodySchema{
		Attributes: attrs("nodes", "percent", "select", "order", "max_parallel", "bake", "gate", "promote"),
		Blocks:     blocks("failure"),
	}
	failureSchema = &hcl.BodySchema{Attributes: attrs("max_failed", "max_unreachable_percent", "then")}
	gateSchema    = &hcl.BodySchema{
		Attributes: attrs("interval", "timeout", "success_limit", "failure_limit", "unknown_limit", "consecutive_error_limit", "during"),
		Blocks:     blocks(gateKinds...),
	}
	consulChecksSchema    = &hcl.BodySchema{Attributes: attrs("service!", "min_passing_percent", "filter", "compare")}
	httpSchema            = &hcl.BodySchema{Attributes: attrs("url!", "method", "headers", "status", "body", "ca_file")}
	prometheusSchema      = &hcl.BodySchema{Attributes: attrs("address!", "query!", "threshold!", "reduce", "max_age", "headers", "ca_file")}
	execSchema            = &hcl.BodySchema{Attributes: attrs("command!", "env")}
	nomadDeploymentSchema = &hcl.BodySchema{Attributes: attrs("job!", "namespace", "region", "wait")}
	retrySchema           = &hcl.BodySchema{Attributes: attrs("attempts!", "delay", "max_delay")}
	windowSchema          = &hcl.BodySchema{Attributes: attrs("schedule!", "duration!", "timezone")}
	fleetFileSchema       = &hcl.BodySchema{Blocks: blocks("node name")}
	nodeSchema            = &hcl.BodySchema{Attributes: attrs("meta")}
)

// schemas are those by the path of their block. A block without one is a plugin's,
// whose schema the plugin declares.
var schemas = map[string]*hcl.BodySchema{
	"":                              rootSchema,
	"rollout":                       rolloutSchema,
	"rollout.config":                configSchema,
	"rollout.config.secret":         secretSchema,
	"rollout.fleet":                 fleetSchema,
	"rollout.fleet.consul":          consulSchema,
	"rollout.fleet.nomad":           nomadSchema,
	"rollout.fleet.file":            fileSchema,
	"rollout.lock":                  lockSchema,
	"rollout.stage":                 stageSchema,
	"rollout.stage.failure":         failureSchema,
	"rollout.gate":                  gateSchema,
	"rollout.gate.consul_checks":    consulChecksSchema,
	"rollout.gate.http":             httpSchema,
	"rollout.gate.prometheus":       prometheusSchema,
	"rollout.gate.exec":             execSchema,
	"rollout.gate.nomad_deployment": nomadDeploymentSchema,
	"rollout.failure":               failureSchema,
	"rollout.retry":                 retrySchema,
	"rollout.window":                windowSchema,
}

var fleetSchemas = map[string]*hcl.BodySchema{"": fleetFileSchema, "node": nodeSchema}

// Schemas returns what may stand in each block of a rollout's file, by the path of
// the block's types, such as "rollout.stage.failure"; "" is the file itself. The
// schemas are not the caller's.
func Schemas() map[string]*hcl.BodySchema { return maps.Clone(schemas) }

// FleetSchemas is the same of a fleet file in HCL.
func FleetSchemas() map[string]*hcl.BodySchema { return maps.Clone(fleetSchemas) }

// misplaced adds to what HCL says of an argument or a block that may not stand in a
// body where the language has one of that name.
func misplaced(body hcl.Body, schema *hcl.BodySchema, diags hcl.Diagnostics) {
	b, ok := body.(*hclsyntax.Body)
	if !ok {
		return
	}
	all := schemas
	if schema == fleetFileSchema || schema == nodeSchema {
		all = fleetSchemas
	}
	for _, d := range diags {
		if d.Subject == nil {
			continue
		}
		for name, a := range b.Attributes {
			if a.NameRange == *d.Subject {
				d.Detail += belongs("argument", homes(all, func(s *hcl.BodySchema) bool {
					return slices.ContainsFunc(s.Attributes, func(a hcl.AttributeSchema) bool { return a.Name == name })
				}))
			}
		}
		for _, nested := range b.Blocks {
			if nested.TypeRange == *d.Subject {
				d.Detail += belongs("block", homes(all, func(s *hcl.BodySchema) bool {
					return slices.ContainsFunc(s.Blocks, func(b hcl.BlockHeaderSchema) bool { return b.Type == nested.Type })
				}))
			}
		}
	}
}

// homes are the paths of the schemas that have something, the outermost first; a
// block of the file itself has none.
func homes(all map[string]*hcl.BodySchema, has func(*hcl.BodySchema) bool) (paths []string) {
	for path, s := range all {
		if path != "" && has(s) {
			paths = append(paths, path)
		}
	}
	slices.SortFunc(paths, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(a, "."), strings.Count(b, ".")), cmp.Compare(a, b))
	})
	return paths
}

func belongs(what string, paths []string) string {
	if len(paths) == 0 {
		return ""
	}
	article := "a"
	if what == "argument" {
		article = "an"
	}
	return fmt.Sprintf(" It is %s %s of %s.", article, what, strings.Join(paths, ", or of "))
}

func attrs(names ...string) []hcl.AttributeSchema {
	var out []hcl.AttributeSchema
	for _, n := range names {
		n, required := strings.CutSuffix(n, "!")
		out = append(out, hcl.AttributeSchema{Name: n, Required: required})
	}
	return out
}

func blocks(names ...string) []hcl.BlockHeaderSchema {
	var out []hcl.BlockHeaderSchema
	for _, n := range names {
		typ, label, ok := strings.Cut(n, " ")
		b := hcl.BlockHeaderSchema{Type: typ}
		if ok {
			b.LabelNames = []string{label}
		}
		out = append(out, b)
	}
	return out
}
