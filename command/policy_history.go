package command

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// policyActiveReport is what `policy show -active -json` prints.
type policyActiveReport struct {
	// Active is null where nothing was ever applied.
	Active *records.PolicyVersion `json:"active"`
	// Why says why Active has no more than policies/active says.
	Why       string                   `json:"why,omitempty"`
	Suspended *records.PolicySuspended `json:"suspended"`
}

// showActive prints what is in force for everybody: the sources as HCL, and who
// applied them in comments.
func (m *Meta) showActive(ctx context.Context) error {
	c, err := m.locksmithWith(&policies.Set{})
	if err != nil {
		return err
	}
	v, why, err := c.ActivePolicies(ctx)
	if err != nil {
		return err
	}
	sus, err := c.Suspended(ctx)
	if err != nil {
		return err
	}
	if m.JSON {
		return m.PrintJSON(policyActiveReport{Active: v, Why: why, Suspended: sus})
	}
	if sus != nil {
		m.Printf("# SUSPENDED %s\n", suspensionText(sus))
	}
	if v == nil {
		m.Printf("# Nothing was ever applied: anybody's policies may break aimlock's own locks, and\n# nobody's those of other tools. To put some in force: aimlock policy apply\n")
		return nil
	}
	m.Printf("# in force: %s\n", versionText(v))
	if why != "" {
		m.Printf("# %s\n", text.Printable(why))
		return nil
	}
	m.versionSource(v)
	return nil
}

func (m *Meta) showSerial(ctx context.Context, serial uint64) error {
	c, err := m.locksmithWith(&policies.Set{})
	if err != nil {
		return err
	}
	v, err := c.PolicyVersion(ctx, serial)
	if errors.Is(err, locksmith.ErrNoPolicyVersion) {
		return exitf(ExitFailed, "serial %d: %w; `aimlock policy show -history` lists what is", serial, err)
	}
	if err != nil {
		return err
	}
	if m.JSON {
		return m.PrintJSON(v)
	}
	m.Printf("# %s\n", versionText(v))
	m.versionSource(v)
	return nil
}

// versionSource prints the files of one application. They are HCL, which whoever
// applied them wrote: what could control a terminal is shown as it is escaped.
func (m *Meta) versionSource(v *records.PolicyVersion) {
	for _, name := range slices.Sorted(maps.Keys(v.Values)) {
		m.Printf("# with -var %s=%s\n", text.Printable(name), text.Printable(v.Values[name]))
	}
	if len(v.Files) == 0 && v.FilesSize > 0 {
		m.Printf("# The sources are not on record: %d bytes are too many.\n", v.FilesSize)
		for _, p := range v.Policies {
			m.Printf("# policy %s, hash %.12s\n", text.Printable(p.Name), text.Printable(p.Hash))
		}
	}
	for _, f := range v.Files {
		m.Printf("\n# file %s\n", text.Printable(f.Name))
		for line := range strings.SplitSeq(strings.TrimRight(f.Text, "\n"), "\n") {
			m.Printf("%s\n", strings.ReplaceAll(text.Printable(strings.ReplaceAll(line, "\t", "  ")), "\r", ""))
		}
	}
}

func (m *Meta) showHistory(ctx context.Context) error {
	c, err := m.locksmithWith(&policies.Set{})
	if err != nil {
		return err
	}
	list, err := c.PolicyHistory(ctx)
	if err != nil {
		return err
	}
	if m.JSON {
		if list == nil {
			list = []*records.PolicyVersion{}
		}
		return m.PrintJSON(list)
	}
	if len(list) == 0 {
		m.Notef("Nothing was ever applied.\n")
	}
	for _, v := range list {
		m.Printf("%s\n", versionText(v))
	}
	return nil
}
