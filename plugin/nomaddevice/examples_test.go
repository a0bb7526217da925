package nomaddevice

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

const (
	exampleClient = "../../examples/nomad/client-devices.hcl"
	exampleJob    = "../../examples/nomad/placed-by-config.nomad.hcl"
	page          = "../../docs/nomad-device.md"
)

func attributeNames() []string {
	all := []string{
		AttrRevision, AttrSHA256, AttrEpoch, AttrToken, AttrResult, AttrRollout, AttrPath, AttrState, AttrDrifted, AttrHealthy, AttrSlots,
	}
	slices.Sort(all)
	return all
}

// values are the arguments of a body, and its blocks as objects.
func values(t *testing.T, body *hclsyntax.Body) map[string]cty.Value {
	t.Helper()
	out := map[string]cty.Value{}
	for name, a := range body.Attributes {
		v, diags := a.Expr.Value(nil)
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		out[name] = v
	}
	for _, b := range body.Blocks {
		out[b.Type] = cty.ObjectVal(values(t, b.Body))
	}
	return out
}

// TestExampleClient reads the example of a client's configuration as Nomad does.
func TestExampleClient(t *testing.T) {
	f, diags := hclparse.NewParser().ParseHCLFile(exampleClient)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	found := 0
	for _, b := range f.Body.(*hclsyntax.Body).Blocks {
		if b.Type != "plugin" || !slices.Equal(b.Labels, []string{Name}) {
			t.Errorf("block %s %q", b.Type, b.Labels)
			continue
		}
		for _, config := range b.Body.Blocks {
			found++
			s, err := decode(encode(t, values(t, config.Body)))
			if err != nil || s.Slots != 32 || s.ConsulAddress == "" {
				t.Errorf("%+v, %v", s, err)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d blocks of settings", found)
	}
}

// TestExampleJob: the job asks for attributes that there are.
func TestExampleJob(t *testing.T) {
	if _, diags := hclparse.NewParser().ParseHCLFile(exampleJob); diags.HasErrors() {
		t.Fatal(diags)
	}
	src, err := os.ReadFile(exampleJob)
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`\$\{device\.attr\.([a-z.]+)\}`).FindAllSubmatch(src, -1)
	for _, m := range all {
		if !slices.Contains(attributeNames(), string(m[1])) {
			t.Errorf("there is no attribute %s", m[1])
		}
	}
	if len(all) == 0 || !bytes.Contains(src, []byte(`device "`+Vendor+"/"+Type+"/")) {
		t.Error("the example asks for no device")
	}
}

// TestPage: the page has every setting and every attribute, and no others.
func TestPage(t *testing.T) {
	src, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	table := func(head string) (names []string) {
		t.Helper()
		_, rest, ok := strings.Cut(string(src), head)
		if !ok {
			t.Fatalf("no table %q", head)
		}
		for line := range strings.Lines(rest) {
			cell, isRow := strings.CutPrefix(line, "| ")
			if !isRow {
				if len(names) > 0 {
					break
				}
				continue
			}
			cell, _, _ = strings.Cut(cell, " |")
			for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(cell, -1) {
				names = append(names, m[1])
			}
		}
		slices.Sort(names)
		return names
	}
	if got := table("| attribute | type | what |\n|---|---|---|\n"); !slices.Equal(got, attributeNames()) {
		t.Errorf("attributes: the page has %q, want %q", got, attributeNames())
	}
	want := []string{"consul"}
	for name := range settings() {
		want = append(want, name)
	}
	slices.Sort(want)
	if got := table("| setting | default | what |\n|---|---|---|\n"); !slices.Equal(got, want) {
		t.Errorf("settings: the page has %q, want %q", got, want)
	}
}
