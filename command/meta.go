package command

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"
	"golang.org/x/term"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/securefile"
	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/plugin/host"
	"github.com/aim-control/aimlock/policies"
)

// IO is what a command line reads from and writes to. Results go to Stdout,
// all else to Stderr.
type IO struct {
	Stdin     io.Reader
	Stdout    io.Writer
	Stderr    io.Writer
	LookupEnv func(string) (string, bool)
	// Interrupt ends this process and its group as ^C does. It is called last,
	// where a command under this process was ended so. nil does nothing.
	Interrupt func()
}

// OS is the process's own.
func OS() IO {
	return IO{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, LookupEnv: os.LookupEnv, Interrupt: signals.Interrupt}
}

// Meta is what every command is given. The fields below the line are set after
// the flags are parsed and before the command's Run.
type Meta struct {
	IO
	ctx context.Context //nolint:containedctx // cli.Command.Run takes no context
	// stderr is Stderr, but while a full-screen view stands.
	stderr *diversion

	// ----
	Log    hclog.Logger // on Stderr
	Prefix keys.Prefix
	JSON   bool // -json: print one JSON value on Stdout and nothing else there
	// PolicyPaths are the files and folders of policies from -policy and the
	// config file; empty means the shipped default.
	PolicyPaths []string
	// Config is the file of -config, or its zero value.
	Config Config

	// daemon: the command runs until it is stopped.
	daemon  bool
	retried sync.Once
	// nomadTold: it was said that Nomad's certificate is not verified.
	nomadTold atomic.Bool

	configPath string
	// configFiles are the config file as it was parsed, for snippets.
	configFiles map[string]*hcl.File
	pluginDir   string
	plugins     *host.Host
	prefix      string
	logLevel    string
	logJSON     bool
	consul      consulFlags
	notifier    hookState
	// locks are closed when the command ends.
	locks []*locksmith.Client
	// interrupted: the terminal's ^C went to a command of its own group.
	interrupted bool

	// given are the flags that commands named to people repeat.
	given          locksmith.Flags
	policyVars     policyVars
	policyVarFiles []string
}

// consulFlags stand before the CONSUL_HTTP_… variables.
type consulFlags struct{ httpAddr, tokenFile string }

func newMeta(ctx context.Context, stdio IO) *Meta {
	return &Meta{IO: stdio, ctx: ctx, stderr: &diversion{to: stdio.Stderr}, Log: hclog.NewNullLogger(), Prefix: keys.DefaultPrefix, policyVars: policyVars{}}
}

// Env returns an environment variable, or "".
func (m *Meta) Env(name string) string {
	v, _ := m.LookupEnv(name)
	return v
}

func (m *Meta) sharedFlags(fs *flag.FlagSet, groups group) {
	fs.StringVar(&m.configPath, "config", "", "Read settings from the `FILE` aimlock.hcl. Or set AIMLOCK_CONFIG.")
	fs.StringVar(&m.logLevel, "log-level", "", "Log at `LEVEL` on stderr: trace, debug, info, warn, error or off. Or set\nAIMLOCK_LOG.")
	fs.BoolVar(&m.logJSON, "log-json", false, "Log one JSON object a line.")
	if groups&groupJSON != 0 {
		fs.BoolVar(&m.JSON, "json", false, "Print JSON: durations in seconds, times in RFC 3339.")
	}
	if groups&groupConsul != 0 {
		fs.StringVar(&m.prefix, "prefix", "", "Keep all keys under `PREFIX` in Consul's KV. Or set AIMLOCK_PREFIX.\nDefault: "+keys.DefaultPrefix)
		fs.StringVar(&m.consul.httpAddr, "http-addr", "", "`ADDRESS` of the Consul agent. Or set CONSUL_HTTP_ADDR; the other\nCONSUL_… variables count as well.")
		fs.StringVar(&m.consul.tokenFile, "token-file", "", "`FILE` with Consul's ACL token. Or set CONSUL_HTTP_TOKEN or\nCONSUL_HTTP_TOKEN_FILE.")
	}
	if groups&(groupPolicy|groupPlugin) != 0 {
		fs.StringVar(&m.pluginDir, "plugin-dir", "", "Look for plugins in the folder `DIR`. Or set AIMLOCK_PLUGIN_DIR, or plugin_dir\nin the config file.")
	}
	if groups&groupPolicy != 0 {
		m.policyFlags(fs)
	}
}

// setUp turns flags, environment and config file, in this order of weight, into
// what the command works with.
func (m *Meta) setUp(groups group) error {
	if path := first(m.configPath, m.Env("AIMLOCK_CONFIG")); path != "" {
		cfg, err := m.loadConfig(path)
		if err != nil {
			return err
		}
		m.Config = cfg
	}
	m.given = m.givenFlags()
	if len(m.PolicyPaths) == 0 {
		m.PolicyPaths = slices.Clone(m.Config.Policies)
	}
	prefix, err := keys.New(first(m.prefix, m.Env("AIMLOCK_PREFIX"), m.Config.Prefix))
	if err != nil {
		return usagef("%w (-prefix, AIMLOCK_PREFIX or the config file)", err)
	}
	m.Prefix = prefix

	fallback := "warn"
	if m.daemon = groups&groupDaemon != 0; m.daemon {
		fallback = "info"
	}
	m.warnOpen(groups)

	name := first(m.logLevel, m.Env("AIMLOCK_LOG"), m.Config.LogLevel, fallback)
	level := hclog.LevelFromString(name)
	if level == hclog.NoLevel {
		return usagef("log level %q is none of trace, debug, info, warn, error, off (-log-level, AIMLOCK_LOG or the config file)", name)
	}
	m.Log = hclog.New(&hclog.LoggerOptions{
		Name:       "aimlock",
		Level:      level,
		Output:     m.stderr,
		JSONFormat: m.logJSON || m.Config.LogJSON,
	})
	return nil
}

// warnOpen tells of files by which another account of this machine could have
// this process do what it wants, or be it.
func (m *Meta) warnOpen(groups group) {
	var paths []string
	if path := first(m.configPath, m.Env("AIMLOCK_CONFIG")); path != "" {
		paths = append(paths, path)
	}
	if groups&groupConsul == 0 {
		return
	}
	if groups&groupPolicy != 0 {
		paths = append(paths, slices.DeleteFunc(slices.Clone(m.PolicyPaths), func(p string) bool { return strings.HasPrefix(p, policies.BuiltinPrefix) })...)
	}
	for _, p := range paths {
		if why := securefile.Writable(p); why != "" {
			m.Notef("Warning: %s; who writes it decides what is done here\n", why)
		}
	}
	token := first(m.consul.tokenFile, m.Env("CONSUL_HTTP_TOKEN_FILE"))
	if f := m.Config.Consul; token == "" && m.Env("CONSUL_HTTP_TOKEN") == "" && f != nil {
		token = f.TokenFile
	}
	if token == "" {
		return
	}
	if why := securefile.Readable(token); why != "" {
		m.Notef("Warning: the token file %s\n", why)
	}
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// Printf writes a result for people to Stdout. An error of Stdout is seen by
// the process itself: the first write to a closed pipe ends it.
func (m *Meta) Printf(format string, args ...any) {
	_, _ = fmt.Fprintf(m.Stdout, format, args...)
}

// tell is Printf for lines that people read and no program does. Where more than
// ASCII cannot be shown, what this program itself cuts off ends in three dots, and on
// a terminal foreign text is ASCII too.
func (m *Meta) tell(format string, args ...any) {
	m.Printf("%s", m.plain(fmt.Sprintf(format, args...)))
}

// plain is what tell writes.
func (m *Meta) plain(lines string) string {
	_, screen := Terminal(m.Stdout)
	return asciiLines(lines, m.UTF8(), screen)
}

func asciiLines(lines string, utf8, screen bool) string {
	switch {
	case utf8:
		return lines
	case !screen:
		// A pipe may lead to who reads UTF-8: names stay what they are.
		return strings.ReplaceAll(lines, "…", "...")
	}
	all := strings.Split(lines, "\n")
	for i, l := range all {
		all[i] = text.ASCII(l)
	}
	return strings.Join(all, "\n")
}

// Notef writes to Stderr what is not the result: progress, warnings, hints. On a
// terminal it is folded.
func (m *Meta) Notef(format string, args ...any) {
	_, _ = io.WriteString(m.stderr, foldedFor(m.Stderr, fmt.Sprintf(format, args...)))
}

// PrintJSON writes v to Stdout as indented JSON. Text stays as it is: <, > and
// & are not escaped, since nothing here ends in a web page.
func (m *Meta) PrintJSON(v any) error {
	if err := writeJSON(m.Stdout, v); err != nil {
		return fmt.Errorf("write JSON to stdout: %w", err)
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Terminal tells whether w is a terminal, and how wide it is.
func Terminal(w io.Writer) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		width = 80
	}
	return width, true
}

// Color tells whether colours may be written to w: it is a terminal that
// knows them, and NO_COLOR is not set.
func (m *Meta) Color(w io.Writer) bool {
	if m.Env("NO_COLOR") != "" || m.Env("TERM") == "dumb" {
		return false
	}
	_, ok := Terminal(w)
	return ok
}

// UTF8 tells whether the terminal shows more than ASCII, by the locale that
// the environment names: LC_ALL before LC_CTYPE before LANG, as POSIX has it.
func (m *Meta) UTF8() bool {
	locale := strings.ToLower(first(m.Env("LC_ALL"), m.Env("LC_CTYPE"), m.Env("LANG")))
	return strings.Contains(locale, "utf-8") || strings.Contains(locale, "utf8")
}

// Diagnostics prints what is wrong in HCL files, with snippets from files, and
// returns the error to end the command with: nil if there are only warnings.
func (m *Meta) Diagnostics(files map[string]*hcl.File, diags hcl.Diagnostics) error {
	if len(diags) == 0 {
		return nil
	}
	width, ok := Terminal(m.Stderr)
	if !ok {
		width = 100
	}
	policies.WriteDiagnostics(m.Stderr, files, diags, uint(width), m.Color(m.Stderr))
	if diags.HasErrors() {
		return exit(ExitUsage)
	}
	return nil
}

// stringList is a flag that may be repeated.
type stringList []string

func (l *stringList) String() string { return strings.Join(*l, ",") }

func (l *stringList) Set(s string) error {
	if s == "" {
		return fmt.Errorf("it is empty")
	}
	*l = append(*l, s)
	return nil
}
