package command

import (
	"os"
	"testing"
)

// FuzzConfig: a config file is read, or what is wrong with it is told with its place.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"prefix = \"a/\"\npolicies = [\"p.hcl\"]\njournal = \"j\"\nlog_json = true\n",
		"consul {\n address = \"x\"\n token_file = \"t\"\n}\nnomad {\n region = \"r\"\n}\n",
		"hook \"h\" {\n on = [\"broken\"]\n url = \"https://x/\"\n timeout = \"5s\"\n headers = { a = \"b\" }\n}\n",
		"plugin \"p\" {\n path = \"/x\"\n sha256 = \"0\"\n timeout = \"1s\"\n config {\n a = env.B\n }\n}\n", "prefix = unknown\n", "a = (", "hook \"h\" {}\nhook \"h\" {}\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 1<<16 {
			return
		}
		path := "/etc/aimlock" + string(os.PathSeparator) + "aimlock.hcl"
		cfg, file, diags := parseConfig(path, src)
		if file == nil {
			t.Fatal("no source for the snippets of diagnostics")
		}
		if diags.HasErrors() {
			for _, d := range diags {
				if d.Subject == nil || d.Subject.End.Byte > len(src) {
					t.Fatalf("a diagnostic without its place: %v", d)
				}
			}
			return
		}
		if len(cfg.plugins) != len(cfg.Plugins) {
			t.Fatalf("%d plugins of %d", len(cfg.plugins), len(cfg.Plugins))
		}
		for _, h := range cfg.Hooks {
			if _, err := h.config(); err != nil {
				t.Fatalf("hook %q passes, and then: %v", h.Name, err)
			}
		}
	})
}
