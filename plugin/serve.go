package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// Serve serves a plugin until aimlock ends it or is gone, and returns then. It is all
// that main does.
func Serve(p Plugin) {
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: os.Stderr, JSONFormat: true})
	restoreStdout()
	r, err := newRuntime(p, log)
	if err == nil && os.Getenv(CookieKey) != CookieValue {
		err = fmt.Errorf("%s %s is a plugin of aimlock (%s) and is not run by hand: see aimlock plugin -help", p.Name, p.Version, r.info.kinds())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // Serve is the whole of a plugin's main
	}
	cfg := r.serveConfig(Protocol)
	if pem := os.Getenv(clientCertEnv); pem != "" {
		if err := mutualTLS(cfg, pem); err != nil {
			fmt.Fprintln(os.Stderr, "mutual TLS:", err)
			os.Exit(1) //nolint:forbidigo // as above
		}
	}
	goplugin.Serve(cfg)
	_ = r.close()
}

// serveConfig serves the same services under each of the versions.
func (r *runtime) serveConfig(versions ...int) *goplugin.ServeConfig {
	sets := map[int]goplugin.PluginSet{}
	for _, v := range versions {
		sets[v] = goplugin.PluginSet{setName: &wire{r: r}}
	}
	return &goplugin.ServeConfig{
		HandshakeConfig:  handshake(),
		VersionedPlugins: sets,
		Logger:           r.log,
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			// What only this process is meant to read is not for its children.
			for _, name := range []string{CookieKey, clientCertEnv, "PLUGIN_PROTOCOL_VERSIONS"} {
				_ = os.Unsetenv(name)
			}
			o := &orphan{}
			srv := grpc.NewServer(append(append(opts, r.serverOptions()...), grpc.StatsHandler(o))...)
			o.stop = srv.Stop
			return srv
		},
	}
}

// setName is the one entry of go-plugin's set: the kinds are services of it.
const setName = "aimlock"

// wire is go-plugin's view of a plugin.
type wire struct {
	goplugin.NetRPCUnsupportedPlugin
	r *runtime // nil on the host's side
}

var _ goplugin.GRPCPlugin = (*wire)(nil)

// GRPCServer registers the services.
func (w *wire) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	w.r.register(s)
	return nil
}

// GRPCClient hands the connection out.
func (w *wire) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// ClientConfig is what go-plugin needs to know on the host's side; whoever starts
// the process adds Cmd, SecureConfig, limits and time-outs. AutoMTLS is on;
// [MutualTLS] is the same and faster.
func ClientConfig(log hclog.Logger) *goplugin.ClientConfig {
	return clientConfig(log, Protocol)
}

func clientConfig(log hclog.Logger, versions ...int) *goplugin.ClientConfig {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	sets := map[int]goplugin.PluginSet{}
	for _, v := range versions {
		sets[v] = goplugin.PluginSet{setName: &wire{}}
	}
	return &goplugin.ClientConfig{
		HandshakeConfig:  handshake(),
		VersionedPlugins: sets,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		Logger:           oneName{log},
		GRPCDialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageSize), grpc.MaxCallSendMsgSize(maxMessageSize))},
	}
}

// oneName is a log that keeps its name: go-plugin would add that of the program.
type oneName struct{ hclog.Logger }

// Named keeps the name.
func (l oneName) Named(string) hclog.Logger { return l }

// With keeps the name too.
func (l oneName) With(args ...any) hclog.Logger { return oneName{l.Logger.With(args...)} }

// Connect starts the plugin, if it does not run yet, and asks what it is. It returns
// when ctx ends, even if the plugin does not answer: then the caller kills it. go-plugin's
// Kill waits while the plugin starts, for ClientConfig's StartTimeout at most, which
// is a minute unless it is set.
func Connect(ctx context.Context, gp *goplugin.Client) (*Client, error) {
	type started struct {
		raw any
		err error
	}
	ch := make(chan started, 1)
	go func() {
		protocol, err := gp.Client()
		if err != nil {
			ch <- started{err: explain(err)}
			return
		}
		raw, err := protocol.Dispense(setName)
		ch <- started{raw, err}
	}()
	var s started
	select {
	case s = <-ch:
	case <-ctx.Done():
		return nil, fmt.Errorf("the plugin did not start: %w", context.Cause(ctx))
	}
	if s.err != nil {
		return nil, s.err
	}
	conn, ok := s.raw.(*grpc.ClientConn)
	if !ok {
		return nil, errors.New("the plugin does not speak gRPC")
	}
	c, err := NewClient(ctx, conn)
	if err != nil {
		return nil, err
	}
	c.info.Protocol = gp.NegotiatedVersion()
	return c, nil
}

// ErrProtocol: host and plugin have no version of the protocol in common.
var ErrProtocol = errors.New("no version of the protocol in common")

// explain says what go-plugin's errors mean.
func explain(err error) error {
	text := err.Error()
	if rest, ok := strings.CutPrefix(text, "incompatible API version with plugin. "); ok {
		var plugin int
		_, versions, _ := strings.Cut(rest, "Client versions: ")
		if _, err := fmt.Sscanf(rest, "Plugin version: %d", &plugin); err == nil {
			return fmt.Errorf("%w: the plugin speaks %d, this aimlock %s: use a plugin that was built for it", ErrProtocol, plugin, versions)
		}
	}
	if rest, ok := strings.CutPrefix(text, "Unrecognized remote plugin message: "); ok {
		line, _, _ := strings.Cut(rest, "\n")
		if line == "" {
			return errors.New("it ended, or closed its stdout, before it said where it listens: it is no plugin of aimlock, or it refused to start")
		}
		return fmt.Errorf("it printed %q where its handshake belongs: it is no plugin of aimlock, or prints to stdout before plugin.Serve", clip(line, 120))
	}
	return err
}

// stdout is taken away from the program until Serve, if aimlock started it: what is
// printed to it before would be taken for the handshake. It is set before any
// package that imports this one runs.
var stdout = takeStdout() //nolint:gochecknoglobals // there is one stdout

func takeStdout() *os.File {
	if os.Getenv(CookieKey) != CookieValue {
		return nil
	}
	out := os.Stdout
	os.Stdout = os.Stderr
	return out
}

func restoreStdout() {
	if stdout != nil {
		os.Stdout = stdout
	}
}

var _ io.Closer = (*Client)(nil)
