package command

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// templateOptions are the flags of "agent template".
type templateOptions struct {
	agentFlags
	field   string
	timeout time.Duration
}

// maxTemplateTime is less than the 30 s after which consul-template kills what
// its function plugin runs.
const maxTemplateTime = 25 * time.Second

// lastGood is the folder of what was answered last, in the state folder.
const lastGood = "template"

// topics are what a template can ask for. A value is a JSON object, but for those
// that are bytes.
func topics() map[string]func(*Meta, context.Context, *templateOptions, string) ([]byte, error) {
	return map[string]func(*Meta, context.Context, *templateOptions, string) ([]byte, error){
		"config":  (*Meta).templateConfig,
		"content": (*Meta).templateContent,
		"lock":    (*Meta).templateLock,
		"staged":  (*Meta).templateStaged,
	}
}

func newAgentTemplate(m *Meta) *command {
	o := templateOptions{timeout: 5 * time.Second}
	return &command{
		Meta:     m,
		Synopsis: "Answer a template of consul-template",
		Usage:    "[options] WHAT NAME",
		Description: `For consul-template's function plugin: prints one value on stdout, within a bounded
time, and exits 0; or says on stderr why not and exits with another code, so that
the template is not rendered and its file stays as it is. WHAT is one of

  config    what this node shall have of a config, and what it has said of it, as
            JSON for parseJSON. Numbers are strings, since a template would show
            a long one as 1.048577e+06. Without an order for this node "exists"
            is false and the rest is empty
  content   the content that it shall have, in base64 for base64Decode, with
            placeholders in place of secrets
  staged    the same with its order, as "agent apply -staged" takes it, in base64
  lock      who holds a lock and how it is judged, as JSON

Without Consul it prints what it printed last (in JSON "stale" is then true), if
-state-dir is given, where it keeps that; else it fails. What Consul refuses, as
for want of a right, is an error.

consul-template runs a plugin each time that it renders the template, which is
when something else in it has changed: read a key of Consul in it too, or it is
rendered once.`,
		Examples: []example{
			{"The revision that this node shall have", "aimlock agent template config app.conf -node web-1 -field revision"},
			{"All of it", "aimlock agent template config app.conf -node web-1 -state-dir /var/lib/aimlock"},
			{"Who holds the lock", "aimlock agent template lock app.conf"},
		},
		Groups: groupConsul | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&o.node, "node", "", "`NAME` of this node in the fleet. Or set AIMLOCK_NODE. Default: this\nhost's name.")
			fs.StringVar(&o.stateDir, "state-dir", "", "Keep the last good answers in this `DIR`, the agent's. Or set\nAIMLOCK_STATE_DIR.")
			fs.StringVar(&o.field, "field", "", "Print this `FIELD` of the JSON alone, as it is.")
			fs.DurationVar(&o.timeout, "timeout", o.timeout, "Wait for Consul for at most `DURATION`, up to 25s.")
		},
		MinArgs: 2, MaxArgs: 2,
		Complete: completeInOrder(completeTopics, completeLocks),
		Run: func(ctx context.Context, in *input) error {
			return m.agentTemplate(ctx, in.Args[0], in.Args[1], &o)
		},
	}
}

func (m *Meta) agentTemplate(ctx context.Context, what, name string, o *templateOptions) error {
	ask, ok := topics()[what]
	if !ok {
		known := slices.Sorted(maps.Keys(topics()))
		if s := suggest(what, known); s != "" {
			return usagef("%q is nothing that a template can ask for. Did you mean %q?", what, s)
		}
		return usagef("%q is nothing that a template can ask for: one of %s", what, strings.Join(known, ", "))
	}
	if o.timeout <= 0 || o.timeout > maxTemplateTime {
		return usagef("-timeout %s: it must be more than 0 and at most %s, since consul-template waits for 30s", o.timeout, maxTemplateTime)
	}
	if o.node = o.nodeName(m); what != "lock" {
		if err := errors.Join(keys.CheckName("config", name), keys.CheckName("node", o.node)); err != nil {
			return usagef("%w", err)
		}
	}
	if o.field != "" && (what == "content" || what == "staged") {
		return usagef("-field: %s has no fields", what)
	}
	tctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("Consul did not answer within %s", o.timeout))
	defer cancel()
	answer, err := ask(m, tctx, o, name)
	file := o.lastGoodFile(m, what, name)
	switch {
	case err == nil:
		if err := keepLastGood(file, answer); err != nil {
			m.Notef("Warning: the answer is not kept for when Consul is away: %v\n", err)
		}
	case ctx.Err() == nil && away(tctx, err):
		last, rerr := os.ReadFile(file)
		if file == "" || rerr != nil {
			return fmt.Errorf("%w, and there is no last good answer", err)
		}
		if answer = last; isObject(what) {
			if answer, err = staleObject(last); err != nil {
				return fmt.Errorf("last good answer %s: %w", file, err)
			}
		}
	default:
		return err
	}
	if isObject(what) {
		return m.printObject(answer, o.field)
	}
	m.Printf("%s\n", base64.StdEncoding.EncodeToString(answer))
	return nil
}

func isObject(what string) bool { return what == "config" || what == "lock" }

// away reports whether Consul could not be asked, as against refused.
func away(ctx context.Context, err error) bool {
	e, ok := errors.AsType[*consulkv.Error](err)
	return ctx.Err() != nil || ok && (e.Temporary() || e.Kind == consulkv.NotConsul)
}

// lastGoodFile is where the answer to a question is kept; "" is nowhere.
func (o *templateOptions) lastGoodFile(m *Meta, what, name string) string {
	dir := first(o.stateDir, m.Env("AIMLOCK_STATE_DIR"))
	if dir == "" {
		return ""
	}
	if what == "lock" {
		return filepath.Join(dir, lastGood, what+"-"+keys.Escape(name))
	}
	return filepath.Join(dir, lastGood, what+"-"+keys.Escape(name)+"-"+keys.Escape(o.node))
}

// keepLastGood writes an answer that is new. It holds no secrets, but it is the
// node's own.
func keepLastGood(file string, answer []byte) error {
	if file == "" {
		return nil
	}
	if old, err := os.ReadFile(file); err == nil && string(old) == string(answer) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return renameio.WriteFile(file, answer, 0o600, renameio.WithTempDir(filepath.Dir(file)), renameio.IgnoreUmask())
}

func staleObject(b []byte) ([]byte, error) {
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	fields["stale"] = true
	return json.Marshal(fields)
}

// printObject prints a JSON object, or one field of it.
func (m *Meta) printObject(b []byte, field string) error {
	if field == "" {
		m.Printf("%s\n", b)
		return nil
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	v, ok := fields[field]
	if !ok {
		return usagef("-field %q: there is none of that name; there are %s", field, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
	}
	m.Printf("%v\n", v)
	return nil
}

// templateConfigView is what a template learns of a config. All but the two
// switches are strings, empty where there is nothing.
type templateConfigView struct {
	Config      string `json:"config"`
	Node        string `json:"node"`
	Exists      bool   `json:"exists"`
	Revision    string `json:"revision"`
	Order       string `json:"order"`
	Epoch       string `json:"epoch"`
	Token       string `json:"token"`
	Seq         string `json:"seq"`
	Rollout     string `json:"rollout"`
	SHA256      string `json:"sha256"`
	Size        string `json:"size"`
	Mode        string `json:"mode"`
	Destination string `json:"destination"`
	// What the node said last: of which order, and what it has.
	Result         string `json:"result"`
	ActualRevision string `json:"actual_revision"`
	ActualOrder    string `json:"actual_order"`
	Error          string `json:"error"`
	Stale          bool   `json:"stale"`
}

func (m *Meta) templateConfig(ctx context.Context, o *templateOptions, name string) ([]byte, error) {
	client, err := m.Consul()
	if err != nil {
		return nil, err
	}
	d, err := m.desired(ctx, client, o, name)
	if err != nil {
		return nil, err
	}
	v := templateConfigView{Config: name, Node: o.node}
	if d != nil {
		v.Exists, v.Revision, v.Order, v.Rollout, v.SHA256, v.Mode, v.Destination = true, d.Revision, d.Order.String(), d.Rollout, d.SHA256, d.Mode, d.Destination
		v.Epoch, v.Token, v.Seq = strconv.FormatUint(d.Epoch, 10), strconv.FormatUint(d.Token, 10), strconv.FormatUint(d.Seq, 10)
		v.Size = strconv.FormatInt(d.Size, 10)
	}
	var a records.Actual
	if ok, err := readRecord(ctx, client, m.Prefix.Actual(name, o.node), &a); err != nil {
		return nil, err
	} else if ok {
		v.Result, v.ActualRevision, v.ActualOrder, v.Error = a.Result, a.Revision, a.Order.String(), a.Error
	}
	return json.Marshal(v)
}

// desired is this node's entry; nil where there is none.
func (m *Meta) desired(ctx context.Context, client *consulkv.Client, o *templateOptions, config string) (*records.Desired, error) {
	var d records.Desired
	ok, err := readRecord(ctx, client, m.Prefix.Desired(config, o.node), &d)
	if err != nil || !ok {
		return nil, err
	}
	return &d, nil
}

// readRecord reads a record; false where there is none.
func readRecord(ctx context.Context, client *consulkv.Client, key string, v any) (bool, error) {
	kv, err := client.Get(ctx, key)
	if err != nil || kv == nil {
		return false, err
	}
	return true, records.Decode(key, kv.Value, v)
}

func (m *Meta) staged(ctx context.Context, o *templateOptions, config string) (*agent.Staged, error) {
	client, err := m.Consul()
	if err != nil {
		return nil, err
	}
	d, err := m.desired(ctx, client, o, config)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, exitf(ExitFailed, "node %s has no order of %s: no rollout of it has reached this node, or the token may not read %s",
			text.Printable(o.node), text.Printable(config), m.Prefix.Desired(config, o.node))
	}
	s := &agent.Staged{Config: config, Node: o.node, Desired: *d}
	if d.Action != records.ActionRestore {
		s.Content, err = agent.Content(ctx, client, m.Prefix, config, d)
	}
	return s, err
}

func (m *Meta) templateContent(ctx context.Context, o *templateOptions, config string) ([]byte, error) {
	s, err := m.staged(ctx, o, config)
	if err != nil {
		return nil, err
	}
	if s.Desired.Action == records.ActionRestore {
		return nil, exitf(ExitFailed, "%s is rolled back on this node: only the node knows the content that it went back to", text.Printable(config))
	}
	return s.Content, nil
}

func (m *Meta) templateStaged(ctx context.Context, o *templateOptions, config string) ([]byte, error) {
	s, err := m.staged(ctx, o, config)
	if err != nil {
		return nil, err
	}
	return s.Encode(), nil
}

// templateLockView is what a template learns of a lock: what stays as it is
// while nothing happens, so that a rendering does too.
type templateLockView struct {
	Name      string `json:"name"`
	Key       string `json:"key"`
	State     string `json:"state"`
	Policy    string `json:"policy"`
	Rule      string `json:"rule"`
	Token     string `json:"token"`
	Session   string `json:"session"`
	Host      string `json:"host"`
	PID       string `json:"pid"`
	Operation string `json:"operation"`
	Stale     bool   `json:"stale"`
}

func (m *Meta) templateLock(ctx context.Context, _ *templateOptions, arg string) ([]byte, error) {
	name, err := lockName(arg)
	if err != nil {
		return nil, err
	}
	c, err := m.Locksmith()
	if err != nil {
		return nil, err
	}
	_, st, err := watched(ctx, m, c, name, true)
	if err != nil {
		return nil, lockError(err)
	}
	v := templateLockView{Name: st.Name, Key: st.Key, State: st.State, Policy: st.Policy, Rule: st.Rule, Operation: st.Operation}
	if st.Token != nil {
		v.Token = strconv.FormatUint(*st.Token, 10)
	}
	if st.Session != nil {
		v.Session = *st.Session
	}
	if h := st.Holder; h != nil {
		if h.Host != nil {
			v.Host = *h.Host
		}
		if h.PID != nil {
			v.PID = strconv.FormatInt(*h.PID, 10)
		}
	}
	return json.Marshal(v)
}
