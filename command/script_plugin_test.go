package command_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/plugin"
)

// testPlugin is what scripts run as "testplugin": a plugin of all kinds that reads
// and writes files.
func testPlugin() {
	plugin.Serve(plugin.Plugin{
		Name: "testplugin", Version: "1.0.0", Doc: "Reads and writes files, for tests.",
		Evidence: func() plugin.Evidence { return &fileEvidence{} },
		Breaker:  func() plugin.Breaker { return &fileBreaker{} },
		Gate:     func() plugin.Gate { return &fileGate{} },
		Target:   func() plugin.Target { return &fileTarget{} },
		Fleet:    func() plugin.Fleet { return &listFleet{} },
	})
}

type fileEvidence struct {
	Facts_ string        `config:"facts" doc:"File that on_call is read from."` //nolint:revive // Facts is a method
	Slow   time.Duration `config:"slow" doc:"How long an answer takes."`
	Token  string        `config:"token,secret" doc:"For the server."`
}

func (e *fileEvidence) Facts() []plugin.FactDef {
	return []plugin.FactDef{
		{Name: "on_call", Type: plugin.String, Doc: "who is on call"},
		{Name: "calm", Type: plugin.Bool, Doc: "nobody was paged today"},
	}
}

func (e *fileEvidence) Observe(ctx context.Context, r *plugin.ObserveRequest) ([]plugin.Fact, error) {
	hclog.FromContext(ctx).Debug("observing", "lock", r.Lock.Name, "token", e.Token)
	if e.Slow > 0 {
		select {
		case <-time.After(e.Slow):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	raw, err := os.ReadFile(e.Facts_)
	if err != nil {
		return nil, err
	}
	return []plugin.Fact{plugin.Known("on_call", strings.TrimSpace(string(raw))), plugin.Unknown("calm", "nobody keeps count")}, nil
}

type fileBreaker struct {
	Log  string `config:"log,required" doc:"File that a line is added to."`
	Fail bool   `config:"fail"`
}

func (b *fileBreaker) Break(_ context.Context, r *plugin.BreakRequest) (*plugin.BreakResult, error) {
	if b.Fail {
		return nil, errors.New("the unit cannot be stopped")
	}
	f, err := os.OpenFile(b.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "broke %s held by %s, rule %s\n", r.Lock.Name, r.Lock.Holder.Tool, r.Rule)
	return &plugin.BreakResult{Outcome: plugin.Done, Detail: "stopped"}, errors.Join(err, f.Close())
}

type fileGate struct {
	Answer string `config:"answer,required" doc:"pass, fail, pending or unknown."`
}

func (g *fileGate) Validate(context.Context) error {
	if g.Answer == "maybe" {
		return plugin.Invalid("answer", "a gate does not say maybe")
	}
	return nil
}

func (g *fileGate) Ask(_ context.Context, q *plugin.Question) (*plugin.Answer, error) {
	return &plugin.Answer{Verdict: plugin.Verdict(g.Answer), Value: fmt.Sprintf("%d updated", len(q.Updated)), Why: "the configuration says so"}, nil
}

// fileTarget keeps what it is given in a folder, without a fence.
type fileTarget struct {
	Dir string `config:"dir,required" doc:"Folder of the files."`
}

func (t *fileTarget) path(p *plugin.Place) string { return filepath.Join(t.Dir, p.Node+"-"+p.Config) }

func (t *fileTarget) Fencing() bool { return false }

func (t *fileTarget) Apply(_ context.Context, r *plugin.ApplyRequest) (*plugin.Applied, error) {
	if strings.Contains(string(r.Content), "poison") {
		return nil, errors.New("the device refuses the content")
	}
	return &plugin.Applied{SHA256: r.SHA256, Detail: "written by the plugin"}, os.WriteFile(t.path(&r.Place), r.Content, 0o600)
}

func (t *fileTarget) Read(_ context.Context, r *plugin.ReadRequest) (*plugin.State, error) {
	raw, err := os.ReadFile(t.path(&r.Place))
	if errors.Is(err, fs.ErrNotExist) {
		return &plugin.State{}, nil
	}
	sum := sha256.Sum256(raw)
	return &plugin.State{Exists: true, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(raw)), Content: raw}, err
}

func (t *fileTarget) Restore(context.Context, *plugin.RestoreRequest) (*plugin.Applied, error) {
	return nil, plugin.ErrUnsupported
}

type listFleet struct {
	Names []string `config:"names" doc:"The nodes; there must be some."`
}

func (f *listFleet) Validate(context.Context) error {
	if len(f.Names) == 0 || f.Names[0] == "nobody" {
		return plugin.Invalid("names", "there is nobody")
	}
	return nil
}

func (f *listFleet) List(context.Context) (*plugin.Listing, error) {
	l := &plugin.Listing{}
	for _, n := range f.Names {
		l.Nodes = append(l.Nodes, plugin.Node{Name: n, Meta: map[string]string{"zone": "a"}})
	}
	return l, nil
}
