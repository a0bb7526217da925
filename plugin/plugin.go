package plugin

import (
	"errors"
	"fmt"
	"regexp"
)

// Plugin is what one program serves: at least one kind. Each kind is a factory
// that makes a new, unconfigured value with its defaults set; see the package
// comment for what becomes of it.
type Plugin struct {
	// Name is lower case letters, digits, - and _, at most 64.
	Name string
	// Version is the plugin's own, such as "1.2.0".
	Version string
	// Doc says in one line what it is for.
	Doc string

	Evidence func() Evidence
	Breaker  func() Breaker
	Gate     func() Gate
	Target   func() Target
	Fleet    func() Fleet
}

// Info is what a plugin says of itself.
type Info struct {
	Name, Version, Doc string
	// SDK is what it was built with; empty where it does not say.
	SDK string
	// Protocol is the version that is spoken with it.
	Protocol int
	Kinds    []KindInfo
}

// KindInfo is one kind of a plugin.
type KindInfo struct {
	Kind Kind
	// Config is what its configuration may hold.
	Config Schema
	// Facts are those of an evidence plugin.
	Facts []FactDef
	// Capabilities are CapFencing, and what later versions know.
	Capabilities []string
}

// Kind finds a kind; nil: the plugin is none.
func (i *Info) Kind(k Kind) *KindInfo {
	for n := range i.Kinds {
		if i.Kinds[n].Kind == k {
			return &i.Kinds[n]
		}
	}
	return nil
}

// Has tells whether the kind has a capability.
func (k *KindInfo) Has(capability string) bool {
	for _, c := range k.Capabilities {
		if c == capability {
			return true
		}
	}
	return false
}

const sdkName = "aimlock-go 1"

var (
	pluginName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	identifier = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
)

// factory makes an unconfigured value of a kind; nil: the plugin is none.
func (p *Plugin) factory(k Kind) func() any {
	switch {
	case k == KindEvidence && p.Evidence != nil:
		return func() any { return p.Evidence() }
	case k == KindBreaker && p.Breaker != nil:
		return func() any { return p.Breaker() }
	case k == KindGate && p.Gate != nil:
		return func() any { return p.Gate() }
	case k == KindTarget && p.Target != nil:
		return func() any { return p.Target() }
	case k == KindFleet && p.Fleet != nil:
		return func() any { return p.Fleet() }
	}
	return nil
}

// describe is what the plugin says of itself, or what is wrong with how it is
// declared.
func (p *Plugin) describe() (*Info, error) {
	if !pluginName.MatchString(p.Name) {
		return nil, fmt.Errorf("plugin name %q: use lower case letters, digits, - and _, 64 at most", p.Name)
	}
	info := &Info{Name: p.Name, Version: p.Version, Doc: p.Doc, SDK: sdkName, Protocol: Protocol}
	for _, k := range Kinds() {
		factory := p.factory(k)
		if factory == nil {
			continue
		}
		ki, err := describeKind(k, factory())
		if err != nil {
			return nil, fmt.Errorf("plugin %s, kind %s: %w", p.Name, k, err)
		}
		info.Kinds = append(info.Kinds, *ki)
	}
	if len(info.Kinds) == 0 {
		return nil, fmt.Errorf("plugin %s serves no kind: set Evidence, Breaker, Gate, Target or Fleet", p.Name)
	}
	return info, nil
}

func describeKind(k Kind, v any) (*KindInfo, error) {
	schema, err := SchemaOf(v)
	if err != nil {
		return nil, err
	}
	ki := &KindInfo{Kind: k, Config: *schema}
	switch k {
	case KindEvidence:
		ki.Facts = v.(Evidence).Facts()
	case KindTarget:
		if v.(Target).Fencing() {
			ki.Capabilities = append(ki.Capabilities, CapFencing)
		}
	}
	return ki, ki.check()
}

// check refuses what no host could use.
func (k *KindInfo) check() error {
	if err := k.Config.Check(); err != nil {
		return err
	}
	if k.Kind == KindEvidence && len(k.Facts) == 0 {
		return errors.New("it declares no facts")
	}
	seen := map[string]bool{}
	for _, f := range k.Facts {
		switch {
		case !identifier.MatchString(f.Name):
			return fmt.Errorf("fact %q: a name is lower case letters, digits and _", f.Name)
		case seen[f.Name]:
			return fmt.Errorf("fact %q is declared twice", f.Name)
		}
		seen[f.Name] = true
		if err := f.Type.Check(); err != nil {
			return fmt.Errorf("fact %q: %w", f.Name, err)
		}
	}
	return nil
}
