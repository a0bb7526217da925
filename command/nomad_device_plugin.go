package command

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/version"
	"github.com/aim-control/aimlock/plugin/nomaddevice"
)

const nomadDevice = "nomad-device-plugin"

// Argv is the command line that a process was started with, its program's name
// first, as the arguments of Run. Nomad finds the settings of a plugin by the
// name of its file, so that a link of that name is the plugin.
func Argv(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	if strings.TrimSuffix(filepath.Base(argv[0]), ".exe") == nomaddevice.Name && (len(argv) == 1 || argv[1] != nomadDevice) {
		return append([]string{nomadDevice}, argv[1:]...)
	}
	return argv[1:]
}

func newNomadDevicePlugin(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Show this node's configs to Nomad as devices",
		Usage:    "[options]",
		Description: `A plugin that Nomad's client starts and talks to: each config that the aimlock
agent of the machine has applied is a device aimlock/config/NAME, so that a job
can be placed only where a config has reached a revision and its lock is not HOT.
A device is unhealthy where the lock is HOT, the file has drifted, the last order
failed, or any of this cannot be known. It only reads, and a task that runs stays.

It has no use on a command line. Link it into Nomad's plugin_dir under the name
aimlock-nomad-device-plugin and put a block of that name into the client's
configuration, or put it there as it is and give the block this command in its
args. The block's config has the settings: docs/nomad-device.md.`,
		Examples: []example{
			{"What a Nomad client runs, by its plugin block", "aimlock nomad-device-plugin"},
		},
		Groups: groupConsul | groupPolicy | groupDaemon,
		Run: func(ctx context.Context, _ *input) error {
			// Nomad takes JSON into its own log, each line at its level.
			log := hclog.New(&hclog.LoggerOptions{Name: "aimlock", Level: m.Log.GetLevel(), Output: m.Stderr, JSONFormat: true})
			err := nomaddevice.Serve(ctx, nomaddevice.Config{
				Log: log, Version: version.Get().Version,
				Connect: func(s nomaddevice.Settings) (*nomaddevice.Access, error) { return m.deviceAccess(log, s) },
			})
			if errors.Is(err, nomaddevice.ErrByHand) {
				return usagef(`%w. Link aimlock into the client's plugin_dir as %s, and add a block
    plugin %q { config { state_dir = "/var/lib/aimlock" } }
to its configuration`, err, nomaddevice.Name, nomaddevice.Name)
			}
			return err
		},
	}
}

// deviceAccess makes the clients that a device plugin's settings ask for, which
// stand before flags, environment and config file.
func (m *Meta) deviceAccess(log hclog.Logger, s nomaddevice.Settings) (*nomaddevice.Access, error) {
	var printed bytes.Buffer
	own := &Meta{
		stderr: m.stderr,
		IO:     IO{Stdin: m.Stdin, Stdout: m.Stdout, Stderr: &printed, LookupEnv: m.LookupEnv}, ctx: m.ctx, Log: log,
		Prefix: m.Prefix, PolicyPaths: m.PolicyPaths, Config: m.Config, consul: m.consul, policyVars: m.policyVars, policyVarFiles: m.policyVarFiles,
	}
	if s.Prefix != "" {
		prefix, err := keys.New(s.Prefix)
		if err != nil {
			return nil, err
		}
		own.Prefix = prefix
	}
	own.consul.httpAddr = first(s.ConsulAddress, own.consul.httpAddr)
	own.consul.tokenFile = first(s.ConsulTokenFile, own.consul.tokenFile)
	if len(s.Policies) > 0 {
		own.PolicyPaths = s.Policies
	}
	client, err := own.Consul()
	if err != nil {
		return nil, err
	}
	locks, err := own.Locksmith()
	if err != nil {
		if text := strings.TrimSpace(printed.String()); text != "" {
			return nil, errors.New(text)
		}
		return nil, err
	}
	return &nomaddevice.Access{Consul: client, Locks: locks, Prefix: own.Prefix}, nil
}
