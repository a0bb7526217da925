package condition_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/orchestrator/gates/condition"
)

func TestParse(t *testing.T) {
	for src, want := range map[string]string{
		`value < 1`:                        "",
		`value < 1 && labels.a == "b"`:     "",
		`between(value, 1, 2)`:             "",
		`value`:                            "Not a condition",
		`value + 1`:                        "Not a condition",
		`"x"`:                              "Not a condition",
		`true`:                             "Condition reads nothing",
		`valu < 1`:                         "Unknown variable",
		`value < 1 && nothing.x`:           "Unknown variable",
		`value < 1 || labels.a == f()`:     "Unknown function",
		`value <`:                          "",
		`value < "x"`:                      "Invalid operand",
		strings.Repeat("!", 5000) + "true": "Condition is too long",
	} {
		c, diags := condition.Parse(src, "f", hcl.InitialPos, condition.ThresholdVars())
		bad := want != "" || src == "value <"
		switch {
		case diags.HasErrors() != bad || (c == nil) != bad:
			t.Errorf("%s: %v", src, diags)
		case want != "" && diags[0].Summary != want:
			t.Errorf("%s: %v, want %s", src, diags, want)
		}
	}
}

// TestHolds: what decides whatever the unknown is, decides.
func TestHolds(t *testing.T) {
	body := condition.Vars{"status": cty.NumberIntVal(200), "body": cty.StringVal("x"), "json": cty.DynamicVal}
	for src, want := range map[string]string{
		`status == 200`:                "true",
		`status != 200`:                "false",
		`status == 200 || json.ready`:  "true",
		`status == 500 && json.ready`:  "false",
		`json.ready`:                   "unknown",
		`status == 200 && json.ready`:  "unknown",
		`json == null ? true : true`:   "unknown",
		`startswith(body, "x")`:        "true",
		`regex("^y", body) == "y"`:     "wrong",
		`status == tonumber("a")`:      "wrong",
		`[for x in [status] : x][9]>1`: "wrong",
	} {
		c, diags := condition.Parse(src, "f", hcl.InitialPos, condition.BodyVars())
		if diags.HasErrors() {
			if want != "wrong" {
				t.Errorf("%s: %v", src, diags)
			}
			continue
		}
		ok, err := c.Holds(body)
		got := "false"
		switch {
		case errors.Is(err, condition.ErrUnknown):
			got = "unknown"
		case err != nil:
			got = "wrong"
		case ok:
			got = "true"
		}
		if got != want {
			t.Errorf("%s is %s (%v), want %s", src, got, err, want)
		}
	}
}

// FuzzJSON: whatever a server sends, it is a value or an error, and what a
// condition says of it can be shown.
func FuzzJSON(f *testing.F) {
	c, diags := condition.Parse(`json.a.b < 3 && json.c == "x"`, "f", hcl.InitialPos, condition.BodyVars())
	if diags.HasErrors() {
		f.Fatal(diags)
	}
	for _, s := range []string{`{"a":{"b":1},"c":"x"}`, `[1e400]`, `{"a":{"b":-0}}`, `"\ud800"`, `{"":{}}`, `{"a":1,"a":2}`, `1e-400`, `nul`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := condition.JSON(b)
		if err == nil && !json.Valid(b) {
			t.Errorf("%q is taken", b)
		}
		if err != nil && v.IsWhollyKnown() {
			t.Errorf("%q is an error and %#v", b, v)
		}
		_, err = c.Holds(condition.Vars{"status": cty.NumberIntVal(200), "body": cty.StringVal(""), "json": v})
		if err != nil && (len(err.Error()) > 300 || strings.ContainsFunc(err.Error(), unicode.IsControl)) {
			t.Errorf("not fit to be shown: %q", err)
		}
	})
}

// FuzzParse: whatever an author writes, it is a condition or a mistake.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`value < 1`, `labels["a"] == null`, `value < 1 ? true : labels`, "<<X\n${value}\nX", `try(labels.x, 1) > value`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		c, diags := condition.Parse(src, "f", hcl.InitialPos, condition.ThresholdVars())
		if (c == nil) != diags.HasErrors() {
			t.Fatalf("%q: %v", src, diags)
		}
		if c != nil {
			_, _ = c.Holds(condition.Vars{"value": cty.NumberFloatVal(0.5), "labels": cty.EmptyObjectVal})
		}
	})
}
