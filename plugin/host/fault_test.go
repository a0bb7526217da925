package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	goplugin "github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/aim-control/aimlock/plugin"
	pb "github.com/aim-control/aimlock/plugin/proto"
)

// The test binary is the supervisor of the plugins that it starts, and the plugins:
// "fault-plugin NAME ARG" is one with a fault.
func TestMain(m *testing.M) {
	// The race detector waits a second at the exit of each program.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	if len(os.Args) > 3 && os.Args[1] == "fault-plugin" {
		faultPlugin(os.Args[2], os.Args[3])
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "plugin-host" {
		if err := hostUntilKilled(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// The faults. Those of the start show before the handshake, those of a call when one
// of a kind comes, and never in the questions of what the plugin is.
const (
	noFault = "none"
	// bySDK is no fault either: a plugin as its author writes it.
	bySDK        = "sdk"
	crash        = "crash"
	hang         = "hang"
	garbage      = "garbage"
	wrongMagic   = "magic"
	wrongVersion = "version"
	flood        = "flood"
	tooLarge     = "large"
	forks        = "forks"
	exits0       = "exits"
	prints       = "prints"
	// keeps starts a process that leaves the group and the session, and goes on.
	keeps = "keeps"
	// nonsense answers with what no plugin may say.
	nonsense = "nonsense"
	// neverStarts hangs before the handshake.
	neverStarts = "mute"
)

// waitForEver waits, whatever signals come.
func waitForEver() {
	for {
		_, _ = unix.Select(0, nil, nil, nil, nil)
	}
}

// faultPlugin is a plugin of all kinds, made without the SDK's care. arg is a file
// in which it leaves the pid of what it forks.
func faultPlugin(fault, arg string) {
	// The SDK takes stdout away until its Serve.
	os.Stdout = os.NewFile(1, "stdout")
	switch fault {
	case garbage:
		fmt.Println("hello, \x1b[31mworld")
		waitForEver()
	case wrongVersion:
		fmt.Println("1|99|unix|/nowhere|grpc|")
		waitForEver()
	case neverStarts:
		waitForEver()
	case bySDK:
		plugin.Serve(plugin.Plugin{Name: "good", Gate: func() plugin.Gate { return goodGate{} }})
		return
	case wrongMagic:
		_ = os.Setenv(plugin.CookieKey, "of another program")
		plugin.Serve(plugin.Plugin{Name: "fault", Gate: func() plugin.Gate { return nil }})
	}
	f := faulty{fault: fault, arg: arg}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{MagicCookieKey: plugin.CookieKey, MagicCookieValue: plugin.CookieValue},
		VersionedPlugins: map[int]goplugin.PluginSet{plugin.Protocol: {"aimlock": f}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.UnaryInterceptor(f.unary), grpc.StreamInterceptor(f.stream))...)
		},
	})
}

type goodGate struct{}

func (goodGate) Ask(context.Context, *plugin.Question) (*plugin.Answer, error) {
	return &plugin.Answer{Verdict: plugin.Pass, Why: "all is well"}, nil
}

type faulty struct {
	goplugin.NetRPCUnsupportedPlugin
	fault, arg string
}

func (f faulty) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

func (f faulty) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	pb.RegisterBaseServer(s, faultyBase{fault: f})
	pb.RegisterEvidenceServer(s, faultyEvidence{fault: f})
	pb.RegisterBreakerServer(s, faultyBreaker{fault: f})
	pb.RegisterGateServer(s, faultyGate{fault: f})
	pb.RegisterTargetServer(s, faultyTarget{fault: f})
	pb.RegisterFleetServer(s, faultyFleet{fault: f})
	return nil
}

func (f faulty) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	f.strike(info.FullMethod)
	return handler(ctx, req)
}

func (f faulty) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	f.strike(info.FullMethod)
	return handler(srv, ss)
}

// strike is the fault, before a call of a kind is answered.
func (f faulty) strike(method string) {
	if strings.Contains(method, ".Base/") || !strings.Contains(method, "/aimlock.") {
		return
	}
	switch f.fault {
	case crash:
		panic("the plugin crashes")
	case hang:
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {} // this thread may be stopped a little later than it has answered
	case exits0:
		os.Exit(0)
	case flood:
		raw := os.NewFile(2, "stderr")
		for range 20_000 {
			_, _ = raw.WriteString("{\"@level\":\"error\",\"@message\":\"a \\u001b[31mflood\"}\n")
		}
	case prints:
		_, _ = os.NewFile(1, "stdout").Write(bytes.Repeat([]byte("no newline "), 100_000))
	case forks:
		f.fork()
		os.Exit(0)
	case keeps:
		f.fork()
	}
}

// fork leaves a process behind that has left the group and the session.
func (f faulty) fork() {
	cmd := exec.Command("/bin/sh", "-c", "echo $$; exec sleep 1000 >&2")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		panic(err)
	}
	pid, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = os.WriteFile(f.arg, pid, 0o600)
	}
	if err != nil {
		panic(err)
	}
}

// text is s, or what is too large for any message.
func (f faulty) text(s string) string {
	switch f.fault {
	case tooLarge:
		return strings.Repeat("x", 17<<20)
	case nonsense:
		return "\x1b[31mnonsense\n"
	}
	return s
}

type faultyBase struct {
	pb.UnimplementedBaseServer
	fault faulty
}

func (b faultyBase) Info(context.Context, *pb.InfoRequest) (*pb.InfoResponse, error) {
	out := &pb.InfoResponse{Name: "fault", Version: "0.0.1", Protocol: plugin.Protocol}
	for _, k := range plugin.Kinds() {
		ki := &pb.KindInfo{Kind: string(k), Config: &pb.Schema{Attributes: []*pb.Attribute{{Name: "token", Type: "string", Secret: true}, {Name: "wait", Type: "duration"}}}}
		if k == plugin.KindEvidence {
			ki.Facts = []*pb.FactDef{{Name: "on_call", Type: "string"}}
		}
		out.Kinds = append(out.Kinds, ki)
	}
	return out, nil
}

func (b faultyBase) Validate(context.Context, *pb.ValidateRequest) (*pb.ValidateResponse, error) {
	return &pb.ValidateResponse{}, nil
}

func (b faultyBase) Configure(_ context.Context, r *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	fmt.Fprintf(os.Stderr, "configured as %s with %s\n", r.GetKind(), r.GetConfig())
	return &pb.ConfigureResponse{Instance: 1}, nil
}

func (b faultyBase) Release(context.Context, *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	return &pb.ReleaseResponse{}, nil
}

type faultyEvidence struct {
	pb.UnimplementedEvidenceServer
	fault faulty
}

func (e faultyEvidence) Observe(context.Context, *pb.ObserveRequest) (*pb.ObserveResponse, error) {
	return &pb.ObserveResponse{Facts: []*pb.Fact{{Name: "on_call", Value: []byte(strconv.Quote(e.fault.text("ann")))}}}, nil
}

type faultyBreaker struct {
	pb.UnimplementedBreakerServer
	fault faulty
}

func (b faultyBreaker) Break(context.Context, *pb.BreakRequest) (*pb.BreakResponse, error) {
	return &pb.BreakResponse{Outcome: b.fault.text("done"), Detail: b.fault.text("stopped")}, nil
}

type faultyGate struct {
	pb.UnimplementedGateServer
	fault faulty
}

func (g faultyGate) Ask(context.Context, *pb.AskRequest) (*pb.AskResponse, error) {
	return &pb.AskResponse{Verdict: g.fault.text("pass"), Why: g.fault.text("all is well")}, nil
}

type faultyTarget struct {
	pb.UnimplementedTargetServer
	fault faulty
}

func (t faultyTarget) Apply(stream grpc.ClientStreamingServer[pb.ApplyRequest, pb.ApplyResponse]) error {
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	return stream.SendAndClose(&pb.ApplyResponse{Outcome: t.fault.text("applied"), Detail: t.fault.text("written")})
}

func (t faultyTarget) Read(_ *pb.ReadRequest, stream grpc.ServerStreamingServer[pb.ReadResponse]) error {
	return stream.Send(&pb.ReadResponse{Part: &pb.ReadResponse_State{State: &pb.ReadState{}}})
}

type faultyFleet struct {
	pb.UnimplementedFleetServer
	fault faulty
}

func (f faultyFleet) List(_ *pb.ListRequest, stream grpc.ServerStreamingServer[pb.ListResponse]) error {
	return stream.Send(&pb.ListResponse{Nodes: []*pb.Node{{Name: f.fault.text("n1")}}, Last: true})
}
