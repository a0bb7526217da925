// Package builtin has the gates, fleets, evidence, breakers and the target that are
// built into aimlock as plugins: the same code, behind the interfaces of the SDK. So
// each can be used in this process ([plugin.InProcess]) or be a program of its own,
// whose main is one call of [Serve].
//
//	gates.go     http, prometheus, exec, consul_checks, nomad_deployment
//	fleets.go    consul, nomad, file
//	evidence.go  file_locks, process, cluster, nomad_alloc
//	breakers.go  destroy_session, nomad_stop, signal
//	target.go    file_target
//
// It is on aimlock's side of the SDK and may import what it adapts. Decisions stay
// where they are: nothing here judges.
package builtin

import (
	"fmt"
	"os"
	"slices"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/version"
	"github.com/aim-control/aimlock/plugin"
)

// All are the built-in plugins, by kind and name.
func All() []plugin.Plugin {
	return slices.Concat(gatePlugins(), fleetPlugins(), evidencePlugins(), breakerPlugins(), targetPlugins())
}

// Lookup finds a built-in plugin. The names are those of [All].
func Lookup(name string) (plugin.Plugin, bool) {
	all := All()
	i := slices.IndexFunc(all, func(p plugin.Plugin) bool { return p.Name == name })
	if i < 0 {
		return plugin.Plugin{}, false
	}
	return all[i], true
}

// Serve is the main of a built-in plugin that is a program of its own.
func Serve(name string) {
	p, ok := Lookup(name)
	if !ok {
		fmt.Fprintf(os.Stderr, "there is no built-in plugin %q\n", name)
		os.Exit(1) //nolint:forbidigo // it is the whole of a main
	}
	plugin.Serve(p)
}

func named(name, doc string) plugin.Plugin {
	return plugin.Plugin{Name: name, Version: version.Get().Version, Doc: doc}
}

// consulConfig is how to reach Consul. What is left out comes from the variables of
// Consul's own tools, such as CONSUL_HTTP_ADDR.
type consulConfig struct {
	Address   string `config:"consul_address" doc:"host:port or URL of Consul; left out: CONSUL_HTTP_ADDR"`
	Token     string `config:"consul_token,secret" doc:"an ACL token; left out: CONSUL_HTTP_TOKEN"`
	TokenFile string `config:"consul_token_file" doc:"a file that holds an ACL token"`
}

func (c *consulConfig) client() (*consulkv.Client, error) {
	return consulkv.New(consulkv.Config{Address: c.Address, Token: c.Token, TokenFile: c.TokenFile})
}

// nomadConfig is how to reach Nomad. What is left out comes from the variables of
// Nomad's own tools, such as NOMAD_ADDR.
type nomadConfig struct {
	Address   string `config:"nomad_address" doc:"URL of Nomad; left out: NOMAD_ADDR"`
	Token     string `config:"nomad_token,secret" doc:"an ACL token; left out: NOMAD_TOKEN"`
	TokenFile string `config:"nomad_token_file" doc:"a file that holds an ACL token"`
}

func (c *nomadConfig) config() nomadapi.Config {
	return nomadapi.Config{Address: c.Address, Token: c.Token, TokenFile: c.TokenFile}
}

func (c *nomadConfig) client() (*nomadapi.Client, error) { return nomadapi.New(c.config()) }

// named refuses a configuration by which the Nomad of this machine would be asked
// only because nobody named another.
func (c *nomadConfig) named() error {
	if cfg := c.config(); !cfg.Configured() {
		return plugin.Invalid("nomad_address", "name the Nomad that runs the holders, or set NOMAD_ADDR: another one has none of their allocations")
	}
	return nil
}
