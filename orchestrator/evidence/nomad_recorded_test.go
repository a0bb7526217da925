package evidence_test

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/nomadapi/nomadtest"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// What a real Nomad answered, of allocations in every state.
func TestRecordedNomad(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ recording, client, desired, node, job string }{
		{"alloc-running", "running", "run", "ready", "stays"},
		{"alloc-complete", "complete", "run", "ready", "ends"},
		{"alloc-failed", "failed", "run", "ready", "fails"},
		{"alloc-stopped", "complete", "stop", "ready", "stopped"},
		{"alloc-lost", "lost", "stop", "down", "stays"},
	} {
		id := nomadtest.AllocOf(t, tc.recording)
		a, index, err := evidence.NewNomad(nomadtest.Replay(t, tc.recording)).Alloc(t.Context(), evidence.AllocRef{ID: id, Region: "global"}, evidence.Since{})
		if err != nil {
			t.Errorf("%s: %v", tc.recording, err)
			continue
		}
		if a.ID != id || a.ClientStatus != tc.client || a.DesiredStatus != tc.desired || a.NodeStatus != tc.node || a.Job != tc.job || a.Gone || index == 0 {
			t.Errorf("%s: %+v at %d", tc.recording, a, index)
		}
	}
	id := nomadtest.AllocOf(t, "alloc-gone")
	a, _, err := evidence.NewNomad(nomadtest.Replay(t, "alloc-gone")).Alloc(t.Context(), evidence.AllocRef{ID: id, Region: "global"}, evidence.Since{})
	if err != nil || !a.Gone {
		t.Errorf("of one that was collected, without ACLs: %+v, %v", a, err)
	}
	id = nomadtest.AllocOf(t, "stop")
	if err := evidence.NewNomad(nomadtest.Replay(t, "stop")).Stop(t.Context(), evidence.AllocRef{ID: id, Region: "global"}); err != nil {
		t.Error(err)
	}

	// With ACLs: as the policy of examples/nomad lets it be, and as it does not.
	id = nomadtest.AllocOf(t, "acl-alloc")
	if a, _, err := evidence.NewNomad(nomadtest.Replay(t, "acl-alloc")).Alloc(t.Context(), evidence.AllocRef{ID: id, Region: "global"}, evidence.Since{}); err != nil || a.Job != "victim" || a.NodeStatus != "ready" {
		t.Errorf("with the least rights: %+v, %v", a, err)
	}
	id = nomadtest.AllocOf(t, "acl-gone")
	if a, _, err := evidence.NewNomad(nomadtest.Replay(t, "acl-gone")).Alloc(t.Context(), evidence.AllocRef{ID: id, Region: "global"}, evidence.Since{}); err != nil || !a.Gone {
		t.Errorf("of one that was collected, with the least rights: %+v, %v", a, err)
	}
	id = nomadtest.AllocOf(t, "acl-stop")
	if err := evidence.NewNomad(nomadtest.Replay(t, "acl-stop")).Stop(t.Context(), evidence.AllocRef{ID: id, Region: "global"}); err != nil {
		t.Errorf("stop with the least rights: %v", err)
	}
	for recording, want := range map[string]string{
		"acl-narrow":      "the token may not read its namespace",
		"acl-wrong-token": "HTTP 403: Permission denied; the token may not do this, is not known or has expired",
	} {
		id := nomadtest.AllocOf(t, recording)
		a, _, err := evidence.NewNomad(nomadtest.Replay(t, recording)).Alloc(t.Context(), evidence.AllocRef{ID: id, Region: "global"}, evidence.Since{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %s", recording, a, err, want)
		}
	}
	id = nomadtest.AllocOf(t, "acl-stop-denied")
	if err := evidence.NewNomad(nomadtest.Replay(t, "acl-stop-denied")).Stop(t.Context(), evidence.AllocRef{ID: id, Region: "global"}); err == nil || !strings.Contains(err.Error(), "HTTP 403") {
		t.Errorf("stop without alloc-lifecycle: %v", err)
	}
}

// What a real Nomad answered that was asked about another region: by the region that
// a holder recorded, and by none.
func TestRecordedNomadRegion(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ recording, region, is string }{
		{"region-alloc", "west", "running run ready victim"},
		{"region-alloc-stopped", "west", "complete stop ready victim"},
		{"region-alloc-lost", "west", "lost stop down holder"},
		{"region-alloc-gone", "west", "gone"},
		{"region-alloc-not-told", "", "it was collected, or it runs in another region; the holder did not record which"},
		// With ACLs, by a token of all regions and by one of the other region.
		{"region-acl-alloc", "west", "running run ready holder"},
		{"region-acl-gone", "west", "gone"},
		{"region-acl-local", "west", "HTTP 403: Permission denied; the token may not do this, is not known or has expired: docs/nomad.md lists what it needs; check NOMAD_TOKEN, which another region knows only if it is global"},
		// A region that cannot be asked has lost nobody.
		{"region-alloc-cut", "west", "it cannot reach the server that knows, of this region or of the one that is asked for"},
		{"region-alloc-down", "west", "No path to region; check the region and NOMAD_REGION, and whether its servers can be reached"},
	} {
		ref := evidence.AllocRef{ID: nomadtest.AllocOf(t, tc.recording), Region: tc.region}
		a, _, err := evidence.NewNomad(nomadtest.Replay(t, tc.recording)).Alloc(t.Context(), ref, evidence.Since{})
		var is string
		switch {
		case err != nil:
			is = err.Error()
		case a.Gone:
			is = "gone"
		default:
			is = strings.Join([]string{a.ClientStatus, a.DesiredStatus, a.NodeStatus, a.Job}, " ")
		}
		if !strings.HasSuffix(is, tc.is) {
			t.Errorf("%s: %s, want %s", tc.recording, is, tc.is)
		}
	}
	ref := evidence.AllocRef{ID: nomadtest.AllocOf(t, "region-stop"), Region: "west"}
	if err := evidence.NewNomad(nomadtest.Replay(t, "region-stop")).Stop(t.Context(), ref); err != nil {
		t.Error(err)
	}
}
