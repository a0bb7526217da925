package nomaddevice

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
)

// minStats is the least interval of statistics.
const minStats = time.Second

// devices is the device service of one process.
type devices struct {
	nomadpb.UnimplementedDevicePluginServer
	p *plugin
}

var _ nomadpb.DevicePluginServer = (*devices)(nil)

// Fingerprint tells of all devices, and again when one changes. It ends with the
// call or the process, and for no other reason.
func (d *devices) Fingerprint(_ *nomadpb.FingerprintRequest, stream grpc.ServerStreamingServer[nomadpb.FingerprintResponse]) error {
	ctx := stream.Context()
	var sent []device
	told := false
	for {
		m, err := d.p.monitor()
		if err != nil {
			return status.Error(codes.FailedPrecondition, err.Error())
		}
		all, ready, changed := m.current()
		if ready && (!told || compare(sent, all) != newsNone) {
			out := &nomadpb.FingerprintResponse{}
			for i := range all {
				out.DeviceGroup = append(out.DeviceGroup, all[i].group(m.set.Slots))
			}
			if err := stream.Send(out); err != nil {
				return err
			}
			sent, told = all, true
		}
		select {
		case <-changed:
		case <-m.stopped:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-d.p.ctx.Done():
			return status.Error(codes.Unavailable, "the plugin ends")
		}
	}
}

// Reserve says what a task gets with instances of one config. The task was placed
// already, so that nothing but an unknown instance is refused: a node keeps what
// it has.
func (d *devices) Reserve(_ context.Context, req *nomadpb.ReserveRequest) (*nomadpb.ReserveResponse, error) {
	set := d.p.settings()
	st := readState(set.StateDir)
	var configs []string
	for _, id := range req.GetDeviceIds() {
		config, ok := instanceOf(id, set.Slots)
		if !ok || !slices.Contains(shown(st.Configs, &set), config) {
			why := fmt.Sprintf("no such device of this node: %q", text.Clip(text.Printable(id), 200))
			if st.Err != "" {
				why += " (" + st.Err + ")"
			}
			return nil, status.Error(codes.NotFound, why)
		}
		if !slices.Contains(configs, config) {
			configs = append(configs, config)
		}
	}
	out := &nomadpb.ContainerReservation{Envs: map[string]string{}}
	for _, config := range configs {
		one := agent.Status{Config: config}
		if i := slices.IndexFunc(st.Configs, func(s agent.Status) bool { return s.Config == config }); i >= 0 {
			one = st.Configs[i]
		}
		reserve(out, &one, &set)
	}
	return &nomadpb.ReserveResponse{ContainerRes: out}, nil
}

// reserve adds what a task gets with one config.
func reserve(out *nomadpb.ContainerReservation, st *agent.Status, set *Settings) {
	env := func(name, value string) { out.Envs["AIMLOCK_CONFIG_"+envName(st.Config)+"_"+name] = value }
	env("NAME", st.Config)
	if st.Destination == "" {
		return
	}
	env("DESTINATION", st.Destination)
	env("REVISION", st.Revision)
	env("TOKEN", strconv.FormatUint(st.Order.Token, 10))
	env("EPOCH", strconv.FormatUint(st.Order.Epoch, 10))
	host := filepath.Join(set.Root, st.Destination)
	at := st.Destination
	switch set.Mount {
	case MountNone:
		return
	case MountFolder:
		host, at = filepath.Dir(host), filepath.Dir(at)
	}
	if at == "/" || !set.MountPrivate && !public(host) {
		return
	}
	if _, err := os.Stat(host); err != nil {
		// Docker would make a folder of that name.
		return
	}
	out.Mounts = append(out.Mounts, &nomadpb.Mount{TaskPath: at, HostPath: host, ReadOnly: true})
	env("MOUNTED", at)
}

// public reports whether everybody on this machine may read the file at path, and
// pass every folder on the way to it. Who may run a job need not be allowed to
// log in here.
func public(path string) bool {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o004 != 0 && passable(filepath.Dir(path))
}

// passable reports whether everybody may pass a folder and those above it.
func passable(dir string) bool {
	for {
		fi, err := os.Stat(dir)
		if err != nil || fi.Mode().Perm()&0o001 == 0 {
			return false
		}
		up := filepath.Dir(dir)
		if up == dir {
			return true
		}
		dir = up
	}
}

// envName is a config's name as a part of the name of a variable:
// aim_lock_config.conf is AIM_LOCK_CONFIG_CONF.
func envName(config string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, config)
}

// Stats tells numbers of all devices at an interval.
func (d *devices) Stats(req *nomadpb.StatsRequest, stream grpc.ServerStreamingServer[nomadpb.StatsResponse]) error {
	ctx, every := stream.Context(), minStats
	if i := req.GetCollectionInterval(); i != nil {
		every = max(every, i.AsDuration())
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		m, err := d.p.monitor()
		if err != nil {
			return status.Error(codes.FailedPrecondition, err.Error())
		}
		all, ready, changed := m.current()
		if !ready {
			select {
			case <-changed:
				continue
			case <-m.stopped:
				continue
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			case <-d.p.ctx.Done():
				return status.Error(codes.Unavailable, "the plugin ends")
			}
		}
		now, out := time.Now(), &nomadpb.StatsResponse{}
		for i := range all {
			out.Groups = append(out.Groups, all[i].stats(now, m.set.Slots))
		}
		if err := stream.Send(out); err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// stats are the numbers of one device, the same for all instances.
func (d *device) stats(now time.Time, slots int) *nomadpb.DeviceGroupStats {
	count := func(n int64, unit, desc string) *nomadpb.StatValue {
		return &nomadpb.StatValue{IntNumeratorVal: wrapperspb.Int64(n), Unit: unit, Desc: desc}
	}
	values := map[string]*nomadpb.StatValue{
		"lock_state": {StringVal: wrapperspb.String(d.Lock.State), Desc: "State of the config's lock"},
		"healthy":    {BoolVal: wrapperspb.Bool(d.Healthy), Desc: "Whether allocations may be placed"},
	}
	summary := &nomadpb.StatValue{StringVal: wrapperspb.String("never applied"), Desc: "Seconds since the last order was answered"}
	if st := d.Status; st != nil {
		values["token"] = count(int64(st.Order.Token), "", "Fencing token of the order accepted last")
		values["epoch"] = count(int64(st.Order.Epoch), "", "Epoch of the order accepted last")
		values["seq"] = count(int64(st.Order.Seq), "", "Number of that order among those of its hold")
		values["revision"] = &nomadpb.StatValue{StringVal: wrapperspb.String(st.Revision), Desc: "Revision of what stands"}
		if st.Time != nil {
			summary = count(since(*st.Time, now), "s", "Seconds since the last order was answered")
			values["since_apply"] = summary
		}
		if st.Drift != nil {
			values["drifted_for"] = count(since(st.Drift.Since, now), "s", "Seconds since the file was found changed by somebody else")
		}
		if st.Restored != nil {
			values["restored"] = count(int64(st.Restored.Times), "", "How often the file was put back")
		}
	}
	if !d.Lock.HeldSince.IsZero() {
		values["lock_token"] = count(int64(d.Lock.Token), "", "Fencing token of the lock's holder")
		values["lock_held_for"] = count(since(d.Lock.HeldSince, now), "s", "Seconds for which the lock has been held")
	}
	g := &nomadpb.DeviceGroupStats{Vendor: Vendor, Type: Type, Name: d.Config, InstanceStats: map[string]*nomadpb.DeviceStats{}}
	one := &nomadpb.DeviceStats{Summary: summary, Stats: &nomadpb.StatObject{Attributes: values}, Timestamp: timestamppb.New(now)}
	for n := 1; n <= slots; n++ {
		g.InstanceStats[instanceID(d.Config, n)] = one
	}
	return g
}
