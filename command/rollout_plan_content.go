package command

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// planRendering is one content that a template comes to.
type planRendering struct {
	Revision string `json:"revision"`
	SHA256   string `json:"sha256"`
	Size     int64  `json:"size"`
	// Nodes is how many nodes get it, and Named the first of them.
	Nodes int      `json:"nodes"`
	Named []string `json:"named"`
	// Have is how many of them have it already.
	Have int `json:"have"`
	// Diff is against what most of the others have; only the first renderings
	// have one.
	Diff *string `json:"diff,omitempty"`
}

const (
	// maxDiffed bounds how many renderings of a template are shown whole. The
	// first are those of most nodes.
	maxDiffed = 10
	// maxRevisions bounds how many revisions that a fleet has are listed.
	maxRevisions = 12
)

func planRenderings(c orchestrator.Config, list []runner.Rendering) []planRendering {
	var out []planRendering
	for i, r := range list {
		v := planRendering{Revision: r.Revision(), SHA256: r.SHA256, Size: r.Size, Nodes: r.Nodes, Named: r.Named, Have: r.Have}
		if i < maxDiffed && r.Content != nil {
			c.Revision = v.Revision
			d := contentDiff(c, r.Now, r.Content)
			v.Diff = &d
		}
		out = append(out, v)
	}
	return out
}

// content is what a config would bring, for people.
func (c *planConfig) content(b *strings.Builder) {
	if c.Renderings == nil {
		fmt.Fprintf(b, "\nConfig %s: revision %s, %s, to %s\n", c.Name, c.Revision, text.Count(int(c.Size), "byte"), c.Destination)
	} else {
		fmt.Fprintf(b, "\nConfig %s: a template with %s, to %s\n", c.Name, text.Count(len(c.Renderings), "rendering"), c.Destination)
	}
	revs := slices.SortedFunc(maps.Keys(c.Now), func(x, y string) int {
		if c.Now[x] != c.Now[y] {
			return c.Now[y] - c.Now[x]
		}
		return strings.Compare(x, y)
	})
	for _, rev := range revs[:min(len(revs), maxRevisions)] {
		fmt.Fprintf(b, "  %s with %s%s\n", text.Count(c.Now[rev], "node"), first(rev, "no revision that is known"), c.unknownText(rev))
	}
	if more := len(revs) - maxRevisions; more > 0 {
		fmt.Fprintf(b, "  and %s\n", text.Count(more, "more revision"))
	}
	if c.Renderings == nil {
		diffLines(b, "  ", c.Diff)
		return
	}
	for _, r := range c.Renderings {
		if r.Diff == nil {
			break
		}
		named := strings.Join(r.Named, " ")
		if more := r.Nodes - len(r.Named); more > 0 {
			named += fmt.Sprintf(" and %d more", more)
		}
		if r.Have > 0 && r.Have < r.Nodes {
			named += fmt.Sprintf(" (%d of them have it already)", r.Have)
		}
		fmt.Fprintf(b, "  %d of the nodes get revision %s, %d bytes: %s\n", r.Nodes, r.Revision, r.Size, text.Printable(named))
		diffLines(b, "    ", *r.Diff)
	}
	if more := len(c.Renderings) - maxDiffed; more > 0 {
		fmt.Fprintf(b, "  and %s; -json has all of them\n", text.Count(more, "more rendering"))
	}
}

// unknownText says of a revision that Consul does not have where it comes from.
func (c *planConfig) unknownText(rev string) string {
	nodes := c.Unknown[rev]
	if len(nodes) == 0 {
		return ""
	}
	return ", which no rollout on record brought: edited on " + text.Some(nodes) + ", or from before"
}

// driftText says where somebody else changed the file, and what becomes of that.
func (c *planConfig) driftText(v *planView) string {
	if len(c.edited) == 0 {
		return ""
	}
	what := "the rollout writes over that"
	switch {
	case v.NothingToDo:
		what = "it stays, unless you " + runner.PutBack(v.start)
	case v.Resumes != "":
		what += " where it has yet to give an order"
	}
	return fmt.Sprintf("  Warning: edited by somebody else since its last order on %s: %s\n", text.Some(c.edited), what)
}

func diffLines(b *strings.Builder, indent, diff string) {
	if diff == "" {
		b.WriteString(indent + "the content stays the same\n")
	}
	for line := range strings.Lines(diff) {
		b.WriteString(indent + text.Printable(strings.TrimRight(line, "\n")) + "\n")
	}
}
