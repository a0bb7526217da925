package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
)

// mallory is a local account that wants this agent, which is root, to write or
// read what it may not.
const mallory = 4242

// asRoot skips what needs files of another account.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: only root can make files of another account")
	}
}

func do(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// theirs makes a folder of mallory's, and returns its path.
func theirs(t testing.TB, path string) string {
	t.Helper()
	do(t, os.MkdirAll(path, 0o755))
	do(t, os.Lchown(path, mallory, mallory))
	return path
}

func link(t testing.TB, to, path string, uid int) {
	t.Helper()
	do(t, os.Symlink(to, path))
	do(t, os.Lchown(path, uid, uid))
}

// try applies content to a destination, and returns what became of it.
func (r *rig) try(token uint64, destination, content string, change func(*records.Desired)) (string, error) {
	d := entry(order(token, 1), "r", content)
	d.Destination = destination
	if change != nil {
		change(d)
	}
	out, err := r.apply(context.Background(), conf, d, from(content))
	if err != nil {
		return "", err
	}
	if out.Report.Result != records.ResultApplied {
		return out.Report.Result, errors.New(out.Report.Error)
	}
	return out.Report.Result, nil
}

// No symlink that somebody else could make leads a write elsewhere, with a root
// and without; the machine's own are followed.
func TestSymlinksOfOthersAreNotFollowed(t *testing.T) {
	asRoot(t)
	for name, tc := range map[string]struct {
		plant func(t *testing.T, top string)
		dest  string
		ok    bool
	}{
		"another's in another's folder": {func(t *testing.T, top string) {
			link(t, "../../victim", filepath.Join(theirs(t, top+"/srv/app"), "conf"), mallory)
		}, "/srv/app/conf/x", false},
		"root's in another's folder": {func(t *testing.T, top string) {
			link(t, "../../victim", filepath.Join(theirs(t, top+"/srv/app"), "conf"), 0)
		}, "/srv/app/conf/x", false},
		"further down": {func(t *testing.T, top string) {
			theirs(t, top+"/srv/app")
			do(t, os.MkdirAll(top+"/srv/app/a/b", 0o755))
			link(t, "../../../../victim", top+"/srv/app/a/b/conf", 0)
		}, "/srv/app/a/b/conf/x", false},
		"another's in a sticky folder": {func(t *testing.T, top string) {
			do(t, os.Mkdir(top+"/tmp", 0o755))
			do(t, os.Chmod(top+"/tmp", 0o777|fs.ModeSticky))
			link(t, "../victim", top+"/tmp/conf", mallory)
		}, "/tmp/conf/x", false},
		"in a folder for everybody": {func(t *testing.T, top string) {
			do(t, os.Mkdir(top+"/open", 0o755))
			do(t, os.Chmod(top+"/open", 0o777))
			link(t, "../victim", top+"/open/conf", 0)
		}, "/open/conf/x", false},
		"the machine's own":                {func(t *testing.T, top string) { link(t, "victim", top+"/conf", 0) }, "/conf/x", true},
		"the machine's, in another's name": {func(t *testing.T, top string) { link(t, "victim", top+"/conf", mallory) }, "/conf/x", false},
		"another's folder, without links":  {func(t *testing.T, top string) { theirs(t, top+"/srv/app") }, "/srv/app/conf/x", true},
	} {
		for _, rooted := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t)
				do(t, os.Mkdir(r.root+"/victim", 0o755))
				tc.plant(t, r.root)
				dest := tc.dest
				if !rooted {
					dest, r.fence.root = r.root+tc.dest, ""
				}
				res, err := r.try(1, dest, "new\n", nil)
				if (err == nil) != tc.ok {
					t.Errorf("rooted %t: %s, %v", rooted, res, err)
				}
				if err != nil && !strings.Contains(err.Error(), "is a symlink that somebody else can make or change") {
					t.Errorf("rooted %t: %v", rooted, err)
				}
				got, _ := filepath.Glob(r.root + "/victim/*")
				if strings.HasPrefix(tc.dest, "/srv") && len(got) != 0 || !tc.ok && len(got) != 0 {
					t.Errorf("rooted %t: written: %v", rooted, got)
				}
			})
		}
	}
}

// Who renames the folder away and a link into its place, over and over, while it
// is written to, gets nothing written behind the link.
func TestFolderThatIsRenamedMeanwhile(t *testing.T) {
	asRoot(t)
	r := newRig(t)
	r.fence.root = ""
	app := theirs(t, filepath.Join(r.root, "srv/app"))
	victim := filepath.Join(r.root, "victim")
	do(t, os.Mkdir(victim, 0o755))
	theirs(t, app+"/conf")
	link(t, victim, app+"/link", mallory)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = os.Rename(app+"/conf", app+"/real")
			_ = os.Rename(app+"/link", app+"/conf")
			_ = os.Rename(app+"/conf", app+"/link")
			_ = os.Rename(app+"/real", app+"/conf")
		}
	})
	done, refused := 0, 0
	for n := uint64(1); n <= 150; n++ {
		if _, err := r.try(n, app+"/conf/x", strings.Repeat("n", int(n)), nil); err != nil {
			refused++
		} else {
			done++
		}
	}
	cancel()
	wg.Wait()
	if got, _ := filepath.Glob(victim + "/*"); len(got) != 0 {
		t.Errorf("written behind the link: %v", got)
	}
	t.Logf("%d written, %d refused", done, refused)
	if done+refused != 150 || done == 0 && refused == 0 {
		t.Error("nothing was tried")
	}
}

// What is no file of its own at the destination is never written through or
// waited for.
func TestWhatStandsAtTheDestination(t *testing.T) {
	victim := "keep me\n"
	for name, tc := range map[string]struct {
		plant func(path, victim string) error
		ok    bool
	}{
		"a symlink":   {func(path, victim string) error { return os.Symlink(victim, path) }, false},
		"a pipe":      {func(path, _ string) error { return syscall.Mkfifo(path, 0o666) }, false},
		"a folder":    {func(path, _ string) error { return os.Mkdir(path, 0o755) }, false},
		"a hard link": {func(path, victim string) error { return os.Link(victim, path) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			other := filepath.Join(r.root, "victim")
			do(t, os.WriteFile(other, []byte(victim), 0o600))
			do(t, os.MkdirAll(filepath.Dir(r.path()), 0o755))
			do(t, tc.plant(r.path(), other))
			start := time.Now()
			if res, err := r.try(1, dest, "new\n", nil); (err == nil) != tc.ok {
				t.Errorf("%s, %v", res, err)
			}
			if time.Since(start) > 5*time.Second {
				t.Error("it waited")
			}
			b, err := os.ReadFile(other)
			fi, serr := os.Stat(other)
			if err != nil || serr != nil || string(b) != victim || fi.Mode().Perm() != 0o600 {
				t.Errorf("the other file is %q, %v, %v", b, fi, err)
			}
		})
	}
}

// The staged copy's name can be foretold. What is put there before is not written
// through, and what is put there after is not called applied.
func TestStagedCopyOfSomebodyElse(t *testing.T) {
	r := newRig(t)
	victim := filepath.Join(r.root, "victim")
	do(t, os.WriteFile(victim, []byte("keep me\n"), 0o600))
	tgt, err := openTarget(r.root, dest, r.state+"\x00"+conf, true)
	do(t, err)
	staged := tgt.stagedPath()
	tgt.close()
	do(t, os.Symlink(victim, staged))
	r.must(t, entry(order(1, 1), "r", "one\n"), "one\n", records.ResultApplied)
	if b, _ := os.ReadFile(victim); string(b) != "keep me\n" {
		t.Errorf("the other file is %q", b)
	}
	d := entry(order(2, 1), "r", "two\n")
	d.Validate = sh(`rm "$AIMLOCK_STAGED" && echo evil > "$AIMLOCK_STAGED"`)
	out := r.must(t, d, "two\n", records.ResultFailed)
	if !strings.Contains(out.Report.Error, "somebody else put another file") {
		t.Errorf("it says %q", out.Report.Error)
	}
	if got := r.read(t); got != "one\n" {
		t.Errorf("the file is %q", got)
	}
	if left := r.leftovers(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// The mode is the one asked for, that of missing folders 0755, and that of all
// state for nobody else, whatever the umask.
func TestUmask(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o077, 0o777 &^ 0o700} {
		old := syscall.Umask(mask)
		r := newRig(t)
		r.must(t, entry(order(1, 1), "r", "one\n"), "one\n", records.ResultApplied)
		r.must(t, entry(order(2, 1), "r", "two\n"), "two\n", records.ResultApplied)
		syscall.Umask(old)
		for path, want := range map[string]fs.FileMode{r.path(): 0o640, filepath.Dir(r.path()): 0o755, filepath.Join(r.root, "etc"): 0o755} {
			if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
				t.Errorf("umask %04o: %s: %v, %v, want %04o", mask, path, fi.Mode(), err, want)
			}
		}
		do(t, filepath.WalkDir(filepath.Join(r.state, "configs"), func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if fi, err := e.Info(); err != nil || fi.Mode().Perm()&0o077 != 0 {
				t.Errorf("umask %04o: %s is %v, %v", mask, path, fi.Mode(), err)
			}
			return nil
		}))
	}
}

// A file that somebody put into a folder for everybody does not get its owner
// from him.
func TestOwnerIsNotInherited(t *testing.T) {
	asRoot(t)
	r := newRig(t)
	dir := filepath.Join(r.root, "tmp")
	do(t, os.Mkdir(dir, 0o755))
	do(t, os.Chmod(dir, 0o777|fs.ModeSticky))
	path := filepath.Join(dir, "x")
	do(t, os.WriteFile(path, []byte("bait"), 0o666))
	do(t, os.Chown(path, mallory, mallory))
	if res, err := r.try(1, "/tmp/x", "secret\n", nil); err == nil || !strings.Contains(err.Error(), "where the spec names it (owner)") {
		t.Errorf("%s, %v", res, err)
	}
	if b, _ := os.ReadFile(path); string(b) != "bait" {
		t.Errorf("it has %q", b)
	}
	if res, err := r.try(2, "/tmp/x", "for him\n", func(d *records.Desired) { d.Owner = "4242" }); err != nil {
		t.Errorf("named: %s, %v", res, err)
	}
	fi, err := os.Stat(path)
	if st, ok := fi.Sys().(*syscall.Stat_t); err != nil || !ok || st.Uid != mallory || fi.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

// Marks and copies that another account can change are no ground to stand on.
func TestStateFolderOfOthers(t *testing.T) {
	for _, mode := range []fs.FileMode{0o700, 0o755, 0o777, 0o777 | fs.ModeSticky} {
		dir := t.TempDir()
		do(t, os.Chmod(filepath.Dir(dir), 0o755))
		state := filepath.Join(dir, "state")
		do(t, os.Mkdir(state, 0o755))
		do(t, os.Chmod(state, mode))
		kv, err := consulkv.New(consulkv.Config{Address: "127.0.0.1:1"})
		do(t, err)
		_, err = New(Config{Node: "n1", StateDir: state, Consul: kv})
		if (err == nil) != (mode.Perm() != 0o777) || err != nil && !strings.Contains(err.Error(), "can be written by everybody (mode 0777): chmod go-w it") {
			t.Errorf("%04o: %v", mode, err)
		}
		fi, err := os.Stat(filepath.Join(state, "configs"))
		if err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%04o: configs is %v, %v", mode, fi, err)
		}
	}
}
