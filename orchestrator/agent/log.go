package agent

import (
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/orchestrator"
)

// about is the log with what an order for this config is about.
func (w *work) about(o orchestrator.Order, rollout string) hclog.Logger {
	return w.log.With("config", w.config, "rollout", rollout, "epoch", o.Epoch, "token", o.Token, "seq", o.Seq)
}

// marked is about the order at the mark.
func (w *work) marked() hclog.Logger {
	rollout := ""
	if d := w.st.Desired; d != nil {
		rollout = d.Rollout
	}
	return w.about(w.st.Mark, rollout)
}
