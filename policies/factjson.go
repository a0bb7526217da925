package policies

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// EncodeFact writes a fact as JSON from which DecodeFact makes the same one:
// its type, what is known of an unknown value and the precision of a number are
// kept. Marks are not. object and attr name the fact, for the type that the
// schema promises; observed is when facts of this kind were observed, so that
// only another time is written.
//
//	{"value": 42, "source": "consul kv"}                     known; null is known
//	{"known": false, "why": "…", "source": "…", "range": {"min": 65}}
func EncodeFact(object, attr string, f Fact, observed time.Time) json.RawMessage {
	if def, ok := schema[object][attr]; ok && f.ObservedAt.Equal(observed) {
		if b, ok := encodePlain(f, def.Type); ok {
			return b
		}
	}
	return encodeAny(object, attr, f, observed)
}

// encodePlain is encodeAny for the facts that nearly all are: of the type of their
// schema, which is a primitive one, wholly known or not at all, and of plain text.
func encodePlain(f Fact, t cty.Type) (json.RawMessage, bool) {
	v := f.Value
	if v == cty.NilVal || v.IsMarked() || !t.IsPrimitiveType() || v.Type() != t || !plainText(f.Source) || !plainText(f.Why) {
		return nil, false
	}
	b := make([]byte, 0, 64+len(f.Source)+len(f.Why))
	b = append(b, '{')
	switch {
	case !v.IsKnown():
		if v != cty.UnknownVal(t) {
			return nil, false
		}
		b = append(b, `"known":false`...)
	case v.IsNull():
		b = append(b, `"value":null`...)
	case t == cty.Bool:
		b = strconv.AppendBool(append(b, `"value":`...), v.True())
	case t == cty.Number:
		n := v.AsBigFloat()
		x, acc := n.Float64()
		if acc != big.Exact || n.Prec() != floatPrecision || n.IsInf() {
			return nil, false
		}
		b = strconv.AppendFloat(append(b, `"value":`...), x, 'g', -1, 64)
	default:
		s := v.AsString()
		if !plainText(s) {
			return nil, false
		}
		b = append(append(append(b, `"value":"`...), s...), '"')
	}
	if f.Source != "" {
		b = append(append(append(b, `,"source":"`...), f.Source...), '"')
	}
	if f.Why != "" {
		b = append(append(append(b, `,"why":"`...), f.Why...), '"')
	}
	return append(b, '}'), true
}

// plainText reports whether a text stands in JSON as it is.
func plainText(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c < 0x20 || c > 0x7e, c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}

func encodeAny(object, attr string, f Fact, observed time.Time) json.RawMessage {
	out := factJSON{Source: f.Source, Why: f.Why}
	if !f.ObservedAt.Equal(observed) {
		at := f.ObservedAt.UTC()
		out.ObservedAt = &at
	}
	v := f.Value
	if v == cty.NilVal {
		v = cty.DynamicVal
	}
	v, _ = v.UnmarkDeep()
	t := cty.DynamicPseudoType
	if def, ok := schema[object][attr]; ok {
		t = def.Type
	}
	if !v.Type().Equals(t) {
		// Capsules are the only types without a JSON form, and no fact is one.
		if b, err := ctyjson.MarshalType(v.Type()); err == nil {
			out.Type = b
		}
	}
	out.node = encodeNode(v)
	b, err := json.Marshal(&out)
	if err != nil {
		panic(fmt.Sprintf("policies: fact %s.%s: %v", object, attr, err)) // nothing in it can fail
	}
	return b
}

// DecodeFact undoes EncodeFact. It takes any bytes.
func DecodeFact(object, attr string, b []byte, observed time.Time) (f Fact, err error) {
	defer func() {
		// cty panics on what its types do not allow.
		if p := recover(); p != nil {
			err = fmt.Errorf("fact %s.%s: %s", object, attr, clip(printable(fmt.Sprint(p)), 200))
		}
	}()
	var in factJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return Fact{}, fmt.Errorf("fact %s.%s: %w", object, attr, err)
	}
	t := cty.DynamicPseudoType
	if def, ok := schema[object][attr]; ok {
		t = def.Type
	}
	if in.Type != nil {
		if t, err = ctyjson.UnmarshalType(in.Type); err != nil {
			return Fact{}, fmt.Errorf("fact %s.%s: %w", object, attr, err)
		}
	}
	f = Fact{Source: in.Source, Why: in.Why, ObservedAt: observed}
	if in.ObservedAt != nil {
		f.ObservedAt = *in.ObservedAt
	}
	if f.Value, err = in.decode(t, 0); err != nil {
		return Fact{}, fmt.Errorf("fact %s.%s: %w", object, attr, err)
	}
	return f, nil
}

type factJSON struct {
	node
	Type       json.RawMessage `json:"type,omitempty"`
	Source     string          `json:"source,omitempty"`
	Why        string          `json:"why,omitempty"`
	ObservedAt *time.Time      `json:"observed_at,omitempty"`
}

// node is a cty value, whose type is known from elsewhere.
type node struct {
	// Value is the plain JSON of a known value.
	Value json.RawMessage `json:"value,omitempty"`
	// Known is false for an unknown value, and left out else.
	Known *bool       `json:"known,omitempty"`
	Range *rangeJSON  `json:"range,omitempty"`
	Exact *numberJSON `json:"exact,omitempty"`
	// List and Map are the elements of what is not wholly known, or has no
	// plain JSON.
	List []node          `json:"list,omitempty"`
	Map  map[string]node `json:"map,omitempty"`
	// Empty marks List or Map as there, but empty.
	Empty bool `json:"empty,omitempty"`
}

// rangeJSON is what is known of an unknown value.
type rangeJSON struct {
	NotNull   bool        `json:"not_null,omitempty"`
	Min       *numberJSON `json:"min,omitempty"`
	Max       *numberJSON `json:"max,omitempty"`
	Above     bool        `json:"above,omitempty"` // Min itself is not in the range
	Below     bool        `json:"below,omitempty"` // Max itself is not in the range
	Prefix    string      `json:"prefix,omitempty"`
	MinLength int         `json:"min_length,omitempty"`
	MaxLength *int        `json:"max_length,omitempty"`
}

// numberJSON is a number with its precision: "53:1.5", with the digits in
// hexadecimal where a float64 does not have the value.
type numberJSON string

func encodeNumber(f *big.Float) numberJSON {
	if x, acc := f.Float64(); acc == big.Exact {
		return numberJSON(strconv.FormatUint(uint64(f.Prec()), 10) + ":" + strconv.FormatFloat(x, 'g', -1, 64))
	}
	return numberJSON(strconv.FormatUint(uint64(f.Prec()), 10) + ":" + f.Text('p', 0))
}

// maxPrecision and maxDigits bound the numbers that are read.
const (
	maxPrecision = 1 << 14
	maxDigits    = 8 << 10
)

func (n numberJSON) decode() (cty.Value, error) {
	p, digits, ok := strings.Cut(string(n), ":")
	prec, err := strconv.ParseUint(p, 10, 32)
	if !ok || err != nil || prec > maxPrecision || len(digits) > maxDigits {
		return cty.NilVal, fmt.Errorf("%q is no number", clip(printable(string(n)), 40))
	}
	f := new(big.Float).SetPrec(uint(prec))
	if strings.HasPrefix(strings.TrimPrefix(digits, "-"), "0x") {
		// Only this form: a decimal exponent could take all memory.
		if _, _, err := f.Parse(digits, 0); err != nil {
			return cty.NilVal, fmt.Errorf("%q is no number", clip(printable(string(n)), 40))
		}
		return cty.NumberVal(f), nil
	}
	x, err := strconv.ParseFloat(digits, 64)
	if err != nil || x != x {
		return cty.NilVal, fmt.Errorf("%q is no number", clip(printable(string(n)), 40))
	}
	return cty.NumberVal(f.SetFloat64(x)), nil
}

// floatPrecision is that of numbers made of a float64, as nearly all facts are.
const floatPrecision = 53

func encodeNode(v cty.Value) node {
	t := v.Type()
	switch {
	case !v.IsKnown():
		no := false
		return node{Known: &no, Range: encodeRange(v)}
	case v.IsNull():
		return node{Value: json.RawMessage("null")}
	case t == cty.Bool:
		return node{Value: json.RawMessage(strconv.FormatBool(v.True()))}
	case t == cty.Number:
		f := v.AsBigFloat()
		if x, acc := f.Float64(); acc == big.Exact && f.Prec() == floatPrecision && !f.IsInf() {
			return node{Value: json.RawMessage(strconv.FormatFloat(x, 'g', -1, 64))}
		}
		n := encodeNumber(f)
		return node{Exact: &n}
	case t == cty.String:
		b, err := json.Marshal(v.AsString())
		if err != nil {
			panic(err) // a string can always be encoded
		}
		return node{Value: b}
	case t.IsCapsuleType():
		no := false
		return node{Known: &no}
	}
	out := node{Empty: v.LengthInt() == 0}
	if t.IsMapType() || t.IsObjectType() {
		out.Map = make(map[string]node, v.LengthInt())
	}
	for it := v.ElementIterator(); it.Next(); {
		k, e := it.Element()
		if out.Map != nil {
			out.Map[k.AsString()] = encodeNode(e)
		} else {
			out.List = append(out.List, encodeNode(e))
		}
	}
	return out
}

func encodeRange(v cty.Value) *rangeJSON {
	t := v.Type()
	if t == cty.DynamicPseudoType {
		return nil
	}
	r := v.Range()
	out := &rangeJSON{NotNull: r.DefinitelyNotNull()}
	switch {
	case t == cty.Number:
		if low, incl := r.NumberLowerBound(); low.IsKnown() && !low.AsBigFloat().IsInf() {
			n := encodeNumber(low.AsBigFloat())
			out.Min, out.Above = &n, !incl
		}
		if high, incl := r.NumberUpperBound(); high.IsKnown() && !high.AsBigFloat().IsInf() {
			n := encodeNumber(high.AsBigFloat())
			out.Max, out.Below = &n, !incl
		}
	case t == cty.String:
		out.Prefix = r.StringPrefix()
	case t.IsCollectionType():
		out.MinLength = r.LengthLowerBound()
		if n := r.LengthUpperBound(); n < maxLength {
			out.MaxLength = &n
		}
	}
	if *out == (rangeJSON{}) {
		return nil
	}
	return out
}

// maxLength is above every length that a fact of a collection has.
const maxLength = 1 << 30

func (r *rangeJSON) decode(t cty.Type) (cty.Value, error) {
	v := cty.UnknownVal(t)
	if r == nil || t == cty.DynamicPseudoType {
		return v, nil
	}
	b := v.Refine()
	if r.NotNull {
		b = b.NotNull()
	}
	if r.Min != nil {
		n, err := r.Min.decode()
		if err != nil {
			return cty.NilVal, err
		}
		b = b.NumberRangeLowerBound(n, !r.Above)
	}
	if r.Max != nil {
		n, err := r.Max.decode()
		if err != nil {
			return cty.NilVal, err
		}
		b = b.NumberRangeUpperBound(n, !r.Below)
	}
	if r.Prefix != "" {
		b = b.StringPrefixFull(r.Prefix)
	}
	if r.MinLength > 0 {
		b = b.CollectionLengthLowerBound(r.MinLength)
	}
	if r.MaxLength != nil {
		b = b.CollectionLengthUpperBound(*r.MaxLength)
	}
	return b.NewValue(), nil
}

// anyFact stands for every fact of an object's schema that is not named.
const anyFact = "*"

// EncodeFacts is EncodeFact for the facts of one object. Where many cannot
// apply or could not be had, and for the same reason, "*" says so once.
func EncodeFacts(object string, facts map[string]Fact, observed time.Time) map[string]json.RawMessage {
	out := make(map[string]json.RawMessage, len(facts))
	common, same := commonFact(object, facts, observed)
	if common != "" {
		f := facts[common]
		f.Value = cty.NullVal(cty.DynamicPseudoType)
		if !facts[common].Value.IsKnown() {
			f.Value = cty.DynamicVal
		}
		out[anyFact] = EncodeFact(object, anyFact, f, observed)
	}
	for name, f := range facts {
		if !same[name] {
			out[name] = EncodeFact(object, name, f, observed)
		}
	}
	return out
}

// commonFact finds the facts without a value that are most alike, names one of
// them, and says which they are. There are none if the object has not all the
// facts of its schema, or only one is like it.
func commonFact(object string, facts map[string]Fact, observed time.Time) (common string, same map[string]bool) {
	type class struct {
		null        bool
		source, why string
	}
	classes := map[class][]string{}
	var best class
	for _, name := range factNames(object) {
		f, ok := facts[name]
		if !ok {
			return "", nil
		}
		def, v := schema[object][name], f.Value
		if v == cty.NilVal || !v.Type().Equals(def.Type) || !f.ObservedAt.Equal(observed) {
			continue
		}
		null := v.IsKnown() && v.IsNull()
		if null || !v.IsKnown() && encodeRange(v) == nil {
			c := class{null, f.Source, f.Why}
			classes[c] = append(classes[c], name)
			if len(classes[c]) > len(classes[best]) {
				best = c
			}
		}
	}
	if len(classes[best]) < 2 {
		return "", nil
	}
	same = map[string]bool{}
	for _, name := range classes[best] {
		same[name] = true
	}
	return classes[best][0], same
}

// DecodeFacts undoes EncodeFacts. What it cannot read is an unknown fact that
// says so.
func DecodeFacts(object string, in map[string]json.RawMessage, observed time.Time) map[string]Fact {
	out := make(map[string]Fact, len(in))
	for name, b := range in {
		f, err := DecodeFact(object, name, b, observed)
		if err != nil {
			f = UnknownFact(cty.DynamicPseudoType, "", observed, err.Error())
		}
		out[name] = f
	}
	rest, ok := out[anyFact]
	if !ok {
		return out
	}
	delete(out, anyFact)
	for name, def := range schema[object] {
		if _, ok := out[name]; ok {
			continue
		}
		f := rest
		f.Value = cty.UnknownVal(def.Type)
		if rest.Value.IsKnown() && rest.Value.IsNull() {
			f.Value = cty.NullVal(def.Type)
		}
		out[name] = f
	}
	return out
}
