// Package version says which build of aimlock this is. It imports only the
// standard library. The linker sets the variables (see GNUmakefile); a binary
// made by `go install` reads the same from its build info.
package version

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Set with -ldflags -X. Both may be empty.
var (
	release string //nolint:gochecknoglobals // only the linker writes it
	commit  string //nolint:gochecknoglobals // only the linker writes it
)

// Info is what `aimlock version -json` prints.
type Info struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// Get returns the facts of the running binary.
func Get() Info {
	i := Info{Version: release, Commit: commit, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if bi, ok := debug.ReadBuildInfo(); ok {
		if i.Version == "" && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
			i.Version = strings.TrimPrefix(bi.Main.Version, "v")
		}
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" && i.Commit == "" {
				i.Commit = s.Value
			}
		}
	}
	if i.Version == "" {
		i.Version = "dev"
	}
	return i
}

// String is one line for people.
func (i Info) String() string {
	s := "aimlock " + i.Version
	if i.Commit != "" {
		s += " (" + i.Commit[:min(12, len(i.Commit))] + ")"
	}
	return s + " " + i.Go + " " + i.OS + "/" + i.Arch
}
