package sim

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/devconsul/state"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// schedule has all events happen at their times.
func (w *World) schedule() {
	for _, e := range w.plan.Events {
		w.after(e.At, e.String(), func() { w.happen(e) })
		if e.Kind == evRestore {
			w.after(e.At-e.For, "snapshot", func() { w.snaps[e] = w.srv.Snapshot() })
		}
	}
}

// happen lets one event happen.
func (w *World) happen(e Event) {
	if !w.calm.IsZero() {
		return
	}
	w.note("** %s", strings.TrimSpace(e.String()))
	now := time.Now()
	a := w.actor(e.Who)
	op := w.actor("op")
	switch e.Kind {
	case evGoal:
		w.goal.Store(int64(e.N))
	case evCrash, evPower:
		if a.doom = &e; e.N == 0 {
			w.crash(a)
		}
	case evLocks:
		// The agent stands still meanwhile, and somebody starts a second one.
		w.stop(a, e.For)
		if err := a.disk.dropLocks(); err != nil {
			w.fail("set-up", "%v", err)
		}
		a.twin.start()
		w.after(e.For+e.For/2, "end of "+a.twin.name, a.twin.kill)
	case evPut, evDelete, evSilence, evSuspend, evCommand, evRequest, evApprove, evBreak:
		if op.cur != nil {
			go op.cur.operate(e)
		}
	case evRestore:
		w.restore(e)
	case evPause:
		w.stop(a, e.For)
	case evCut:
		a.net = weather{until: now.Add(e.For), cut: true, refused: e.N == 1}
	case evFlaky:
		r := draw(w.seed, e.String(), 0)
		a.net = weather{until: now.Add(e.For), lost: int(r % 30), dropped: int(r >> 8 % 15), twice: int(r >> 16 % 30), late: int(r >> 24 % 25)}
	case evLeader:
		if err := w.srv.ChangeLeader(e.N == 1); err != nil {
			w.fail("set-up", "%v", err)
		}
	case evNoLeader:
		w.leaderless.Store(true)
		w.after(e.For, "a leader is elected", func() {
			w.leaderless.Store(false)
			_ = w.srv.ChangeLeader(false)
		})
	case evClock:
		a.skew = clockJumps[e.N]
	case evHeldUp:
		w.mu.Lock()
		w.held[w.keys.Lock(e.Who)] = e.For
		w.mu.Unlock()
	case evIntent:
		w.mu.Lock()
		w.held[w.keys.Breaks(e.Who)] = e.For
		w.mu.Unlock()
	case evHang:
		if h := w.holder(e.Who); h != nil {
			w.stop(h, e.For)
		} else {
			w.after(200*time.Millisecond, e.String(), func() { w.happen(e) })
		}
	case evSessions:
		if err := w.srv.EndSessions(); err != nil {
			w.fail("set-up", "%v", err)
		}
	case evDiskFull:
		a.disk.full.Store(true)
		w.after(e.For, "disk of "+a.name+" has room again", func() { a.disk.full.Store(false) })
	}
}

// heldUp is how much longer a transaction is under way: one that ends a hold by a
// break, or is the intent of one, may have been chosen for it.
func (w *World) heldUp(ops []txnOp) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.held) == 0 {
		return 0
	}
	breaks, of := false, []string(nil)
	for _, op := range ops {
		switch {
		case op.KV == nil:
		case op.KV.Verb == "unlock":
			of = append(of, op.KV.Key)
		case op.KV.Verb == "cas" && strings.HasPrefix(op.KV.Key, w.keys.BreaksRoot()):
			if breaks = true; op.KV.Index == 0 {
				of = append(of, op.KV.Key[:strings.LastIndexByte(op.KV.Key, '/')+1])
			}
		}
	}
	for _, key := range of {
		if d := w.held[key]; breaks && d > 0 {
			delete(w.held, key)
			return d
		}
	}
	return 0
}

// holder is who holds a lock, as the servers see it.
func (w *World) holder(lock string) *actor {
	m := w.check.locks[lock]
	if m == nil || m.session == "" {
		return nil
	}
	for _, a := range w.actors {
		if a.cur == nil {
			continue
		}
		a.cur.mu.Lock()
		h := a.cur.holds[m.session]
		a.cur.mu.Unlock()
		if h != nil {
			return a
		}
	}
	return nil
}

// stop has a process get no steps for a while.
func (w *World) stop(a *actor, d time.Duration) {
	if a.cur == nil {
		return
	}
	w.sched.freeRequests(a)
	a.until = time.Now().Add(d)
	w.after(d, a.name+" goes on", func() {})
}

// crash kills the process that is doomed, and with a power cut its machine.
func (w *World) crash(a *actor) {
	e := *a.doom
	a.doom = nil
	if a.cur == nil {
		return
	}
	w.note("%s dies", a.cur)
	a.kill()
	w.settle()
	if e.Kind == evPower {
		if err := a.disk.powerCut(); err != nil {
			w.fail("set-up", "%v", err)
		}
		w.check.disk(a)
	}
	w.after(e.For, "start "+a.name, a.start)
}

// calmDown ends all faults; from here on everything has to come right.
func (w *World) calmDown() {
	w.calm = time.Now()
	w.note("** no more faults")
	w.leaderless.Store(false)
	w.mu.Lock()
	clear(w.held)
	w.mu.Unlock()
	for _, a := range w.actors {
		// Who stands still wakes at its time.
		a.net, a.doom = weather{}, nil
		if a.disk != nil {
			a.disk.full.Store(false)
			a.twin.kill()
		}
		if a.cur == nil {
			w.after(time.Second, "start "+a.name, a.start)
		}
	}
}

// converged reports whether everything is as it shall be.
func (w *World) converged() bool {
	return time.Since(w.calm) > 5*time.Second && time.Since(w.calm)%time.Second < time.Millisecond && w.missing() == ""
}

// missing is what is not yet as it shall be; "": nothing.
func (w *World) missing() string {
	want := string(content(w.goal.Load()))
	for _, a := range w.actors {
		if a.disk == nil {
			continue
		}
		for _, config := range w.plan.configs() {
			if have := a.file(config); have != want {
				return fmt.Sprintf("node %s has %q for %s, and not %q", a.name, have, config, want)
			}
		}
	}
	for _, lock := range w.plan.Holders {
		if m := w.check.locks[lock]; m == nil || m.since.Before(w.calm) {
			return "nobody took lock " + lock + " since"
		}
	}
	return ""
}

// addOperator adds the terminal at which people give orders.
func (w *World) addOperator() {
	w.add("op", func(a *actor) *actor {
		a.main = func(ctx context.Context, inc *incarnation) {
			for inc.pause(ctx, 5*time.Second) {
				inc.wayOut(ctx)
			}
		}
		return a
	})
}

// operate is one thing that a person does.
func (inc *incarnation) operate(e Event) {
	w, kv := inc.w, inc.kv.API().KV()
	ctx, cancel := context.WithTimeout(inc.ctx, 20*time.Second)
	defer cancel()
	c, err := inc.locks("operator")
	if err != nil {
		w.fail("set-up", "%v", err)
		return
	}
	key, o := w.keys.Lock(e.Who), (&api.WriteOptions{}).WithContext(ctx)
	switch e.Kind {
	case evPut:
		p, gerr := inc.kv.Get(ctx, key)
		if err = gerr; err == nil && p != nil {
			_, err = kv.Put(&api.KVPair{Key: key, Value: append(p.Value, ' ')}, o)
		}
	case evDelete:
		_, err = kv.Delete(key, o)
	case evSilence:
		_, _, err = c.Silence(ctx, e.Who, "sim", e.For)
	case evSuspend:
		if _, _, err = c.Suspend(ctx, "sim"); err == nil && inc.pause(ctx, min(e.For, 15*time.Second)) {
			_, err = c.Resume(ctx)
		}
	case evRequest:
		_, err = c.Request(ctx, e.Who, "sim", e.For)
	case evApprove:
		_, err = c.Approve(ctx, e.Who, "sim", e.For)
	case evBreak:
		_, err = c.Break(ctx, locksmith.BreakRequest{Name: e.Who})
	case evCommand:
		err = inc.command(ctx, orchestrator.Verb(e.Who))
	}
	w.note("the operator: %s: %v", strings.TrimSpace(e.String()), err)
}

// command gives an order for the newest rollout.
func (inc *incarnation) command(ctx context.Context, v orchestrator.Verb) error {
	r, err := inc.runner()
	if err != nil {
		return err
	}
	heads, err := r.Headers(ctx)
	if err != nil || len(heads) == 0 || heads[0].FinishedAt != nil {
		return err
	}
	switch v {
	case orchestrator.Promote:
		inc.w.check.passed(heads[0].ID) // it takes bake and gates as passed
	case orchestrator.Resume:
		inc.w.check.forgive(heads[0].ID)
	}
	_, err = r.Command(ctx, runner.Order{ID: heads[0].ID, Verb: v, Reason: "sim"})
	return err
}

// wayOut is what a person does once the trouble is over: resume what is paused, and
// let breaking go on.
func (inc *incarnation) wayOut(ctx context.Context) {
	w := inc.w
	if w.calm.IsZero() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := inc.locks("operator")
	if err != nil {
		return
	}
	if s, err := c.Suspended(ctx); err == nil && s != nil {
		_, _ = c.Resume(ctx)
	}
	r, err := inc.runner()
	if err != nil {
		return
	}
	heads, err := r.Headers(ctx)
	if err != nil || len(heads) == 0 || heads[0].FinishedAt != nil {
		return
	}
	if heads[0].State == orchestrator.Paused {
		err = inc.command(ctx, orchestrator.Resume)
		w.note("the operator resumes: %v", err)
	} else if len(w.snaps) > 0 {
		_, err = r.Show(ctx, heads[0].ID)
	}
	// Whoever drove it wrote into a Consul that had gone back: errors name this way.
	if errors.Is(err, orchestrator.ErrPlanDamaged) {
		w.note("the operator ends a damaged rollout: %v", inc.command(ctx, orchestrator.Abort))
	}
}

// restore puts the servers back to what they were some time ago, and has a person
// run the recovery that this asks for.
func (w *World) restore(e Event) {
	snap := w.snapshotOf(e)
	if snap == nil {
		return
	}
	if err := w.srv.Restore(snap); err != nil {
		w.fail("set-up", "%v", err)
		return
	}
	w.settle()
	w.check.restored()
	op := w.actor("op")
	if op.cur == nil {
		return
	}
	go func(inc *incarnation) {
		c, err := inc.locks("operator")
		for err == nil && inc.pause(inc.ctx, 2*time.Second) {
			rec, rerr := c.Recover(inc.ctx, locksmith.RecoverRequest{})
			w.note("the operator recovers: epoch %d, %v", rec.Epoch, rerr)
			if rerr == nil {
				return
			}
		}
	}(op.cur)
}

// snapshotOf is the picture that a restore goes back to.
func (w *World) snapshotOf(e Event) *state.Snapshot { return w.snaps[e] }

// read asks the servers, beside all that goes wrong.
func (w *World) read(url string) []byte {
	rec := httptest.NewRecorder()
	w.srv.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody))
	return rec.Body.Bytes()
}
