package evidence_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/filelock"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

func fileFacts(r *evidence.Reader, path string, err error) policies.Facts {
	return policies.Facts{"file": r.FileFacts(path, err, time.Now())}
}

func TestFileFacts(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells who locks a file")
	}
	t.Parallel()
	r := &evidence.Reader{Files: new(filelock.Scanner)}
	path := filepath.Join(t.TempDir(), "a.lock")

	all := func(v string) want {
		w := want{}
		for name := range policies.Schema()["file"] {
			w["file."+name] = v
		}
		return w
	}
	all("null").check(t, fileFacts(r, "", nil))
	all("?bad name").check(t, fileFacts(r, "", errors.New("bad name")))

	gone := all("null")
	gone["file.path"] = path
	gone.check(t, fileFacts(r, path, nil))

	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	free := want{"file.path": path, "file.locked": false, "file.kind": "null", "file.pid": "null", "file.pid_alive": "null"}
	free.check(t, fileFacts(r, path, nil))
	if got, _ := fileFacts(r, path, nil).Lookup("file.kept_by"); !got.Value.IsKnown() || got.Value.IsNull() || got.Value.LengthInt() != 0 {
		t.Errorf("nobody keeps it, and kept_by is %#v", got.Value)
	}
	below := all("?not a directory")
	below["file.path"] = path + "/x"
	below.check(t, fileFacts(r, path+"/x", nil))

	nobody := all("?nobody looks")
	nobody["file.path"] = path
	nobody.check(t, fileFacts(new(evidence.Reader), path, nil))
}

func TestFactsOfALockedFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.lock")
	f := lockedFile(t, path)
	defer f.Close()
	r := &evidence.Reader{Files: new(filelock.Scanner)}
	facts := fileFacts(r, path, nil)
	want{"file.path": path, "file.locked": true, "file.kind": "flock", "file.pid": os.Getpid(), "file.pid_alive": true}.check(t, facts)
	kept, _ := facts.Lookup("file.kept_by")
	if kept.Source != "the observer's own machine, /proc" || kept.ObservedAt.IsZero() {
		t.Errorf("from %q at %s", kept.Source, kept.ObservedAt)
	}
	report, err := r.Files.Explain(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Where a process cannot be looked at, nobody knows that there is no other.
	if complete := report.Locks[0].Complete; complete != kept.Value.IsKnown() || !complete && kept.Why == "" {
		t.Errorf("complete: %t, known: %t, why %q", complete, kept.Value.IsKnown(), kept.Why)
	}
	set, diags := policies.Parse("p.hcl", []byte(`policy "p" {
  locks = ["**"]
  file  = "`+path+`"
  hot "kept" {
    when = file.locked && length(file.kept_by) > 0
  }
}
`))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	if j := set.Policies[0].Judge(facts, nil, "h", 0); j.State != policies.StateHot {
		t.Errorf("that somebody keeps it is known in any case: %s, %+v", j.State, j.Results)
	}
}

// What is not seen is at least what was seen: the rest of the facts by hand.
func TestFactsOfSeveralLocks(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	for name, tc := range map[string]struct {
		locks []filelock.Lock
		want  want
		kept  int // negative: unknown
	}{
		"exclusive first": {
			[]filelock.Lock{
				{Kind: "lease", Mode: "write", PID: 3, PIDAlive: &no, Complete: true, KeptBy: []filelock.Keeper{{PID: 3}}},
				{Kind: "posix", Mode: "read", PID: 4, PIDAlive: &no, Complete: true, KeptBy: []filelock.Keeper{{PID: 5}}},
				{Kind: "posix", Mode: "write", PID: 6, PIDAlive: &no, Complete: true, KeptBy: []filelock.Keeper{{PID: 5}}},
			},
			want{"file.kind": "posix", "file.pid": 6, "file.pid_alive": false}, 2,
		},
		"one lives": {
			[]filelock.Lock{
				{Kind: "flock", Mode: "read", PID: 4, PIDAlive: &no, Complete: true, KeptBy: []filelock.Keeper{{PID: 5}}},
				{Kind: "flock", Mode: "read", PID: 6, PIDAlive: &yes, Complete: true, KeptBy: []filelock.Keeper{{PID: 6}}},
			},
			want{"file.pid": 4, "file.pid_alive": true}, 2,
		},
		"one is not known": {
			[]filelock.Lock{
				{Kind: "flock", Mode: "read", PID: 4, PIDAlive: &no, Complete: true, KeptBy: []filelock.Keeper{{PID: 5}}},
				{Kind: "flock", Mode: "read", PID: 0, Why: "a container"},
			},
			want{"file.pid": 4, "file.pid_alive": "?a container", "file.kept_by": "?a container"}, -1,
		},
		"nobody is named": {
			[]filelock.Lock{{Kind: "ofd", Mode: "write", PID: -1, Complete: true, KeptBy: []filelock.Keeper{{PID: 5}}}},
			want{"file.kind": "ofd", "file.pid": -1, "file.pid_alive": "null"}, 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			facts := policies.Facts{"file": evidence.FactsOfReport(&filelock.Report{At: time.Now(), Locked: &yes, Locks: tc.locks})}
			tc.want.check(t, facts)
			kept, _ := facts.Lookup("file.kept_by")
			if tc.kept < 0 {
				if kept.Value.IsKnown() || kept.Value.Range().CouldBeNull() || kept.Value.Range().LengthLowerBound() != 1 {
					t.Errorf("kept_by is %#v", kept.Value)
				}
			} else if !kept.Value.IsKnown() || kept.Value.LengthInt() != tc.kept || !kept.Value.Type().Equals(cty.List(policies.Schema()["file"]["kept_by"].Type.ElementType())) {
				t.Errorf("kept_by is %#v, want %d", kept.Value, tc.kept)
			}
		})
	}
	unknown := evidence.FactsOfReport(&filelock.Report{At: time.Now(), Unseen: []string{"a container"}})
	want{"file.locked": "?a container", "file.kept_by": "?a container"}.check(t, policies.Facts{"file": unknown})
}
