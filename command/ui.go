package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/ui"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/policies"
)

// uiAddress is where the page is served unless -listen says otherwise.
const uiAddress = "127.0.0.1:8911"

func newUI(m *Meta) *command {
	addr, actions := "", false
	var hosts stringList
	return &command{
		Meta:     m,
		Synopsis: "Serve a web page of locks and rollouts",
		Usage:    "[options]",
		Description: `Serves a page that follows Consul live: all locks with their verdicts, the worst
first; one lock's rules, evidence and story; rollouts with their nodes; the
policies in force. Everything it needs is in this program.

It reads under this command's token, and whoever can reach its address sees what
that token may read: it listens on this machine alone unless told otherwise, and
has no TLS. It changes nothing, unless -actions is given: then a viewer can pause,
resume and end rollouts, and ask for, approve and break locks, each under the
viewer's own Consul token and after typing the name. It ends with ^C.`,
		Examples: []example{
			{"Look on", "aimlock ui"},
			{"With actions, and policies of your own", "aimlock ui -actions -policy policies/"},
			{"Behind a proxy that is reached as locks.example.com", "aimlock ui -host locks.example.com"},
		},
		Groups: groupConsul | groupPolicy | groupDaemon,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&addr, "listen", uiAddress, "Serve on `ADDRESS`.")
			fs.BoolVar(&actions, "actions", false, "Let viewers act, under their own tokens.")
			fs.Var(&hosts, "host", "Serve under the name `HOST`, too, as browsers ask for it. May be repeated.")
		},
		Run: func(ctx context.Context, _ *input) error {
			set, err := m.guardPolicies()
			if err != nil {
				return err
			}
			page, err := m.page(ctx, set, actions, func(cfg *ui.Config) { cfg.Hosts = hosts })
			if err != nil {
				return err
			}
			return m.serveUI(ctx, addr, page)
		},
	}
}

// page makes the web page.
func (m *Meta) page(ctx context.Context, set *policies.Set, actions bool, mod func(*ui.Config)) (*ui.Server, error) {
	consul, err := m.Consul()
	if err != nil {
		return nil, err
	}
	locks, err := m.locksmithOver(consul, set, locksmith.Config{As: "ui"})
	if err != nil {
		return nil, err
	}
	cfg := ui.Config{
		Locks: locks, Rollouts: m.runnerOver(consul, locks, nil), Policies: set, Log: m.Log.Named("ui"),
		Rollout: func(h *orchestrator.Header) any { return viewRollout(h, "") },
		Waiting: func(w *runner.Waiting) any { return viewWaiting(w) },
	}
	if actions {
		cfg.Act = func(token string) (*ui.Actor, error) {
			consul, err := m.consulWith(nil, &token)
			if err != nil {
				return nil, err
			}
			locks, err := m.locksmithOver(consul, set, locksmith.Config{As: "ui"})
			if err != nil {
				return nil, err
			}
			return &ui.Actor{Locks: locks, Rollouts: m.runnerOver(consul, locks, nil)}, nil
		}
	}
	mod(&cfg)
	return ui.New(ctx, cfg)
}

// serveUI serves the page until ctx ends.
func (m *Meta) serveUI(ctx context.Context, addr string, page http.Handler) error {
	l, err := m.listenUI(ctx, "-listen", addr)
	if err != nil {
		return err
	}
	srv := uiServer(page)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	m.Printf("http://%s/\n", strings.Replace(l.Addr().String(), "[::]", "localhost", 1))
	select {
	case err := <-served:
		return fmt.Errorf("the page is not served any more: %w", err)
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = srv.Shutdown(sctx) // streams end with ctx
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// listenUI takes the address of a page, that the flag names.
func (m *Meta) listenUI(ctx context.Context, flag, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, addr, err)
	}
	if ap, err := netip.ParseAddrPort(l.Addr().String()); err == nil && !ap.Addr().IsLoopback() {
		m.Notef("Warning: %s is not this machine alone: whoever reaches it sees what this token may read, and there is no TLS\n", l.Addr())
	}
	return l, nil
}

// uiServer serves a page. Streams last: there is no time-out of writes but the
// page's own.
func uiServer(page http.Handler) *http.Server {
	return &http.Server{Handler: page, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 32 << 10}
}
