package nomaddevice

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
)

// Vendor and type of every device; its name is the config's.
const (
	Vendor = "aimlock"
	Type   = "config"
)

// Attributes of a device. Every one of them may stand in a constraint.
const (
	AttrRevision = "revision" // the first 12 digits of the SHA-256 of what stands
	AttrSHA256   = "sha256"   // all of them, as far as it is known
	AttrEpoch    = "epoch"    // of the order that was accepted last
	AttrToken    = "token"
	AttrResult   = "result"      // of that order: applied, failed, rolled_back …
	AttrRollout  = "rollout"     // that gave it
	AttrPath     = "destination" // of the file, without the root
	AttrState    = "state"       // of the lock: FREE, HELD, WARM, HOT, UNKNOWN
	AttrDrifted  = "drifted"
	AttrHealthy  = "healthy"
	AttrSlots    = "slots"
)

// world is all that is known.
type world struct {
	state    nodeState
	presence presence
	locks    map[string]lockView
}

// device is one config as Nomad is shown it.
type device struct {
	Config  string
	Healthy bool
	// Why says why it is not healthy, or what is not known although it is.
	Why        string
	Attributes map[string]any // string, int64 or bool
	// Status is nil where nothing was ever accepted.
	Status *agent.Status
	Lock   lockView
}

// maxWhy bounds a description: it is kept for every instance of every device.
const maxWhy = 300

// devicesOf makes the devices of what is known, in the order of their names.
func devicesOf(w *world, s *Settings) []device {
	byName := map[string]*agent.Status{}
	for i := range w.state.Configs {
		byName[w.state.Configs[i].Config] = &w.state.Configs[i]
	}
	names := shown(w.state.Configs, s)
	out := make([]device, 0, len(names))
	for _, name := range names {
		out = append(out, deviceOf(name, byName[name], w, s))
	}
	return out
}

// shown are the names of the configs that are shown, sorted: those that the
// settings name, else those that were accepted.
func shown(accepted []agent.Status, s *Settings) []string {
	names := slices.Clone(s.Configs)
	if len(names) == 0 {
		for i := range accepted {
			names = append(names, accepted[i].Config)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func deviceOf(name string, st *agent.Status, w *world, s *Settings) device {
	lock, seen := w.locks[name]
	if !seen {
		lock = lockView{State: locksmith.Unknown, Err: "Consul has not been asked yet"}
	}
	bad, unknown := fileTrouble(st, w.state.Err), []string{}
	if s.RequireAgent {
		switch p := w.presence; {
		case p.Err != "":
			unknown = append(unknown, "whether the aimlock agent runs: "+p.Err)
		case !p.Runs:
			bad = append(bad, fmt.Sprintf("the aimlock agent of node %s is gone: %s", w.state.Node, p.Why))
		}
	}
	switch {
	case lock.State == locksmith.Hot:
		bad = append(bad, fmt.Sprintf("its lock is HOT: %s: %s", lock.Rule, lock.Reason))
	case lock.Err != "":
		unknown = append(unknown, "its lock: "+lock.Err)
	case lock.State == locksmith.Unknown:
		unknown = append(unknown, fmt.Sprintf("its lock: %s: %s", lock.Rule, lock.Reason))
	}
	healthy := len(bad) == 0 && (len(unknown) == 0 || s.OnUnknown == UnknownHealthy)
	if len(unknown) > 0 {
		bad = append(bad, "unknown: "+strings.Join(unknown, "; "))
	}
	d := device{Config: name, Healthy: healthy, Why: text.Clip(text.Printable(strings.Join(bad, "; ")), maxWhy), Status: st, Lock: lock}
	d.Attributes = map[string]any{
		AttrState: lock.State, AttrHealthy: d.Healthy, AttrSlots: int64(s.Slots), AttrDrifted: st != nil && st.Drift != nil,
	}
	if st == nil {
		return d
	}
	for name, v := range map[string]string{
		AttrRevision: st.Revision, AttrSHA256: st.SHA256, AttrResult: st.State, AttrRollout: st.Rollout, AttrPath: st.Destination,
	} {
		if v != "" {
			d.Attributes[name] = text.Printable(v)
		}
	}
	// Not Seq, which the nodes of one rollout do not have in common.
	d.Attributes[AttrEpoch], d.Attributes[AttrToken] = int64(st.Order.Epoch), int64(st.Order.Token)
	return d
}

// fileTrouble says what is wrong with the file itself.
func fileTrouble(st *agent.Status, stateErr string) []string {
	var bad []string
	switch {
	case stateErr != "":
		bad = append(bad, "unknown: "+stateErr)
	case st == nil:
		bad = append(bad, "this node has accepted no order for it")
	case st.State == agent.StateDamaged:
		bad = append(bad, "unknown: "+st.Error)
	case st.State == records.ResultFailed:
		bad = append(bad, "the last order failed: "+st.Error)
	case st.Revision == "":
		bad = append(bad, "no file stands")
	}
	if st != nil && st.Drift != nil {
		bad = append(bad, "the file has drifted: "+st.Drift.What)
	}
	return bad
}

// attribute is a value as Nomad compares it. A job's constraint is text, which
// Nomad takes for a number where it looks like one, and a number never equals a
// text. So a text that looks like a number has to be sent as one: of the
// revisions, one in some 150 is like that.
func attribute(v any) *nomadpb.Attribute {
	switch v := v.(type) {
	case bool:
		return &nomadpb.Attribute{Value: &nomadpb.Attribute_BoolVal{BoolVal: v}}
	case int64:
		return &nomadpb.Attribute{Value: &nomadpb.Attribute_IntVal{IntVal: v}}
	case string:
		if v != "" && v[0] >= '0' && v[0] <= '9' {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				return &nomadpb.Attribute{Value: &nomadpb.Attribute_IntVal{IntVal: n}}
			}
			if f, err := strconv.ParseFloat(v, 64); err == nil {
				return &nomadpb.Attribute{Value: &nomadpb.Attribute_FloatVal{FloatVal: f}}
			}
		}
		return &nomadpb.Attribute{Value: &nomadpb.Attribute_StringVal{StringVal: v}}
	}
	panic(fmt.Sprintf("nomaddevice: an attribute of type %T", v))
}

// instanceID names instance n of a config, from 1 on.
func instanceID(config string, n int) string { return config + ":" + strconv.Itoa(n) }

// instanceOf is the inverse of instanceID.
func instanceOf(id string, slots int) (config string, ok bool) {
	at := strings.LastIndexByte(id, ':')
	if at <= 0 {
		return "", false
	}
	n, err := strconv.Atoi(id[at+1:])
	return id[:at], err == nil && n >= 1 && n <= slots && id == instanceID(id[:at], n)
}

// group is a device in the form of the protocol.
func (d *device) group(slots int) *nomadpb.DeviceGroup {
	g := &nomadpb.DeviceGroup{Vendor: Vendor, DeviceType: Type, DeviceName: d.Config, Attributes: map[string]*nomadpb.Attribute{}}
	for name, v := range d.Attributes {
		g.Attributes[name] = attribute(v)
	}
	for n := 1; n <= slots; n++ {
		g.Devices = append(g.Devices, &nomadpb.DetectedDevice{ID: instanceID(d.Config, n), Healthy: d.Healthy, HealthDescription: d.Why})
	}
	return g
}

// since is a whole number of seconds, never below 0: clocks are set.
func since(t, now time.Time) int64 { return int64(max(0, now.Sub(t)).Seconds()) }
