package command

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/plugin/host"
)

func newPluginVerify(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Check that plugins can be used",
		Usage:    "[options] [NAME…]",
		Description: `Checks plugins, all of them where none is named: nobody else can change the file
or a folder above it, its checksum is the one that is pinned, it starts and
speaks a version of the protocol that this aimlock speaks, it answers, and its
config block is what it takes. Nothing is changed by it.

Exits 1 if anything is wrong, and says what.`,
		Examples: []example{{"Before the daemons are started", "aimlock plugin verify -config aimlock.hcl"}},
		Groups:   groupJSON | groupPlugin,
		MaxArgs:  -1,
		Complete: completeFiles("*"),
		Run: func(ctx context.Context, in *input) error {
			return m.verifyPlugins(ctx, in.Args)
		},
	}
}

// verifyView is one plugin of "plugin verify -json".
type verifyView struct {
	Name   string        `json:"name"`
	OK     bool          `json:"ok"`
	Checks []verifyCheck `json:"checks"`
}

type verifyCheck struct {
	Check string `json:"check"`
	OK    bool   `json:"ok"`
	Why   string `json:"why,omitempty"`
}

func (m *Meta) verifyPlugins(ctx context.Context, names []string) error {
	h := m.Plugins()
	if len(names) == 0 {
		if names = h.Names(); len(names) == 0 {
			if err := h.Err(); err != nil {
				return err
			}
			return usagef("there are no plugins to verify: name a folder of them (-plugin-dir), or write a plugin block into the config file (-config)")
		}
	}
	var views []verifyView
	ok := h.Err() == nil
	for _, name := range names {
		p, err := m.findPlugin(name)
		if err != nil {
			return err
		}
		v := m.verifyPlugin(ctx, p)
		ok = ok && v.OK
		views = append(views, v)
	}
	if err := h.Err(); err != nil {
		m.Notef("ERROR: %s\n", text.Printable(err.Error()))
	}
	if m.JSON {
		if err := m.PrintJSON(views); err != nil {
			return err
		}
	} else {
		for _, v := range views {
			m.Printf("%s\n", v.Name)
			for _, c := range v.Checks {
				if c.OK {
					m.Printf("  ok    %s\n", c.Check)
				} else {
					m.Printf("  FAIL  %s: %s\n", c.Check, c.Why)
				}
			}
		}
	}
	if !ok {
		return exit(ExitFailed)
	}
	return nil
}

func (m *Meta) verifyPlugin(ctx context.Context, p *host.Plugin) verifyView {
	v := verifyView{Name: p.Name(), OK: true}
	add := func(check string, err error) bool {
		c := verifyCheck{Check: check, OK: err == nil}
		if err != nil {
			c.Why = text.Printable(strings.TrimPrefix(err.Error(), "plugin "+p.Name()+": "))
			v.OK = false
		}
		v.Checks = append(v.Checks, c)
		return err == nil
	}
	err := p.Check()
	var unpinned *host.NotPinnedError
	var wrong *host.ChecksumError
	if pin := errors.As(err, &unpinned) || errors.As(err, &wrong); pin {
		add("nobody else can change it", nil)
		add("checksum", err)
		return v
	}
	if !add("nobody else can change it", err) {
		return v
	}
	add("checksum", nil)
	info, err := p.Info(ctx)
	if !add("starts and speaks the protocol", err) {
		return v
	}
	if diags := p.Diagnose(info); diags.HasErrors() {
		_ = m.Diagnostics(m.configFiles, diags)
		add("config block", fmt.Errorf("%s", diags[0].Detail))
		return v
	}
	for i := range info.Kinds {
		k := info.Kinds[i].Kind
		add(string(k)+" answers", p.Validate(ctx, k))
	}
	return v
}
