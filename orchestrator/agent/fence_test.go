package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// rig is one node: a root, a state folder, and a fence on them.
type rig struct {
	root, state string
	*fence
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state")}
	if err := os.MkdirAll(r.root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := folder(filepath.Join(r.state, "configs")); err != nil {
		t.Fatal(err)
	}
	r.fence = r.newFence()
	return r
}

// copy is another node with the same files and the same memory.
func (r *rig) copy(t testing.TB) *rig {
	t.Helper()
	c := newRig(t)
	for from, to := range map[string]string{r.root: c.root, r.state: c.state} {
		err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			target := filepath.Join(to, rel)
			if d.IsDir() {
				err = os.MkdirAll(target, 0o700)
			} else {
				var b []byte
				if b, err = os.ReadFile(path); err == nil {
					err = os.WriteFile(target, b, 0o600)
				}
			}
			return errors.Join(err, os.Chmod(target, fi.Mode()))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (r *rig) newFence() *fence {
	return &fence{
		node: "n1", stateDir: r.state, root: r.root, agent: "test", lockWait: 10 * time.Second,
		now: time.Now, log: hclog.NewNullLogger(), step: func(string) {},
		recover: func(context.Context, string) (*records.Actual, error) { return nil, nil },
	}
}

const conf, dest = "aim.conf", "/etc/aim/aim.conf"

func order(token, seq uint64) orchestrator.Order { return orchestrator.Order{Token: token, Seq: seq} }

func entry(o orchestrator.Order, rollout, content string) *records.Desired {
	sum := sum256([]byte(content))
	return &records.Desired{
		Version: 1, Revision: sum[:12], Order: o, Rollout: rollout, Chunks: 1,
		Size: int64(len(content)), SHA256: sum, Destination: dest, Mode: "0640",
	}
}

func restoreEntry(o orchestrator.Order, rollout string) *records.Desired {
	return &records.Desired{Version: 1, Order: o, Rollout: rollout, Destination: dest, Action: records.ActionRestore}
}

func from(content string) source {
	return func(context.Context) ([]byte, error) { return []byte(content), nil }
}

func sh(script string) *records.Command {
	return &records.Command{Argv: []string{"/bin/sh", "-c", script}}
}

func (r *rig) path() string { return filepath.Join(r.root, dest) }

func (r *rig) read(t interface {
	Helper()
	Fatal(...any)
}) string {
	t.Helper()
	b, err := os.ReadFile(r.path())
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (r *rig) must(t testing.TB, d *records.Desired, content, result string) outcome {
	t.Helper()
	out, err := r.apply(context.Background(), conf, d, from(content))
	if err != nil {
		t.Fatalf("apply %s: %v", d.Order, err)
	}
	if out.Report == nil {
		t.Fatalf("apply %s: no report", d.Order)
	}
	if out.Report.Result != result {
		t.Fatalf("apply %s: %s (%s), want %s", d.Order, out.Report.Result, out.Report.Error, result)
	}
	return out
}

func (r *rig) leftovers(t testing.TB) []string {
	t.Helper()
	var all []string
	ents, err := os.ReadDir(filepath.Dir(r.path()))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range ents {
		if e.Name() != filepath.Base(dest) {
			all = append(all, e.Name())
		}
	}
	return all
}

func TestApply(t *testing.T) {
	r := newRig(t)
	trace := filepath.Join(t.TempDir(), "trace")
	d := entry(order(5, 1), "r1", "one\n")
	d.Validate = sh(`grep -q one "${staged}" && [ "$AIMLOCK_STAGED" = "${staged}" ] && echo validate $AIMLOCK_TOKEN.$AIMLOCK_SEQ $AIMLOCK_CONFIG_NAME >>` + trace)
	d.Reload = sh(`grep -q one "$AIMLOCK_DESTINATION" && [ -z "$AIMLOCK_STAGED" ] && echo reload >>` + trace)
	d.Healthy = sh(`echo healthy >>` + trace)
	out := r.must(t, d, "one\n", records.ResultApplied)
	if !out.Changed || out.Report.Revision != d.Revision || out.Report.SHA256 != d.SHA256 || out.Report.Order != d.Order {
		t.Errorf("report %+v", out.Report)
	}
	if got := r.read(t); got != "one\n" {
		t.Errorf("file is %q", got)
	}
	fi, err := os.Stat(r.path())
	if err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v %v", fi.Mode(), err)
	}
	if fi, err := os.Stat(filepath.Dir(r.path())); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("folder %v %v", fi.Mode(), err)
	}
	b, _ := os.ReadFile(trace)
	if got, want := string(b), "validate 5.1 aim.conf\nreload\nhealthy\n"; got != want {
		t.Errorf("commands ran as %q, want %q", got, want)
	}

	// The same order again: nothing to say.
	if out, err := r.apply(t.Context(), conf, d, from("one\n")); err != nil || out.Report != nil || out.Standing == nil {
		t.Errorf("same order: %+v %v", out, err)
	}
	// A newer order of the same content: an answer, but no command.
	d.Order = order(5, 2)
	if out := r.must(t, d, "one\n", records.ResultApplied); out.Changed {
		t.Error("unchanged content was written")
	}
	if b2, _ := os.ReadFile(trace); string(b2) != string(b) {
		t.Errorf("unchanged content ran commands: %q", b2)
	}
	// Another mode of the same content is a change.
	d.Order, d.Mode = order(5, 3), "0600"
	if out := r.must(t, d, "one\n", records.ResultApplied); !out.Changed {
		t.Error("another mode was not written")
	}
	// An older order: refused once, with both orders.
	old := entry(order(5, 1), "r0", "zero\n")
	out, err = r.apply(t.Context(), conf, old, from("zero\n"))
	if err != nil || out.Refused == nil || out.Report == nil || out.Report.Result != records.ResultRefused ||
		out.Report.Order != order(5, 3) || *out.Report.Refused != order(5, 1) {
		t.Fatalf("older order: %+v %v", out, err)
	}
	if out, err = r.apply(t.Context(), conf, old, from("zero\n")); err != nil || out.Report != nil || out.Refused == nil {
		t.Errorf("older order again: %+v %v", out, err)
	}
	if got := r.read(t); got != "one\n" {
		t.Errorf("file is %q", got)
	}
	// An older epoch is older whatever its token.
	r.must(t, &records.Desired{Version: 1, Order: orchestrator.Order{Epoch: 1, Token: 1, Seq: 1}, Action: records.ActionRestore, Rollout: "x"}, "", records.ResultRolledBack)
	if out, err := r.apply(t.Context(), conf, entry(order(99, 9), "r9", "x"), from("x")); err != nil || out.Refused == nil {
		t.Errorf("older epoch: %+v %v", out, err)
	}
}

func TestFailures(t *testing.T) {
	hang := &records.Command{Argv: []string{"/bin/sh", "-c", "sleep 1000 & sleep 1000"}, Timeout: 0.3}
	for _, tc := range []struct {
		name   string
		edit   func(*records.Desired)
		body   string // of what is fetched; "" is the right one
		want   string
		output string
		reload int // times
	}{
		{name: "validate fails", edit: func(d *records.Desired) { d.Validate = sh("echo bad line 3; exit 4") }, want: "validate: sh ended with status 4", output: "bad line 3"},
		{name: "validate hangs with a child", edit: func(d *records.Desired) { d.Validate = hang }, want: "validate: sh did not end within 300ms"},
		{name: "validate prints without end", edit: func(d *records.Desired) {
			d.Validate = sh("head -c 100000000 /dev/zero | tr '\\0' x; echo; printf 'the end\\033[2J'; exit 1")
		}, want: "status 1", output: `the end\x1b[2J`},
		{name: "validate is missing", edit: func(d *records.Desired) { d.Validate = &records.Command{Argv: []string{"/nonexistent/aimctl"}} }, want: "validate: aimctl cannot be run: no such file"},
		{name: "validate killed", edit: func(d *records.Desired) { d.Validate = sh("kill -9 $$") }, want: "ended by signal 9"},
		{name: "reload fails", edit: func(d *records.Desired) { d.Reload.Argv[2] += "; ! grep -q two \"$AIMLOCK_DESTINATION\"" }, want: "reload: sh ended with status 1", reload: 2},
		{name: "healthy fails", edit: func(d *records.Desired) { d.Healthy = sh("exit 7") }, want: "healthy: sh ended with status 7", reload: 2},
		{name: "wrong content", body: "evil\n", want: "has 5 bytes, its entry says 4"},
		{name: "wrong hash", body: "twx\n", want: "has the SHA-256"},
		{name: "mode", edit: func(d *records.Desired) { d.Mode = "rw" }, want: `mode "rw"`},
		{name: "setuid", edit: func(d *records.Desired) { d.Mode = "4755" }, want: `mode "4755"`},
		{name: "owner", edit: func(d *records.Desired) { d.Owner = "no-such-user" }, want: `owner "no-such-user"`},
		{name: "group", edit: func(d *records.Desired) { d.Group = "no-such-group" }, want: `group "no-such-group"`},
		{name: "relative", edit: func(d *records.Desired) { d.Destination = "etc/x" }, want: "is not absolute"},
		{name: "dots", edit: func(d *records.Desired) { d.Destination = "/etc/../../x" }, want: `holds a ".."`},
		{name: "sha", edit: func(d *records.Desired) { d.SHA256 = "../../../etc/passwd" }, want: "not a SHA-256"},
		{name: "huge", edit: func(d *records.Desired) { d.Size = 1 << 40 }, want: "more than the"},
		{name: "action", edit: func(d *records.Desired) { d.Action = "explode" }, want: `action "explode"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
			count := filepath.Join(t.TempDir(), "reloads")
			d := entry(order(2, 1), "r2", "two\n")
			d.Reload = sh("echo x >>" + count)
			if tc.edit != nil {
				tc.edit(d)
			}
			body := tc.body
			if body == "" {
				body = "two\n"
			}
			start := time.Now()
			out := r.must(t, d, body, records.ResultFailed)
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			if !strings.Contains(out.Report.Error, tc.want) {
				t.Errorf("error %q, want %q in it", out.Report.Error, tc.want)
			}
			if !strings.HasSuffix(out.Report.Output, tc.output) || len(out.Report.Output) > 5*maxOutput {
				t.Errorf("output %.200q, want %q at its end", out.Report.Output, tc.output)
			}
			if got := r.read(t); got != "one\n" {
				t.Errorf("file is %q, want the last good one", got)
			}
			if out.Report.SHA256 != sum256([]byte("one\n")) || out.Report.Order != d.Order {
				t.Errorf("report %+v", out.Report)
			}
			if l := r.leftovers(t); len(l) > 0 {
				t.Errorf("left over: %v", l)
			}
			b, _ := os.ReadFile(count)
			if n := strings.Count(string(b), "x"); n != tc.reload {
				t.Errorf("reload ran %d times, want %d", n, tc.reload)
			}
		})
	}
}

// A first file that fails leaves no file.
func TestFailedFirst(t *testing.T) {
	r := newRig(t)
	d := entry(order(1, 1), "r1", "one\n")
	d.Healthy = sh("exit 1")
	out := r.must(t, d, "one\n", records.ResultFailed)
	if got := r.read(t); got != "" || out.Report.Revision != "" || out.Report.Previous != "" {
		t.Errorf("file %q, report %+v", got, out.Report)
	}
}

func TestRestore(t *testing.T) {
	r := newRig(t)
	r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
	out := r.must(t, entry(order(2, 1), "r2", "two\n"), "two\n", records.ResultApplied)
	if out.Report.Previous != sum256([]byte("one\n"))[:12] {
		t.Errorf("previous %q", out.Report.Previous)
	}
	// A second revision under the same rollout does not move what it restores.
	r.must(t, entry(order(2, 2), "r2", "three\n"), "three\n", records.ResultApplied)
	// A rollout that never touched the node: answered, nothing changed.
	if out := r.must(t, restoreEntry(order(2, 3), "r-other"), "", records.ResultRolledBack); out.Changed || out.Report.Revision != sum256([]byte("three\n"))[:12] {
		t.Errorf("%+v", out.Report)
	}
	for seq := uint64(4); seq < 6; seq++ { // twice: the same
		out := r.must(t, restoreEntry(order(2, seq), "r2"), "", records.ResultRolledBack)
		if got := r.read(t); got != "one\n" || out.Changed != (seq == 4) {
			t.Errorf("file %q, changed %v", got, out.Changed)
		}
	}
	// Before r1 there was no file.
	if out := r.must(t, restoreEntry(order(2, 6), "r1"), "", records.ResultRolledBack); r.read(t) != "" || out.Report.Revision != "" {
		t.Errorf("file %q, %+v", r.read(t), out.Report)
	}
	// A restore stands behind the same fence.
	if out, err := r.apply(t.Context(), conf, restoreEntry(order(1, 9), "r1"), nil); err != nil || out.Refused == nil {
		t.Errorf("%+v %v", out, err)
	}
}

// Copies are bounded: old rollouts lose theirs, and say so.
func TestRestoreTooOld(t *testing.T) {
	r := newRig(t)
	for i := range uint64(10) {
		c := fmt.Sprintf("content %d\n", i)
		r.must(t, entry(order(i+1, 1), fmt.Sprintf("r%d", i), c), c, records.ResultApplied)
	}
	ents, err := os.ReadDir(filepath.Join(configDir(r.state, conf), blobDir))
	if err != nil || len(ents) > keepSnapshots {
		t.Errorf("%d copies kept, %v", len(ents), err)
	}
	out := r.must(t, restoreEntry(order(20, 1), "r2"), "", records.ResultFailed)
	if !strings.Contains(out.Report.Error, "no longer kept") || r.read(t) != "content 9\n" {
		t.Errorf("%+v", out.Report)
	}
	r.must(t, restoreEntry(order(20, 2), "r8"), "", records.ResultRolledBack)
	if got := r.read(t); got != "content 7\n" {
		t.Errorf("file %q", got)
	}
}

// What cannot be put back after a restore's reload fails is kept: it is the
// last good file.
func TestRestoreUnhealthy(t *testing.T) {
	r := newRig(t)
	r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
	r.must(t, entry(order(2, 1), "r2", "two\n"), "two\n", records.ResultApplied)
	d := restoreEntry(order(2, 2), "r2")
	d.Healthy = sh("exit 1")
	out := r.must(t, d, "", records.ResultFailed)
	if r.read(t) != "one\n" || !strings.Contains(out.Report.Error, "was put back, but healthy") {
		t.Errorf("file %q, %+v", r.read(t), out.Report)
	}
}

func TestDestinations(t *testing.T) {
	outside := t.TempDir()
	for _, tc := range []struct {
		name, want string
		prepare    func(root string) error
	}{
		{"folder", "is a folder", func(root string) error { return os.MkdirAll(filepath.Join(root, dest), 0o755) }},
		{"symlink out", "is a symlink", func(root string) error {
			return errors.Join(os.MkdirAll(filepath.Join(root, "etc/aim"), 0o755), os.Symlink(outside+"/x", filepath.Join(root, dest)))
		}},
		{"symlink inside", "is a symlink", func(root string) error {
			return errors.Join(os.MkdirAll(filepath.Join(root, "etc/aim"), 0o755), os.Symlink("other", filepath.Join(root, dest)))
		}},
		{"folder links out", "leads out of the root", func(root string) error {
			return errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), os.Symlink(outside, filepath.Join(root, "etc/aim")))
		}},
		{"folder links up", "leads out of the root", func(root string) error { return os.Symlink("../..", filepath.Join(root, "etc")) }},
		{"parent is a file", "not a directory", func(root string) error { return os.WriteFile(filepath.Join(root, "etc"), nil, 0o600) }},
		{"fifo", "not a regular file", func(root string) error {
			return errors.Join(os.MkdirAll(filepath.Join(root, "etc/aim"), 0o755), mkfifo(filepath.Join(root, dest)))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			if err := tc.prepare(r.root); err != nil {
				t.Fatal(err)
			}
			out := r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultFailed)
			if !strings.Contains(out.Report.Error, tc.want) {
				t.Errorf("error %q, want %q in it", out.Report.Error, tc.want)
			}
		})
	}
	if ents, err := os.ReadDir(outside); err != nil || len(ents) != 0 {
		t.Errorf("written outside the root: %v %v", ents, err)
	}
	t.Run("folder links within the root", func(t *testing.T) {
		r := newRig(t)
		if err := errors.Join(os.MkdirAll(filepath.Join(r.root, "real"), 0o755), os.Symlink("real", filepath.Join(r.root, "etc"))); err != nil {
			t.Fatal(err)
		}
		r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
		if b, err := os.ReadFile(filepath.Join(r.root, "real/aim/aim.conf")); err != nil || string(b) != "one\n" {
			t.Errorf("%q %v", b, err)
		}
	})
}

// A config that is worked on is not worked on by another; the wait is bounded.
func TestBusy(t *testing.T) {
	r := newRig(t)
	dir := configDir(r.state, conf)
	if err := folder(dir); err != nil {
		t.Fatal(err)
	}
	l, err := lockConfig(t.Context(), dir, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	r.lockWait = 100 * time.Millisecond
	_, err = r.apply(t.Context(), conf, entry(order(1, 1), "r1", "one\n"), from("one\n"))
	if _, ok := errors.AsType[*BusyError](err); !ok {
		t.Errorf("got %v", err)
	}
	l.unlock()
	r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
}

// Someone who deletes the sidecar lets a second agent in: the first one sees
// that before it renames, and stops.
func TestLockFileReplaced(t *testing.T) {
	for _, moment := range []string{"after stage", "after staged"} {
		t.Run(moment, func(t *testing.T) {
			r := newRig(t)
			r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
			other := r.newFence()
			done := false
			r.step = func(name string) {
				if name != moment || done {
					return
				}
				done = true
				if err := os.Remove(filepath.Join(configDir(r.state, conf), lockFile)); err != nil {
					t.Error(err)
				}
				if _, err := other.apply(t.Context(), conf, entry(order(3, 1), "r3", "three\n"), from("three\n")); err != nil {
					t.Error(err)
				}
			}
			_, err := r.apply(t.Context(), conf, entry(order(2, 1), "r2", "two\n"), from("two\n"))
			if err == nil || !done {
				t.Errorf("the first one went on (the second came: %v)", done)
			}
			if got := r.read(t); got != "three\n" {
				t.Errorf("file is %q", got)
			}
			st, err := loadState(configDir(r.state, conf), conf)
			if err != nil || st.Mark != order(3, 1) {
				t.Errorf("mark %v, %v", st, err)
			}
		})
	}
}

// Another accepted a newer order just before the rename, or before the file was to be
// taken away, and was killed, at once or when it had staged its content and not
// validated it yet: neither the older order nor the newer may be carried out.
func TestNewerMarkJustBeforeTheRename(t *testing.T) {
	older := map[string]*records.Desired{"a write": entry(order(2, 1), "r2", "two\n"), "a removal": restoreEntry(order(2, 1), "r1")}
	for name, killed := range map[string]string{"a write, accepted": "after accepted", "a write, staged": "after stage", "a removal, accepted": "after accepted", "a removal, staged": "after stage"} {
		t.Run(name, func(t *testing.T) {
			what, _, _ := strings.Cut(name, ",")
			r := newRig(t)
			r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
			other := r.newFence()
			other.step = func(name string) {
				if name == killed {
					panic("killed")
				}
			}
			accepted := false
			r.step = func(name string) {
				if name != "after staged" || accepted {
					return
				}
				accepted = true
				defer func() { _ = recover() }()
				if err := os.Remove(filepath.Join(configDir(r.state, conf), lockFile)); err != nil {
					t.Error(err)
				}
				_, err := other.apply(t.Context(), conf, entry(order(3, 1), "r3", "three\n"), from("three\n"))
				t.Errorf("the other one was not killed: %v", err)
			}
			if _, err := r.apply(t.Context(), conf, older[what], from("two\n")); err == nil || !accepted {
				t.Errorf("the first one went on (a newer order was accepted: %v)", accepted)
			}
			if got := r.read(t); got != "one\n" {
				t.Errorf("file is %q", got)
			}
		})
	}
}

func TestLostState(t *testing.T) {
	unreachable := errors.New("Consul cannot be reached")
	lose := func(t *testing.T, r *rig) {
		if err := os.Remove(filepath.Join(configDir(r.state, conf), stateFile)); err != nil {
			t.Fatal(err)
		}
	}
	spoil := func(t *testing.T, r *rig) {
		if err := os.WriteFile(filepath.Join(configDir(r.state, conf), stateFile), []byte(`{"mark":`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, harm := range map[string]func(*testing.T, *rig){"lost": lose, "damaged": spoil} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.must(t, entry(order(4, 1), "r4", "four\n"), "four\n", records.ResultApplied)
			last := r.must(t, entry(order(5, 1), "r5", "five\n"), "five\n", records.ResultApplied).Report
			harm(t, r)

			r.recover = func(context.Context, string) (*records.Actual, error) { return nil, unreachable }
			_, err := r.apply(t.Context(), conf, entry(order(9, 1), "r9", "nine\n"), from("nine\n"))
			if !errors.Is(err, unreachable) || !strings.Contains(err.Error(), "nothing is written") {
				t.Errorf("without Consul: %v", err)
			}
			if name == "damaged" && !strings.Contains(err.Error(), "state.json is damaged") {
				t.Errorf("does not say that it is damaged: %v", err)
			}
			if got := r.read(t); got != "five\n" {
				t.Fatalf("file is %q", got)
			}
			r.recover = func(context.Context, string) (*records.Actual, error) { return last, nil }
			if out, err := r.apply(t.Context(), conf, entry(order(4, 9), "r4", "four\n"), from("four\n")); err != nil || out.Refused == nil {
				t.Errorf("older order: %+v %v", out, err)
			}
			harm(t, r)
			// The same order again, on a machine that lost the file too.
			if err := os.Remove(r.path()); err != nil {
				t.Fatal(err)
			}
			r.must(t, entry(order(5, 1), "r5", "five\n"), "five\n", records.ResultApplied)
			if got := r.read(t); got != "five\n" {
				t.Errorf("file is %q", got)
			}
			harm(t, r)
			// What stood before is not known, and it does not pretend.
			if out := r.must(t, restoreEntry(order(5, 2), "r5"), "", records.ResultFailed); !strings.Contains(out.Report.Error, "is not known") {
				t.Errorf("%+v", out.Report)
			}
		})
	}
	t.Run("damaged, no report", func(t *testing.T) {
		r := newRig(t)
		r.must(t, entry(order(5, 1), "r5", "five\n"), "five\n", records.ResultApplied)
		spoil(t, r)
		if _, err := r.apply(t.Context(), conf, entry(order(9, 1), "r9", "nine\n"), from("nine\n")); err == nil || !strings.Contains(err.Error(), "remove the file") {
			t.Errorf("got %v", err)
		}
	})
}

// An agent that is stopped while a command runs leaves the order unanswered.
func TestStopped(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := entry(order(1, 1), "r1", "one\n")
	started := filepath.Join(t.TempDir(), "started")
	d.Reload = sh("if [ ! -e " + started + " ]; then touch " + started + "; sleep 1000; fi")
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(started); err == nil {
				cancel()
				return
			}
			sleep(ctx, 5*time.Millisecond, nil)
		}
	}()
	if out, err := r.apply(ctx, conf, d, from("one\n")); !errors.Is(err, context.Canceled) || out.Report != nil {
		t.Fatalf("%+v %v", out, err)
	}
	out, err := r.finish(t.Context(), conf)
	if err != nil || out.Report == nil || out.Report.Result != records.ResultApplied {
		t.Errorf("after the restart: %+v %v", out, err)
	}
}
