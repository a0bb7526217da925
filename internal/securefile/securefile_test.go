package securefile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/internal/securefile"
)

// place makes a folder tree that passes, and returns its top.
//
//	top/bin/tool        0755
//	top/bin/tool-1.2 -> tool
func place(t *testing.T) string {
	t.Helper()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	do(t, os.Chmod(top, 0o755))
	do(t, os.Mkdir(filepath.Join(top, "bin"), 0o755))
	do(t, os.Chmod(filepath.Join(top, "bin"), 0o755))
	do(t, os.WriteFile(filepath.Join(top, "bin", "tool"), []byte("#!/bin/sh\n"), 0o755))
	do(t, os.Chmod(filepath.Join(top, "bin", "tool"), 0o755))
	do(t, os.Symlink("tool", filepath.Join(top, "bin", "tool-1.2")))
	return top
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatNobodyElseCanChangePasses(t *testing.T) {
	t.Parallel()
	top := place(t)
	do(t, os.Symlink(filepath.Join(top, "bin"), filepath.Join(top, "link")))
	for _, path := range []string{filepath.Join(top, "bin"), filepath.Join(top, "link"), top + "/bin/../bin/", top + "/bin/."} {
		at, err := securefile.Folder(path)
		if err != nil || at != filepath.Join(top, "bin") {
			t.Errorf("%s: %s, %v", path, at, err)
		}
	}
	want := filepath.Join(top, "bin", "tool")
	for _, path := range []string{want, filepath.Join(top, "link", "tool"), filepath.Join(top, "bin", "tool-1.2")} {
		at, err := securefile.File(path)
		if err != nil || at != want {
			t.Errorf("%s: %s, %v", path, at, err)
		}
	}
	for _, name := range []string{"tool", "tool-1.2"} {
		at, err := securefile.FileIn(filepath.Join(top, "link"), name)
		if err != nil || at != want {
			t.Errorf("%s: %s, %v", name, at, err)
		}
	}
	if s := securefile.Writable(want); s != "" {
		t.Error(s)
	}
}

// Each way in which another account could get its own program run is refused,
// and the error names the step of the path that is at fault.
func TestWhatOthersCanChangeIsRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, top string)
		fault string // below top; what the error names
		want  string
	}{
		"file for its group":    {chmod("bin/tool", 0o775), "bin/tool", "can be written by its group (mode 0775): chmod g-w it"},
		"file for everybody":    {chmod("bin/tool", 0o757), "bin/tool", "can be written by everybody (mode 0757): chmod go-w it"},
		"folder for its group":  {chmod("bin", 0o775), "bin", "can be written by its group"},
		"folder for everybody":  {chmod("bin", 0o777), "bin", "can be written by everybody"},
		"sticky folder":         {chmod("bin", 0o777|fs.ModeSticky), "bin", "can be written by everybody"},
		"folder above it":       {chmod(".", 0o777), ".", "can be written by everybody"},
		"symlink out of it":     {link("bin/tool", "../elsewhere"), "bin/tool", "out of its folder: put the file itself there"},
		"symlink far away":      {link("bin/tool", "/bin/sh"), "bin/tool", "out of its folder"},
		"symlink to what is":    {openLink, "open", "can be written by everybody"},
		"folder where a file":   {folder, "bin/tool", "is not a regular file"},
		"pipe where a file":     {pipe, "bin/tool", "is not a regular file"},
		"symlink through /tmp/": {stickyLink, "open/tool", "is a symlink to"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := place(t)
			do(t, os.WriteFile(filepath.Join(top, "elsewhere"), nil, 0o755))
			tc.spoil(t, top)
			at, err := securefile.FileIn(filepath.Join(top, "bin"), "tool")
			bad, ok := errors.AsType[*securefile.Error](err)
			if !ok {
				t.Fatalf("%q, %v", at, err)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, want %q in it", err, tc.want)
			}
			if tc.fault != "open/tool" && bad.Path != filepath.Join(top, tc.fault) {
				t.Errorf("the fault is %s", bad.Path)
			}
		})
	}
}

func chmod(path string, mode fs.FileMode) func(*testing.T, string) {
	return func(t *testing.T, top string) { do(t, os.Chmod(filepath.Join(top, path), mode)) }
}

func link(path, to string) func(*testing.T, string) {
	return func(t *testing.T, top string) {
		do(t, os.Remove(filepath.Join(top, path)))
		do(t, os.Symlink(to, filepath.Join(top, path)))
	}
}

// openLink makes bin a link through a folder that everybody writes to.
func openLink(t *testing.T, top string) {
	do(t, os.Mkdir(filepath.Join(top, "open"), 0o755))
	do(t, os.Rename(filepath.Join(top, "bin"), filepath.Join(top, "open", "bin")))
	do(t, os.Symlink("open/bin", filepath.Join(top, "bin")))
	do(t, os.Chmod(filepath.Join(top, "open"), 0o777))
}

// stickyLink: a file in a folder such as /tmp is safe there, but it is elsewhere.
func stickyLink(t *testing.T, top string) {
	do(t, os.Mkdir(filepath.Join(top, "open"), 0o755))
	do(t, os.Chmod(filepath.Join(top, "open"), 0o777|fs.ModeSticky))
	do(t, os.Rename(filepath.Join(top, "bin", "tool"), filepath.Join(top, "open", "tool")))
	do(t, os.Symlink("../open/tool", filepath.Join(top, "bin", "tool")))
}

func folder(t *testing.T, top string) {
	do(t, os.Remove(filepath.Join(top, "bin/tool")))
	do(t, os.Mkdir(filepath.Join(top, "bin/tool"), 0o755))
}

func pipe(t *testing.T, top string) {
	do(t, os.Remove(filepath.Join(top, "bin/tool")))
	do(t, syscall.Mkfifo(filepath.Join(top, "bin/tool"), 0o755))
}

// Another user's file is refused, wherever on the way it stands, and root's and
// one's own are not. Seen from a process of another user, so that no root is
// needed.
func TestOwner(t *testing.T) {
	t.Parallel()
	top := place(t)
	stranger := securefile.As(os.Geteuid() + 4242)
	_, err := stranger.FileIn(filepath.Join(top, "bin"), "tool")
	if os.Geteuid() != 0 {
		if bad, ok := errors.AsType[*securefile.Error](err); !ok || !strings.Contains(bad.Problem, "belongs to user") {
			t.Fatalf("got %v", err)
		}
		return
	}
	if err != nil { // all of it is root's
		t.Fatal(err)
	}
	for _, path := range []string{".", "bin", "bin/tool", "bin/tool-1.2"} {
		do(t, os.Lchown(filepath.Join(top, path), 4242, 0))
		_, err := securefile.FileIn(filepath.Join(top, "bin"), "tool-1.2")
		if bad, ok := errors.AsType[*securefile.Error](err); !ok || bad.Path != filepath.Join(top, path) {
			t.Errorf("%s of another user: %v", path, err)
		}
		if _, err := securefile.As(4242).FileIn(filepath.Join(top, "bin"), "tool-1.2"); err != nil {
			t.Errorf("%s of one's own: %v", path, err)
		}
		do(t, os.Lchown(filepath.Join(top, path), 0, 0))
	}
}

func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	top := place(t)
	do(t, os.Symlink("loop", filepath.Join(top, "loop")))
	do(t, os.Symlink("nowhere", filepath.Join(top, "dangling")))
	for path, want := range map[string]error{
		"none": fs.ErrNotExist, "dangling": fs.ErrNotExist, "loop": syscall.ELOOP, "bin/tool/x": syscall.ENOTDIR,
	} {
		if _, err := securefile.File(filepath.Join(top, path)); !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := securefile.Folder(filepath.Join(top, "bin/tool")); !errors.Is(err, syscall.ENOTDIR) {
		t.Error(err)
	}
	for _, name := range []string{"", ".", "..", "../bin/tool", "a/b", "a\x00"} {
		if _, err := securefile.FileIn(filepath.Join(top, "bin"), name); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	top := place(t)
	file := filepath.Join(top, "token")
	do(t, os.WriteFile(file, []byte("x"), 0o600))
	enter(t, top)
	for _, tc := range []struct {
		mode           fs.FileMode
		readable, open bool
	}{
		{0o600, false, false},
		{0o640, false, false},
		{0o644, true, false},
		{0o604, true, false},
		{0o602, false, true},
		{0o666, true, true},
	} {
		do(t, os.Chmod(file, tc.mode))
		if got := securefile.Readable(file); (got != "") != tc.readable {
			t.Errorf("%04o: readable: %q", tc.mode, got)
		}
		if got := securefile.Writable(file); (got != "") != tc.open {
			t.Errorf("%04o: writable: %q", tc.mode, got)
		}
	}
	// Who may not enter a folder cannot read what is in it, and a right of a group
	// does not count there. What was opened to everybody does.
	do(t, os.Chmod(top, 0o700))
	if got := securefile.Readable(file); got != "" {
		t.Error(got)
	}
	if got := securefile.Writable(file); !strings.Contains(got, "can be written by everybody") {
		t.Errorf("below a folder that is shut: %q", got)
	}
	do(t, os.Chmod(file, 0o660))
	if os.Geteuid() == 0 {
		do(t, os.Chown(file, 0, 4242))
	}
	if got := securefile.Writable(file); got != "" {
		t.Errorf("of a group that may not enter: %q", got)
	}
	if os.Geteuid() == 0 {
		do(t, os.Chown(file, 0, 0))
	}
	do(t, os.Chmod(top, 0o755))
	// A group of the same number is the user's own.
	do(t, os.Chmod(file, 0o660))
	own := os.Geteuid() == os.Getegid()
	if got := securefile.Writable(file); (got == "") != own {
		t.Errorf("group writable, own group %t: %q", own, got)
	}
	if os.Geteuid() == 0 {
		do(t, os.Chown(file, 0, 4242))
		if got := securefile.Writable(file); got == "" {
			t.Error("no warning of a file that another group writes to")
		}
	}
	for _, path := range []string{filepath.Join(top, "none"), "/dev/null"} {
		if got := securefile.Readable(path); got != "" {
			t.Error(got)
		}
	}
}

// Nomad shares the folder alloc/ of an allocation with all its tasks, whatever
// account they run as: it binds it into their own view of the files, past the folders
// above it. So it is not a task's own, however shut Nomad's data_dir is.
func TestSharedFolderBelowOneThatIsShut(t *testing.T) {
	t.Parallel()
	top := place(t)
	do(t, os.Chmod(top, 0o700)) // data_dir
	shared := filepath.Join(top, "alloc", "8ba85cef-26f5-4b6e-9d2f-3f6d2b0e1c11", "alloc")
	do(t, os.MkdirAll(shared, 0o755))
	do(t, os.Chmod(shared, 0o777))
	mine := filepath.Join(shared, "mine")
	do(t, os.Mkdir(mine, 0o700))
	for _, path := range []string{shared, mine} {
		if got := securefile.Writable(path); !strings.Contains(got, shared+`" can be written by everybody`) {
			t.Errorf("%s: %q", path, got)
		}
	}
	do(t, os.Chmod(shared, 0o755))
	if got := securefile.Writable(mine); got != "" {
		t.Error(got)
	}
	if os.Geteuid() != 0 {
		return
	}
	do(t, os.Chown(shared, 65534, 65534)) // as Nomad does
	if got := securefile.Writable(mine); !strings.Contains(got, "belongs to user 65534") {
		t.Errorf("another account's: %q", got)
	}
}

// enter lets everybody into the folders above path, as on a machine where what
// is there is not hidden.
func enter(t *testing.T, path string) {
	t.Helper()
	for dir := path; dir != filepath.Dir(os.TempDir()) && dir != "/"; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		do(t, err)
		if fi.Mode().Perm()&0o001 == 0 && dir != "/tmp" {
			do(t, os.Chmod(dir, fi.Mode().Perm()|0o011))
		}
	}
}
