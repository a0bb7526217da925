package command

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/hooks"
	"github.com/aim-control/aimlock/internal/records"
)

// HookConfig is a hook block of the config file: who is told of what. A secret
// has no place in the file; it names where the secret is.
type HookConfig struct {
	Name    string            `hcl:"name,label"`
	On      []string          `hcl:"on"`
	URL     string            `hcl:"url,optional"`
	Command []string          `hcl:"command,optional"`
	Headers map[string]string `hcl:"headers,optional"`
	// HeaderEnv maps headers to the variables that their values are in.
	HeaderEnv    map[string]string `hcl:"header_env,optional"`
	SecretEnv    string            `hcl:"secret_env,optional"`
	SecretFile   string            `hcl:"secret_file,optional"` // relative to the file
	Timeout      string            `hcl:"timeout,optional"`
	UnknownAfter string            `hcl:"unknown_after,optional"`
	Range        hcl.Range         `hcl:",def_range"`
}

// checkHooks says what is wrong with hooks, whether or not the command needs
// them, and resolves their paths.
func checkHooks(list []HookConfig, dir string) hcl.Diagnostics {
	var diags hcl.Diagnostics
	seen := map[string]bool{}
	for i := range list {
		h := &list[i]
		if h.SecretFile != "" {
			h.SecretFile = resolve(dir, h.SecretFile)
		}
		c, err := h.config()
		if err == nil {
			err = c.Check()
		}
		switch {
		case err == nil && h.SecretEnv != "" && h.SecretFile != "":
			err = fmt.Errorf("give secret_env or secret_file, and not both")
		case err == nil && h.URL == "" && (h.SecretEnv != "" || h.SecretFile != "" || len(h.HeaderEnv) > 0):
			err = fmt.Errorf("headers and a secret go with url: a command gets neither")
		case err == nil && seen[h.Name]:
			err = fmt.Errorf("another hook has this name already")
		}
		seen[h.Name] = true
		if err != nil {
			diags = append(diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Invalid hook", Detail: fmt.Sprintf("Hook %q: %s.", h.Name, err), Subject: h.Range.Ptr()})
		}
	}
	return diags
}

// config is the hook without its secrets.
func (h *HookConfig) config() (hooks.Config, error) {
	c := hooks.Config{Name: h.Name, On: h.On, URL: h.URL, Command: h.Command, Headers: map[string]string{}}
	for k, v := range h.Headers {
		c.Headers[k] = v
	}
	for _, d := range []struct {
		name, text string
		to         *time.Duration
	}{{"timeout", h.Timeout, &c.Timeout}, {"unknown_after", h.UnknownAfter, &c.UnknownAfter}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil || v <= 0 {
			return c, fmt.Errorf("%s = %q is not a duration above 0 such as \"10s\"", d.name, d.text)
		}
		*d.to = v
	}
	return c, nil
}

// secrets adds what stands elsewhere.
func (h *HookConfig) secrets(m *Meta, c *hooks.Config) error {
	env := func(what, name string) (string, error) {
		v := m.Env(name)
		if v == "" {
			return "", usagef("hook %q: %s names the variable %s, which is not set", h.Name, what, name)
		}
		return v, nil
	}
	for header, name := range h.HeaderEnv {
		v, err := env("header_env", name)
		if err != nil {
			return err
		}
		c.Headers[header] = v
	}
	switch {
	case h.SecretEnv != "":
		v, err := env("secret_env", h.SecretEnv)
		if err != nil {
			return err
		}
		c.Secret = []byte(v)
	case h.SecretFile != "":
		b, err := hooks.ReadSecret(h.SecretFile)
		if err != nil {
			return usagef("hook %q: secret_file: %w", h.Name, err)
		}
		c.Secret = b
	}
	return nil
}

// hookPatience bounds the delivery of what is left at the end of a command.
const hookPatience = 5 * time.Second

// hookState is the notifier of a command, made when it is needed.
type hookState struct {
	mu   sync.Mutex
	made bool
	n    *hooks.Notifier
	err  error
}

// Hooks is the notifier of the config file's hooks, made once; nil without any.
// What it was told is delivered before the command ends, within a bound.
func (m *Meta) Hooks() (*hooks.Notifier, error) {
	s := &m.notifier
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.made {
		s.made = true
		s.n, s.err = m.makeHooks()
	}
	return s.n, s.err
}

func (m *Meta) makeHooks() (*hooks.Notifier, error) {
	var list []hooks.Config
	for i := range m.Config.Hooks {
		c, err := m.Config.Hooks[i].config()
		if err == nil {
			err = m.Config.Hooks[i].secrets(m, &c)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	n, err := hooks.New(list, hooks.Options{Log: m.Log.Named("hooks")})
	if err != nil {
		return nil, usagef("%w", err)
	}
	return n, nil
}

// closeHooks delivers what is left. It does not end with the command's context:
// the last event is often told after a signal came.
func (m *Meta) closeHooks() {
	s := &m.notifier
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), hookPatience)
	defer cancel()
	s.n.Close(ctx)
	s.made, s.n, s.err = true, nil, nil
}

// onBreak tells the hooks of a break by this command. Hooks that cannot be made
// are in no break's way: it is said, and that is all.
func (m *Meta) onBreak(key string, rec *records.Break) {
	n, err := m.Hooks()
	if err != nil {
		m.Log.Warn("no hook is told of the break", "error", err)
		return
	}
	n.Notify(hooks.OfBreak(key, rec))
}
