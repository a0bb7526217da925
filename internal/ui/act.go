package ui

import (
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// Bounds of an action.
const (
	maxActBody  = 16 << 10
	maxReason   = 500
	actPatience = 2 * time.Minute
	// approvedFor and requestedFor are what the command line has as defaults.
	approvedFor  = time.Hour
	requestedFor = 10 * time.Minute
)

// order is what a viewer asks for.
type order struct {
	Do     string `json:"do"`
	Target string `json:"target"`
	// Confirm is the target's name, as the viewer typed it.
	Confirm string `json:"confirm"`
	Reason  string `json:"reason"`
	// Stage and Pause are those of the rollout that the viewer saw: of what came
	// after them nothing is promoted or resumed.
	Stage string `json:"stage,omitempty"`
	Pause uint64 `json:"pause,omitempty"`
}

// result is what became of it.
type result struct {
	Result string `json:"result"`
}

// verbs are the orders to rollouts.
var verbs = map[string]orchestrator.Verb{
	"pause": orchestrator.Pause, "resume": orchestrator.Resume, "abort": orchestrator.Abort,
	"rollback": orchestrator.Rollback, "promote": orchestrator.Promote,
}

// act does what a viewer asks for, under the viewer's token. It is refused to
// pages from elsewhere: by what browsers say of where a request comes from, by a
// header that such pages cannot set, and by a secret that they cannot read.
func (s *Server) act(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Act == nil {
		reply(w, http.StatusForbidden, failure{"this page is read-only; `aimlock ui -actions` lets it act"})
		return
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		reply(w, http.StatusForbidden, failure{"refused: it does not come from this page"})
		return
	}
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Aimlock-Csrf")), []byte(s.csrf)) != 1 {
		reply(w, http.StatusForbidden, failure{"refused: the page is of an earlier start of the server; load it again"})
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		reply(w, http.StatusUnsupportedMediaType, failure{"an order is JSON"})
		return
	}
	var o order
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxActBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		reply(w, http.StatusBadRequest, failure{"the order cannot be read"})
		return
	}
	switch {
	case o.Target == "":
		reply(w, http.StatusBadRequest, failure{"the order has no target"})
		return
	case o.Confirm != o.Target:
		reply(w, http.StatusBadRequest, failure{"what was typed is not the name of what it is about: nothing was done"})
		return
	case len(o.Reason) > maxReason:
		reply(w, http.StatusBadRequest, failure{fmt.Sprintf("the reason is longer than %d characters: nothing was done", maxReason)})
		return
	}
	actor, err := s.cfg.Act(r.Header.Get("X-Consul-Token"))
	if err != nil {
		s.log.Warn("an order of the page", "error", err)
		reply(w, http.StatusInternalServerError, failure{"nothing was done: " + err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), actPatience)
	defer cancel()
	text, err := o.obey(ctx, actor)
	if err != nil {
		s.log.Info("an order of the page was refused", "verb", o.Do, "target", o.Target, "error", err)
		reply(w, http.StatusConflict, failure{err.Error()})
		return
	}
	s.log.Info("an order of the page", "verb", o.Do, "target", o.Target, "result", text)
	reply(w, http.StatusOK, result{text})
}

// toRollout is the order to a rollout, bound to what the viewer saw of it.
func (o *order) toRollout(verb orchestrator.Verb) runner.Order {
	out := runner.Order{ID: o.Target, Verb: verb, Pause: o.Pause, Reason: o.Reason}
	if verb == orchestrator.Promote {
		out.Stage = o.Stage // to others a stage is something else
	}
	return out
}

func (o *order) obey(ctx context.Context, a *Actor) (string, error) {
	if verb, ok := verbs[o.Do]; ok {
		h, err := a.Rollouts.Command(ctx, o.toRollout(verb))
		if err != nil {
			return "", err
		}
		if c := h.Command; c != nil && !c.OK {
			return "", fmt.Errorf("%s was refused: %s", o.Do, c.Result)
		}
		return a.Rollouts.Became(ctx, h, verb, startAgain()), nil
	}
	switch o.Do {
	case "request":
		if _, err := a.Locks.Request(ctx, o.Target, o.Reason, requestedFor); err != nil {
			return "", err
		}
		return "the holder was asked to let go", nil
	case "approve":
		if _, err := a.Locks.Approve(ctx, o.Target, o.Reason, approvedFor); err != nil {
			return "", err
		}
		return "approved for an hour, for its present holder; it is broken by whoever guards it, or by break", nil
	case "break":
		out, err := a.Locks.Break(ctx, locksmith.BreakRequest{Name: o.Target, Notify: func(locksmith.Notice) {}})
		switch {
		case errors.Is(err, locksmith.ErrNotHeld):
			return "nobody holds it: there is nothing to break", nil
		case err != nil:
			return "", err
		}
		if out.Record.Outcome == records.OutcomeReleased {
			return cmp.Or(out.Dismissed, "its holder let go"), nil
		}
		return fmt.Sprintf("broken by rule %s; %s", out.Record.Rule, out.Dismissed), nil
	}
	return "", fmt.Errorf("there is no order %q", o.Do)
}
