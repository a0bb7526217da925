// Ssh-target is a target for machines that run no agent of aimlock, such as
// appliances and routers with a POSIX shell: it writes configs over ssh. It is fenced
// by a mark that is kept beside the config, so that an older order is refused
// whichever machine sends it. The far side needs sh, flock, sha256sum, sync and mv.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/aim-control/aimlock/plugin"
)

func main() { plugin.Serve(description()) }

func description() plugin.Plugin {
	return plugin.Plugin{
		Name: "ssh-target", Version: "1.0.0", Doc: "Writes configs over ssh, fenced by a mark beside the config.",
		Target: func() plugin.Target {
			return &target{Command: []string{"ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", "{address}"}}
		},
	}
}

// script is what runs on the far side.
//
//go:embed remote.sh
var script string

type target struct {
	Command     []string `config:"command" doc:"What runs a shell command, its last argument, on {address}."`
	AddressMeta string   `config:"address_meta" doc:"The metadata that holds a node's address; empty: its name is its address."`
}

// Validate checks what the schema cannot.
func (t *target) Validate(context.Context) error {
	if len(t.Command) == 0 || t.Command[0] == "" {
		return plugin.Invalid("command", "it must name a program")
	}
	return nil
}

// Fencing is true: see remote.sh.
func (t *target) Fencing() bool { return true }

// Apply writes.
func (t *target) Apply(ctx context.Context, r *plugin.ApplyRequest) (*plugin.Applied, error) {
	out, err := t.run(ctx, &r.Place, r.Content, "apply", order(r.Order), r.SHA256, mode(r.Mode), r.Revision)
	if err != nil {
		return nil, err
	}
	return &plugin.Applied{Highest: r.Order, SHA256: r.SHA256, Revision: r.Revision, Unchanged: out.word == "unchanged"}, nil
}

// Restore puts the last good revision back.
func (t *target) Restore(ctx context.Context, r *plugin.RestoreRequest) (*plugin.Applied, error) {
	if _, err := t.run(ctx, &r.Place, nil, "restore", order(r.Order)); err != nil {
		return nil, err
	}
	return &plugin.Applied{Highest: r.Order}, nil
}

// Read tells what stands there.
func (t *target) Read(ctx context.Context, r *plugin.ReadRequest) (*plugin.State, error) {
	want := "no"
	if r.Content {
		want = "yes"
	}
	out, err := t.run(ctx, &r.Place, nil, "read", want)
	if err != nil {
		return nil, err
	}
	st := &plugin.State{}
	if _, err := fmt.Sscan(out.rest, &st.Highest.Epoch, &st.Highest.Token, &st.Highest.Seq); err != nil {
		return nil, fmt.Errorf("the far side's mark %q: %w", out.rest, err)
	}
	if out.word == "absent" {
		return st, nil
	}
	st.Exists = true
	head, content, _ := bytes.Cut(out.body, []byte("\n"))
	if _, err := fmt.Sscan(string(head), &st.SHA256, &st.Size); err != nil {
		return nil, fmt.Errorf("the far side told %q of the config: %w", head, err)
	}
	if r.Content {
		st.Content = content
	}
	return st, nil
}

// answer is a line of the far side, a word and what follows it, and what comes after
// the line.
type answer struct {
	word, rest string
	body       []byte
}

// run runs the script on a node. Nothing of its arguments is for the shell to read.
func (t *target) run(ctx context.Context, p *plugin.Place, input []byte, args ...string) (*answer, error) {
	address := p.Node
	if t.AddressMeta != "" {
		if address = p.Meta[t.AddressMeta]; address == "" {
			return nil, fmt.Errorf("node %s has no metadata %q: %w", p.Node, t.AddressMeta, plugin.ErrNotFound)
		}
	}
	if address == "" || strings.HasPrefix(address, "-") {
		return nil, fmt.Errorf("%q is no address", address)
	}
	if !strings.HasPrefix(p.Destination, "/") {
		return nil, fmt.Errorf("the destination %q is no absolute path", p.Destination)
	}
	command := make([]string, len(t.Command))
	for i, word := range t.Command {
		command[i] = strings.ReplaceAll(word, "{address}", address)
	}
	quoted := "sh -c " + quote(script) + " aimlock"
	for _, a := range append([]string{args[0], p.Destination}, args[1:]...) {
		quoted += " " + quote(a)
	}
	cmd := exec.CommandContext(ctx, command[0], append(command[1:], quoted)...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%s: %w: %w%s", address, plugin.ErrUnavailable, err, lastLine(said.String()))
	}
	line, body, _ := bytes.Cut(out.Bytes(), []byte("\n"))
	word, rest, _ := strings.Cut(string(line), " ")
	switch word {
	case "ok", "unchanged", "absent":
		return &answer{word, rest, body}, nil
	case "stale":
		var o plugin.Order
		if _, err := fmt.Sscan(rest, &o.Epoch, &o.Token, &o.Seq); err != nil {
			return nil, fmt.Errorf("%s: the mark %q: %w", address, rest, err)
		}
		return nil, &plugin.StaleError{Highest: o}
	case "missing":
		return nil, fmt.Errorf("%s keeps no last good revision: %w", address, plugin.ErrNotFound)
	case "failed":
		return nil, fmt.Errorf("%s: %s", address, rest)
	}
	return nil, errors.Join(fmt.Errorf("%s answered %q", address, line), errors.New("it must have a POSIX shell, flock and sha256sum"))
}

// quote makes one word of s for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func order(o plugin.Order) string { return fmt.Sprintf("%d %d %d", o.Epoch, o.Token, o.Seq) }

func mode(m string) string {
	if m == "" {
		return "0644"
	}
	return m
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return ""
	}
	return ": " + strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s[strings.LastIndexByte(s, '\n')+1:])
}
