package plugintest_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/plugin"
)

// flawEnv names what is wrong with the plugin that this test binary serves; empty:
// nothing.
const flawEnv = "PLUGINTEST_FLAW"

func flaw(name string) bool { return os.Getenv(flawEnv) == name }

// subject is a plugin of all kinds that does as it should, but for its flaw.
func subject() plugin.Plugin {
	p := plugin.Plugin{
		Name: "subject", Version: "1.0.0", Doc: "All kinds, over files.",
		Evidence: func() plugin.Evidence { return &evidence{} },
		Breaker:  func() plugin.Breaker { return &breaker{} },
		Gate:     func() plugin.Gate { return &gate{} },
		Target: func() plugin.Target {
			if flaw("no fence") {
				return &unfenced{target{}}
			}
			return &target{}
		},
		Fleet: func() plugin.Fleet { return &fleet{} },
	}
	if flaw("gate only") { // no flaw, but little to look at
		p.Evidence, p.Breaker, p.Target, p.Fleet = nil, nil, nil, nil
	}
	if flaw("no version") {
		p.Version = ""
	}
	if flaw("moody") {
		p.Doc = fmt.Sprint("Process ", os.Getpid())
	}
	return p
}

type evidence struct {
	Token string `config:"token,secret" doc:"What it would authenticate by."`
	Count int    `config:"count" doc:"What it counts to."`
}

func (e *evidence) Validate(context.Context) error {
	if e.Count < 0 && flaw("blames all") {
		return plugin.Invalid("", "no")
	}
	if e.Count < 0 && !flaw("accepts all") {
		return plugin.Invalid("count", "%d is less than 0", e.Count)
	}
	return nil
}

func (e *evidence) Facts() []plugin.FactDef {
	doc := "How many."
	if flaw("no doc") {
		doc = ""
	}
	return []plugin.FactDef{{Name: "count", Type: plugin.Number, Doc: doc}, {Name: "host", Type: plugin.String, Doc: "The holder's host."}}
}

func (e *evidence) Observe(ctx context.Context, q *plugin.ObserveRequest) ([]plugin.Fact, error) {
	host := q.Lock.Holder.Host
	switch {
	case flaw("tells secrets"):
		hclog.FromContext(ctx).Info("asking", "with", e.Token)
	case flaw("wrong type"):
		return []plugin.Fact{plugin.Known("count", "seven"), plugin.Known("host", host)}, nil
	case flaw("all or nothing") && len(q.Want) > 0:
		return nil, errors.New("ask for all")
	case flaw("shell"):
		_ = exec.CommandContext(ctx, "sh", "-c", "true "+strings.ReplaceAll(host, "\x00", "")).Run()
	case flaw("panics") && q.Lock.Holder.PID < 0:
		panic("a pid below 0")
	case flaw("dies") && q.Lock.Holder.PID < 0:
		os.Exit(3)
	case flaw("forks"):
		cmd := exec.Command("sleep", "60")
		_ = cmd.Start()
	case flaw("two lines"):
		return []plugin.Fact{plugin.Known("count", e.Count), plugin.Unknown("host", "one\ntwo")}, nil
	}
	facts := []plugin.Fact{plugin.Known("count", e.Count)}
	if host == "" {
		return append(facts, plugin.Null("host")), nil
	}
	return append(facts, plugin.Known("host", host)), nil
}

type breaker struct {
	Path string `config:"path,required" doc:"The file that it writes a line to."`
}

func (b *breaker) Break(_ context.Context, q *plugin.BreakRequest) (*plugin.BreakResult, error) {
	if q.DryRun && !flaw("wet run") {
		return &plugin.BreakResult{Outcome: plugin.Done, Detail: "would write a line"}, nil
	}
	if flaw("lazy") {
		return &plugin.BreakResult{Outcome: plugin.Done, Detail: "wrote a line"}, nil
	}
	f, err := os.OpenFile(b.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(f, q.ID)
	return &plugin.BreakResult{Outcome: plugin.Done, Detail: "wrote a line"}, errors.Join(err, f.Close())
}

type gate struct {
	Least int `config:"least" doc:"How many nodes it wants."`
}

func (g *gate) Ask(_ context.Context, q *plugin.Question) (*plugin.Answer, error) {
	n := len(q.Updated)
	a := &plugin.Answer{Verdict: plugin.Fail, Value: fmt.Sprint(n), Why: fmt.Sprintf("%d of %d nodes", n, g.Least)}
	if n >= g.Least {
		a.Verdict = plugin.Pass
	}
	switch {
	case flaw("no verdict"):
		a.Verdict = "maybe"
	case flaw("no reason"):
		a.Value, a.Why = "", ""
	case flaw("small fleets") && len(q.Rest) > 1000:
		panic("too many")
	}
	return a, nil
}

// target keeps a config, its fence and its last good revision in a folder.
type target struct {
	Dir string `config:"dir,required" doc:"The folder."`
}

// mu keeps the writers of this process apart.
var mu sync.Mutex

type kept struct {
	Highest   plugin.Order
	Now, Last []byte
	HasLast   bool
}

func (t *target) Fencing() bool { return true }

func (t *target) path(p *plugin.Place) string {
	if flaw("one place") {
		return filepath.Join(t.Dir, "all")
	}
	return filepath.Join(t.Dir, p.Node+"-"+p.Config)
}

// memory is where a target that forgets keeps its files.
var memory = map[string][]byte{}

func (t *target) load(p *plugin.Place) (*kept, bool, error) {
	b, err := os.ReadFile(t.path(p))
	if flaw("forgets") {
		if b, err = memory[t.path(p)], nil; b == nil {
			err = os.ErrNotExist
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return &kept{}, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	k := &kept{}
	return k, true, json.Unmarshal(b, k)
}

func (t *target) save(p *plugin.Place, k *kept) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	memory[t.path(p)] = b
	return os.WriteFile(t.path(p), b, 0o600)
}

func (t *target) write(p *plugin.Place, o plugin.Order, f func(k *kept, exists bool) error) (*plugin.Applied, error) {
	mu.Lock()
	defer mu.Unlock()
	k, exists, err := t.load(p)
	if err != nil {
		return nil, err
	}
	older := o.Compare(k.Highest) < 0
	if flaw("token only") {
		older = o.Token < k.Highest.Token
	}
	if flaw("once for each order") && exists && o == k.Highest {
		return &plugin.Applied{Highest: k.Highest, Unchanged: true}, nil
	}
	if older && !flaw("not fenced") {
		return nil, &plugin.StaleError{Highest: k.Highest}
	}
	if err := f(k, exists); err != nil {
		return nil, err
	}
	if !flaw("forgets the order") {
		k.Highest = o
	}
	return &plugin.Applied{Highest: k.Highest}, t.save(p, k)
}

func (t *target) Apply(_ context.Context, q *plugin.ApplyRequest) (*plugin.Applied, error) {
	return t.write(&q.Place, q.Order, func(k *kept, exists bool) error {
		content := q.Content
		if flaw("trims") {
			content = []byte(strings.TrimSpace(string(content)))
		}
		if exists && q.Order != k.Highest {
			k.Last, k.HasLast = k.Now, true
		}
		k.Now = content
		return nil
	})
}

func (t *target) Read(_ context.Context, q *plugin.ReadRequest) (*plugin.State, error) {
	mu.Lock()
	defer mu.Unlock()
	k, exists, err := t.load(&q.Place)
	if err != nil || !exists {
		if flaw("absence fails") && err == nil {
			err = plugin.ErrNotFound
		}
		return &plugin.State{}, err
	}
	s := sha256.Sum256(k.Now)
	return &plugin.State{Exists: true, SHA256: hex.EncodeToString(s[:]), Size: int64(len(k.Now)), Highest: k.Highest, Content: k.Now}, nil
}

func (t *target) Restore(_ context.Context, q *plugin.RestoreRequest) (*plugin.Applied, error) {
	return t.write(&q.Place, q.Order, func(k *kept, _ bool) error {
		if !k.HasLast {
			return plugin.ErrNotFound
		}
		if !flaw("restores nothing") {
			k.Now = k.Last
		}
		return nil
	})
}

// unfenced does not say that it is fenced.
type unfenced struct{ target }

func (t *unfenced) Fencing() bool { return false }

type fleet struct {
	Names []string `config:"names" doc:"The nodes."`
}

var listed int

func (f *fleet) List(context.Context) (*plugin.Listing, error) {
	mu.Lock()
	defer mu.Unlock()
	listed++
	l := &plugin.Listing{}
	for i, n := range f.Names {
		if flaw("shuffles") {
			n = f.Names[(i+listed)%len(f.Names)]
		}
		l.Nodes = append(l.Nodes, plugin.Node{Name: n, Meta: map[string]string{"zone": "a"}})
	}
	if flaw("twins") {
		l.Nodes = append(l.Nodes, l.Nodes[0])
	}
	return l, nil
}

func newPlace(tb testing.TB) plugin.Place {
	mu.Lock()
	defer mu.Unlock()
	listed++
	return plugin.Place{Node: fmt.Sprintf("n%d", listed), Config: "app.conf", Destination: "/etc/app.conf"}
}
