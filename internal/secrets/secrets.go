// Package secrets is the form that content with secrets has in Consul: where a
// secret belongs there stands a placeholder, and a node puts the value in its
// place. It imports the standard library only.
//
// The form is for contents of configs that have secrets, and only for those.
// In it a placeholder is
//
//	{{aimlock:secret:NAME}}  or  {{aimlock:secret:NAME:VERSION}}
//
// and text that happens to look like the beginning of one, "{{aimlock:", is
// written as "{{aimlock:literal}}". So every text has exactly one form, and
// what stands in it by chance, or in a value, is never taken for a placeholder.
package secrets

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	// Invariant: no proper beginning of it is one of its ends, so that where
	// it begins in a text does not depend on what stands before.
	opens   = "{{aimlock:"
	literal = "literal}}"
	secret  = "secret:"
	closes  = "}}"
)

// Bounds of a placeholder.
const (
	maxName    = 64
	maxVersion = 64
)

var (
	namePattern    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)
	versionPattern = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
)

// CheckName refuses what cannot be the name of a secret.
func CheckName(name string) error {
	if len(name) > maxName || !namePattern.MatchString(name) {
		return fmt.Errorf("secret name %q is not allowed: it must be a letter or _ and then letters, digits, _ and -, %d at most", name, maxName)
	}
	return nil
}

// CheckVersion refuses what cannot be the version of a secret.
func CheckVersion(v string) error {
	if len(v) > maxVersion || !versionPattern.MatchString(v) {
		return fmt.Errorf("version %q is not allowed: it must be of letters, digits, \".\", \"_\" and \"-\", %d at most", v, maxVersion)
	}
	return nil
}

// Text is the form of a text without secrets.
func Text(s string) string { return strings.ReplaceAll(s, opens, opens+literal) }

// Placeholder is the form of a secret; version may be empty.
func Placeholder(name, version string) string {
	if version != "" {
		name += ":" + version
	}
	return opens + secret + name + closes
}

// ErrForm is returned for a content that is not in the form.
var ErrForm = errors.New("the content holds a damaged placeholder: was it written by hand, or for another version of aimlock?")

// Fill puts the values in the places of their placeholders. Values are taken
// as they are, whatever they hold. An error never holds a part of the content
// but the name of a secret that has no value.
func Fill(content []byte, values map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(len(content))
	for {
		text, rest, found := bytes.Cut(content, []byte(opens))
		out.Write(text)
		if !found {
			return out.Bytes(), nil
		}
		if after, ok := bytes.CutPrefix(rest, []byte(literal)); ok {
			out.WriteString(opens)
			content = after
			continue
		}
		rest, ok := bytes.CutPrefix(rest, []byte(secret))
		inner, _, ends := bytes.Cut(rest[:min(len(rest), maxName+maxVersion+1+len(closes))], []byte(closes))
		if !ok || !ends {
			return nil, ErrForm
		}
		name, version, versioned := strings.Cut(string(inner), ":")
		if CheckName(name) != nil || versioned && CheckVersion(version) != nil {
			return nil, ErrForm
		}
		value, known := values[name]
		if !known {
			return nil, fmt.Errorf("the content wants a secret %q, which its entry does not name", name)
		}
		out.Write(value)
		content = rest[len(inner)+len(closes):]
	}
}

// Hidden stands where a value was taken out.
const Hidden = "(secret)"

// short is the length below which a value cannot be taken out of a text
// without the gaps telling what it is.
const short = 4

// Redact takes the values out of a text that others will see: as they are, and
// as programs often print them (quoted, in JSON, URLs, base64, line by line).
// cut says that the text's beginning is missing: what is left of a value there
// is taken out too. It is a net below those who keep secrets out of what they
// print, and no proof: what a program makes of a value otherwise is not known.
func Redact(text []byte, cut bool, values map[string][]byte) []byte {
	var forms [][]byte
	for _, v := range values {
		if len(v) == 0 {
			continue
		}
		if len(v) < short {
			return []byte("(the output may hold a secret of a few letters, and is not shown)")
		}
		forms = append(forms, formsOf(v)...)
	}
	// The longest first: one value may be a part of another.
	slices.SortFunc(forms, func(a, b []byte) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return bytes.Compare(a, b)
	})
	forms = slices.CompactFunc(forms, bytes.Equal)
	if cut {
		text = text[cutValue(text, forms):]
	}
	for _, f := range forms {
		text = bytes.ReplaceAll(text, f, []byte(Hidden))
	}
	return text
}

// formsOf are the ways in which a value may be printed.
func formsOf(v []byte) [][]byte {
	s := string(v)
	out := [][]byte{v, []byte(url.QueryEscape(s)), []byte(url.PathEscape(s))}
	if q := strconv.Quote(s); len(q) > 2 {
		out = append(out, []byte(q[1:len(q)-1]))
	}
	if j, err := json.Marshal(s); err == nil && len(j) > 2 {
		out = append(out, j[1:len(j)-1])
	}
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		out = append(out, []byte(e.EncodeToString(v)))
	}
	for line := range bytes.Lines(v) {
		if line = bytes.TrimSpace(line); len(line) >= short {
			out = append(out, line)
		}
	}
	return out
}

// cutValue is how much of the text's beginning is the end of a form.
func cutValue(text []byte, forms [][]byte) int {
	n := 0
	for _, f := range forms {
		for k := min(len(f)-1, len(text)); k > n; k-- {
			if bytes.Equal(text[:k], f[len(f)-k:]) {
				n = k
			}
		}
	}
	return n
}
