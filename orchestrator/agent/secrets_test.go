package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/secrets"
	"github.com/aim-control/aimlock/orchestrator"
)

const pin = "AIMLOCK_TEST_PIN"

// sealed is an entry whose content has a secret in it.
func sealed(o orchestrator.Order, rollout, form string) *records.Desired {
	d := entry(o, rollout, form)
	d.Mode, d.Action, d.Requires = "0600", records.ActionApplyWith, []string{records.FeatureSecrets}
	d.Secrets = []records.Secret{{Name: "pin", Env: pin}}
	return d
}

func form(text string) string { return text + secrets.Placeholder("pin", "") + "\n" }

// tells fails where what others see has a hash of a content with the secret in
// it, or the secret.
func tells(t testing.TB, rep *records.Actual, contents ...string) {
	t.Helper()
	b := string(records.Encode(rep))
	for _, c := range contents {
		sum := sum256([]byte(c))
		if strings.Contains(b, sum[:12]) || strings.Contains(b, os.Getenv(pin)) {
			t.Errorf("the report tells of %q: %s", c, b)
		}
	}
}

func TestSecretStaysOnTheNode(t *testing.T) {
	t.Setenv(pin, "4711-hunter2")
	r := newRig(t)
	var log bytes.Buffer
	r.log = hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace})
	// A file with the same secret, which somebody wrote by hand.
	byHand := "old pin=4711-hunter2\n"
	if err := os.MkdirAll(filepath.Dir(r.path()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.path(), []byte(byHand), 0o644); err != nil {
		t.Fatal(err)
	}

	d := sealed(order(1, 1), "r1", form("pin="))
	out := r.must(t, d, form("pin="), records.ResultApplied)
	want := "pin=4711-hunter2\n"
	if got := r.read(t); got != want {
		t.Fatalf("the file is %q, want %q", got, want)
	}
	if out.Report.SHA256 != d.SHA256 || out.Report.Revision != d.Revision {
		t.Errorf("reported as %s, %s, want the revision as it is in Consul: %s", out.Report.Revision, out.Report.SHA256, d.SHA256)
	}
	if out.Report.Previous == "" {
		t.Error("nothing is said of the file that stood before")
	}
	tells(t, out.Report, want, byHand)

	// It goes back, and what is told of it still names no hash.
	back := r.must(t, restoreEntry(order(1, 2), "r1"), "", records.ResultRolledBack)
	if got := r.read(t); got != byHand {
		t.Fatalf("rolled back to %q", got)
	}
	if back.Report.Revision != out.Report.Previous {
		t.Errorf("it went back to %q, and said before that this would be %q", back.Report.Revision, out.Report.Previous)
	}
	tells(t, back.Report, want, byHand)

	// Forth again, and back to the revision with the secret.
	r.must(t, d2(d, order(2, 1), "r2"), form("pin="), records.ResultApplied)
	plain := entry(order(3, 1), "r3", "nothing secret\n")
	out = r.must(t, plain, "nothing secret\n", records.ResultApplied)
	if out.Report.SHA256 != plain.SHA256 || out.Report.Previous != d.Revision {
		t.Errorf("after it a plain file is %s with %s before it, want %s, %s", out.Report.SHA256, out.Report.Previous, plain.SHA256, d.Revision)
	}
	back = r.must(t, restoreEntry(order(3, 2), "r3"), "", records.ResultRolledBack)
	if r.read(t) != want || back.Report.SHA256 != d.SHA256 {
		t.Errorf("it went back to %q, told as %s", r.read(t), back.Report.SHA256)
	}
	tells(t, back.Report, want, byHand)
	if strings.Contains(log.String(), "hunter2") || strings.Contains(log.String(), sum256([]byte(want))[:12]) {
		t.Errorf("the log tells: %s", log.String())
	}

	// Copies and state are for the agent's user only.
	err := filepath.WalkDir(r.state, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if path != r.state && fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, fi.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(r.path()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode: %v, %v", fi.Mode(), err)
	}
}

// d2 is an entry under another order.
func d2(d *records.Desired, o orchestrator.Order, rollout string) *records.Desired {
	e := *d
	e.Order, e.Rollout = o, rollout
	return &e
}

// Nomad hands a changed key to every allocation at once, past the stages of the
// job (hashicorp/nomad#6392). Here a value is read when an order is carried out,
// and at no other time.
func TestNomad6392SecretChangesAlone(t *testing.T) {
	t.Setenv(pin, "first-value")
	r := newRig(t)
	d := sealed(order(1, 1), "r1", form("pin="))
	ran := filepath.Join(t.TempDir(), "ran")
	d.Reload = sh("echo x >> " + ran)
	r.must(t, d, form("pin="), records.ResultApplied)

	t.Setenv(pin, "second-value")
	// The agent starts again, and the same entry comes again.
	r.fence = r.newFence()
	if _, err := r.finish(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	out, err := r.apply(t.Context(), conf, d, from(form("pin=")))
	if err != nil || out.Report != nil || out.Changed {
		t.Fatalf("the same entry again: %+v, %v", out, err)
	}
	if got := r.read(t); got != "pin=first-value\n" {
		t.Fatalf("the value moved without an order: %q", got)
	}
	// The next order brings it, and runs reload once.
	out = r.must(t, d2(d, order(2, 1), "r2"), form("pin="), records.ResultApplied)
	if got := r.read(t); got != "pin=second-value\n" || !out.Changed {
		t.Fatalf("the next order left %q, changed %t", got, out.Changed)
	}
	// And one with nothing new changes nothing.
	out = r.must(t, d2(d, order(3, 1), "r3"), form("pin="), records.ResultApplied)
	if b, err := os.ReadFile(ran); err != nil || string(b) != "x\nx\n" || out.Changed {
		t.Errorf("reload ran %q, %v; changed %t", b, err, out.Changed)
	}
}

func TestSecretIsTakenLiterally(t *testing.T) {
	for _, value := range []string{"", "a\x01b\xff\xfe", "two\nlines\n", secrets.Placeholder("pin", ""), "{{aimlock:", "${secret.pin} $${x} %{ if true }", "\\n\\"} {
		t.Run(fmt.Sprintf("%q", value), func(t *testing.T) {
			t.Setenv(pin, value)
			r := newRig(t)
			r.must(t, sealed(order(1, 1), "r1", form("pin=")), form("pin="), records.ResultApplied)
			if got := r.read(t); got != "pin="+value+"\n" {
				t.Errorf("%q became %q", value, got)
			}
		})
	}
}

func TestSecretMissing(t *testing.T) {
	r := newRig(t)
	r.must(t, entry(order(1, 1), "r0", "good\n"), "good\n", records.ResultApplied)
	d := sealed(order(2, 1), "r1", form("pin="))
	d.Secrets = []records.Secret{{Name: "pin", Env: "AIMLOCK_TEST_NO_SUCH"}, {Name: "db", ConsulKey: "app/db"}}
	out := r.must(t, d, form("pin="), records.ResultFailed)
	for _, want := range []string{`"pin"`, "AIMLOCK_TEST_NO_SUCH", `"db"`, "app/db"} {
		if !strings.Contains(out.Report.Error, want) {
			t.Errorf("the error does not name %s: %s", want, out.Report.Error)
		}
	}
	if r.read(t) != "good\n" || len(r.leftovers(t)) > 0 {
		t.Errorf("the file is %q, left over %q", r.read(t), r.leftovers(t))
	}
	if out.Report.SHA256 != sum256([]byte("good\n")) {
		t.Errorf("what stands has no secrets and is told as %s", out.Report.SHA256)
	}
}

func TestSecretInOutput(t *testing.T) {
	t.Setenv(pin, "correct-horse")
	for name, script := range map[string]string{
		"validate": "cat ${staged}; echo bad; exit 1",
		"cut":      "head -c 9000 /dev/zero | tr '\\0' x; cat ${staged}; exit 1",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			var log bytes.Buffer
			r.log = hclog.New(&hclog.LoggerOptions{Output: &log})
			d := sealed(order(1, 1), "r1", form("pin="))
			d.Validate = sh(script)
			out := r.must(t, d, form("pin="), records.ResultFailed)
			if s := log.String(); s == "" || strings.Contains(s, "horse") || strings.Contains(s, "pin=") {
				t.Errorf("the log is %q", s)
			}
			if strings.Contains(out.Report.Output, "horse") || !strings.Contains(out.Report.Output, "pin="+secrets.Hidden) {
				t.Errorf("the output is %q", out.Report.Output)
			}
		})
	}
	t.Run("of another config", func(t *testing.T) {
		r := newRig(t)
		names := []string{"a.conf", "b.conf"}
		ds := entries(order(1, 1), "r1", names, []string{form("pin="), "plain\n"})
		ds[0].Mode, ds[0].Secrets = "0600", []records.Secret{{Name: "pin", Env: pin}}
		ds[1].Validate = sh("cat " + filepath.Dir(filepath.Join(r.root, ds[0].Destination)) + "/.aimlock-*; exit 1")
		outs := r.groupMust(t, ds, []string{form("pin="), "plain\n"}, records.ResultFailed)
		for _, out := range outs {
			if b := string(records.Encode(out.Report)); strings.Contains(b, "horse") || !strings.Contains(b, secrets.Hidden) {
				t.Errorf("the report is %s", b)
			}
		}
	})
}

// A group with a secret in one of its configs.
func TestSecretInGroup(t *testing.T) {
	t.Setenv(pin, "correct-horse")
	r := newRig(t)
	names := []string{"a.conf", "b.conf"}
	ds := entries(order(1, 1), "r1", names, []string{form("pin="), "plain\n"})
	ds[0].Secrets = []records.Secret{{Name: "pin", Env: pin}}
	outs := r.groupMust(t, ds, []string{form("pin="), "plain\n"}, records.ResultApplied)
	if got := r.files(t, names); !same(got, []string{"pin=correct-horse\n", "plain\n"}) {
		t.Errorf("files %q", got)
	}
	for i, out := range outs {
		if out.Report.SHA256 != ds[i].SHA256 {
			t.Errorf("%s is told as %s, want %s", names[i], out.Report.SHA256, ds[i].SHA256)
		}
		tells(t, out.Report, "pin=correct-horse\n")
	}
}

// Whatever step a process dies at, the next one brings the order to its end,
// and the file that stood before is the one that it goes back to.
func TestSecretCrash(t *testing.T) {
	t.Setenv(pin, "correct-horse")
	boom := errors.New("crash")
	var steps []string
	trace := newRig(t)
	trace.must(t, entry(order(1, 1), "r0", "good\n"), "good\n", records.ResultApplied)
	trace.step = func(name string) { steps = append(steps, name) }
	trace.must(t, sealed(order(2, 1), "r1", form("pin=")), form("pin="), records.ResultApplied)
	for i := range steps {
		t.Run(fmt.Sprintf("%02d %s", i, steps[i]), func(t *testing.T) {
			r := newRig(t)
			r.must(t, entry(order(1, 1), "r0", "good\n"), "good\n", records.ResultApplied)
			d := sealed(order(2, 1), "r1", form("pin="))
			n := 0
			r.step = func(string) {
				if n++; n == i+1 {
					panic(boom)
				}
			}
			func() {
				defer func() {
					if p := recover(); p != nil && p != any(boom) {
						panic(p)
					}
				}()
				_, _ = r.apply(context.Background(), conf, d, from(form("pin=")))
			}()
			r.fence = r.newFence()
			if _, err := r.finish(t.Context(), conf); err != nil {
				t.Fatal(err)
			}
			out, err := r.apply(t.Context(), conf, d, from(form("pin=")))
			if err != nil {
				t.Fatal(err)
			}
			rep := out.Report
			if rep == nil {
				rep = out.Standing
			}
			if rep.Result != records.ResultApplied || rep.SHA256 != d.SHA256 || r.read(t) != "pin=correct-horse\n" {
				t.Errorf("%s, %s, file %q", rep.Result, rep.SHA256, r.read(t))
			}
			tells(t, rep, "pin=correct-horse\n")
			back := r.must(t, restoreEntry(order(2, 2), "r1"), "", records.ResultRolledBack)
			if r.read(t) != "good\n" || back.Report.SHA256 != sum256([]byte("good\n")) {
				t.Errorf("it went back to %q, told as %s", r.read(t), back.Report.SHA256)
			}
		})
	}
}

// An agent of before there were secrets knows no such action; one that comes
// later may require more than this one knows.
func TestUnknownFeature(t *testing.T) {
	r := newRig(t)
	d := sealed(order(1, 1), "r1", form("pin="))
	d.Requires = append(d.Requires, "from-the-future")
	out := r.must(t, d, form("pin="), records.ResultFailed)
	if !strings.Contains(out.Report.Error, "upgrade") || r.read(t) != "" {
		t.Errorf("%s; the file is %q", out.Report.Error, r.read(t))
	}
}
