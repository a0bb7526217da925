package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/devconsul"
)

const cmdLimit = 30 * time.Second

// embedded starts a devconsul and a client of it.
func embedded(t *testing.T) (*devconsul.Server, *api.Client) {
	t.Helper()
	s, err := devconsul.Start(devconsul.Config{NodeName: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := api.NewClient(&api.Config{Address: s.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// consul is a call of the consul command against the server.
func consul(t *testing.T, s *devconsul.Server, args ...string) harness.Spec {
	t.Helper()
	return harness.Spec{Path: harness.ConsulBin.Path(t), Args: args, Env: []string{"CONSUL_HTTP_ADDR=" + s.Addr()}}
}

// The real consul command works against the embedded Consul.
func TestEmbeddedConsulCommand(t *testing.T) {
	t.Parallel()
	s, c := embedded(t)
	run := func(args ...string) harness.Result {
		t.Helper()
		return harness.Run(t, cmdLimit, consul(t, s, args...))
	}
	for _, step := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"kv", "put", "app/a", "one"}, 0, "Success! Data written to: app/a"},
		{[]string{"kv", "put", "-flags=42", "app/b", "two"}, 0, "Success!"},
		{[]string{"kv", "get", "app/a"}, 0, "one\n"},
		{[]string{"kv", "get", "-detailed", "app/b"}, 0, "Flags            42"},
		{[]string{"kv", "get", "-recurse", "app/"}, 0, "app/a:one\napp/b:two\n"},
		{[]string{"kv", "get", "-keys", "app/"}, 0, "app/a\napp/b\n"},
		{[]string{"kv", "get", "app/none"}, 1, "Error! No key exists at: app/none"},
		{[]string{"kv", "put", "-cas", "-modify-index=1", "app/a", "x"}, 1, "CAS failed"},
		{[]string{"kv", "export", "app/"}, 0, `"key": "app/a"`},
		{[]string{"kv", "delete", "-recurse", "app/"}, 0, "Success!"},
		{[]string{"kv", "get", "-recurse", "app/"}, 0, ""},
		{[]string{"members"}, 0, "alive"},
		{[]string{"catalog", "nodes"}, 0, "127.0.0.1"},
		{[]string{"catalog", "services"}, 0, "consul"},
		{[]string{"catalog", "datacenters"}, 0, "dc1"},
		{[]string{"info"}, 0, "leader = true"},
	} {
		r := run(step.args...)
		if r.Code != step.code || !strings.Contains(r.Stdout+r.Stderr, step.says) {
			t.Errorf("consul %s: exit %d, %q, want %d and %q", strings.Join(step.args, " "), r.Code, r.Stdout+r.Stderr, step.code, step.says)
		}
	}
	if keys, _, err := c.KV().Keys("app/", "", nil); err != nil || len(keys) != 0 {
		t.Errorf("keys left: %q, %v", keys, err)
	}
}

// consul lock works against the embedded Consul: it holds, excludes, passes the
// lock on, and stops its child when the lock is taken from it.
func TestEmbeddedConsulLock(t *testing.T) {
	t.Parallel()
	s, c := embedded(t)
	dir := t.TempDir()
	held := filepath.Join(dir, "held")
	spec := consul(t, s, "lock", "locks/push", "touch "+held+" && exec sleep 600")
	holder := harness.Start(t, spec)
	isHeld := func() bool { _, err := os.Stat(held); return err == nil }
	// ends waits for the holder, which ends when it has stopped its child.
	ends := func() {
		t.Helper()
		holder.Wait(cmdLimit)
		if !strings.Contains(holder.Stderr(), "signal: terminated") {
			t.Errorf("consul lock did not stop its child: %q", holder.Stderr())
		}
	}
	harness.Eventually(t, cmdLimit, "the first consul lock holds", isHeld)
	p, _, err := c.KV().Get("locks/push/.lock", nil)
	if err != nil || p == nil || p.Session == "" {
		t.Fatalf("the lock is not held: %v, %v", p, err)
	}
	session := p.Session

	if r := harness.Run(t, cmdLimit, consul(t, s, "lock", "-try=200ms", "locks/push", "echo never")); r.Code == 0 || strings.Contains(r.Stdout, "never") {
		t.Errorf("a second consul lock got the lock: exit %d, %q", r.Code, r.Stdout)
	}

	second := harness.Start(t, consul(t, s, "lock", "locks/push", "echo got it"))
	harness.Eventually(t, cmdLimit, "the second consul lock waits", func() bool {
		all, _, err := c.Session().List(nil)
		return err == nil && len(all) >= 2
	})
	holder.Signal(syscall.SIGTERM)
	ends()
	if code := second.Wait(cmdLimit); code != 0 || !strings.Contains(second.Stdout(), "got it") {
		t.Errorf("the second consul lock: exit %d, %q", code, second.Stdout())
	}
	if se, _, err := c.Session().Info(session, nil); err != nil || se != nil {
		t.Errorf("the first session is left: %v, %v", se, err)
	}

	if err := os.Remove(held); err != nil {
		t.Fatal(err)
	}
	holder = harness.Start(t, spec)
	harness.Eventually(t, cmdLimit, "consul lock holds again", isHeld)
	if p, _, err = c.KV().Get("locks/push/.lock", nil); err != nil || p == nil {
		t.Fatal(p, err)
	}
	if _, err := c.Session().Destroy(p.Session, nil); err != nil {
		t.Fatal(err)
	}
	ends()
}

// consul-template renders from the embedded Consul, and follows its changes.
func TestEmbeddedConsulTemplate(t *testing.T) {
	t.Parallel()
	s, c := embedded(t)
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.ctmpl"), filepath.Join(dir, "out")
	const text = `key={{ key "app/key" }}
default={{ keyOrDefault "app/none" "unset" }}
{{ range tree "app/tree" }}{{ .Key }}:{{ .Value }}
{{ end }}{{ range service "web" }}{{ .Node }} {{ .Port }}
{{ end }}{{ range nodes }}{{ .Node }}
{{ end }}{{ range services }}{{ .Name }} {{ end }}
`
	if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	put := func(key, value string) {
		t.Helper()
		if _, err := c.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("app/key", "one")
	put("app/tree/a", "1")
	put("app/tree/b/c", "2")
	web := &api.AgentServiceRegistration{Name: "web", Port: 80, Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing}}
	if err := c.Agent().ServiceRegister(web); err != nil {
		t.Fatal(err)
	}
	args := []string{"-consul-addr", s.Addr(), "-template", in + ":" + out}
	harness.Output(t, cmdLimit, harness.Spec{Path: harness.ConsulTemplate.Path(t), Args: append(args, "-once")})
	rendered := func(key, tree, service string) string {
		return fmt.Sprintf("key=%s\ndefault=unset\n%s%sdev\nconsul web \n", key, tree, service)
	}
	want := rendered("one", "a:1\nb/c:2\n", "dev 80\n")
	if got := readFile(t, out); got != want {
		t.Fatalf("rendered:\n%s\nwant:\n%s", got, want)
	}

	harness.Start(t, harness.Spec{Path: harness.ConsulTemplate.Path(t), Args: args})
	follows := func(what, want string) {
		t.Helper()
		harness.Eventually(t, cmdLimit, what+" is rendered", func() bool { return readFile(t, out) == want })
	}
	put("app/key", "two")
	follows("a new value", rendered("two", "a:1\nb/c:2\n", "dev 80\n"))
	if _, err := c.KV().DeleteTree("app/tree/b", nil); err != nil {
		t.Fatal(err)
	}
	follows("a deletion", rendered("two", "a:1\n", "dev 80\n"))
	if err := c.Agent().UpdateTTL("service:web", "", api.HealthCritical); err != nil {
		t.Fatal(err)
	}
	follows("a failed check", rendered("two", "a:1\n", ""))
	if err := c.Agent().UpdateTTL("service:web", "", api.HealthPassing); err != nil {
		t.Fatal(err)
	}
	follows("a check that passes", rendered("two", "a:1\n", "dev 80\n"))
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
