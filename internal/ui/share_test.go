package ui

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/guard"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// A page in a locksmith costs Consul one blocking query, whatever it shows and however
// many look on, and shows the locks as the locksmith reads them.
func TestSharesWithTheLocksmith(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g *guard.Guard
		w := newWorld(t, func(cfg *Config) {
			var err error
			if g, err = guard.New(guard.Config{Client: cfg.Locks, Source: guard.Sweeps(cfg.Locks.Reader()), DryRun: true}); err != nil {
				t.Fatal(err)
			}
			cfg.Source, cfg.PolicySource = g.Share, g.SharePolicies
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		before := w.hold("before")
		w.rollout("app-1", "before", orchestrator.Running)
		pass(10 * time.Second)
		idle := w.net.waiting.Load()
		if idle == 0 {
			t.Fatal("the locksmith follows nothing")
		}
		locks := w.open("view=locks")
		viewers := []*viewer{locks, w.open("view=locks"), w.open("view=policies"), w.open("view=policies"), w.open("view=rollouts")}
		pass(10 * time.Second)
		if n := w.net.waiting.Load() - idle; n != 1 {
			t.Errorf("five pages cost %d blocking queries more", n)
		}
		after := w.hold("after")
		pass(5 * time.Second)
		if got := locksOf(t, locks); got["aimlock/locks/before"] == "" || got["aimlock/locks/after"] == "" {
			t.Errorf("shown are %v", got)
		}
		if len(viewers[2].events("policies")) == 0 {
			t.Error("no policies are shown")
		}
		if err := before.Release(ctx); err != nil {
			t.Error(err)
		}
		pass(5 * time.Second)
		if got := locksOf(t, locks); got["aimlock/locks/before"] != "" || got["aimlock/locks/after"] == "" {
			t.Errorf("after a release, shown are %v", got)
		}
		if got, want := seenDriving(t, viewers[4], "rollouts"), "false before FREE: "+runner.Undriven(startSpec); got != want {
			t.Errorf("after a release, who drives is told as %s, not %s", got, want)
		}
		late := w.open("view=rollouts")
		pass(10 * time.Second)
		if got, want := seenDriving(t, late, "rollouts"), "false before FREE: "+runner.Undriven(startSpec); got != want {
			t.Errorf("on a later page, who drives is told as %s, not %s", got, want)
		}
		viewers = append(viewers, late)
		if err := after.Release(ctx); err != nil {
			t.Error(err)
		}
		for _, v := range viewers {
			v.stop()
			<-v.done
		}
		pass(2 * linger)
		if n := w.net.waiting.Load() - idle; n != 0 {
			t.Errorf("%d blocking queries are left when nobody looks", n)
		}
	})
}
