// Ansible-inventory is a fleet: the hosts of an Ansible inventory, as
// "ansible-inventory --list" tells them, from a file that it was written to or from
// the command itself.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/plugin"
)

func main() { plugin.Serve(description()) }

func description() plugin.Plugin {
	return plugin.Plugin{
		Name: "ansible-inventory", Version: "1.0.0", Doc: "The hosts of an Ansible inventory.",
		Fleet: func() plugin.Fleet { return &fleet{Group: "all"} },
	}
}

type fleet struct {
	Path    string   `config:"path" doc:"A file with the output of ansible-inventory --list."`
	Command []string `config:"command" doc:"Or what prints it, such as [\"ansible-inventory\", \"-i\", \"hosts.yml\", \"--list\"]."`
	Group   string   `config:"group" doc:"The group whose hosts are meant, its children included."`
	Vars    []string `config:"vars" doc:"Variables of hosts that become metadata. Others, which may be secrets, are left alone."`
}

// Validate checks what the schema cannot.
func (f *fleet) Validate(context.Context) error {
	switch {
	case (f.Path == "") == (len(f.Command) == 0):
		return plugin.Invalid("path", "give either path or command")
	case f.Group == "":
		return plugin.Invalid("group", "it must name a group; all is every host")
	}
	return nil
}

// maxInventory bounds an inventory, in bytes.
const maxInventory = 64 << 20

// List reads the inventory anew.
func (f *fleet) List(ctx context.Context) (*plugin.Listing, error) {
	text, err := f.read(ctx)
	if err != nil {
		return nil, err
	}
	inv, err := parse(text)
	if err != nil {
		return nil, err
	}
	if _, ok := inv.groups[f.Group]; !ok {
		return nil, fmt.Errorf("the inventory has no group %q: %w", f.Group, plugin.ErrNotFound)
	}
	l := &plugin.Listing{}
	for _, host := range slices.Sorted(maps.Keys(inv.hostsOf(f.Group, map[string]bool{}))) {
		n := plugin.Node{Name: host, Meta: map[string]string{"groups": strings.Join(inv.groupsOf(host), ",")}}
		for _, name := range f.Vars {
			switch v := inv.vars[host][name].(type) {
			case nil:
			case string, bool, json.Number:
				n.Meta[name] = fmt.Sprint(v)
			default:
				l.Warnings = append(l.Warnings, fmt.Sprintf("%s: variable %s is no simple value, and is left out", host, name))
			}
		}
		l.Nodes = append(l.Nodes, n)
	}
	return l, nil
}

func (f *fleet) read(ctx context.Context) ([]byte, error) {
	if f.Path != "" {
		file, err := os.Open(f.Path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		text, err := io.ReadAll(io.LimitReader(file, maxInventory+1))
		if len(text) > maxInventory {
			return nil, fmt.Errorf("%s is larger than %d bytes", f.Path, maxInventory)
		}
		return text, err
	}
	cmd := exec.CommandContext(ctx, f.Command[0], f.Command[1:]...)
	var said bytes.Buffer
	cmd.Stderr = &said
	text, err := cmd.Output()
	if err != nil {
		last := strings.TrimSpace(said.String())
		return nil, fmt.Errorf("%s: %w: %s", f.Command[0], err, last[strings.LastIndexByte(last, '\n')+1:])
	}
	return text, nil
}

type inventory struct {
	groups map[string]group
	vars   map[string]map[string]any
}

type group struct{ Hosts, Children []string }

func parse(text []byte) (*inventory, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var top map[string]json.RawMessage
	if err := d.Decode(&top); err != nil {
		return nil, fmt.Errorf("this is not the output of ansible-inventory --list: %w", err)
	}
	inv := &inventory{groups: map[string]group{}}
	for name, raw := range top {
		if name == "_meta" {
			var meta struct{ Hostvars map[string]map[string]any }
			d := json.NewDecoder(bytes.NewReader(raw))
			d.UseNumber()
			if err := d.Decode(&meta); err != nil {
				return nil, fmt.Errorf("the variables of hosts: %w", err)
			}
			inv.vars = meta.Hostvars
			continue
		}
		var g group
		if err := json.Unmarshal(raw, &g); err != nil {
			return nil, fmt.Errorf("group %s: %w", name, err)
		}
		inv.groups[name] = g
	}
	if len(inv.groups) == 0 {
		return nil, errors.New("the inventory has no groups")
	}
	return inv, nil
}

// hostsOf are the hosts of a group and of its children. seen holds the groups on the
// way, which may go in a circle.
func (inv *inventory) hostsOf(name string, seen map[string]bool) map[string]bool {
	hosts := map[string]bool{}
	if seen[name] {
		return hosts
	}
	seen[name] = true
	for _, h := range inv.groups[name].Hosts {
		hosts[h] = true
	}
	for _, c := range inv.groups[name].Children {
		maps.Copy(hosts, inv.hostsOf(c, seen))
	}
	return hosts
}

func (inv *inventory) groupsOf(host string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(inv.groups)) {
		if slices.Contains(inv.groups[name].Hosts, host) {
			names = append(names, name)
		}
	}
	return names
}
