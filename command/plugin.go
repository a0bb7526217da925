package command

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/host"
)

// pluginView is a plugin as "plugin list -json" and "plugin info -json" show it.
type pluginView struct {
	Name string `json:"name"`
	Path string `json:"path"`
	// SHA256 is that of the file; Pinned tells whether the config file has it.
	SHA256 string `json:"sha256"`
	Pinned bool   `json:"pinned"`
	// State is "ok", or the class of Problem: "not_pinned", "wrong_checksum",
	// "refused" (its file may not be run), or "failed" (it does not start).
	State   string `json:"state"`
	Problem string `json:"problem,omitempty"`

	Version  string     `json:"version,omitempty"`
	Doc      string     `json:"doc,omitempty"`
	SDK      string     `json:"sdk,omitempty"`
	Protocol int        `json:"protocol,omitempty"`
	Kinds    []kindView `json:"kinds"`
}

type kindView struct {
	Kind         plugin.Kind `json:"kind"`
	Capabilities []string    `json:"capabilities"`
	Facts        []factView  `json:"facts,omitempty"`
	Arguments    []argView   `json:"arguments"`
}

type factView struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Doc  string `json:"doc,omitempty"`
}

// argView is an argument of a configuration, or a block: "server.url".
type argView struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Required bool   `json:"required"`
	Secret   bool   `json:"secret"`
	Default  any    `json:"default,omitempty"`
	Doc      string `json:"doc,omitempty"`
}

// viewPlugin looks at a plugin, and starts it if its file may be run.
func viewPlugin(ctx context.Context, p *host.Plugin) pluginView {
	v := pluginView{Name: p.Name(), Path: p.Spec().Path, Pinned: p.Spec().SHA256 != "", State: "ok", Kinds: []kindView{}}
	v.SHA256, _ = p.Sum()
	bad := func(state string, err error) pluginView {
		v.State, v.Problem = state, text.Printable(strings.TrimPrefix(err.Error(), "plugin "+p.Name()+": "))
		return v
	}
	if err := p.Check(); err != nil {
		var unpinned *host.NotPinnedError
		var wrong *host.ChecksumError
		switch {
		case errors.As(err, &unpinned):
			return bad("not_pinned", err)
		case errors.As(err, &wrong):
			return bad("wrong_checksum", err)
		}
		return bad("refused", err)
	}
	info, err := p.Info(ctx)
	if err != nil {
		return bad("failed", err)
	}
	v.Version, v.Doc, v.SDK, v.Protocol = text.Printable(info.Version), text.Printable(info.Doc), text.Printable(info.SDK), info.Protocol
	for i := range info.Kinds {
		v.Kinds = append(v.Kinds, viewKind(&info.Kinds[i]))
	}
	return v
}

func viewKind(k *plugin.KindInfo) kindView {
	v := kindView{Kind: k.Kind, Capabilities: []string{}, Arguments: []argView{}}
	for _, c := range k.Capabilities {
		v.Capabilities = append(v.Capabilities, text.Printable(c))
	}
	for _, f := range k.Facts {
		v.Facts = append(v.Facts, factView{f.Name, string(f.Type), text.Printable(f.Doc)})
	}
	v.arguments(&k.Config, "")
	return v
}

func (v *kindView) arguments(s *plugin.Schema, at string) {
	for _, a := range s.Attributes {
		arg := argView{Name: at + a.Name, Type: string(a.Type), Required: a.Required, Secret: a.Secret, Doc: text.Printable(a.Doc)}
		if !a.Secret {
			arg.Default = a.Default
		}
		v.Arguments = append(v.Arguments, arg)
	}
	for i := range s.Blocks {
		b := &s.Blocks[i]
		v.Arguments = append(v.Arguments, argView{Name: at + b.Name, Type: "block", Required: b.Min > 0, Doc: text.Printable(b.Doc)})
		v.arguments(&b.Config, at+b.Name+".")
	}
}

func (v *pluginView) kinds() string {
	var names []string
	for _, k := range v.Kinds {
		names = append(names, string(k.Kind))
	}
	return strings.Join(names, ",")
}

// findPlugin finds one by its name or, for a file that nobody configured, its path.
func (m *Meta) findPlugin(arg string) (*host.Plugin, error) {
	if strings.Contains(arg, "/") {
		path, err := filepath.Abs(arg)
		if err != nil {
			return nil, err
		}
		for _, name := range m.Plugins().Names() {
			if p, err := m.Plugins().Plugin(name); err == nil && p.Spec().Path == path {
				return p, nil
			}
		}
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
		return m.Plugins().Stray(path)
	}
	return m.Plugins().Plugin(arg)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
