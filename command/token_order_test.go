package command

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// TestTokenOrder: which token counts where several are given, as docs/security.md
// has it; of the two variables that is the order of Consul's own tools.
func TestTokenOrder(t *testing.T) {
	var seen atomic.Pointer[string]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("X-Consul-Token")
		seen.Store(&token)
		_, _ = io.WriteString(w, "[]")
	}))
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	for _, name := range []string{"flag", "file", "config"} {
		writeFile(t, dir+"/"+name, "of-"+name+"\n")
	}
	writeFile(t, dir+"/aimlock.hcl", "consul {\n  token_file = \"config\"\n}\n")
	for _, tc := range []struct {
		flag, file, token, config bool
		want                      string
	}{
		{true, true, true, true, "of-flag"},
		{false, true, true, true, "of-file"},
		{false, false, true, true, "of-variable"},
		{false, false, false, true, "of-config"},
		{false, false, false, false, ""},
	} {
		env, args := map[string]string{"CONSUL_HTTP_ADDR": srv.URL}, []string{}
		for name, on := range map[string]bool{"CONSUL_HTTP_TOKEN_FILE": tc.file, "CONSUL_HTTP_TOKEN": tc.token, "AIMLOCK_CONFIG": tc.config} {
			value := map[string]string{"CONSUL_HTTP_TOKEN_FILE": dir + "/file", "CONSUL_HTTP_TOKEN": "of-variable", "AIMLOCK_CONFIG": dir + "/aimlock.hcl"}[name]
			if !on {
				value = ""
			}
			// Consul's library reads the process's own environment.
			t.Setenv(name, value)
			env[name] = value
		}
		if tc.flag {
			args = []string{"-token-file", dir + "/flag"}
		}
		m := newMeta(t.Context(), IO{Stdout: io.Discard, Stderr: io.Discard, LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }})
		c := &command{Meta: m, Groups: groupConsul, Run: func(context.Context, *input) error { return nil }}
		if err := c.execute(args); err != nil {
			t.Fatal(err)
		}
		client, err := m.Consul()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := client.API().KV().Get("k", nil); err != nil {
			t.Fatal(err)
		}
		if got := *seen.Load(); got != tc.want {
			t.Errorf("%+v: token %q", tc, got)
		}
	}
}
