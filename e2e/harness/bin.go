package harness

import (
	"os"
	"path/filepath"
	"testing"
)

// Program is one of the programs that tests run.
type Program struct {
	name, env, path, build string
}

// The programs, each from its environment variable, or from where make puts it.
var (
	Aimlock        = Program{"aimlock", "AIMLOCK_BIN", "bin/aimlock", "make build"}
	ConsulBin      = Program{"consul", "CONSUL_BIN", ".tools/bin/consul", "make tools"}
	Etcd           = Program{"etcd", "ETCD_BIN", ".tools/bin/etcd", "make bench"}
	Etcdctl        = Program{"etcdctl", "ETCDCTL_BIN", ".tools/bin/etcdctl", "make bench"}
	ConsulTemplate = Program{"consul-template", "CONSUL_TEMPLATE_BIN", ".tools/bin/consul-template", "make tools"}
)

// Path is where the program is. The test fails if it is not there.
func (p Program) Path(t testing.TB) string {
	t.Helper()
	path := os.Getenv(p.env)
	if path == "" {
		path = filepath.Join(Root(t), p.path)
	}
	info, err := os.Stat(path)
	if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		t.Fatalf("%s is not at %s: run %q, or set %s", p.name, path, p.build, p.env)
	}
	return path
}

// Root is the root of the repository.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "e2e", "go.mod")); err == nil {
			return d
		}
		if d == filepath.Dir(d) {
			t.Fatalf("no e2e/go.mod above %s: run the tests from within the repository", dir)
		}
	}
}
