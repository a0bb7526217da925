package command

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"

	"github.com/aim-control/aimlock/internal/hclsafe"
	"github.com/aim-control/aimlock/plugin/host"
)

// Config is the file aimlock.hcl, which -config or AIMLOCK_CONFIG name. No file
// is read unless it is named: a file that happens to lie in the working folder
// must not decide which locks are broken. Flags and environment stand before it.
type Config struct {
	Prefix   string        `hcl:"prefix,optional"`
	Policies []string      `hcl:"policies,optional"` // relative to the file
	Journal  string        `hcl:"journal,optional"`  // relative to the file
	LogLevel string        `hcl:"log_level,optional"`
	LogJSON  bool          `hcl:"log_json,optional"`
	Consul   *ConsulConfig `hcl:"consul,block"`
	Nomad    *NomadConfig  `hcl:"nomad,block"`
	Hooks    []HookConfig  `hcl:"hook,block"`
	// PluginDir is relative to the file.
	PluginDir string         `hcl:"plugin_dir,optional"`
	Plugins   []PluginConfig `hcl:"plugin,block"`

	plugins []host.Spec
}

// ConsulConfig is how to reach Consul: what its own tools take from CONSUL_…
// variables, which stand before it. A token itself has no place in the file.
type ConsulConfig struct {
	Address       string `hcl:"address,optional"`
	TokenFile     string `hcl:"token_file,optional"`  // relative to the file, as are the next three
	CACert        string `hcl:"ca_cert,optional"`     // of PEM
	ClientCert    string `hcl:"client_cert,optional"` // of PEM
	ClientKey     string `hcl:"client_key,optional"`  // of PEM
	TLSServerName string `hcl:"tls_server_name,optional"`
}

// NomadConfig is how to reach Nomad: what its own tools take from NOMAD_…
// variables, which stand before it. A token itself has no place in the file.
type NomadConfig struct {
	Address       string `hcl:"address,optional"`
	Region        string `hcl:"region,optional"`
	Namespace     string `hcl:"namespace,optional"`
	TokenFile     string `hcl:"token_file,optional"`  // relative to the file, as are the next three
	CACert        string `hcl:"ca_cert,optional"`     // of PEM
	ClientCert    string `hcl:"client_cert,optional"` // of PEM
	ClientKey     string `hcl:"client_key,optional"`  // of PEM
	TLSServerName string `hcl:"tls_server_name,optional"`
}

func (m *Meta) loadConfig(path string) (Config, error) {
	src, err := readConfig(path)
	if err != nil {
		return Config{}, usagef("config file: %w", err)
	}
	cfg, file, diags := parseConfig(path, src)
	files := map[string]*hcl.File{path: file}
	if err := m.Diagnostics(files, diags); err != nil {
		return Config{}, err
	}
	m.configFiles = files
	return cfg, nil
}

// maxConfig bounds the file, in bytes.
const maxConfig = 1 << 20

func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	switch {
	case err != nil:
		return nil, err
	case len(src) > maxConfig:
		return nil, fmt.Errorf("%s has more than %d MiB", path, maxConfig>>20)
	}
	return src, nil
}

// parseConfig reads the text of a file that stands at path. The file that it returns
// is for the snippets of diagnostics.
func parseConfig(path string, src []byte) (cfg Config, file *hcl.File, diags hcl.Diagnostics) {
	if file, diags = hclsafe.ParseConfig(src, path); diags.HasErrors() {
		return Config{}, &hcl.File{Bytes: src}, diags
	}
	dir := filepath.Dir(path)
	if diags = append(diags, gohcl.DecodeBody(file.Body, &hcl.EvalContext{}, &cfg)...); diags.HasErrors() {
		return Config{}, file, diags
	}
	if diags = append(diags, checkHooks(cfg.Hooks, dir)...); diags.HasErrors() {
		return Config{}, file, diags
	}
	plugins, more := readPlugins(cfg.Plugins, dir)
	if diags = append(diags, more...); diags.HasErrors() {
		return Config{}, file, diags
	}
	cfg.plugins = plugins
	for i, p := range cfg.Policies {
		cfg.Policies[i] = resolve(dir, p)
	}
	if cfg.PluginDir != "" {
		cfg.PluginDir = resolve(dir, cfg.PluginDir)
	}
	if cfg.Journal != "" {
		cfg.Journal = resolve(dir, cfg.Journal)
	}
	if cfg.Consul == nil {
		cfg.Consul = &ConsulConfig{}
	}
	c := cfg.Consul
	paths := []*string{&c.TokenFile, &c.CACert, &c.ClientCert, &c.ClientKey}
	if n := cfg.Nomad; n != nil {
		paths = append(paths, &n.TokenFile, &n.CACert, &n.ClientCert, &n.ClientKey)
	}
	for _, path := range paths {
		if *path != "" {
			*path = resolve(dir, *path)
		}
	}
	return cfg, file, diags
}

func resolve(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
