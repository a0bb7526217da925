package agent

import (
	"context"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/orchestrator/witness"
)

// witness tells other hosts of the holders of locks on this one. Without it the
// node's files are looked after all the same.
func (a *Agent) witness(ctx context.Context) {
	self := a.cfg.Self
	if self == (hostproc.Identity{}) {
		var err error
		if self, err = hostproc.Self(); err != nil {
			a.cfg.Log.Warn("holders on this host are not watched", "error", err)
			return
		}
	}
	witness.New(witness.Config{
		Consul: a.cfg.Consul, Prefix: a.cfg.Prefix, Log: a.cfg.Log.Named("witness"), Self: self, Agent: ServiceID(a.cfg.Node),
	}).Run(ctx)
}
