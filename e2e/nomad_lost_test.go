package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// nomadHold is a lock that a task holds, while a locksmith and a person look on
// who can ask Nomad.
type nomadHold struct {
	t     *testing.T
	kv    *api.KV
	alloc string
	// region is where the task runs.
	region string
	pid    int
	watch  *harness.Process
}

// lostPolicy breaks on Nomad's word alone.
const lostPolicy = `policy "lost" {
  locks = ["**"]
  hot "alloc-lost" {
    when = nomad.client_status == "lost"
  }
  break {
    approval = "auto"
    step "nomad_stop" {
      when = nomad.alloc_id != null
    }
    step "take" {
    }
  }
}
`

// holdInNomad runs `lock exec` as a task of c, and sees that its record names the
// allocation. Those who look on ask the Nomad at asked, and break by policy.
func holdInNomad(t *testing.T, c *nomadCluster, asked, policy string) *nomadHold {
	t.Helper()
	consul := harness.StartConsul(t)
	h := &nomadHold{t: t, kv: consul.Client().KV(), region: c.region}
	aimlock := harness.Aimlock.Path(t)
	h.alloc = c.run("holder", "service", "env", "CONSUL_HTTP_ADDR="+consul.Addr, aimlock, "lock", "exec", "app.conf", "--", "sleep", "600")
	var rec records.Holder
	harness.Eventually(t, nomadLimit, "the task holds the lock", func() bool {
		p, _, err := h.kv.Get(keys.Prefix("aimlock/").Lock("app.conf"), nil)
		return err == nil && p != nil && p.Session != "" && json.Unmarshal(p.Value, &rec) == nil
	})
	if rec.AllocID != h.alloc || rec.AllocRegion != c.region || rec.AllocNamespace != "default" || rec.AllocJob != "holder" {
		t.Errorf("the holder record names %+v, want allocation %s", rec, h.alloc)
	}
	h.pid = rec.PID
	file := filepath.Join(t.TempDir(), "policy.hcl")
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(consul.Env(), "NOMAD_ADDR="+asked)
	harness.Start(t, harness.Spec{Path: aimlock, Args: []string{"locksmith", "-policy", file}, Env: env})
	// By the shipped policy: it says the same of an allocation that is lost.
	h.watch = harness.Start(t, harness.Spec{Path: aimlock, Args: []string{"lock", "watch", "-json", "app.conf"}, Env: env})
	harness.Eventually(t, nomadLimit, "the lock is seen to be held", func() bool { return h.seen("HELD", "") })
	return h
}

// seen reports whether the one who looks on has seen a state, by a rule.
func (h *nomadHold) seen(state, rule string) bool {
	for line := range strings.Lines(h.watch.Stdout()) {
		var st struct{ State, Rule string }
		if json.Unmarshal([]byte(line), &st) == nil && st.State == state && (rule == "" || st.Rule == rule) {
			return true
		}
	}
	return false
}

// isLost is called when the client was killed: the task and its hold go on, its
// check passes, and only Nomad knows. It says how long it takes from Nomad's
// verdict to HOT and to the end of the hold.
func (h *nomadHold) isLost(n evidence.Nomad) {
	h.t.Helper()
	killed := time.Now()
	verdict := make(chan time.Time, 1)
	go func() {
		index := uint64(0)
		for h.t.Context().Err() == nil {
			a, next, err := n.Alloc(h.t.Context(), evidence.AllocRef{ID: h.alloc, Region: h.region}, evidence.Since{Index: index, Wait: 5 * time.Second})
			if err == nil && a.ClientStatus == "lost" {
				verdict <- time.Now()
				return
			}
			index = next
		}
	}()
	var hot, broken time.Time
	harness.Eventually(h.t, nomadLimit, "the lock is HOT by the rule alloc-lost, and broken", func() bool {
		if hot.IsZero() && h.seen("HOT", "alloc-lost") {
			hot = time.Now()
		}
		p, _, err := h.kv.Get(keys.Prefix("aimlock/").Lock("app.conf"), nil)
		if broken.IsZero() && err == nil && p != nil && p.Session == "" {
			broken = time.Now()
		}
		return !hot.IsZero() && !broken.IsZero()
	})
	at := <-verdict
	h.t.Logf("Nomad's verdict came %.1f s after the client's end; the lock was HOT %.2f s and free %.2f s after the verdict",
		at.Sub(killed).Seconds(), hot.Sub(at).Seconds(), broken.Sub(at).Seconds())
	// On a calm machine it is well below a second.
	if late := hot.Sub(at); late > 20*time.Second {
		h.t.Errorf("HOT only %s after Nomad's verdict", late)
	}
	if b := h.broken(); b.Rule != "alloc-lost" {
		h.t.Errorf("break %+v", b)
	}
	h.ends()
}

// broken is the one break of the lock.
func (h *nomadHold) broken() records.Break {
	h.t.Helper()
	breaks, _, err := h.kv.List("aimlock/breaks/app.conf/", nil)
	if err != nil || len(breaks) != 1 {
		h.t.Fatalf("%d breaks, %v", len(breaks), err)
	}
	var b records.Break
	if err := json.Unmarshal(breaks[0].Value, &b); err != nil {
		h.t.Fatalf("break %s: %v", breaks[0].Value, err)
	}
	return b
}

// ends waits for the end of the holder, which learns that its lock is gone.
func (h *nomadHold) ends() {
	h.t.Helper()
	harness.Eventually(h.t, nomadLimit, "the old holder ends", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", h.pid))
		return os.IsNotExist(err)
	})
}
