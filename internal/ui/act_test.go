package ui

import (
	"reflect"
	"testing"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// What the page showed when the order was given goes with it.
func TestOrdersAreBoundToWhatWasShown(t *testing.T) {
	t.Parallel()
	o := order{Target: "r-1", Reason: "looks good", Stage: "canary", Pause: 3}
	for verb, stage := range map[orchestrator.Verb]string{orchestrator.Promote: "canary", orchestrator.Resume: "", orchestrator.Skip: ""} {
		want := runner.Order{ID: "r-1", Verb: verb, Stage: stage, Pause: 3, Reason: "looks good"}
		if got := o.toRollout(verb); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", verb, got, want)
		}
	}
}
