package policies

import (
	"strings"
	"testing"

	"github.com/zclconf/go-cty/cty"
)

func filePolicy(file string) string {
	return "policy \"p\" {\n  locks = [\"**\"]\n  file  = " + file + "\n  hot \"free\" {\n    when = file.locked == false\n  }\n}\n"
}

func TestFilePath(t *testing.T) {
	for name, tc := range map[string]struct{ file, lock, want, err string }{
		"a name":         {`"/run/lock/${lock.name}.lock"`, "app.conf", "/run/lock/app.conf.lock", ""},
		"a constant":     {`"/run/backup.lock"`, "app.conf", "/run/backup.lock", ""},
		"a whole name":   {`lock.name`, "/var/x", "/var/x", ""},
		"not absolute":   {`lock.name`, "x", "", "not absolute"},
		"leads up":       {`"/run/${lock.name}.lock"`, "../etc/passwd", "", "not clean"},
		"empty segment":  {`"/run/${lock.name}/lock"`, "", "", "not clean"},
		"a zero byte":    {`"/run/${lock.name}"`, "a\x00b", "", "no file can have"},
		"too long":       {`"/run/${lock.name}"`, strings.Repeat("x", 5000), "", "no file can have"},
		"a null in it":   {`"/run/${lock.token}.lock"`, "x", "", "cannot be made"},
		"an unknown one": {`"/run/${lock.waiters}.lock"`, "x", "", "nobody counted"},
	} {
		t.Run(name, func(t *testing.T) {
			set, diags := Parse("p.hcl", []byte(filePolicy(tc.file)))
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			got, err := set.Policies[0].FilePath(Facts{"lock": {
				"name":    {Value: cty.StringVal(tc.lock)},
				"token":   {Value: cty.NullVal(cty.Number)},
				"waiters": {Value: cty.UnknownVal(cty.Number), Why: "nobody counted"},
			}})
			if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q, %v; want %q and an error with %q", got, err, tc.want, tc.err)
			}
			if !set.Policies[0].ReadsFile() {
				t.Error("does not know that a rule reads the file")
			}
		})
	}
	var none *Policy
	if got, err := none.FilePath(nil); got != "" || err != nil || none.ReadsFile() {
		t.Errorf("no policy names the file %q, %v", got, err)
	}
}

func TestFileDiagnostics(t *testing.T) {
	for name, tc := range map[string]struct{ src, want string }{
		"relative":     {filePolicy(`"lock/${lock.name}"`), "Path not absolute"},
		"a list":       {filePolicy(`["/x"]`), "Path required"},
		"another fact": {filePolicy(`"/run/${holder.pid}.lock"`), "Fact not allowed here"},
		"no such fact": {filePolicy(`"/run/${lock.nam}.lock"`), "Unknown fact"},
		"none named":   {strings.Replace(filePolicy(`""`), "file  = \"\"\n", "", 1), "No file named"},
		"well":         {filePolicy(`"/run/${lock.name}.lock"`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, diags := Parse("p.hcl", []byte(tc.src))
			switch {
			case tc.want == "" && len(diags) > 0:
				t.Error(diags)
			case tc.want != "" && (len(diags) != 1 || diags[0].Summary != tc.want):
				t.Errorf("got %v, want %q alone", diags, tc.want)
			}
		})
	}
}

func TestExpectFile(t *testing.T) {
	const test = "test \"t\" {\n  lock  = \"app\"\n  facts = { file = { locked = true } }\n  expect {\n    file = \"/run/app.lock\"\n  }\n}\n"
	for file, problems := range map[string]int{`"/run/${lock.name}.lock"`: 0, `"/var/${lock.name}.lock"`: 1, `lock.name`: 1} {
		set, diags := Parse("p.hcl", []byte(filePolicy(file)+test))
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		if got := set.RunTests(nil)[0].Problems; len(got) != problems {
			t.Errorf("%s: %q", file, got)
		}
	}
}
