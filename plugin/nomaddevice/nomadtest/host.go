// Package nomadtest is Nomad's side of the device plugin protocol, for tests: it
// starts a plugin as Nomad's client does, with the same handshake, gRPC as the
// only protocol and no TLS, and calls it.
package nomadtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
)

// handshake is Nomad's.
func handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{
		ProtocolVersion:  2,
		MagicCookieKey:   "NOMAD_PLUGIN_MAGIC_COOKIE",
		MagicCookieValue: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
	}
}

// Host is one plugin that runs.
type Host struct {
	nomadpb.BasePluginClient
	nomadpb.DevicePluginClient
	client *goplugin.Client
	log    *lines
}

// service makes a client of one service.
type service struct {
	goplugin.NetRPCUnsupportedPlugin
	make func(*grpc.ClientConn) any
}

func (s service) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this is the host's side of the protocol only")
}

func (s service) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return s.make(c), nil
}

// Start starts a plugin. Kill must be called.
func Start(cmd *exec.Cmd) (*Host, error) {
	h := &Host{log: &lines{}}
	h.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: handshake(),
		Plugins: goplugin.PluginSet{
			"base":   service{make: func(c *grpc.ClientConn) any { return nomadpb.NewBasePluginClient(c) }},
			"device": service{make: func(c *grpc.ClientConn) any { return nomadpb.NewDevicePluginClient(c) }},
		},
		Cmd:              cmd,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           hclog.New(&hclog.LoggerOptions{Output: h.log, Level: hclog.Debug}),
	})
	rpc, err := h.client.Client()
	if err == nil {
		var base, device any
		if base, err = rpc.Dispense("base"); err == nil {
			device, err = rpc.Dispense("device")
		}
		if err == nil {
			h.BasePluginClient, h.DevicePluginClient = base.(nomadpb.BasePluginClient), device.(nomadpb.DevicePluginClient)
			return h, nil
		}
	}
	h.client.Kill()
	return nil, fmt.Errorf("%w\n%s", err, h.log.String())
}

// Kill ends the plugin as Nomad does: it is asked to end, and killed if it does
// not within two seconds.
func (h *Host) Kill() { h.client.Kill() }

// Exited reports whether the plugin's process has ended.
func (h *Host) Exited() bool { return h.client.Exited() }

// Log is what the plugin logged, as Nomad would show it.
func (h *Host) Log() string { return h.log.String() }

// SetConfig hands over settings as Nomad encodes them.
func (h *Host) SetConfig(ctx context.Context, settings map[string]cty.Value) error {
	v := cty.ObjectVal(settings)
	b, err := msgpack.Marshal(v, v.Type())
	if err != nil {
		return err
	}
	_, err = h.BasePluginClient.SetConfig(ctx, &nomadpb.SetConfigRequest{MsgpackConfig: b, PluginApiVersion: "v0.1.0"})
	return err
}

// Devices is a stream of devices: the last that was told, and how many were.
type Devices struct {
	mu   sync.Mutex
	last []*nomadpb.DeviceGroup
	n    int
	err  error
	news chan struct{}
}

// Watch follows the devices until ctx ends.
func (h *Host) Watch(ctx context.Context) (*Devices, error) {
	stream, err := h.Fingerprint(ctx, &nomadpb.FingerprintRequest{})
	if err != nil {
		return nil, err
	}
	d := &Devices{news: make(chan struct{})}
	go func() {
		for {
			res, err := stream.Recv()
			d.mu.Lock()
			if err == nil {
				d.last, d.n = res.GetDeviceGroup(), d.n+1
			} else {
				d.err = err
			}
			close(d.news)
			d.news = make(chan struct{})
			d.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return d, nil
}

// Until waits until the group of a config is as ok wants it, nil where there is
// none, and returns it.
func (d *Devices) Until(limit time.Duration, config string, ok func(*nomadpb.DeviceGroup) bool) (*nomadpb.DeviceGroup, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		d.mu.Lock()
		var g *nomadpb.DeviceGroup
		for _, one := range d.last {
			if one.GetDeviceName() == config {
				g = one
			}
		}
		n, err, news := d.n, d.err, d.news
		d.mu.Unlock()
		if n > 0 && ok(g) {
			return g, nil
		}
		if err != nil {
			return g, fmt.Errorf("the stream has ended: %w", err)
		}
		select {
		case <-news:
		case <-timeout.C:
			return g, fmt.Errorf("not within %s; last, after %d: %v", limit, n, g)
		}
	}
}

// Count is how often devices were told of.
func (d *Devices) Count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

// Stat asks for statistics once.
func (h *Host) Stat(ctx context.Context) (*nomadpb.StatsResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.Stats(ctx, &nomadpb.StatsRequest{CollectionInterval: durationpb.New(time.Second)})
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

// lines keeps what is logged.
type lines struct {
	mu sync.Mutex
	b  []byte
}

var _ io.Writer = (*lines)(nil)

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, b...)
	return len(b), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
