package host

import (
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
)

// Defaults and bounds of a `plugin` block.
const (
	DefaultStartTimeout = 10 * time.Second
	DefaultTimeout      = 30 * time.Second
	DefaultInterval     = 10 * time.Second

	maxTimeout = 10 * time.Minute
)

// Spec is how to run one plugin.
type Spec struct {
	// Name is what specs and policies call it.
	Name string
	// Path is the file whose SHA-256 is pinned: the program, or the script that
	// Interpreter runs. Empty: it is looked for in the folder of plugins.
	Path string
	// Interpreter stands before Path, such as ["/usr/bin/python3", "-u"].
	Interpreter []string
	Args        []string
	// SHA256 is in hex; empty: it is not pinned, and is not started.
	SHA256 string
	// PlainSocket: no TLS, for plugins that cannot speak go-plugin's.
	PlainSocket bool
	// Env are the names of variables that it is given beside the few that all are.
	Env []string
	// StartTimeout bounds its start, Timeout one call, and Interval is how long an
	// answer of an evidence plugin counts before it is asked again.
	StartTimeout, Timeout, Interval time.Duration
	// Config is its configuration, nil where there is none.
	Config hcl.Body
	// Range is where the block stands; zero for what was only found in the folder.
	Range hcl.Range
}

// block is a `plugin` block as it is written.
type block struct {
	Path         string   `hcl:"path,optional"`
	Interpreter  []string `hcl:"command,optional"`
	Args         []string `hcl:"args,optional"`
	SHA256       string   `hcl:"sha256,optional"`
	AutoMTLS     *bool    `hcl:"auto_mtls,optional"`
	Env          []string `hcl:"env,optional"`
	StartTimeout string   `hcl:"start_timeout,optional"`
	Timeout      string   `hcl:"timeout,optional"`
	Interval     string   `hcl:"interval,optional"`
	Config       *remains `hcl:"config,block"`
}

// BlockSchema is what may stand in a `plugin` block. What its config block has, the
// plugin declares.
func BlockSchema() *hcl.BodySchema {
	s, _ := gohcl.ImpliedBodySchema(block{})
	return s
}

type remains struct {
	Body hcl.Body `hcl:",remain"`
}

var (
	validName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	validEnv  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// ReadBlock reads the body of a `plugin` block. dir is the folder that relative
// paths are relative to. All diagnostics come at once.
func ReadBlock(name string, body hcl.Body, dir string) (*Spec, hcl.Diagnostics) {
	at := body.MissingItemRange()
	var b block
	diags := gohcl.DecodeBody(body, &hcl.EvalContext{}, &b)
	attrs, _, _ := body.PartialContent(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{
		{Name: "path"}, {Name: "command"}, {Name: "sha256"}, {Name: "env"}, {Name: "start_timeout"}, {Name: "timeout"}, {Name: "interval"},
	}})
	bad := func(attr, detail string, args ...any) {
		where := at
		if a := attrs.Attributes[attr]; a != nil {
			where = a.Expr.Range()
		}
		diags = append(diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Invalid plugin", Detail: fmt.Sprintf(detail, args...), Subject: &where})
	}
	s := &Spec{
		Name: name, Interpreter: b.Interpreter, Args: b.Args, SHA256: strings.ToLower(strings.TrimPrefix(b.SHA256, "sha256:")), Env: b.Env,
		PlainSocket: b.AutoMTLS != nil && !*b.AutoMTLS, Range: at,
	}
	if !validName.MatchString(name) {
		bad("", "%q is no name of a plugin: use lower case letters, digits, - and _, 64 at most.", name)
	}
	if b.Path != "" {
		s.Path = b.Path
		if !filepath.IsAbs(s.Path) {
			s.Path = filepath.Join(dir, s.Path)
		}
	}
	if len(b.Interpreter) > 0 && !filepath.IsAbs(b.Interpreter[0]) {
		bad("command", "The interpreter must be named by its whole path, such as [\"/usr/bin/python3\"], and the script by path.")
	}
	if raw, err := hex.DecodeString(s.SHA256); s.SHA256 != "" && (err != nil || len(raw) != 32) {
		bad("sha256", "It must be the SHA-256 of the plugin's file, 64 hexadecimal digits: aimlock plugin info %s prints it.", name)
	}
	for _, e := range b.Env {
		if !validEnv.MatchString(e) {
			bad("env", "%q is no name of a variable. Only names stand here; their values are those of aimlock's own environment.", e)
		}
	}
	limit := func(attr, text string, least, fallback time.Duration) time.Duration {
		if text == "" {
			return fallback
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < least || d > maxTimeout {
			bad(attr, "It must be a duration of %s to %s, such as \"10s\".", least, maxTimeout)
			return fallback
		}
		return d
	}
	s.StartTimeout = limit("start_timeout", b.StartTimeout, 100*time.Millisecond, DefaultStartTimeout)
	s.Timeout = limit("timeout", b.Timeout, 100*time.Millisecond, DefaultTimeout)
	s.Interval = limit("interval", b.Interval, time.Second, DefaultInterval)
	if b.Config != nil {
		s.Config = b.Config.Body
	}
	return s, diags
}

// withDefaults is for a Spec that no block made.
func (s Spec) withDefaults() Spec {
	if s.StartTimeout <= 0 {
		s.StartTimeout = DefaultStartTimeout
	}
	if s.Timeout <= 0 {
		s.Timeout = DefaultTimeout
	}
	if s.Interval <= 0 {
		s.Interval = DefaultInterval
	}
	return s
}
