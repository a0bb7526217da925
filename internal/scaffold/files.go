package scaffold

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/hashicorp/hcl/v2/hclwrite"

	"github.com/aim-control/aimlock/examples/nomad"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

//go:embed templates/*.tmpl
var templates embed.FS

// Params are what the files are about.
type Params struct {
	// Cluster is nil where Consul could not be looked at.
	Cluster *Cluster
	// Address is Consul's; empty is the library's default.
	Address string
	Prefix  keys.Prefix
	// Config is the config's name, which is its lock's as well. Source is the file
	// that holds its content, relative to the folder; empty: one is written.
	// Destination is where the nodes have it, an absolute path.
	Config, Source, Destination string
	// Nomad: a job is written too.
	Nomad bool
}

// File is one to be written.
type File struct {
	Name string `json:"file"`
	// About says what it is, in a few words.
	About string `json:"about"`
	data  []byte
}

// stage is one of the spec's.
type stage struct {
	Name    string
	Lines   []string
	Bake    time.Duration
	Comment string
}

// stages fits the fleet: a first node, some, all.
func (p *Params) stages() []stage {
	n := 0
	if p.Cluster != nil {
		n = len(p.Cluster.Agents)
	}
	canary := stage{"canary", []string{"nodes = 1"}, 5 * time.Minute, "One node, then five minutes, which run on though nobody drives the rollout. To try it: 10s."}
	rest := stage{"rest", []string{"percent      = 100", "max_parallel = 50"}, 0, "A percentage is of the whole fleet: at 100 no node is left out."}
	switch {
	case n == 1:
		return []stage{{"all", []string{"percent = 100"}, 0, "There is one node now: put a canary before this when there are more."}}
	case n > 1 && n < 10:
		return []stage{canary, rest}
	}
	return []stage{canary, {"tenth", []string{"percent      = 10", "max_parallel = 10"}, 10 * time.Minute, "A tenth of the fleet, ten nodes at a time."}, rest}
}

// Bakes is how long the stages bake, all together.
func (p *Params) Bakes() time.Duration {
	var sum time.Duration
	for _, s := range p.stages() {
		sum += s.Bake
	}
	return sum
}

// Files makes them all. It fails where Params make no sense.
func Files(p Params) ([]File, error) {
	if err := keys.CheckName("config", p.Config); err != nil {
		return nil, err
	}
	if !path.IsAbs(p.Destination) || path.Clean(p.Destination) != p.Destination {
		return nil, fmt.Errorf("destination %q: give the whole path of the file on a node, such as /etc/app/app.conf", p.Destination)
	}
	var out []File
	if p.Source == "" {
		p.Source = p.Config
		out = append(out, File{p.Source, "the content of " + p.Config + ": put yours in its place", []byte("# " + p.Config + ": what every node of the fleet shall have.\n")})
	}
	view := struct {
		Params
		Stages        []stage
		Service, Zone string
	}{p, p.stages(), "", ""}
	if c := p.Cluster; c != nil {
		view.Service, view.Zone = c.Service, c.Zone
	}
	quoted := template.FuncMap{"q": quote}
	all, err := template.New("").Funcs(quoted).ParseFS(templates, "templates/*.tmpl")
	if err != nil {
		return nil, err
	}
	for _, one := range []File{
		{Name: "rollout.hcl", About: "which file goes where, in which stages"},
		{Name: "policy.hcl", About: "when a lock counts as HOT, and how it is broken"},
		{Name: "aimlock.hcl", About: "settings: -config aimlock.hcl"},
	} {
		var b bytes.Buffer
		if err := all.ExecuteTemplate(&b, one.Name+".tmpl", view); err != nil {
			return nil, err
		}
		one.data = hclwrite.Format(b.Bytes())
		if one.Name == "policy.hcl" {
			shipped, err := policies.BuiltinSource(policies.BuiltinDefault)
			if err != nil {
				return nil, err
			}
			// Its own first lines say what it is where it is shipped.
			_, rules, _ := bytes.Cut(shipped, []byte("\n\n"))
			one.data = append(one.data, rules...)
		}
		out = append(out, one)
	}
	if p.Nomad {
		job, err := p.job()
		if err != nil {
			return nil, err
		}
		out = append(out, File{"tick.nomad.hcl", "a periodic Nomad job that rolls out what you change", job})
	}
	return out, nil
}

// job is the example's, about these files.
func (p *Params) job() ([]byte, error) {
	s := nomad.Tick
	for _, r := range [][2]string{
		{`file("rollout/rollout.hcl")`, `file("rollout.hcl")`},
		{`file("rollout/aim_lock_config.conf")`, "file(" + quote(p.Source) + ")"},
		{`"local/aim_lock_config.conf"`, quote("local/" + p.Source)},
		{`job "aimlock-tick"`, "job " + quote(p.jobName())},
		{`default     = "127.0.0.1:8500"`, "default     = " + quote(cmp.Or(p.Address, "127.0.0.1:8500"))},
	} {
		if strings.Count(s, r[0]) != 1 {
			return nil, fmt.Errorf("the example of a Nomad job has %q %d times", r[0], strings.Count(s, r[0]))
		}
		s = strings.ReplaceAll(s, r[0], r[1])
	}
	return []byte(s), nil
}

// maxJobPart bounds what a job's name has of the config's: the ACL policy for the job is
// called as the job is, by 128 letters, digits and dashes at most.
const maxJobPart = 100

// jobName is the config's own: a job of the same name would replace that of another
// config. What a policy's name cannot hold is a dash, and where the config's name cannot
// be told from that any more, a hash of it follows.
func (p *Params) jobName() string {
	lost := len(p.Config) > maxJobPart
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'A' && r <= 'Z', r >= 'a' && r <= 'z', r == '-':
			return r
		case r != '.' && r != '_':
			lost = true
		}
		return '-'
	}, p.Config)
	if lost {
		sum := sha256.Sum256([]byte(p.Config))
		name = fmt.Sprintf("%s-%x", name[:min(len(name), maxJobPart)], sum[:4])
	}
	return "aimlock-" + name + "-tick"
}

// quote writes a text as a literal of HCL.
func quote(s string) string {
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(fmt.Sprintf("%q", text.Printable(s)))
}

// Write writes the files into a folder, which it makes. Where one of them exists
// it writes none.
func Write(dir string, files []File) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.Name)); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				err = fmt.Errorf("%s exists already, and is not overwritten: name another folder, or move it away. Nothing was written", filepath.Join(dir, f.Name))
			}
			return err
		}
	}
	for _, f := range files {
		if err := writeNew(filepath.Join(dir, f.Name), f.data); err != nil {
			return err
		}
	}
	return nil
}

// writeNew never follows a link, nor writes over a file that came in between.
func writeNew(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
