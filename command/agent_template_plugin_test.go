package command_test

import (
	"os"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

// TestConsulTemplatePlugin has the real consul-template ask aimlock by its
// function plugin: for values, and for the whole staged file by the example
// aimlock-plugin.ctmpl, whose content has bytes of all kinds.
func TestConsulTemplatePlugin(t *testing.T) {
	bin := consulTemplate(t)
	srv, err := devconsul.Start(devconsul.Config{NodeName: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	kv, err := consulkv.New(consulkv.Config{Address: srv.URL()})
	if err != nil {
		t.Fatal(err)
	}
	n := &templated{kv: kv, dir: t.TempDir(), prefix: keys.DefaultPrefix}
	for from, to := range map[string]string{"aimlock-plugin.ctmpl": "aimlock.ctmpl", "status.ctmpl": "status.ctmpl"} {
		b, err := os.ReadFile("../examples/consul-template/" + from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(n.path(to), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := os.ReadFile("../examples/consul-template/consul-template.hcl")
	if err != nil {
		t.Fatal(err)
	}
	status := "\ntemplate {\n  source = \"" + n.path("status.ctmpl") + "\"\n  destination = \"" + n.path("status") + "\"\n  error_fatal = false\n}\n"
	n.startWith(t, bin, srv.URL(), strings.NewReplacer("/etc/aimlock", n.dir, "/var/lib/aimlock/staged", n.path("staged")).Replace(string(cfg))+status)

	content := " \n{{ key \"x\" }}\r\n\xff\x00 # white space at both ends\n\n"
	one := n.order(t, 1, content)
	n.wait(t, one, records.ResultApplied)
	if b, err := os.ReadFile(n.path("root/etc/aim.conf")); err != nil || string(b) != content {
		t.Errorf("%q %v", b, err)
	}
	two := n.order(t, 2, "two\n")
	n.wait(t, two, records.ResultApplied)
	want := "aim_lock_config.conf on web-1: revision " + two.Revision + " by order " + two.Order.String() + " (token 1099511627776)\n" +
		"its lock is FREE\n"
	n.eventually(t, "the status is "+want, func() bool {
		b, err := os.ReadFile(n.path("status"))
		return err == nil && string(b) == want
	})
	// An older order is refused, however it is rendered.
	n.putFor(t, templatedConfig, one)
	n.wait(t, two, records.ResultRefused)
}
