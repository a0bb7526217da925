package nomaddevice

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
)

// Bounds and defaults of the settings.
const (
	defaultStateDir = "/var/lib/aimlock"
	defaultSlots    = 32
	maxSlots        = 1024
	// defaultLockInterval is how often a lock that somebody holds is read again,
	// beside each time that its key changes.
	defaultLockInterval = 10 * time.Second
	minLockInterval     = time.Second
	maxLockInterval     = 5 * time.Minute
)

// What a task is shown of the file.
const (
	MountNone   = "none"
	MountFile   = "file"
	MountFolder = "folder"
)

// What becomes of a device where it cannot be told whether its lock is HOT.
const (
	UnknownUnhealthy = "unhealthy"
	UnknownHealthy   = "healthy"
)

// Settings are what stands in the plugin's block of Nomad's configuration.
type Settings struct {
	// StateDir is the state folder of the machine's agent. It need not be there
	// yet.
	StateDir string
	// Node is the agent's name of this machine; "" takes what the state folder
	// says.
	Node string
	// Root stands before every destination, as with the agent.
	Root string
	// Configs are those to show, applied or not; none: all that were applied.
	Configs []string
	// Slots is how many instances a device has: 1 to 1024.
	Slots int
	// Mount is one of the Mount constants, and MountPrivate lets it show what
	// not everybody on the machine may read.
	Mount        string
	MountPrivate bool
	// RequireAgent: without a running agent a device is unhealthy.
	RequireAgent bool
	// OnUnknown is one of the Unknown constants.
	OnUnknown    string
	LockInterval time.Duration

	// What follows stands before flags, environment and config file; "" or none
	// leaves it to those.
	Prefix          string
	Policies        []string
	ConsulAddress   string
	ConsulTokenFile string
}

// setting is one argument of the plugin's block.
type setting struct {
	kind string // as in an hclspec
	// def is the default as an expression of HCL; "" is none.
	def string
	set func(*Settings, cty.Value) error
}

func word(at func(*Settings) *string) setting {
	return setting{kind: "string", set: func(s *Settings, v cty.Value) error {
		*at(s) = v.AsString()
		return nil
	}}
}

func truth(def string, at func(*Settings) *bool) setting {
	return setting{kind: "bool", def: def, set: func(s *Settings, v cty.Value) error {
		*at(s) = v.True()
		return nil
	}}
}

func words(check func(string) error, at func(*Settings) *[]string) setting {
	return setting{kind: "list(string)", set: func(s *Settings, v cty.Value) error {
		for _, e := range v.AsValueSlice() {
			if e.IsNull() {
				return errors.New("holds a null")
			}
			if err := check(e.AsString()); err != nil {
				return err
			}
			if !slices.Contains(*at(s), e.AsString()) {
				*at(s) = append(*at(s), e.AsString())
			}
		}
		return nil
	}}
}

func oneOf(def string, at func(*Settings) *string, all ...string) setting {
	return setting{kind: "string", def: fmt.Sprintf("%q", def), set: func(s *Settings, v cty.Value) error {
		if !slices.Contains(all, v.AsString()) {
			return fmt.Errorf("is %q: one of %s", v.AsString(), strings.Join(all, ", "))
		}
		*at(s) = v.AsString()
		return nil
	}}
}

func absolute(what string, at func(*Settings) *string) setting {
	return setting{kind: "string", set: func(s *Settings, v cty.Value) error {
		if path := v.AsString(); path == "" || filepath.IsAbs(path) {
			*at(s) = path
			return nil
		}
		return fmt.Errorf("is %q: name the %s by its whole path, since Nomad chooses where a plugin runs", v.AsString(), what)
	}}
}

// settings are the arguments, and consulSettings those of its block consul.
func settings() map[string]setting {
	stateDir := absolute("folder", func(s *Settings) *string { return &s.StateDir })
	stateDir.def = fmt.Sprintf("%q", defaultStateDir)
	return map[string]setting{
		"state_dir":     stateDir,
		"node":          word(func(s *Settings) *string { return &s.Node }),
		"root":          absolute("folder", func(s *Settings) *string { return &s.Root }),
		"prefix":        word(func(s *Settings) *string { return &s.Prefix }),
		"mount":         oneOf(MountFile, func(s *Settings) *string { return &s.Mount }, MountFile, MountFolder, MountNone),
		"mount_private": truth("false", func(s *Settings) *bool { return &s.MountPrivate }),
		"require_agent": truth("true", func(s *Settings) *bool { return &s.RequireAgent }),
		"on_unknown":    oneOf(UnknownUnhealthy, func(s *Settings) *string { return &s.OnUnknown }, UnknownUnhealthy, UnknownHealthy),
		"configs": words(func(name string) error { return keys.CheckName("config", name) },
			func(s *Settings) *[]string { return &s.Configs }),
		"policies": words(func(path string) error {
			if !filepath.IsAbs(path) {
				return fmt.Errorf("holds %q: name files and folders by their whole paths, since Nomad chooses where a plugin runs", path)
			}
			return nil
		}, func(s *Settings) *[]string { return &s.Policies }),
		"slots": {kind: "number", def: fmt.Sprint(defaultSlots), set: func(s *Settings, v cty.Value) error {
			n, _ := v.AsBigFloat().Float64()
			if n != math.Trunc(n) || n < 1 || n > maxSlots {
				return fmt.Errorf("is %v: a whole number from 1 to %d", n, maxSlots)
			}
			s.Slots = int(n)
			return nil
		}},
		"lock_interval": {kind: "string", def: fmt.Sprintf("%q", defaultLockInterval), set: func(s *Settings, v cty.Value) error {
			d, err := time.ParseDuration(v.AsString())
			if err != nil || d < minLockInterval || d > maxLockInterval {
				return fmt.Errorf("is %q: a duration from %s to %s, such as \"10s\"", v.AsString(), minLockInterval, maxLockInterval)
			}
			s.LockInterval = d
			return nil
		}},
	}
}

func consulSettings() map[string]setting {
	return map[string]setting{
		"address":    word(func(s *Settings) *string { return &s.ConsulAddress }),
		"token_file": absolute("file", func(s *Settings) *string { return &s.ConsulTokenFile }),
	}
}

// schema is the settings in the form in which Nomad takes them.
func schema() *nomadpb.Spec {
	top := object(settings())
	top["consul"] = &nomadpb.Spec{Block: &nomadpb.Spec_BlockValue{BlockValue: &nomadpb.Block{
		Name:   "consul",
		Nested: &nomadpb.Spec{Block: &nomadpb.Spec_Object{Object: &nomadpb.Object{Attributes: object(consulSettings())}}},
	}}}
	return &nomadpb.Spec{Block: &nomadpb.Spec_Object{Object: &nomadpb.Object{Attributes: top}}}
}

func object(all map[string]setting) map[string]*nomadpb.Spec {
	out := map[string]*nomadpb.Spec{}
	for name, s := range all {
		attr := &nomadpb.Spec{Block: &nomadpb.Spec_Attr{Attr: &nomadpb.Attr{Name: name, Type: s.kind}}}
		if s.def != "" {
			attr = &nomadpb.Spec{Block: &nomadpb.Spec_Default{Default: &nomadpb.Default{
				Primary: attr,
				Default: &nomadpb.Spec{Block: &nomadpb.Spec_Literal{Literal: &nomadpb.Literal{Value: s.def}}},
			}}}
		}
		out[name] = attr
	}
	return out
}

// Defaults are the settings of an empty block.
func Defaults() Settings {
	return Settings{
		StateDir: defaultStateDir, Slots: defaultSlots, Mount: MountFile, RequireAgent: true,
		OnUnknown: UnknownUnhealthy, LockInterval: defaultLockInterval,
	}
}

// kinds are the types of hclspec that are used.
var kinds = map[string]cty.Type{"string": cty.String, "bool": cty.Bool, "number": cty.Number, "list(string)": cty.List(cty.String)}

// maxEncoded bounds the settings as Nomad sends them, in bytes, and so how deep they are
// nested.
const maxEncoded = 64 << 10

// decode reads the settings out of the MessagePack of Nomad. What is left out or
// null has its default. All that is wrong is told at once.
func decode(b []byte) (Settings, error) {
	s := Defaults()
	if len(b) == 0 {
		return s, nil
	}
	if len(b) > maxEncoded {
		return s, fmt.Errorf("the settings are %d bytes, more than %d", len(b), maxEncoded)
	}
	v, err := decoded(b)
	if err != nil {
		return s, fmt.Errorf("the settings are not MessagePack: %w", err)
	}
	var wrong []string
	s.take(v, "", settings(), &wrong)
	if s.Mount == MountFolder && !s.MountPrivate {
		wrong = append(wrong, `mount is "folder", which shows tasks all that is in there: set mount_private = true as well if that is meant`)
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return s, errors.New(strings.Join(wrong, "; "))
	}
	if s.StateDir == "" {
		s.StateDir = defaultStateDir
	}
	return s, nil
}

// decoded takes the way over JSON: where cty reads MessagePack itself, it makes room for
// as many elements as are announced, and panics at a number that is none.
func decoded(b []byte) (cty.Value, error) {
	r := bytes.NewReader(b)
	all, err := msgpack.NewDecoder(r).DecodeInterface()
	if err != nil {
		return cty.NilVal, err
	}
	if r.Len() > 0 {
		return cty.NilVal, fmt.Errorf("%d bytes follow", r.Len())
	}
	if b, err = json.Marshal(all); err != nil {
		return cty.NilVal, err
	}
	kind, err := ctyjson.ImpliedType(b)
	if err != nil {
		return cty.NilVal, err
	}
	return ctyjson.Unmarshal(b, kind)
}

func (s *Settings) take(v cty.Value, under string, known map[string]setting, wrong *[]string) {
	if v.IsNull() {
		return
	}
	if !v.Type().IsObjectType() && !v.Type().IsMapType() {
		*wrong = append(*wrong, strings.TrimSuffix(under, ".")+" is no block of settings")
		return
	}
	for name, v := range v.AsValueMap() {
		if under == "" && name == "consul" {
			s.take(v, "consul.", consulSettings(), wrong)
			continue
		}
		one, ok := known[name]
		switch {
		case !ok:
			names := slices.Sorted(maps.Keys(known))
			*wrong = append(*wrong, fmt.Sprintf("%s%s is no setting of aimlock: they are %s", under, name, strings.Join(names, ", ")))
			continue
		case v.IsNull():
			continue
		}
		conv, err := convert.Convert(v, kinds[one.kind])
		if err == nil && !conv.IsWhollyKnown() {
			err = errors.New("a value that is not known")
		}
		if err != nil {
			*wrong = append(*wrong, fmt.Sprintf("%s%s is no %s", under, name, one.kind))
			continue
		}
		if err := one.set(s, conv); err != nil {
			*wrong = append(*wrong, under+name+" "+err.Error())
		}
	}
}
