package policies

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/aim-control/aimlock/internal/records"
)

// NotObserved is why a fact is unknown that nobody put into the facts.
const NotObserved = "not observed"

// Fact is one thing that is known, or known not to be known, of a lock.
//
// A Value that is unknown says in Why how it came to be so; it may be refined
// (an age known to be at least 65 s), and comparisons use that. A null Value
// means that the fact cannot apply. The zero Value counts as unknown.
type Fact struct {
	Value      cty.Value
	Source     string
	ObservedAt time.Time
	Why        string
}

// Facts is object -> attribute -> fact. What is missing is unknown. The facts
// of the evidence plugin p stand under the object "plugin.p".
type Facts map[string]map[string]Fact

// Names is a set of facts. A nil one holds every fact.
type Names struct{ objects map[string]map[string]bool }

// Object returns the facts of one object that are in the set; all says that every
// one is. The map is only to be read.
func (n *Names) Object(object string) (attrs map[string]bool, all bool) {
	if n == nil {
		return nil, true
	}
	return n.objects[object], false
}

func (n *Names) add(refs []*factRef) {
	for _, r := range refs {
		if n.objects[r.object] == nil {
			n.objects[r.object] = map[string]bool{}
		}
		n.objects[r.object][r.attr] = true
	}
}

// Lookup returns the fact called "object.attribute" ("plugin.p.attribute").
func (f Facts) Lookup(name string) (Fact, bool) {
	object, attr, ok := SplitFact(name)
	if !ok {
		return Fact{}, false
	}
	fact, ok := f[object][attr]
	return fact, ok
}

// SplitFact parts a fact's whole name.
func SplitFact(name string) (object, attr string, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}

// Known returns a fact with a known or null value.
func Known(v cty.Value, source string, at time.Time) Fact {
	return Fact{Value: v, Source: source, ObservedAt: at}
}

// UnknownFact returns a fact of type t that could not be had.
func UnknownFact(t cty.Type, source string, at time.Time, why string) Fact {
	return Fact{Value: cty.UnknownVal(t), Source: source, ObservedAt: at, Why: why}
}

// factRef is one fact that an expression reads.
type factRef struct {
	object, attr string
	// name is object.attr: what people see, and the name of the variable in
	// the compiled expression.
	name string
	typ  cty.Type
	age  bool
	// unknown is the value of the fact where it is not in the facts.
	unknown cty.Value
}

// value returns the fact's value with the type that the schema promises and,
// if that is not known, why.
func (r *factRef) value(f Facts) (v cty.Value, why string) {
	fact, ok := f[r.object][r.attr]
	if !ok || fact.Value == cty.NilVal {
		if ok && fact.Why != "" {
			return r.unknown, fact.Why
		}
		return r.unknown, NotObserved
	}
	v = fact.Value
	if v.IsMarked() {
		v, _ = v.UnmarkDeep()
	}
	if t := v.Type(); r.typ != cty.DynamicPseudoType && !t.Equals(r.typ) {
		if v.IsNull() {
			return cty.NullVal(r.typ), ""
		}
		c, err := convert.Convert(v, r.typ)
		if err != nil {
			return r.unknown, "the source gave a " + t.FriendlyName() + " where a " + r.typ.FriendlyName() + " belongs"
		}
		v = c
	}
	if v.Type() == cty.Number && v.IsKnown() && !v.IsNull() && !sane(v.AsBigFloat()) {
		return r.unknown, "the source gave a number out of all range"
	}
	if size(v) > maxFact {
		return r.unknown, "the source gave more than " + strconv.Itoa(maxFact>>10) + " KiB"
	}
	if !v.IsKnown() {
		if fact.Why != "" {
			return v, fact.Why
		}
		return v, NotObserved
	}
	return v, ""
}

// ValueJSON renders any value of a fact as JSON. Unknown and null are null;
// so are unknown parts of a collection.
func ValueJSON(v cty.Value) json.RawMessage {
	null := json.RawMessage("null")
	if v == cty.NilVal {
		return null
	}
	v, _ = v.UnmarkDeep()
	if !v.IsKnown() || v.IsNull() {
		return null
	}
	known, err := cty.Transform(v, func(_ cty.Path, p cty.Value) (cty.Value, error) {
		if !p.IsKnown() || !p.IsNull() && p.Type() == cty.Number && !sane(p.AsBigFloat()) {
			return cty.NullVal(p.Type()), nil
		}
		return p, nil
	})
	if err != nil {
		return null
	}
	v = known
	b, err := ctyjson.Marshal(v, v.Type())
	if err != nil {
		return null // only values that JSON has no words for, such as an infinite number
	}
	return b
}

// EvidenceOf returns the named facts as a verdict records them, in the order
// of names. A fact that is not in f is listed as unknown.
func EvidenceOf(f Facts, names []string) []records.Evidence {
	out := make([]records.Evidence, 0, len(names))
	for _, name := range names {
		fact, ok := f.Lookup(name)
		e := records.Evidence{Fact: name, Source: fact.Source, ObservedAt: fact.ObservedAt, Why: fact.Why, Value: ValueJSON(fact.Value)}
		e.Known = ok && fact.Value != cty.NilVal && fact.Value.IsKnown()
		if e.Known {
			e.Why = ""
		} else if e.Why == "" {
			e.Why = NotObserved
		}
		out = append(out, e)
	}
	return out
}

// Clock makes the facts of the object now, as of now.
func Clock(now time.Time) map[string]Fact {
	const source = "clock"
	u := now.UTC()
	return map[string]Fact{
		"unix":    Known(cty.NumberFloatVal(float64(u.Unix())), source, now),
		"hour":    Known(cty.NumberFloatVal(float64(u.Hour())), source, now),
		"weekday": Known(cty.StringVal(strings.ToLower(u.Weekday().String())), source, now),
	}
}
