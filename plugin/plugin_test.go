package plugin

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// serveEnv makes the test binary a plugin: the value says which.
const serveEnv = "AIMLOCK_TEST_PLUGIN"

func TestMain(m *testing.M) {
	switch os.Getenv(serveEnv) {
	case "":
		// The race detector waits a second at the exit of each program.
		_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
		os.Exit(m.Run())
	case "all":
		os.Stdout.WriteString("printed before the handshake\n")
		Serve(everything())
	case "noisy":
		restoreStdout()
		os.Stdout.WriteString("hello\n")
		Serve(everything())
	case "mute":
	case "hang":
		<-time.After(time.Hour) // its host ends it
	}
}

// external starts the test binary as a plugin.
func external(t testing.TB, which string, versions ...int) *goplugin.Client {
	t.Helper()
	if len(versions) == 0 {
		versions = []int{Protocol}
	}
	cfg := clientConfig(hclog.NewNullLogger(), versions...)
	cfg.Cmd = exec.Command(os.Args[0])
	cfg.Cmd.Env = append(os.Environ(), serveEnv+"="+which)
	cfg.StartTimeout = time.Minute
	gp := goplugin.NewClient(cfg)
	t.Cleanup(gp.Kill)
	return gp
}

// overSocket serves p in this process and calls it over a unix socket.
func overSocket(t testing.TB, p Plugin) *Client {
	t.Helper()
	return clientOf(t, serveSocket(t, p))
}

func serveSocket(t testing.TB, p Plugin) *grpc.ClientConn {
	t.Helper()
	r, err := newRuntime(p, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(r.serverOptions()...)
	r.register(s)
	return dial(t, s)
}

func dial(t testing.TB, s *grpc.Server) *grpc.ClientConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func clientOf(t testing.TB, conn *grpc.ClientConn) *Client {
	t.Helper()
	c, err := NewClient(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExternal(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Connect(ctx, external(t, "all"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Info().Name != "everything" || len(c.Info().Kinds) != len(Kinds()) || c.Info().Protocol != 1 {
		t.Errorf("it says that it is %+v", c.Info())
	}
	g, err := c.Gate(ctx, Config(`{"answer": "pass"}`))
	if err != nil {
		t.Fatal(err)
	}
	a, err := g.Ask(ctx, &Question{Gate: "g"})
	if err != nil || a.Verdict != Pass {
		t.Errorf("answer %+v, %v", a, err)
	}
	if err := Release(g); err != nil {
		t.Error(err)
	}
	if _, err := g.Ask(ctx, &Question{}); !errors.Is(err, ErrNoInstance) {
		t.Errorf("after its release: %v", err)
	}
}
