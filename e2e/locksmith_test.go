package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

// smith is a locksmith that runs as a process of its own.
type smith struct {
	*harness.Process
	t *testing.T
}

// startSmith starts a locksmith with the policies in a file.
func startSmith(t *testing.T, policy string, env []string, args ...string) *smith {
	t.Helper()
	return &smith{t: t, Process: harness.Start(t, harness.Spec{
		Path: harness.Aimlock.Path(t), Name: "locksmith", Env: env,
		Args: append([]string{"locksmith", "-policy", policy, "-listen", "127.0.0.1:0"}, args...),
	})}
}

var served = regexp.MustCompile(`serving metrics and health: address=(\S+)`)

// health is a part of the body of /health.
type health struct {
	Status  string   `json:"status"`
	Reasons []string `json:"reasons"`
	Notes   []string `json:"notes"`
	Role    string   `json:"role"`
	Token   uint64   `json:"token"`
}

func (s *smith) health() (h health) {
	m := served.FindStringSubmatch(s.Stderr())
	if m == nil {
		return h
	}
	resp, err := http.Get("http://" + m[1] + "/health")
	if err != nil {
		return h
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&h); err != nil {
		s.t.Errorf("health is no JSON: %v", err)
	}
	if ok := resp.StatusCode == http.StatusOK; ok != (h.Status == "ok") {
		s.t.Errorf("health is %q with status %d", h.Status, resp.StatusCode)
	}
	return h
}

// becomes waits for a role, in good health.
func (s *smith) becomes(role string) time.Duration {
	s.t.Helper()
	start := time.Now()
	harness.Eventually(s.t, time.Minute, "the locksmith is "+role, func() bool { h := s.health(); return h.Role == role && h.Status == "ok" })
	return time.Since(start)
}

// holdLock runs a command under a lock until the test ends, and returns the
// session that holds it.
func holdLock(t *testing.T, c *harness.Consul, key, name string, args ...string) string {
	t.Helper()
	harness.Start(t, harness.Spec{
		Path: harness.Aimlock.Path(t), Name: "holder of " + name, Env: c.Env(),
		Args: append(append([]string{"lock", "exec"}, args...), "-no-break", name, "--", "sleep", "600"),
	})
	session := ""
	harness.Eventually(t, 30*time.Second, name+" is held", func() bool { session = sessionOf(t, c, key); return session != "" })
	return session
}

func sessionOf(t *testing.T, c *harness.Consul, key string) string {
	t.Helper()
	p, _, err := c.Client().KV().Get(key, nil)
	if err != nil || p == nil {
		return ""
	}
	return p.Session
}

// policyFile writes policies that find every lock job-… HOT once rule has held
// for some time; more stands in the break block.
func policyFile(t *testing.T, rule, hold, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.hcl")
	text := fmt.Sprintf("policy \"p\" {\n  locks = [\"job-*\"]\n  hot \"in-the-way\" {\n    when = %s\n    for  = %q\n  }\n  break {\n    %s\n  }\n}\n", rule, hold, more)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const autoBreak = `approval = "auto"`

// The leader is killed while a lock waits to be HOT for long enough. The other
// one leads within the lease, and breaks the lock when its time comes: it has
// watched all along.
func TestLocksmithLeaderKilled(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	policy := policyFile(t, "session.exists", "40s", autoBreak)
	first := startSmith(t, policy, c.Env())
	first.becomes("leader")
	second := startSmith(t, policy, c.Env())
	second.becomes("follower")
	holdLock(t, c, "aimlock/locks/job-a", "job-a")
	held := time.Now()
	first.Kill()
	t.Logf("led by the other one %s after kill -9", second.becomes("leader").Round(10*time.Millisecond))
	if took := time.Since(held); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	harness.Eventually(t, time.Minute, "job-a is broken", func() bool { return strings.Contains(second.Stderr(), "broke a HOT lock: lock=job-a") })
	if took := time.Since(held); took < 38*time.Second || took > 55*time.Second {
		t.Errorf("broken %s after it was taken, want 40s: the follower's memory was not warm", took)
	}
	second.Signal(syscall.SIGTERM)
	if code := second.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	if s := sessionOf(t, c, "aimlock/locks/aimlock.locksmith"); s != "" {
		t.Errorf("the leadership was not let go: session %s", s)
	}
}

// tap stands between a locksmith and Consul and keeps what would change KV.
type tap struct {
	mu     sync.Mutex
	writes []string
}

var writeVerb = regexp.MustCompile(`"Verb":\s*"(set|cas|lock|unlock|delete|delete-tree|delete-cas)"`)

func (k *tap) serve(t *testing.T, c *harness.Consul) (env []string) {
	t.Helper()
	target, err := url.Parse("http://" + c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && (strings.HasPrefix(r.URL.Path, "/v1/kv/") || r.URL.Path == "/v1/txn") {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if r.URL.Path != "/v1/txn" || writeVerb.Match(body) {
				k.mu.Lock()
				k.writes = append(k.writes, r.URL.Path+" "+string(body))
				k.mu.Unlock()
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return append(c.Env(), "CONSUL_HTTP_ADDR="+strings.TrimPrefix(srv.URL, "http://"))
}

func (k *tap) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.writes)
}

// The leader is stopped with a break before it. The other one leads and breaks;
// the first one, when it wakes, writes nothing and follows.
func TestLocksmithLeaderStopped(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	policy := policyFile(t, "session.exists", "35s", autoBreak)
	var k tap
	first := startSmith(t, policy, k.serve(t, c))
	first.becomes("leader")
	second := startSmith(t, policy, c.Env())
	second.becomes("follower")
	holdLock(t, c, "aimlock/locks/job-a", "job-a")
	first.Freeze()
	t.Logf("led by the other one %s after SIGSTOP", second.becomes("leader").Round(10*time.Millisecond))
	harness.Eventually(t, 90*time.Second, "job-a is broken", func() bool { return strings.Contains(second.Stderr(), "broke a HOT lock: lock=job-a") })
	holdLock(t, c, "aimlock/locks/job-b", "job-b")
	before := k.count()
	first.Thaw()
	first.becomes("follower")
	if !strings.Contains(first.Stderr(), "leads no more") {
		t.Error("it does not say that it leads no more")
	}
	harness.Eventually(t, 90*time.Second, "job-b is broken", func() bool { return strings.Contains(second.Stderr(), "broke a HOT lock: lock=job-b") })
	k.mu.Lock()
	defer k.mu.Unlock()
	if late := k.writes[before:]; len(late) > 0 {
		t.Errorf("the one that woke up wrote: %q", late)
	}
	for _, lock := range []string{"job-a", "job-b"} {
		if keys, _, err := c.Client().KV().Keys("aimlock/breaks/"+lock+"/", "", nil); err != nil || len(keys) != 1 {
			t.Errorf("breaks of %s: %q, %v", lock, keys, err)
		}
	}
}

// Consul is restarted under a locksmith, and its policies are replaced by ones
// that are not valid: it goes on by those before, and breaks what is HOT.
func TestLocksmithConsulRestart(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, harness.WithData())
	policy := policyFile(t, "session.exists", "2s", autoBreak)
	s := startSmith(t, policy, c.Env())
	s.becomes("leader")
	c.Restart()
	c.WaitReady()
	s.becomes("leader")
	if err := os.WriteFile(policy, []byte("policy \"p\" {\n  locks = [\"job-*\"]\n  hot \"x\" {\n    when = holder.alife\n  }\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Signal(syscall.SIGHUP)
	harness.Eventually(t, 20*time.Second, "it says that the policies are not valid", func() bool { return strings.Contains(s.Stderr(), "those before stay in force") })
	if h := s.health(); len(h.Notes) != 1 || !strings.Contains(h.Notes[0], "reload") {
		t.Errorf("health: %+v", h)
	}
	if !strings.Contains(s.Stderr(), `Did you mean "alive"?`) {
		t.Error("the diagnostics are not printed")
	}
	holdLock(t, c, "aimlock/locks/job-a", "job-a")
	harness.Eventually(t, time.Minute, "job-a is broken", func() bool { return strings.Contains(s.Stderr(), "broke a HOT lock: lock=job-a") })
}

// What a locksmith never breaks, each beside a lock that it does break, so that
// it is seen to be at work.
func TestLocksmithNeverBreaks(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, manyConns)
	aimlock := func(prefix string, args ...string) {
		t.Helper()
		harness.Output(t, 20*time.Second, harness.Spec{Path: harness.Aimlock.Path(t), Env: c.Env(), Args: append(args, "-prefix", prefix)})
	}
	for name, tc := range map[string]struct {
		rule, more string
		before     func(prefix string)
		says       string
		broken     bool
	}{
		"nothing in the way": {rule: "session.exists", more: autoBreak, broken: true},
		"a cold rule":        {rule: "!session.exists", more: autoBreak, says: "this locksmith leads"},
		"unknown evidence":   {rule: "check.age > 100000", more: autoBreak, says: "lock is UNKNOWN: it is not broken on unknown evidence: lock=job-a"},
		"past the budget": {rule: "session.exists", more: autoBreak + "\n budget {\n max = 1\n per = \"1h\"\n }", before: func(prefix string) {
			spent := fmt.Sprintf(`{"version":1,"breaks":[{"lock":"x","at":%q,"by":"test","token":1}]}`, time.Now().UTC().Format(time.RFC3339))
			harness.Output(t, 20*time.Second, harness.Spec{Path: harness.ConsulBin.Path(t), Env: c.Env(), Args: []string{"kv", "put", prefix + "budgets/p", spent}})
		}, says: "is not broken now: lock=job-a why=\"the budget of policy p is spent"},
		"frozen":            {rule: "session.exists", more: autoBreak + "\n freeze {\n when = session.exists\n }", says: "is not broken now: lock=job-a why=\"breaking is frozen"},
		"awaiting approval": {rule: "session.exists", more: `approval = "manual"`, says: "is not broken now: lock=job-a why=\"policy p wants a person's approval"},
		"suspended": {rule: "session.exists", more: autoBreak, before: func(prefix string) {
			aimlock(prefix, "policy", "suspend", "-reason", "test")
		}, says: "all automatic breaking is suspended"},
		"other policies applied": {rule: "session.exists", more: autoBreak, before: func(prefix string) {
			aimlock(prefix, "policy", "apply", policyFile(t, "session.has_ttl", "1s", autoBreak))
		}, says: "these policies are not the ones applied"},
		"silenced": {rule: "session.exists", more: autoBreak, before: func(prefix string) {
			aimlock(prefix, "lock", "silence", "job-a", "-for", "1h", "-reason", "test")
		}, says: "is not broken now: lock=job-a"},
	} {
		t.Run(name, func(t *testing.T) {
			prefix := strings.ReplaceAll(name, " ", "-") + "/"
			if tc.before != nil {
				tc.before(prefix)
			}
			key := prefix + "locks/job-a"
			session := holdLock(t, c, key, "job-a", "-prefix", prefix)
			s := startSmith(t, policyFile(t, tc.rule, "1s", tc.more), c.Env(), "-prefix", prefix)
			if tc.broken {
				harness.Eventually(t, time.Minute, "it is broken", func() bool { return sessionOf(t, c, key) == "" })
				return
			}
			harness.Eventually(t, time.Minute, "it says "+tc.says, func() bool { return strings.Contains(s.Stderr(), tc.says) })
			over := time.Now().Add(6 * time.Second)
			harness.Eventually(t, time.Minute, "time passes", func() bool {
				if now := sessionOf(t, c, key); now != session {
					t.Fatalf("the lock is held by %q, not by %s any more", now, session)
				}
				return time.Now().After(over)
			})
		})
	}
}
