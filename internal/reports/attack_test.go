package reports

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What somebody else put where the progress file shall be is not read, and nothing of
// it is told; the command's own file is, as soon as it is there.
func TestPlantedFile(t *testing.T) {
	t.Parallel()
	const secret = "1/2 s3cret\n7/7 s3cret\n"
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	plants := map[string]struct {
		plant func(path, victim string) error
		want  string
	}{
		"symlink":             {func(path, victim string) error { return os.Symlink(victim, path) }, "is a symlink"},
		"symlink to a device": {func(path, _ string) error { return os.Symlink("/dev/zero", path) }, "is a symlink"},
		"hard link":           {func(path, victim string) error { return os.Link(victim, path) }, "has another name, by a hard link"},
		"pipe":                {func(path, _ string) error { return syscall.Mkfifo(path, 0o666) }, "is not a regular file"},
		"folder":              {func(path, _ string) error { return os.Mkdir(path, 0o755) }, "is not a regular file"},
	}
	if os.Geteuid() == 0 {
		plants["another user's file"] = struct {
			plant func(path, victim string) error
			want  string
		}{func(path, victim string) error {
			// It is given away before it lies there: in between it would be ours, and
			// read.
			if err := os.Chown(victim, 4242, 4242); err != nil {
				return err
			}
			return os.Rename(victim, path)
		}, "belongs to user 4242, in a folder that everybody can write to"}
	} else {
		t.Log("NOT RUN: the file of another user: only root can give one away")
	}
	for name, tc := range plants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			open := filepath.Join(dir, "open")
			path, victim := filepath.Join(open, "progress"), filepath.Join(dir, "victim")
			do(os.Mkdir(open, 0o755))
			do(os.Chmod(open, 0o777|os.ModeSticky))
			do(os.WriteFile(victim, []byte(secret), 0o644))
			b := &book{}
			r := New(b.write, b.warn)
			r.File(path)
			do(tc.plant(path, victim))
			until(t, "the warning", func() bool { return len(b.warned()) == 1 })
			if w := b.warned()[0]; !strings.Contains(w, path) || !strings.Contains(w, tc.want) || strings.Contains(w, "s3cret") {
				t.Errorf("it is warned: %s", w)
			}
			do(os.Remove(path))
			do(os.WriteFile(path, []byte("3/7\n"), 0o644))
			until(t, "the command's own report", func() bool { return b.last() == Report{Done: 3, Total: 7} })
			r.Close(t.Context())
			for _, p := range b.got {
				if p.Unit == "s3cret" {
					t.Errorf("%+v is reported", p)
				}
			}
		})
	}
}

// A command that runs as another account reports from a folder of its own.
func TestFileOfTheCommandsUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can give a file away")
	}
	path := filepath.Join(t.TempDir(), "progress")
	b := &book{}
	r := New(b.write, b.warn)
	r.File(path)
	if err := os.WriteFile(path+".new", []byte("1/2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path+".new", 4242, 4242); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	until(t, "the report", func() bool { return b.last().Done == 1 })
	r.Close(t.Context())
	if w := b.warned(); len(w) > 0 {
		t.Errorf("warned of %q", w)
	}
}
