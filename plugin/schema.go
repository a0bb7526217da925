package plugin

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Type is the type of a value: one of the constants, or what [List], [Map] and
// [Object] make of them. Its text is what crosses the wire.
type Type string

// The simple types.
const (
	String Type = "string"
	Number Type = "number"
	Bool   Type = "bool"
	// Duration is "10s" in HCL, a number of seconds on the wire and in policies, and
	// a time.Duration in Go.
	Duration Type = "duration"
)

// List is a list of values of one type.
func List(of Type) Type { return "list(" + of + ")" }

// Map is a map from strings to values of one type.
func Map(of Type) Type { return "map(" + of + ")" }

// Object is a value with these fields. A field that is null may be left out.
func Object(fields map[string]Type) Type {
	list := make([]string, 0, len(fields))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		list = append(list, name+"="+string(fields[name]))
	}
	return Type("object({" + strings.Join(list, ",") + "})")
}

// Check refuses what is no type.
func (t Type) Check() error {
	_, err := t.Parse()
	return err
}

// Shape is a parsed type.
type Shape struct {
	// Type is String, Number, Bool or Duration, or "list", "map" or "object".
	Type Type
	// Elem is that of a list's or map's elements.
	Elem *Shape
	// Fields are those of an object.
	Fields map[string]*Shape
}

// Bounds of a type's text: it may come from any program.
const (
	maxTypeText  = 4 << 10
	maxTypeDepth = 8
)

// Parse reads the type.
func (t Type) Parse() (*Shape, error) {
	if len(t) > maxTypeText {
		return nil, fmt.Errorf("a type of %d bytes: %d at most", len(t), maxTypeText)
	}
	p := typeParser{rest: string(t)}
	s, err := p.shape(0)
	if err == nil && p.rest != "" {
		err = errors.New("something stands after it")
	}
	if err != nil {
		return nil, fmt.Errorf("type %q: %w", clip(string(t), 80), err)
	}
	return s, nil
}

type typeParser struct{ rest string }

func (p *typeParser) eat(s string) bool {
	rest, ok := strings.CutPrefix(p.rest, s)
	if ok {
		p.rest = rest
	}
	return ok
}

func (p *typeParser) word() string {
	n := strings.IndexFunc(p.rest, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' })
	if n < 0 {
		n = len(p.rest)
	}
	w := p.rest[:n]
	p.rest = p.rest[n:]
	return w
}

func (p *typeParser) shape(depth int) (*Shape, error) {
	if depth > maxTypeDepth {
		return nil, fmt.Errorf("it is nested more than %d deep", maxTypeDepth)
	}
	s := &Shape{Type: Type(p.word())}
	switch s.Type {
	case String, Number, Bool, Duration:
		return s, nil
	case "list", "map":
		if !p.eat("(") {
			return nil, fmt.Errorf("%s of what? write %s(string)", s.Type, s.Type)
		}
		var err error
		if s.Elem, err = p.shape(depth + 1); err != nil {
			return nil, err
		}
		if !p.eat(")") {
			return nil, errors.New("a ) is missing")
		}
		return s, nil
	case "object":
		if !p.eat("({") {
			return nil, errors.New("write object({name=string})")
		}
		s.Fields = map[string]*Shape{}
		for len(s.Fields) == 0 || p.eat(",") {
			if err := p.field(s, depth); err != nil {
				return nil, err
			}
		}
		if !p.eat("})") {
			return nil, errors.New("a }) is missing")
		}
		return s, nil
	}
	return nil, errors.New("use string, number, bool, duration, list(…), map(…) or object({…})")
}

func (p *typeParser) field(s *Shape, depth int) error {
	name := p.word()
	switch {
	case !identifier.MatchString(name):
		return errors.New("the name of a field is missing")
	case s.Fields[name] != nil:
		return fmt.Errorf("field %s stands there twice", name)
	case !p.eat("="):
		return fmt.Errorf("field %s needs a type: write %s=string", name, name)
	}
	f, err := p.shape(depth + 1)
	s.Fields[name] = f
	return err
}

// Schema is what a configuration may hold.
type Schema struct {
	Attributes []Attribute
	Blocks     []Block
}

// Attribute is one argument.
type Attribute struct {
	Name     string
	Type     Type
	Required bool
	// Default is the value where none is given; nil: none.
	Default any
	// Doc is one line.
	Doc string
	// Secret: its value is shown nowhere.
	Secret bool
}

// Block is a nested block. With Max 1 the configuration holds an object, or
// nothing; else a list of objects.
type Block struct {
	Name string
	// Min and Max say how many there may be; Max 0 is no bound.
	Min, Max int
	Doc      string
	Config   Schema
}

// Attribute finds an argument.
func (s *Schema) Attribute(name string) *Attribute {
	for i := range s.Attributes {
		if s.Attributes[i].Name == name {
			return &s.Attributes[i]
		}
	}
	return nil
}

// Block finds a nested block.
func (s *Schema) Block(name string) *Block {
	for i := range s.Blocks {
		if s.Blocks[i].Name == name {
			return &s.Blocks[i]
		}
	}
	return nil
}

const maxBlockDepth = 6

// Check refuses a schema that no host could use.
func (s *Schema) Check() error { return s.check("", 0) }

func (s *Schema) check(in string, depth int) error {
	if depth > maxBlockDepth {
		return fmt.Errorf("schema: blocks are nested more than %d deep", maxBlockDepth)
	}
	seen := map[string]bool{}
	name := func(n string) error {
		switch {
		case !identifier.MatchString(n):
			return fmt.Errorf("schema: %q: a name is lower case letters, digits and _", clip(in+n, 100))
		case seen[n]:
			return fmt.Errorf("schema: %q is declared twice", in+n)
		}
		seen[n] = true
		return nil
	}
	for i := range s.Attributes {
		a := &s.Attributes[i]
		if err := name(a.Name); err != nil {
			return err
		}
		shape, err := a.Type.Parse()
		if err != nil {
			return fmt.Errorf("schema: %q: %w", in+a.Name, err)
		}
		if a.Default == nil {
			continue
		}
		if a.Required {
			return fmt.Errorf("schema: %q is required and has a default", in+a.Name)
		}
		if _, err := shape.Normalize(a.Default); err != nil {
			return fmt.Errorf("schema: default of %q: %w", in+a.Name, err)
		}
	}
	for i := range s.Blocks {
		b := &s.Blocks[i]
		if err := name(b.Name); err != nil {
			return err
		}
		if b.Min < 0 || b.Max < 0 || b.Max > 0 && b.Min > b.Max {
			return fmt.Errorf("schema: block %q: at least %d and at most %d cannot be", in+b.Name, b.Min, b.Max)
		}
		if err := b.Config.check(in+b.Name+".", depth+1); err != nil {
			return err
		}
	}
	return nil
}
