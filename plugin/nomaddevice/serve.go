package nomaddevice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
)

// Nomad's handshake with its plugins. The cookie is no secret: it tells a person
// who starts a plugin by hand that this is not how it is used.
const (
	CookieKey       = "NOMAD_PLUGIN_MAGIC_COOKIE"
	cookieValue     = "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255"
	protocolVersion = 2
)

// orphanEvery is how often it is looked whether the process that started this one
// is still there.
const orphanEvery = time.Second

// ErrByHand: nobody who speaks the protocol has started this process.
var ErrByHand = errors.New("this command is started by a Nomad client, which talks to it")

// Access is how Consul is reached, and locks are judged.
type Access struct {
	Consul *consulkv.Client
	Locks  *locksmith.Client
	Prefix keys.Prefix
}

// Config says what Serve serves.
type Config struct {
	// Log goes to the standard error of the process in JSON: so Nomad takes it
	// into its own log.
	Log     hclog.Logger
	Version string
	// Connect makes the clients that settings ask for; it must not wait for
	// Consul. Its error is about the settings.
	Connect func(Settings) (*Access, error)
}

// plugin is one process.
type plugin struct {
	cfg Config
	// ctx is that of Serve.
	ctx context.Context //nolint:containedctx // calls of the protocol start what outlives them

	mu   sync.Mutex
	set  Settings
	acc  *Access
	mon  *monitor
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// Serve speaks Nomad's device plugin protocol on what it was started with, until
// Nomad ends it or dies, or ctx ends. SIGINT does not end it: on a terminal it
// goes to Nomad as well, which ends its plugins when it is done with them.
func Serve(ctx context.Context, cfg Config) error {
	if os.Getenv(CookieKey) != cookieValue {
		return ErrByHand
	}
	ctx, cancel := context.WithCancel(uninterrupted(ctx))
	p := &plugin{cfg: cfg, ctx: ctx, set: Defaults()}
	defer p.wg.Wait()
	defer cancel()
	var server *grpc.Server
	serving := make(chan struct{})
	p.wg.Go(func() {
		parent := os.Getppid()
		t := time.NewTicker(orphanEvery)
		defer t.Stop()
		for ctx.Err() == nil && os.Getppid() == parent {
			select {
			case <-t.C:
			case <-ctx.Done():
			}
		}
		cancel()
		select {
		case <-serving:
			server.Stop()
		default:
			// The handshake came to nothing: Serve below has returned.
		}
	})
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: goplugin.HandshakeConfig{ProtocolVersion: protocolVersion, MagicCookieKey: CookieKey, MagicCookieValue: cookieValue},
		Plugins:         goplugin.PluginSet{"base": &service{p: p}, "device": &service{p: p, devices: true}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			server = goplugin.DefaultGRPCServer(opts)
			close(serving)
			return server
		},
		Logger: cfg.Log,
	})
	return nil
}

// uninterrupted is ctx but for its end by SIGINT.
func uninterrupted(ctx context.Context) context.Context {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		cause := context.Cause(ctx)
		if sig, ok := errors.AsType[signals.Error](cause); ok && sig.Signal == syscall.SIGINT {
			return
		}
		cancel(cause)
	})
	return out
}

// service is what go-plugin calls a plugin: one gRPC service.
type service struct {
	goplugin.NetRPCUnsupportedPlugin
	p       *plugin
	devices bool
}

var _ goplugin.GRPCPlugin = (*service)(nil)

func (s *service) GRPCServer(_ *goplugin.GRPCBroker, srv *grpc.Server) error {
	if s.devices {
		nomadpb.RegisterDevicePluginServer(srv, &devices{p: s.p})
		return nil
	}
	nomadpb.RegisterBasePluginServer(srv, &base{p: s.p})
	return nil
}

func (s *service) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the plugin's side of the protocol only")
}

// configure takes settings over from the next stream of devices on; a monitor
// that runs by others is stopped.
func (p *plugin) configure(s Settings) error {
	if node, err := nodeOf(s.StateDir); err == nil && s.Node != "" && node != s.Node {
		return fmt.Errorf("node is %q, and state_dir %s belongs to node %q: leave node out, or name that node's folder", s.Node, s.StateDir, node)
	}
	acc, err := p.cfg.Connect(s)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set, p.acc = s, acc
	if p.mon != nil {
		p.stop()
		close(p.mon.stopped)
		p.mon = nil
	}
	return nil
}

// settings are those in force.
func (p *plugin) settings() Settings {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.set
}

// monitor is that of the settings in force; it runs from when it is first asked
// for.
func (p *plugin) monitor() (*monitor, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mon != nil {
		return p.mon, nil
	}
	if p.acc == nil {
		acc, err := p.cfg.Connect(p.set)
		if err != nil {
			return nil, err
		}
		p.acc = acc
	}
	ctx, cancel := context.WithCancel(p.ctx)
	m := newMonitor(p.set, *p.acc, p.cfg.Log)
	p.mon, p.stop = m, cancel
	p.wg.Go(func() { m.run(ctx) })
	return m, nil
}
