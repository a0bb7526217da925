package locksmith

import (
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
)

// Flags are how the caller was told where to look and by what to judge. They are
// repeated in the commands that people are told to run: without them such a command
// would look elsewhere, or judge by other policies than those that named it.
type Flags struct {
	// Where say which Consul and which keys, such as -prefix.
	Where []string
	// Judge say by which policies, such as -policy.
	Judge []string
}

// Judging is a command that judges, as people type it.
func (f Flags) Judging(verb string, args ...string) string {
	return typed(verb, f.Where, f.Judge, args)
}

// Looking is a command that asks no policy, as people type it.
func (f Flags) Looking(verb string, args ...string) string {
	return typed(verb, f.Where, args)
}

// same says which flags somebody else needs to judge as the caller does; "" if none.
func (f Flags) same() string {
	var names []string
	for _, w := range f.Judge {
		if strings.HasPrefix(w, "-") && !slices.Contains(names, w) {
			names = append(names, w)
		}
	}
	if names == nil {
		return ""
	}
	return " with the same " + strings.Join(names, ", ")
}

func typed(verb string, args ...[]string) string {
	words := []string{"aimlock", verb}
	for _, w := range slices.Concat(args...) {
		words = append(words, text.Shell(w))
	}
	return strings.Join(words, " ")
}
