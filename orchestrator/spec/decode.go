package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/schedule"
)

// Defaults and bounds of a spec.
const (
	defaultTTL  = 15 * time.Second
	defaultWait = 10 * time.Minute
	day         = 24 * time.Hour
	// maxNodes bounds counts of nodes.
	maxNodes = 10_000_000
	maxArgs  = 256
	// maxCommand bounds the arguments of one command together: a node's orders
	// for all configs must fit into one transaction.
	maxCommand = 4 << 10
)

func (d *decoder) root(body hcl.Body) {
	c := d.content(body, rootSchema)
	switch {
	case len(c.Blocks) == 0:
		if !d.diags.HasErrors() {
			d.fail(body.MissingItemRange(), "No rollout", "A rollout's file must have one block: rollout \"name\" { … }.")
		}
		return
	case len(c.Blocks) > 1:
		for _, b := range c.Blocks[1:] {
			d.fail(b.DefRange, "Second rollout", "The first is at %s: put each rollout into a file of its own.", c.Blocks[0].DefRange)
		}
	}
	d.rollout(c.Blocks[0])
}

func (d *decoder) rollout(b *hcl.Block) {
	s := &d.file.Spec
	s.Name = b.Labels[0]
	d.name("rollout", b)
	c := d.content(b.Body, rolloutSchema)
	s.NodeDeadline = orchestrator.DefaultNodeDeadline
	if v, _, ok := d.duration(c, "node_deadline", time.Second, day); ok {
		s.NodeDeadline = v
	}
	s.Deadline, _, _ = d.duration(c, "deadline", time.Second, 365*day)
	d.life(c)
	d.configs(b, c)
	if fl := d.single(c, "fleet"); fl != nil {
		d.fleet(fl)
	} else {
		d.fail(b.DefRange, "No fleet", "A rollout needs a fleet block that says which nodes it goes to.")
	}
	d.lock(d.single(c, "lock"))
	gates := d.gates(c)
	d.retry(d.single(c, "retry"))
	d.stages(b, c, gates)
	d.failure(d.single(c, "failure"))
	d.stageThens()
	d.gatesInStages(c)
	d.window(d.single(c, "window"))
}

// name checks the label of a block that becomes part of keys.
func (d *decoder) name(what string, b *hcl.Block) {
	if err := keys.CheckName(what, b.Labels[0]); err != nil {
		d.add(hcl.DiagError, b.LabelRanges[0], b.DefRange, "Invalid name", "%s", sentence(err))
	}
}

// sentence makes an error's text one.
func sentence(err error) string {
	s := err.Error()
	s = strings.ToUpper(s[:1]) + s[1:]
	return strings.TrimSuffix(s, ".") + "."
}

// unique refuses a second block of a type with the same label.
func (d *decoder) unique(seen map[string]*hcl.Block, b *hcl.Block) bool {
	name := b.Labels[0]
	if first := seen[name]; first != nil {
		d.add(hcl.DiagError, b.LabelRanges[0], b.DefRange, "Duplicate "+b.Type, "A %s %q is there already at %s.", b.Type, name, first.DefRange)
		return false
	}
	seen[name] = b
	return true
}

func (d *decoder) configs(rollout *hcl.Block, c *hcl.BodyContent) {
	seen := map[string]*hcl.Block{}
	dest := map[string]*hcl.Attribute{}
	n := 0
	for _, b := range c.Blocks.OfType("config") {
		if n++; n == orchestrator.MaxConfigs+1 {
			d.fail(b.DefRange, "Too many configs", "A rollout delivers %d configs at most.", orchestrator.MaxConfigs)
		}
		d.name("config", b)
		d.unique(seen, b)
		cfg, at := d.config(b)
		if at != nil && cfg.Destination != "" {
			if first := dest[cfg.Destination]; first != nil {
				d.bad(at, "Duplicate destination", "%s is the destination of another config already at %s: two configs cannot be one file.", cfg.Destination, first.Range)
			}
			dest[cfg.Destination] = at
		}
		d.file.Spec.Configs = append(d.file.Spec.Configs, cfg)
	}
	d.targetsAlone(c)
	if n == 0 && !d.diags.HasErrors() {
		d.fail(rollout.DefRange, "No config", "A rollout needs a config block: config \"name\" { source = …, destination = … }.")
	}
}

var modePattern = regexp.MustCompile(`^0?[0-7]{3}$`)

func (d *decoder) config(b *hcl.Block) (orchestrator.Config, *hcl.Attribute) {
	cfg := orchestrator.Config{Name: b.Labels[0]}
	c := d.content(b.Body, configSchema)
	var src []byte
	if s, a, ok := d.text(c, "source"); ok {
		cfg.Source = s
		content, err := d.read(s, MaxContent)
		if err != nil {
			d.bad(a, "Cannot read the source", "%s", sentence(err))
		}
		src = content
		sum := sha256.Sum256(content)
		cfg.SHA256, cfg.Size = hex.EncodeToString(sum[:]), int64(len(content))
		cfg.Revision = cfg.SHA256[:12]
		d.file.Contents[cfg.Name] = content
	}
	var at *hcl.Attribute
	if s, a, ok := d.text(c, "destination"); ok {
		cfg.Destination, at = s, a
		d.destination(a, s)
	}
	if s, a, ok := d.text(c, "mode"); ok {
		if cfg.Mode = s; !modePattern.MatchString(s) {
			d.bad(a, "Invalid mode", "%q must be a file's permission in octal, such as \"0640\".", "mode")
		}
	}
	cfg.Drift = d.drift(c)
	cfg.Owner, _, _ = d.text(c, "owner")
	cfg.Group, _, _ = d.text(c, "group")
	d.templated(&cfg, c, src)
	timeout, _, _ := d.duration(c, "timeout", time.Second, day)
	cfg.Validate = d.nodeCommand(c, "validate", timeout)
	cfg.Reload = d.nodeCommand(c, "reload", timeout)
	cfg.Healthy = d.nodeCommand(c, "healthy", timeout)
	cfg.Target = d.target(c)
	return cfg, at
}

func (d *decoder) command(c *hcl.BodyContent, name string, timeout time.Duration) *orchestrator.Command {
	argv, a, ok := d.strings(c, name)
	switch {
	case !ok:
	case len(argv) == 0 || argv[0] == "":
		d.bad(a, "Empty command", "%q must begin with a program; leave it out to run none.", name)
	case len(argv) > maxArgs:
		d.bad(a, "Command is too long", "%q may have %d arguments: put more into a script.", name, maxArgs)
	case len(strings.Join(argv, " ")) > maxCommand:
		d.bad(a, "Command is too long", "%q may have %d bytes: put more into a script.", name, maxCommand)
	case slices.ContainsFunc(argv, func(s string) bool { return strings.ContainsRune(s, 0) }):
		d.bad(a, "Invalid argument", "%q holds a zero byte, which no program can be given.", name)
	default:
		return &orchestrator.Command{Argv: argv, Timeout: timeout}
	}
	return nil
}

var placeholder = regexp.MustCompile(`\$\{([a-z_]+)\}`)

// nodeCommand is a command in whose arguments the agent sets paths in. Another ${name}
// may be meant for a shell, or for the program itself: only what is a slip or two from
// one of the agent's is refused, and nothing in an argument of several words, which may
// be a script with variables of its own.
func (d *decoder) nodeCommand(c *hcl.BodyContent, name string, timeout time.Duration) *orchestrator.Command {
	cmd := d.command(c, name, timeout)
	if cmd == nil {
		return nil
	}
	for _, arg := range cmd.Argv {
		if strings.ContainsFunc(arg, unicode.IsSpace) {
			continue
		}
		for _, m := range placeholder.FindAllStringSubmatch(arg, -1) {
			for _, known := range []string{"staged", "destination"} {
				if n := levenshtein.Distance(m[1], known, nil); n > 0 && n <= 2 {
					d.bad(c.Attributes[name], "Unknown placeholder", "%q holds $${%s}, which the agent does not know. Did you mean $${%s}?", name, m[1], known)
				}
			}
		}
	}
	return cmd
}

// destination must be an absolute path of a file, written in one way only: two
// configs must not be the same file by two names.
func (d *decoder) destination(a *hcl.Attribute, s string) {
	const sum = "Invalid destination"
	switch {
	case !strings.HasPrefix(s, "/"):
		d.bad(a, sum, "The destination %q is relative: give the file's absolute path on the nodes.", s)
	case strings.HasSuffix(s, "/"):
		d.bad(a, sum, "The destination %q is a folder: add the file's name.", s)
	case slices.Contains(strings.Split(s, "/"), ".."):
		d.bad(a, sum, "The destination %q has a segment \"..\": write where it leads to.", s)
	case path.Clean(s) != s:
		d.bad(a, sum, "The destination %q is written in a roundabout way: write %q.", s, path.Clean(s))
	case strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		d.bad(a, sum, "The destination holds a control character.")
	case len(s) > 4000:
		d.bad(a, sum, "The destination is longer than a path may be.")
	}
}

func (d *decoder) lock(b *hcl.Block) {
	l := &d.file.Spec.Lock
	l.TTL, l.Wait = defaultTTL, defaultWait
	if b == nil {
		return
	}
	c := d.content(b.Body, lockSchema)
	if v, _, ok := d.duration(c, "ttl", 10*time.Second, day); ok {
		l.TTL = v
	}
	if v, _, ok := d.duration(c, "wait", 0, 30*day); ok {
		l.Wait = v
	}
}

func (d *decoder) window(b *hcl.Block) {
	if b == nil {
		return
	}
	c := d.content(b.Body, windowSchema)
	w := &orchestrator.Window{Timezone: "UTC"}
	at := map[string]*hcl.Attribute{}
	var ok, ok2 bool
	w.Schedule, at["schedule"], ok = d.text(c, "schedule")
	w.Duration, at["duration"], ok2 = d.duration(c, "duration", time.Minute, schedule.MaxDuration)
	if s, a, ok := d.text(c, "timezone"); ok {
		w.Timezone, at["timezone"] = s, a
	}
	if !ok || !ok2 {
		return
	}
	_, err := schedule.Parse(*w)
	each(err, func(err error) {
		var fe *schedule.FieldError
		if a := at[fieldOf(err, &fe)]; a != nil {
			d.bad(a, "Invalid window", "%s", sentence(fe.Err))
			return
		}
		d.fail(b.DefRange, "Invalid window", "%s", sentence(err))
	})
	d.file.Spec.Window = w
}

func fieldOf(err error, fe **schedule.FieldError) string {
	if errors.As(err, fe) {
		return (*fe).Field
	}
	return ""
}
