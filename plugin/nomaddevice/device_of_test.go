package nomaddevice

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
)

const config = "aim.conf"

// good is a node of which nothing is wrong.
func good() *world {
	at := time.Unix(1000, 0)
	return &world{
		state: nodeState{Node: "n1", Configs: []agent.Status{{
			Config: config, State: records.ResultApplied, Revision: "22bbb404839a", SHA256: strings.Repeat("a", 64), Destination: "/etc/aim.conf",
			Rollout: "r-1", Order: orchestrator.Order{Epoch: 1, Token: 17, Seq: 2}, Time: &at,
		}}},
		presence: presence{Runs: true},
		locks:    map[string]lockView{config: {State: locksmith.Free}},
	}
}

func TestHealth(t *testing.T) {
	for _, tc := range []struct {
		name    string
		change  func(*world, *Settings)
		healthy bool
		why     string
	}{
		{"all is well", func(*world, *Settings) {}, true, ""},
		{"held", func(w *world, _ *Settings) { w.locks[config] = lockView{State: locksmith.Held} }, true, ""},
		{"warm", func(w *world, _ *Settings) { w.locks[config] = lockView{State: locksmith.Warm, Rule: "slow"} }, true, ""},
		{"hot", func(w *world, _ *Settings) {
			w.locks[config] = lockView{State: locksmith.Hot, Rule: "stalled", Reason: "no progress"}
		}, false, "its lock is HOT: stalled: no progress"},
		{"lock unknown", func(w *world, _ *Settings) {
			w.locks[config] = lockView{State: locksmith.Unknown, Rule: "holder-dead", Reason: "no agent there"}
		}, false, "unknown: its lock: holder-dead: no agent there"},
		{"lock unknown, and that is no matter", func(w *world, s *Settings) {
			w.locks[config] = lockView{State: locksmith.Unknown, Rule: "holder-dead", Reason: "no agent there"}
			s.OnUnknown = UnknownHealthy
		}, true, "unknown: its lock: holder-dead: no agent there"},
		{"hot is always a matter", func(w *world, s *Settings) {
			w.locks[config] = lockView{State: locksmith.Hot, Rule: "stalled", Reason: "no progress"}
			s.OnUnknown = UnknownHealthy
		}, false, "its lock is HOT: stalled: no progress"},
		{"no Consul", func(w *world, _ *Settings) {
			w.locks[config] = lockView{State: locksmith.Unknown, Err: "refused"}
			w.presence = presence{Err: "refused too"}
		}, false, "unknown: whether the aimlock agent runs: refused too; its lock: refused"},
		{"never asked", func(w *world, _ *Settings) { clear(w.locks) }, false, "unknown: its lock: Consul has not been asked yet"},
		{"agent gone", func(w *world, _ *Settings) { w.presence = presence{Why: "its check is critical"} }, false, "the aimlock agent of node n1 is gone: its check is critical"},
		{"no agent wanted", func(w *world, s *Settings) { w.presence, s.RequireAgent = presence{}, false }, true, ""},
		{"drifted", func(w *world, _ *Settings) {
			w.state.Configs[0].Drift = &records.Drift{What: "its content was changed"}
		}, false, "the file has drifted: its content was changed"},
		{"failed", func(w *world, _ *Settings) {
			w.state.Configs[0].State, w.state.Configs[0].Error = records.ResultFailed, "validate: no"
		}, false, "the last order failed: validate: no"},
		{"rolled back", func(w *world, _ *Settings) { w.state.Configs[0].State = records.ResultRolledBack }, true, ""},
		{"under way", func(w *world, _ *Settings) { w.state.Configs[0].State = agent.StateUnfinished }, true, ""},
		{"the rest of a group is missing", func(w *world, _ *Settings) { w.state.Configs[0].State = agent.StateWaiting }, true, ""},
		{"no file", func(w *world, _ *Settings) { w.state.Configs[0].Revision = "" }, false, "no file stands"},
		{"damaged", func(w *world, _ *Settings) {
			w.state.Configs[0] = agent.Status{Config: config, State: agent.StateDamaged, Error: "its end is missing"}
		}, false, "unknown: its end is missing"},
		{"state cannot be read", func(w *world, _ *Settings) { w.state.Err = "permission denied" }, false, "unknown: permission denied"},
		{"named and never applied", func(w *world, s *Settings) { w.state.Configs, s.Configs = nil, []string{config} }, false, "this node has accepted no order for it"},
		{"several things", func(w *world, _ *Settings) {
			w.state.Configs[0].Drift = &records.Drift{What: "it is gone"}
			w.locks[config] = lockView{State: locksmith.Hot, Rule: "r", Reason: "x"}
		}, false, "the file has drifted: it is gone; its lock is HOT: r: x"},
		{"foreign text", func(w *world, _ *Settings) {
			w.locks[config] = lockView{State: locksmith.Hot, Rule: "r", Reason: "\x1b[31m" + strings.Repeat("x", 1000)}
		}, false, "its lock is HOT: r: ?[31m" + strings.Repeat("x", maxWhy-25) + "…"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, s := good(), Defaults()
			tc.change(w, &s)
			all := devicesOf(w, &s)
			if len(all) != 1 || all[0].Healthy != tc.healthy || all[0].Why != tc.why {
				t.Errorf("got %t %q\nwant %t %q", all[0].Healthy, all[0].Why, tc.healthy, tc.why)
			}
			if all[0].Attributes[AttrHealthy] != tc.healthy {
				t.Errorf("attributes: %v", all[0].Attributes)
			}
		})
	}
}

// TestClass: nodes whose attributes are the same have the same health, since
// Nomad judges one node of a class for all; and nothing that is a node's own, or
// grows with time, is in them, or every node would be a class.
func TestClass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		world := func(node string) *world {
			w := good()
			w.state.Node = node
			at := time.Unix(rapid.Int64Range(0, 1<<30).Draw(t, "at"), 0)
			st := &w.state.Configs[0]
			st.Order.Seq = rapid.Uint64Range(1, 100).Draw(t, "seq")
			st.Time, st.State = &at, rapid.SampledFrom([]string{records.ResultApplied, records.ResultFailed}).Draw(t, "state")
			if rapid.Bool().Draw(t, "drifted") {
				st.Drift = &records.Drift{What: "changed", Since: at}
			}
			w.presence.Runs = rapid.Bool().Draw(t, "runs")
			w.locks[config] = lockView{State: rapid.SampledFrom([]string{locksmith.Free, locksmith.Held, locksmith.Hot, locksmith.Unknown}).Draw(t, "lock"), HeldSince: at}
			return w
		}
		s := Defaults()
		a, b := devicesOf(world("a"), &s)[0], devicesOf(world("b"), &s)[0]
		if maps.Equal(a.Attributes, b.Attributes) && a.Healthy != b.Healthy {
			t.Fatalf("%v and %v", a, b)
		}
		st, other := a.Status, b.Status
		if a.Healthy == b.Healthy && a.Lock.State == b.Lock.State && st.State == other.State && (st.Drift == nil) == (other.Drift == nil) && !maps.Equal(a.Attributes, b.Attributes) {
			t.Fatalf("attributes tell alike nodes apart: %v and %v", a.Attributes, b.Attributes)
		}
	})
}

// TestAttributeIsWhatAJobWrites: a constraint's text has the type that Nomad gives
// it, and is equal only to a value of that type.
func TestAttributeIsWhatAJobWrites(t *testing.T) {
	for text, want := range map[string]*nomadpb.Attribute{
		"22bbb404839a": {Value: &nomadpb.Attribute_StringVal{StringVal: "22bbb404839a"}},
		"123456789012": {Value: &nomadpb.Attribute_IntVal{IntVal: 123456789012}},
		"001234567890": {Value: &nomadpb.Attribute_IntVal{IntVal: 1234567890}},
		"12345678e100": {Value: &nomadpb.Attribute_FloatVal{FloatVal: 12345678e100}},
		"12e456789012": {Value: &nomadpb.Attribute_StringVal{StringVal: "12e456789012"}}, // no number is so large
		"/etc/aim":     {Value: &nomadpb.Attribute_StringVal{StringVal: "/etc/aim"}},
		"":             {Value: &nomadpb.Attribute_StringVal{StringVal: ""}},
	} {
		if got := attribute(text); got.String() != want.String() {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
	}
	digits := regexp.MustCompile(`^[0-9]+(e[0-9]+)?$`)
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[0-9a-f]{12}`).Draw(t, "revision")
		if _, isText := attribute(text).GetValue().(*nomadpb.Attribute_StringVal); !isText != digits.MatchString(text) && !strings.Contains(text, "e") {
			t.Fatalf("%q is %v", text, attribute(text))
		}
	})
}

func TestInstances(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name, slots := rapid.StringMatching(`[a-z:. ]{1,8}`).Draw(t, "name"), rapid.IntRange(1, 20).Draw(t, "slots")
		n := rapid.IntRange(-1, 25).Draw(t, "n")
		got, ok := instanceOf(instanceID(name, n), slots)
		if ok != (n >= 1 && n <= slots) || ok && got != name {
			t.Fatalf("%q: %q, %t", instanceID(name, n), got, ok)
		}
	})
	if _, ok := instanceOf("a:+1", 2); ok {
		t.Error("an instance has two names")
	}
}

func TestGrace(t *testing.T) {
	var g graced[string]
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	check := func(s int, want string, stands time.Duration) {
		t.Helper()
		if got, d := g.at(at(s)); got != want || d != stands {
			t.Errorf("at %d: %q for %s, want %q for %s", s, got, d, want, stands)
		}
	}
	g.take("not yet", true, at(0))
	check(1, "not yet", 0) // nothing was known before
	g.take("free", false, at(2))
	check(2, "free", 0)
	g.take("lost", true, at(10))
	g.take("lost still", true, at(15))
	check(15, "free", 5*time.Second)
	check(20, "lost still", 0)
	g.take("free", false, at(30))
	g.take("lost", true, at(40))
	check(41, "free", 9*time.Second)
}

func TestCompare(t *testing.T) {
	s := Defaults()
	with := func(change func(*world)) []device {
		w := good()
		change(w)
		return devicesOf(w, &s)
	}
	same := with(func(*world) {})
	for _, tc := range []struct {
		name string
		now  []device
		want int
	}{
		{"nothing", with(func(w *world) { w.state.Configs[0].Time = nil }), newsNone},
		{"held", with(func(w *world) { w.locks[config] = lockView{State: locksmith.Held, Token: 3} }), newsState},
		{"hot", with(func(w *world) { w.locks[config] = lockView{State: locksmith.Hot} }), newsUrgent},
		{"another revision", with(func(w *world) { w.state.Configs[0].Revision = "1" }), newsUrgent},
		{"gone", nil, newsUrgent},
	} {
		if got := compare(same, tc.now); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestReserveShowsWhatEverybodyMayRead(t *testing.T) {
	root := t.TempDir()
	// The folders of the test are closed to others.
	for dir := root; dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if !passable(filepath.Dir(root)) {
		t.Skipf("SKIPPED: nobody else may pass %s", filepath.Dir(root))
	}
	file := filepath.Join(root, "etc", "aim.conf")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	st := good().state.Configs[0]
	mounts := func(change func(*Settings)) []*nomadpb.Mount {
		s := Defaults()
		s.Root = root
		change(&s)
		out := &nomadpb.ContainerReservation{Envs: map[string]string{}}
		reserve(out, &st, &s)
		if out.Envs["AIMLOCK_CONFIG_AIM_CONF_TOKEN"] != "17" || out.Envs["AIMLOCK_CONFIG_AIM_CONF_EPOCH"] != "1" || (len(out.Mounts) > 0) != (out.Envs["AIMLOCK_CONFIG_AIM_CONF_MOUNTED"] != "") {
			t.Errorf("env: %v", out.Envs)
		}
		return out.GetMounts()
	}
	as := func(s *Settings) {}
	if got := mounts(as); len(got) != 0 {
		t.Errorf("no file: %v", got)
	}
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := mounts(as); len(got) != 1 || got[0].GetHostPath() != file || got[0].GetTaskPath() != "/etc/aim.conf" || !got[0].GetReadOnly() {
		t.Errorf("a public file: %v", got)
	}
	if got := mounts(func(s *Settings) { s.Mount = MountNone }); len(got) != 0 {
		t.Errorf("none: %v", got)
	}
	if got := mounts(func(s *Settings) { s.Mount, s.MountPrivate = MountFolder, true }); len(got) != 1 || got[0].GetTaskPath() != "/etc" {
		t.Errorf("its folder: %v", got)
	}
	for _, closed := range []string{file, filepath.Dir(file)} {
		was, err := os.Stat(closed)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(closed, was.Mode().Perm()&^0o007); err != nil {
			t.Fatal(err)
		}
		if got := mounts(as); len(got) != 0 {
			t.Errorf("%s is closed: %v", closed, got)
		}
		if got := mounts(func(s *Settings) { s.MountPrivate = true }); len(got) != 1 {
			t.Errorf("%s is closed, and that is no matter: %v", closed, got)
		}
		if err := os.Chmod(closed, was.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	// A link is judged by what it leads to.
	secret := filepath.Join(root, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, file); err != nil {
		t.Fatal(err)
	}
	if got := mounts(as); len(got) != 0 {
		t.Errorf("a link to a secret: %v", got)
	}
}

func TestStats(t *testing.T) {
	w, s := good(), Defaults()
	w.locks[config] = lockView{State: locksmith.Held, Token: 20, HeldSince: time.Unix(1050, 0)}
	w.state.Configs[0].Drift = &records.Drift{What: "x", Since: time.Unix(2000, 0)}
	d := devicesOf(w, &s)[0]
	g := d.stats(time.Unix(1060, 0), 2)
	one := g.GetInstanceStats()[instanceID(config, 2)]
	if len(g.GetInstanceStats()) != 2 || one.GetSummary().GetIntNumeratorVal().GetValue() != 60 {
		t.Errorf("stats: %v", g)
	}
	for name, want := range map[string]int64{"since_apply": 60, "lock_held_for": 10, "lock_token": 20, "token": 17, "epoch": 1, "drifted_for": 0} {
		if got := one.GetStats().GetAttributes()[name].GetIntNumeratorVal(); got == nil || got.GetValue() != want {
			t.Errorf("%s is %v, want %s", name, got, strconv.FormatInt(want, 10))
		}
	}
}
