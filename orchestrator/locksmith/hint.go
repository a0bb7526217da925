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

func typed(verb string, args ...[]string) string {
	words := []string{"aimlock", verb}
	for _, w := range slices.Concat(args...) {
		words = append(words, text.Shell(w))
	}
	return strings.Join(words, " ")
}
