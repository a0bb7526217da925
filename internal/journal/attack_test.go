package journal_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/internal/journal"
)

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What was planted where a journal is to be is refused, at once: nothing else is
// written, cut short, made or waited for.
func TestPlanted(t *testing.T) {
	t.Parallel()
	const secret = "root:x:0:0\n"
	for what, tc := range map[string]struct {
		plant func(path, victim string) error
		want  string
	}{
		"symlink": {func(path, victim string) error { return os.Symlink(victim, path) }, "is a symlink"},
		"symlink to nothing": {
			func(path, victim string) error { return os.Symlink(victim+"-not-there", path) }, "is a symlink",
		},
		"symlink to a device": {func(path, _ string) error { return os.Symlink("/dev/zero", path) }, "is a symlink"},
		"hard link":           {func(path, victim string) error { return os.Link(victim, path) }, "is a hard link"},
		"pipe":                {func(path, _ string) error { return syscall.Mkfifo(path, 0o666) }, "is not a regular file"},
		"folder":              {func(path, _ string) error { return os.Mkdir(path, 0o755) }, "is a directory"},
	} {
		for _, name := range []string{"journal.lock", "journal-00000001.jsonl", "journal-00000002.jsonl"} {
			t.Run(what+" as "+name, func(t *testing.T) {
				t.Parallel()
				top := t.TempDir()
				dir, victim := filepath.Join(top, "journal"), filepath.Join(top, "victim")
				do(t, os.WriteFile(victim, []byte(secret), 0o644))
				do(t, os.Mkdir(dir, 0o755))
				path := filepath.Join(dir, name)
				do(t, tc.plant(path, victim))
				w, err := journal.Open(dir, journal.Options{})
				if err == nil {
					_ = w.Close()
				}
				if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want %q and the path", err, tc.want)
				}
				if b, err := os.ReadFile(victim); err != nil || string(b) != secret {
					t.Errorf("the victim has %q, %v", b, err)
				}
				if _, err := os.Lstat(victim + "-not-there"); err == nil {
					t.Error("a file was made where the symlink leads")
				}
			})
		}
	}
}

// The next file is opened with the same care, however long the journal has been
// open.
func TestPlantedLater(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	dir, victim := filepath.Join(top, "journal"), filepath.Join(top, "victim")
	w := open(t, dir, journal.Options{MaxFile: 1, MaxTotal: 1 << 20})
	do(t, os.WriteFile(victim, nil, 0o644))
	do(t, os.Symlink(victim, filepath.Join(dir, "journal-00000003.jsonl")))
	var err error
	for range 3 {
		if err = w.Write(errorEntry("one")); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "is a symlink") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(victim); err != nil || len(b) > 0 {
		t.Errorf("the victim has %q, %v", b, err)
	}
	do(t, os.Remove(filepath.Join(dir, "journal-00000003.jsonl")))
	write(t, w, "after")
	whats, _ := read(t, dir)
	if len(whats) == 0 || whats[len(whats)-1] != "after" {
		t.Errorf("the journal has %v", whats)
	}
}

// openFolder makes a folder to which everybody can come: that of a test lets nobody in.
func openFolder(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	do(t, os.Chmod(filepath.Dir(top), 0o755))
	do(t, os.Chmod(top, 0o755))
	dir := filepath.Join(top, "journal")
	do(t, os.Mkdir(dir, 0o755))
	return dir
}

// A folder in which another account could plant something is none for a journal.
func TestFolderOfOthers(t *testing.T) {
	t.Parallel()
	for mode, want := range map[os.FileMode]string{
		0o750: "", 0o755: "", 0o777: "can be written by everybody (mode 0777): chmod go-w it", 0o777 | os.ModeSticky: "can be written by everybody",
	} {
		dir := openFolder(t)
		do(t, os.Chmod(dir, mode))
		w, err := journal.Open(dir, journal.Options{})
		if err == nil {
			do(t, w.Close())
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", mode, err)
		}
		if left, _ := os.ReadDir(dir); err != nil && len(left) > 0 {
			t.Errorf("%v: it left %v", mode, left)
		}
	}
	if os.Geteuid() != 0 {
		t.Log("NOT RUN: a folder and files of another user: only root can give them away")
		return
	}
	dir := openFolder(t)
	do(t, os.Chown(dir, 4242, 4242))
	if _, err := journal.Open(dir, journal.Options{}); err == nil || !strings.Contains(err.Error(), "belongs to user 4242") {
		t.Errorf("a folder of another user: %v", err)
	}
	// From when the folder was open to all.
	do(t, os.Chown(dir, 0, 0))
	for _, name := range []string{"journal.lock", "journal-00000001.jsonl"} {
		path := filepath.Join(dir, name)
		do(t, os.WriteFile(path, nil, 0o644))
		do(t, os.Chown(path, 4242, 4242))
		if _, err := journal.Open(dir, journal.Options{}); err == nil || !strings.Contains(err.Error(), path+" belongs to user 4242") {
			t.Errorf("%s of another user: %v", name, err)
		}
		do(t, os.Remove(path))
	}
}

// Who reads a journal does not wait for a pipe, nor read a device to its end.
func TestReadPlanted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	w := open(t, dir, journal.Options{})
	write(t, w, "one")
	do(t, syscall.Mkfifo(filepath.Join(dir, "journal-00000002.jsonl"), 0o644))
	do(t, os.Symlink("/dev/zero", filepath.Join(dir, "journal-00000003.jsonl")))
	do(t, os.Mkdir(filepath.Join(dir, "journal-00000004.jsonl"), 0o755))
	whats, problems := read(t, dir)
	same(t, "entries", whats, []string{"one"})
	same(t, "problems", problems, []string{
		"journal-00000002.jsonl: is not a regular file; it is skipped",
		"journal-00000003.jsonl: is not a regular file; it is skipped",
		"journal-00000004.jsonl: is not a regular file; it is skipped",
	})
}
