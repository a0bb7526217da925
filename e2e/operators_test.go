package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
)

// What operators say is bound to the holder that they name, ends when they said,
// and stands in the records with who they are: on a Consul with ACLs.
func TestOperators(t *testing.T) {
	t.Parallel()
	const token = "a5b1c7a2-7b3e-4b8e-9a5e-0d1a2b3c4d5e"
	c := harness.StartConsul(t, harness.WithACL(token))
	kv, err := consulkv.New(consulkv.Config{Address: c.Addr, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	self, _, err := c.Client().ACL().TokenReadSelf(nil)
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, consul: c, client: kv, prefix: "aimlock/", dir: t.TempDir(), env: c.Env()}
	f.write("manual.hcl", `policy "manual" {
  locks = ["**"]
  hot "held" {
    when = session.exists
  }
  break {
    approval = "manual"
    step "take" {}
  }
}
`)
	held := func(name string) *records.Holder {
		var h records.Holder
		harness.Eventually(t, cmdLimit, name+" is held", func() bool {
			p, err := kv.Get(t.Context(), f.prefix.Lock(name))
			return err == nil && p != nil && p.Session != "" && records.Decode(p.Key, p.Value, &h) == nil
		})
		return &h
	}
	refused := func(says string, args ...string) {
		t.Helper()
		r := harness.Run(t, cmdLimit, f.aimlock("lock", "break", append(args, "-policy", "manual.hcl", "a")...))
		if r.Code != 5 || !strings.Contains(r.Stderr, says) {
			t.Errorf("break %v: exit %d, want 5 and %q:\n%s%s", args, r.Code, says, r.Stdout, r.Stderr)
		}
	}
	dump := func() string {
		t.Helper()
		list, err := kv.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, p := range list {
			fmt.Fprintf(&b, "%s %d %s %s\n", p.Key, p.ModifyIndex, p.Session, p.Value)
		}
		return b.String()
	}
	exec := f.aimlock("lock", "exec", "a", "--", "sleep", "600")
	first := harness.Start(t, exec)
	holder := held("a")
	refused("wants a person's approval")

	// An approval ends when it was said to.
	harness.Output(t, cmdLimit, f.aimlock("lock", "approve", "-policy", "manual.hcl", "-for", "1ms", "a"))
	refused("the approval expired")
	// It is about the holder that it names: another one is another matter.
	harness.Output(t, cmdLimit, f.aimlock("lock", "approve", "-policy", "manual.hcl", "-reason", "burnt", "a"))
	var a records.Approval
	f.record(f.prefix.Approval("a"), &a)
	if holder.Accessor != self.AccessorID {
		t.Errorf("the holder's record has the accessor %q, want %s", holder.Accessor, self.AccessorID)
	}
	if a.Session != holder.Session || a.Accessor != self.AccessorID || a.Host == "" || a.User == "" {
		t.Errorf("approval %+v, want session %s and accessor %s", a, holder.Session, self.AccessorID)
	}
	// A dry run says that it would be broken, and changes nothing.
	before := dump()
	if out := harness.Output(t, cmdLimit, f.aimlock("lock", "break", "-dry-run", "-policy", "manual.hcl", "a")); !strings.Contains(out, "would be broken by rule held") {
		t.Errorf("dry run: %s", out)
	}
	if after := dump(); after != before {
		t.Errorf("a dry run changed\n%s\nto\n%s", before, after)
	}
	// Asked to let go, the holder does; the next one is not the one approved of.
	harness.Output(t, cmdLimit, f.aimlock("lock", "request", "-reason", "urgent", "a"))
	if first.Wait(cmdLimit) == 0 {
		t.Error("it was asked to let go, and says that its command ended well")
	}
	second := harness.Start(t, exec)
	if h := held("a"); h.Session == holder.Session {
		t.Fatal("the first one holds it")
	}
	for _, key := range []string{f.prefix.Request("a"), f.prefix.Approval("a")} {
		if p, err := kv.Get(t.Context(), key); err != nil || p != nil {
			t.Errorf("%s outlives its holder: %v, %v", key, p, err)
		}
	}
	refused("wants a person's approval")

	// What is set in Consul says who set it, and no record holds a token.
	harness.Output(t, cmdLimit, f.aimlock("policy", "suspend", "-reason", "x"))
	harness.Output(t, cmdLimit, f.aimlock("policy", "apply", "manual.hcl"))
	harness.Output(t, cmdLimit, f.aimlock("lock", "silence", "-for", "1h", "-reason", "y", "a"))
	harness.Output(t, cmdLimit, f.aimlock("lock", "approve", "-policy", "manual.hcl", "a"))
	refused("suspended")
	harness.Output(t, cmdLimit, f.aimlock("policy", "resume"))
	refused("silenced")
	harness.Output(t, cmdLimit, f.aimlock("lock", "silence", "-end", "a"))
	if r := harness.Run(t, cmdLimit, f.aimlock("lock", "break", "-policy", "manual.hcl", "a")); r.Code != 0 {
		t.Errorf("break: exit %d\n%s", r.Code, r.Stderr)
	}
	if code := second.Wait(cmdLimit); code != 7 {
		t.Errorf("the broken holder ended with %d", code)
	}
	text := dump()
	if strings.Contains(text, token) {
		t.Error("a record holds the token")
	}
	if n := strings.Count(text, self.AccessorID); n < 3 {
		t.Errorf("the accessor stands %d times in\n%s", n, text)
	}
}

// Who may read nothing is not told that there are no locks.
func TestListWithoutRights(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, harness.WithACL("a5b1c7a2-7b3e-4b8e-9a5e-0d1a2b3c4d5e"))
	id, _, err := c.Client().Session().Create(&api.SessionEntry{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ok, _, err := c.Client().KV().Acquire(&api.KVPair{Key: "ops/web/.lock", Session: id}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	for token, want := range map[string][2]bool{"anonymous": {false, true}, "": {true, false}} {
		cmd := exec.CommandContext(t.Context(), harness.Aimlock.Path(t), "lock", "list")
		cmd.Env = append(os.Environ(), c.Env()...)
		if token != "" {
			cmd.Env = append(cmd.Env, "CONSUL_HTTP_TOKEN="+token)
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got := [2]bool{strings.Contains(string(out), "ops/web/.lock"), strings.Contains(string(out), "may not read are not shown")}
		if got != want {
			t.Errorf("token %q: the lock is shown, a warning is: %v, want %v: %s", token, got, want, out)
		}
	}
}
