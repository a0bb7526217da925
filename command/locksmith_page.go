package command

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aim-control/aimlock/internal/ui"
	"github.com/aim-control/aimlock/orchestrator/guard"
	"github.com/aim-control/aimlock/policies"
)

// guardPage is the web page of a locksmith. It shows what that watches, and so asks
// Consul about rollouts only. With other policies there is another page: viewers
// come back to it by themselves.
type guardPage struct {
	m     *Meta
	ctx   context.Context //nolint:containedctx // the life of the locksmith
	hosts []string
	// guard is set before anything is served.
	guard *guard.Guard
	now   atomic.Pointer[pageLife]
}

type pageLife struct {
	page *ui.Server
	end  context.CancelFunc
}

// use shows by the policies of set. What covers nothing is not put in force, and is
// not shown by.
func (p *guardPage) use(set *policies.Set) error {
	if p == nil || len(guard.Roots(set, p.m.Prefix)) == 0 {
		return nil
	}
	ctx, end := context.WithCancel(p.ctx)
	page, err := p.m.page(ctx, set, false, func(cfg *ui.Config) {
		cfg.Hosts, cfg.Source, cfg.PolicySource = p.hosts, p.guard.Share, p.guard.SharePolicies
	})
	if err != nil {
		end()
		return err
	}
	if old := p.now.Swap(&pageLife{page, end}); old != nil {
		old.end()
	}
	return nil
}

func (p *guardPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.now.Load().page.ServeHTTP(w, r)
}

// serve serves it at addr until the function returned is called.
func (p *guardPage) serve(addr string, g *guard.Guard, set *policies.Set) (stop func(), err error) {
	p.guard = g
	if err := p.use(set); err != nil {
		return nil, err
	}
	l, err := p.m.listenUI(p.ctx, "-ui", addr)
	if err != nil {
		return nil, err
	}
	srv, done := uiServer(p), make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.m.Log.Error("the page is not served any more", "error", err)
		}
	}()
	p.m.Log.Info("serving the page", "address", l.Addr().String())
	return func() {
		p.now.Load().end() // streams end with it
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		<-done
	}, nil
}
