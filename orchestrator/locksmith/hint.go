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

// judging is a command that judges a lock, as people type it.
func (c *Client) judging(verb, name string) string {
	return c.typed(verb, slices.Concat(c.flags.Where, c.flags.Judge), name)
}

// looking is a command that asks no policy.
func (c *Client) looking(verb string, args ...string) string {
	return c.typed(verb, c.flags.Where, args...)
}

func (c *Client) typed(verb string, flags []string, args ...string) string {
	words := []string{"aimlock", verb}
	for _, w := range slices.Concat(flags, args) {
		words = append(words, text.Shell(w))
	}
	return strings.Join(words, " ")
}
