package demo

import (
	"strings"
	"testing"
	"time"
)

// What a process prints is in the story, or else in the error of its end: once.
func TestOutputIsToldOnce(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	s := &story{cfg: Config{Exe: "/bin/sh", Dir: t.TempDir(), Out: &lines{w: &out}}, ctx: t.Context(), start: time.Now()}
	never := func() (bool, error) { return false, nil }
	args := []string{"-c", "echo 'it is '$((40+2)); exit 3"}

	err := s.finishes("first", args...)
	if err == nil || err.Error() != "first ended with exit code 3" {
		t.Errorf("%v", err)
	}
	if err = s.finishes("", args...); err == nil || !strings.HasPrefix(err.Error(), "aimlock -c echo") {
		t.Errorf("without a name: %v", err)
	}
	p, err := s.run("B", args...)
	if err != nil {
		t.Fatal(err)
	}
	if err = s.until("a thing", never, p); err == nil || err.Error() != "B ended (exit code 3) while waiting for a thing" {
		t.Errorf("shown: %v", err)
	}
	if n := strings.Count(out.String(), "it is 42"); n != 3 {
		t.Errorf("the story has it %d times, want 3:\n%s", n, out.String())
	}
	if p, err = s.quiet("drone-1", args...); err != nil {
		t.Fatal(err)
	}
	if err = s.until("a thing", never, p); err == nil || err.Error() != "drone-1 ended (exit code 3) while waiting for a thing:\nit is 42" {
		t.Errorf("not shown: %v", err)
	}
}
