package policies

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFormat(t *testing.T) {
	const in = "\n\n# head\n\n\n\npolicy   \"p\"   {   \n" +
		"locks=[\"**\"]   \n\n\n  hot \"r\" {\r\nwhen=holder.alive==false&&!holder.local # why\nfor    =   \"1m\"\n  reason = <<-EOT\n    a\n\n\n    b\n  EOT\n\n  }\n}\n\n\n"
	const want = "# head\n\npolicy \"p\" {\n  locks = [\"**\"]\n\n  hot \"r\" {\n    when   = holder.alive == false && !holder.local # why\n" +
		"    for    = \"1m\"\n    reason = <<-EOT\n    a\n\n\n    b\n  EOT\n\n  }\n}\n"
	got, diags := Format("p.hcl", []byte(in))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	again, _ := Format("p.hcl", got)
	if string(again) != want {
		t.Errorf("formatting again gives\n%s", again)
	}
	a, d1 := Parse("a", []byte(in))
	b, d2 := Parse("b", got)
	if d1.HasErrors() || d2.HasErrors() || a.Hash != b.Hash {
		t.Errorf("formatting changed what is said: %v %v", d1, d2)
	}
	if _, diags := Format("p.hcl", []byte("policy {")); !diags.HasErrors() {
		t.Error("a syntax error was formatted")
	}
}

func TestShippedFilesAreFormatted(t *testing.T) {
	files, err := filepath.Glob("../examples/policies/*.hcl")
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := filepath.Glob("*.hcl")
	if err != nil || len(shipped) != len(BuiltinNames()) {
		t.Fatalf("shipped are %q: %v", shipped, err)
	}
	for _, f := range append(files, shipped...) {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got, diags := Format(f, src)
		if diags.HasErrors() || string(got) != string(src) {
			t.Errorf("%s is not formatted (aimlock policy fmt): %v", f, diags)
		}
	}
}

// Formatting keeps what is said and is done after one go.
func FuzzFormat(f *testing.F) {
	for _, name := range BuiltinNames() {
		src, err := BuiltinSource(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Add([]byte("policy \"p\" {\nlocks=[\"**\"]\n}\n\n\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		before, diags := Parse("f", src)
		if diags.HasErrors() {
			return
		}
		once, diags := Format("f", src)
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		after, diags := Parse("f", once)
		if diags.HasErrors() {
			t.Fatalf("%s\n%s", diags, once)
		}
		if before.Hash != after.Hash {
			t.Fatalf("formatting changed the hash:\n%s", once)
		}
		twice, _ := Format("f", once)
		if string(once) != string(twice) {
			t.Fatalf("formatting again changed\n%q\ninto\n%q", once, twice)
		}
	})
}
