package nomaddevice

import (
	"context"
	"fmt"
	"regexp"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
)

// Name is the plugin's, and that of the executable for which Nomad looks up the
// block of settings.
const Name = "aimlock-nomad-device-plugin"

// apiVersion is the one version of the device service that there is.
const apiVersion = "v0.1.0"

var semantic = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+`)

// base is the base service of one process.
type base struct {
	nomadpb.UnimplementedBasePluginServer
	p *plugin
}

var _ nomadpb.BasePluginServer = (*base)(nil)

func (b *base) PluginInfo(context.Context, *nomadpb.PluginInfoRequest) (*nomadpb.PluginInfoResponse, error) {
	v := b.p.cfg.Version
	if !semantic.MatchString(v) {
		// Nomad refuses what it cannot compare.
		v = "0.0.0-dev"
	}
	return &nomadpb.PluginInfoResponse{
		Type: nomadpb.PluginType_DEVICE, PluginApiVersions: []string{apiVersion}, PluginVersion: v, Name: Name,
	}, nil
}

func (b *base) ConfigSchema(context.Context, *nomadpb.ConfigSchemaRequest) (*nomadpb.ConfigSchemaResponse, error) {
	return &nomadpb.ConfigSchemaResponse{Spec: schema()}, nil
}

// SetConfig refuses what can never work, and only that: a Nomad agent whose
// plugin refuses its settings does not start, so that a Consul which is away or
// a state folder which is not there yet must not be a reason.
func (b *base) SetConfig(_ context.Context, req *nomadpb.SetConfigRequest) (*nomadpb.SetConfigResponse, error) {
	if v := req.GetPluginApiVersion(); v != "" && v != apiVersion {
		return nil, status.Errorf(codes.InvalidArgument, "%s: Nomad asks for version %q of its device plugins, and this is %s: use another version of aimlock", Name, v, apiVersion)
	}
	s, err := decode(req.GetMsgpackConfig())
	if err == nil {
		err = b.p.configure(s)
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("the settings of plugin %q: %v", Name, err))
	}
	return &nomadpb.SetConfigResponse{}, nil
}
