package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/htmlreport"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// pageLimit bounds the whole story of the page.
const pageLimit = 6 * time.Minute

// pageProgram finds what the test of the page needs beside aimlock and Consul, or
// says by name what is missing.
func pageProgram(t *testing.T) (node, browser, modules string) {
	t.Helper()
	var err error
	if node, err = exec.LookPath("node"); err != nil {
		t.Skip("NOT RUN: the page of aimlock ui in a browser: node is not on PATH")
	}
	for _, name := range []string{os.Getenv("CHROMIUM_BIN"), "chromium", "chromium-browser", "google-chrome"} {
		if name == "" {
			continue
		}
		if browser, err = exec.LookPath(name); err == nil {
			break
		}
	}
	if browser == "" {
		t.Skip("NOT RUN: the page of aimlock ui in a browser: no chromium is on PATH, and CHROMIUM_BIN is not set")
	}
	modules = os.Getenv("BROWSER_MODULES")
	if _, err := os.Stat(filepath.Join(modules, "playwright-core")); modules == "" || err != nil {
		t.Skip("NOT RUN: the page of aimlock ui in a browser: `make browser` has not fetched Playwright (npm is needed)")
	}
	return node, browser, modules
}

// pageWorld is what the browser's script has done for it.
type pageWorld struct {
	t       *testing.T
	c       *harness.Consul
	addr    string
	ui      *harness.Process
	holders map[string]*harness.Process
	dir     string
	rollout string
}

// The whole of the page, in a real Chromium: a break and a rollout followed live
// and acted on, records full of HTML, a Consul that goes away and comes back.
func TestPage(t *testing.T) {
	t.Parallel()
	node, browser, modules := pageProgram(t)
	port := harness.FreePorts(t, 1)[0]
	w := &pageWorld{t: t, c: harness.StartConsul(t, harness.WithData()), addr: fmt.Sprintf("127.0.0.1:%d", port), holders: map[string]*harness.Process{}, dir: t.TempDir()}
	// A lock of this name is HOT for as long as it is held: the holder lives on, and
	// learns of the break.
	if err := os.WriteFile(filepath.Join(w.dir, "policy.hcl"), []byte(`policy "page" {
  locks = ["**"]
  hot "named" {
    when   = lock.name == "doomed" && holder.alive
    reason = "it is called ${lock.name}"
  }
  break {
    approval = "auto"
    step "take" {}
  }
}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	w.startPage()
	// Node looks for modules beside the script.
	script := filepath.Join(w.dir, "page.mjs")
	src, err := os.ReadFile(filepath.Join("page", "page.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, src, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(w.dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, script, "http://"+w.addr+"/", browser, os.Getenv("PAGE_PICTURES"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := time.AfterFunc(pageLimit, func() { _ = cmd.Process.Kill() })
	defer end.Stop()
	oks := w.follow(out, in)
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the browser's script: %v", err)
	}
	if oks < 30 {
		t.Errorf("only %d checks were made", oks)
	}
}

// follow does what the script asks for, until it ends, and counts what held.
func (w *pageWorld) follow(out io.Reader, in io.Writer) (oks int) {
	scanner := bufio.NewScanner(out)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		kind, text, _ := strings.Cut(scanner.Text(), " ")
		switch kind {
		case "ok":
			oks++
		case "FAIL":
			w.t.Errorf("%s", text)
		case "ask":
			if _, err := fmt.Fprintf(in, "%s\n", w.do(text)); err != nil {
				w.t.Errorf("answer %q: %v", text, err)
			}
		default:
			w.t.Log(scanner.Text())
		}
	}
	return oks
}

func (w *pageWorld) startPage() {
	w.t.Helper()
	w.ui = harness.Start(w.t, harness.Spec{Path: harness.Aimlock.Path(w.t), Args: []string{"ui", "-actions", "-listen", w.addr, "-policy", filepath.Join(w.dir, "policy.hcl")}, Env: w.c.Env(), Name: "ui"})
	client := &http.Client{Timeout: 5 * time.Second}
	harness.Eventually(w.t, cmdLimit, "the page is served", func() bool {
		req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "http://"+w.addr+"/setup", http.NoBody)
		if err != nil {
			return false
		}
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// do does one thing, and returns what the script is told.
func (w *pageWorld) do(what string) string {
	w.t.Helper()
	verb, name, _ := strings.Cut(what, " ")
	switch {
	case verb == "hold":
		w.holders[name] = harness.Start(w.t, lockExec(w.t, w.c, name, "--", "sleep", "600"))
		harness.Eventually(w.t, cmdLimit, name+" is held", func() bool {
			p, _, err := w.c.Client().KV().Get("aimlock/locks/"+name, nil)
			return err == nil && p != nil && p.Session != ""
		})
	case verb == "lost":
		if code := w.holders[name].Wait(cmdLimit); code != 7 {
			w.t.Errorf("the holder of the broken lock ends with %d", code)
		}
	case verb == "attack":
		w.attack()
	case verb == "rollout":
		return w.startRollout()
	case what == "report":
		return w.writeReport()
	case what == "pause anew":
		for _, order := range []string{"resume", "pause"} {
			r := harness.Run(w.t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(w.t), Args: []string{"rollout", order, w.rollout}, Env: w.c.Env()})
			if r.Code != 0 {
				w.t.Errorf("%s: exit %d: %s", order, r.Code, r.Stderr)
			}
		}
	case verb == "resume":
		r := harness.Run(w.t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(w.t), Args: []string{"rollout", "resume", w.rollout}, Env: w.c.Env()})
		if r.Code != 0 {
			w.t.Errorf("resume: exit %d: %s", r.Code, r.Stderr)
		}
		harness.Start(w.t, harness.Spec{Path: harness.Aimlock.Path(w.t), Args: []string{"rollout", "start", filepath.Join(w.dir, "r.hcl")}, Env: w.c.Env(), Name: "rollout"})
	case what == "stop consul":
		w.c.Stop()
	case what == "start consul":
		w.c.Restart()
	case what == "stop page":
		w.ui.Kill()
	case what == "start page":
		w.startPage()
	default:
		w.t.Errorf("the script asks for %q", what)
	}
	return "done"
}

// attack has a foreign tool hold locks whose records are HTML and scripts.
func (w *pageWorld) attack() {
	w.t.Helper()
	const evil = `<img src=x onerror=alert(1)><script>alert(2)</script>`
	kv := w.c.Client()
	id, _, err := kv.Session().Create(&api.SessionEntry{Name: evil, TTL: "3600s"}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	record, err := json.Marshal(map[string]any{
		"version": 1, "lock": evil, "nonce": evil, "session": id, "tool": "aimlock", "operation": evil, "host": evil, "node": evil, "pid": 4242, "user": evil, "quiesce": 15,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for key, value := range map[string][]byte{"ops/" + evil + "/.lock": []byte(evil), "aimlock/locks/evil": record} {
		if ok, _, err := kv.KV().Acquire(&api.KVPair{Key: key, Value: value, Session: id}, nil); err != nil || !ok {
			w.t.Fatalf("%s: %v, %v", key, ok, err)
		}
	}
}

// writeReport writes the report of a rollout that was rolled back, with nodes of
// every class, and returns its path.
func (w *pageWorld) writeReport() string {
	w.t.Helper()
	var fleet []orchestrator.Node
	for i := range 40 {
		fleet = append(fleet, orchestrator.Node{Name: fmt.Sprintf("drone-%02d.hall-7.example", i)})
	}
	spec := orchestrator.Spec{
		Name: "aim", Configs: []orchestrator.Config{{Name: "aim.conf", Revision: "0f1e2d3c4b5a", Destination: "/etc/aim.conf"}},
		Stages: []orchestrator.Stage{{Name: "canary", Nodes: 1}, {Name: "rest", Percent: 100}}, Failure: orchestrator.Failure{MaxFailed: 5, Then: orchestrator.ThenRollback},
	}
	plan, err := orchestrator.NewPlan("aim-1", spec, fleet, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	h := orchestrator.NewHeader(plan.ID, spec, plan.CreatedAt)
	begin, end := plan.CreatedAt, plan.CreatedAt.Add(time.Hour)
	h.State, h.Reason, h.StartedAt, h.FinishedAt, h.Total = orchestrator.RolledBack, "6 failed, and max_failed is 5", &begin, &end, len(fleet)
	story := &runner.Story{Header: &h, Plan: plan, MoreFailures: 2}
	for i := range h.Stages {
		h.Stages[i].From, h.Stages[i].End = plan.Stage(i)
	}
	for i := range fleet {
		c := orchestrator.Class(i % len(h.Counts))
		h.Counts[c]++
		story.Classes = append(story.Classes, c)
		if c != orchestrator.ClassFailed && c != orchestrator.ClassUnreachable {
			continue
		}
		story.Failures = append(story.Failures, runner.NodeFailure{Node: plan.Nodes[i], Stage: "rest", Class: c, Why: "reload: exit status 1\n" + strings.Repeat("unknown_directive_", 20), At: end})
	}
	for i, state := range []orchestrator.Status{orchestrator.Running, orchestrator.RollingBack} {
		counts := h.Counts
		story.Events = append(story.Events, records.RolloutEvent{N: uint64(i + 1), At: begin.Add(time.Duration(i) * time.Minute), Kind: records.EventCounts, Stage: "rest", State: state, Text: string(state), Counts: &counts})
	}
	var page bytes.Buffer
	if err := htmlreport.Write(&page, story, end); err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(w.dir, "report.html")
	if err := os.WriteFile(path, page.Bytes(), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// startRollout starts one over two agents, which bakes for long, and returns its id.
func (w *pageWorld) startRollout() string {
	w.t.Helper()
	var fleet []string
	for i := range 3 {
		node := fmt.Sprintf("page-n%d", i+1)
		fleet = append(fleet, fmt.Sprintf(`{"node":%q}`, node))
		harness.Start(w.t, harness.Spec{
			Path: harness.Aimlock.Path(w.t), Name: "agent " + node, Env: w.c.Env(),
			Args: []string{"agent", "-node", node, "-state-dir", filepath.Join(w.dir, node, "state"), "-root", filepath.Join(w.dir, node, "root")},
		})
	}
	for name, text := range map[string]string{
		"fleet.json": "[" + strings.Join(fleet, ",") + "]", "page.conf": "one\n",
		"r.hcl": `rollout "page" {
  config "page.conf" {
    source      = "page.conf"
    destination = "/etc/page.conf"
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
  stage "canary" {
    nodes = 1
    bake  = "15s"
  }
  stage "rest" {
    percent = 100
  }
}
`,
	} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	harness.Eventually(w.t, cmdLimit, "the agents are there", func() bool {
		list, _, err := w.c.Client().Health().Service("aimlock-agent", "", true, nil)
		return err == nil && len(list) == 3
	})
	harness.Start(w.t, harness.Spec{Path: harness.Aimlock.Path(w.t), Args: []string{"rollout", "start", filepath.Join(w.dir, "r.hcl")}, Env: w.c.Env(), Name: "rollout"})
	harness.Eventually(w.t, cmdLimit, "the rollout is on record", func() bool {
		r := harness.Run(w.t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(w.t), Args: []string{"rollout", "status", "-json"}, Env: w.c.Env()})
		var v struct{ ID string }
		if r.Code != 0 || json.Unmarshal([]byte(r.Stdout), &v) != nil {
			return false
		}
		w.rollout = v.ID
		return v.ID != ""
	})
	return w.rollout
}
