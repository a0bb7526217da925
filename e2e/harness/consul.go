package harness

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	startLimit = 60 * time.Second
	stopLimit  = 20 * time.Second
)

// Consul is a Consul agent that runs as a process of its own.
type Consul struct {
	*Process
	// Name is its node name.
	Name string
	// Addr is the host:port of its HTTP API.
	Addr string
	// HTTPS is the host:port of the same by TLS, "" without WithHTTPS.
	HTTPS string
	// Token is the management token, "" without ACLs.
	Token string

	t      testing.TB
	ip     string
	serf   int
	server bool
}

// Option changes how an agent is started.
type Option func(*options)

type options struct {
	name  string
	token string
	hcl   []string
	args  []string
	// dev keeps all state in memory: fast, and gone at a restart.
	dev    bool
	server bool
	ip     string
	dir    string
	join   []string
	https  bool
	enter  func() error
}

// WithName sets the node name.
func WithName(name string) Option { return func(o *options) { o.name = name } }

// WithHCL adds to the agent's configuration.
func WithHCL(hcl string) Option { return func(o *options) { o.hcl = append(o.hcl, hcl) } }

// WithACL turns ACLs on: nothing is allowed without a token, and all is with this
// one, which Client and Env use.
func WithACL(token string) Option {
	return func(o *options) {
		o.token = token
		o.hcl = append(o.hcl, fmt.Sprintf(`acl {
			enabled = true
			default_policy = "deny"
			tokens {
				initial_management = %q
				agent = %q
			}
		}`, token, token))
	}
}

// On runs the agent on another host, which enter moves a thread to, under the
// host's own address. There it has the standard ports, since nobody else has.
func On(ip string, enter func() error) Option {
	return func(o *options) { o.ip, o.enter = ip, enter }
}

// OnAddress runs the agent on another address of this host.
func OnAddress(ip string) Option { return func(o *options) { o.ip = ip } }

// WithJoin has the agent join these addresses too, each IP:PORT of Serf, by
// default 8301.
func WithJoin(addrs ...string) Option {
	return func(o *options) { o.join = append(o.join, addrs...) }
}

// InDir keeps the agent's state and its logs in a folder that stays when the test
// ends.
func InDir(dir string) Option { return func(o *options) { o.dir, o.dev = dir, false } }

// WithData keeps the server's state on disk, so that it survives Restart.
func WithData() Option { return func(o *options) { o.dev = false } }

// StartConsul starts one server and waits until it can be used: it has a leader,
// and its node is in the catalog with a passing serfHealth.
func StartConsul(t testing.TB, opts ...Option) *Consul {
	t.Helper()
	o := options{name: "server", dev: true, server: true, ip: "127.0.0.1", args: []string{"-bootstrap-expect=1"}}
	for _, opt := range opts {
		opt(&o)
	}
	if o.dev {
		o.args = nil
	}
	c := launch(t, o)
	c.WaitReady()
	return c
}

// StartClient starts a client agent that joins the server, and waits until it
// can be used.
func StartClient(t testing.TB, server *Consul, opts ...Option) *Consul {
	t.Helper()
	o := options{name: "client", ip: "127.0.0.1", join: []string{server.serfAddr()}}
	for _, opt := range opts {
		opt(&o)
	}
	c := launch(t, o)
	c.WaitReady()
	return c
}

// launch starts an agent on free ports, anew if somebody else took one of them
// in the meantime.
func launch(t testing.TB, o options) *Consul {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	for attempt := 1; ; attempt++ {
		c := launchOnce(t, o)
		if c.listening() {
			return c
		}
		if attempt == 5 || !strings.Contains(c.Stdout()+c.Stderr(), "address already in use") {
			t.Fatalf("consul %s does not start:\n%s\n%s", o.name, tail(c.Stdout(), 40), tail(c.Stderr(), 20))
		}
	}
}

func launchOnce(t testing.TB, o options) *Consul {
	t.Helper()
	port := []int{8500, 8301, 8300, 8501}
	if o.enter == nil {
		port = freePorts(t, o.ip, 4)
	}
	args := []string{
		"agent", "-node=" + o.name, "-bind=" + o.ip, "-client=" + o.ip, "-log-level=info",
		"-http-port=" + strconv.Itoa(port[0]), "-serf-lan-port=" + strconv.Itoa(port[1]), "-server-port=" + strconv.Itoa(port[2]),
		"-serf-wan-port=-1", "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1",
		// Connect costs a CA and a dozen writes at each start.
		"-hcl", "connect { enabled = false }",
		"-hcl", "performance { raft_multiplier = 1 }",
		"-hcl", "disable_update_check = true",
	}
	https := ""
	if o.https {
		https = net.JoinHostPort(o.ip, strconv.Itoa(port[3]))
		args = append(args, "-https-port="+strconv.Itoa(port[3]))
	}
	if o.dev {
		args = append(args, "-dev")
	} else {
		args = append(args, "-data-dir="+filepath.Join(o.dir, "data"))
		if o.server {
			args = append(args, "-server")
		}
	}
	for _, addr := range o.join {
		args = append(args, "-retry-join="+addr, "-retry-interval=200ms")
	}
	args = append(args, o.args...)
	for _, hcl := range o.hcl {
		args = append(args, "-hcl", hcl)
	}
	logs := ""
	if !o.dev {
		logs = filepath.Join(o.dir, "logs")
	}
	return &Consul{
		Process: Start(t, Spec{Path: ConsulBin.Path(t), Args: args, Name: "consul " + o.name, Enter: o.enter, Logs: logs}),
		Name:    o.name, Addr: net.JoinHostPort(o.ip, strconv.Itoa(port[0])),
		HTTPS: https, Token: o.token, t: t, ip: o.ip, serf: port[1], server: o.server,
	}
}

var ports = struct {
	sync.Mutex
	taken map[string]bool
}{taken: map[string]bool{}}

// freePorts finds ports on which nobody listens, TCP and UDP, and which this
// process has not found before.
func freePorts(t testing.TB, ip string, n int) []int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	var out []int
	for tries := 0; len(out) < n; tries++ {
		if tries > 1000 {
			t.Fatalf("no free ports on %s", ip)
		}
		l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		u, err := net.ListenPacket("udp", addr)
		if err != nil || ports.taken[addr] {
			continue
		}
		u.Close()
		ports.taken[addr] = true
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out
}

// FreePorts finds ports of this host for programs that are no Consul.
func FreePorts(t testing.TB, n int) []int {
	t.Helper()
	return freePorts(t, "127.0.0.1", n)
}

func (c *Consul) serfAddr() string { return net.JoinHostPort(c.ip, strconv.Itoa(c.serf)) }

// listening waits until the HTTP API answers; false if the process ends first.
func (c *Consul) listening() bool {
	c.t.Helper()
	ended := false
	Eventually(c.t, startLimit, "consul "+c.Name+" listens", func() bool {
		select {
		case <-c.Done():
			ended = true
			return true
		default:
		}
		conn, err := net.DialTimeout("tcp", c.Addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return !ended
}

// WaitReady waits until the agent knows a leader, its node is in the catalog with
// a passing serfHealth, which sessions are bound to, and the agent has synced what
// only it knows of the node. (One that leaves before that can register its node
// again by that late sync; Consul notices a minute later.)
func (c *Consul) WaitReady() {
	c.t.Helper()
	client := c.Client()
	last := "no answer"
	defer func() {
		if c.t.Failed() {
			c.t.Logf("consul %s, last seen: %s\n%s", c.Name, last, tail(c.Stdout(), 40))
		}
	}()
	Eventually(c.t, startLimit, "consul "+c.Name+" is ready", func() bool {
		q := &api.QueryOptions{RequireConsistent: true}
		node, _, err := client.Catalog().Node(c.Name, q)
		if err != nil || node == nil || len(node.Node.TaggedAddresses) == 0 {
			last = fmt.Sprintf("node %v, error %v", node, err)
			return false
		}
		checks, _, err := client.Health().Node(c.Name, q)
		last = fmt.Sprintf("%d checks, error %v", len(checks), err)
		for _, check := range checks {
			if check.CheckID == "serfHealth" && check.Status == api.HealthPassing {
				return true
			}
		}
		return false
	})
}

// Client makes a client of the agent's HTTP API.
func (c *Consul) Client() *api.Client { return c.ClientWith(c.Token) }

// ClientWith makes a client that has another token, or none.
func (c *Consul) ClientWith(token string) *api.Client {
	c.t.Helper()
	client, err := api.NewClient(&api.Config{Address: c.Addr, Token: token})
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// Env is what a command needs to find the agent.
func (c *Consul) Env() []string {
	env := []string{"CONSUL_HTTP_ADDR=" + c.Addr}
	if c.Token != "" {
		env = append(env, "CONSUL_HTTP_TOKEN="+c.Token)
	}
	return env
}

// Leave stops the agent gracefully: its node leaves the cluster.
func (c *Consul) Leave() {
	c.t.Helper()
	if err := c.Client().Agent().Leave(); err != nil {
		c.t.Fatalf("consul %s does not leave: %v", c.Name, err)
	}
	c.Wait(stopLimit)
}

// Restart starts an agent again that was killed, on the same ports and data, and
// waits until it listens. One that still runs is killed first.
func (c *Consul) Restart() {
	c.t.Helper()
	c.Kill()
	again := Start(c.t, c.spec)
	c.Process = again
	if !c.listening() {
		c.t.Fatalf("consul %s does not start again:\n%s", c.Name, tail(c.Stdout(), 40))
	}
}

// Relaunch is Restart without any wait: the agent starts again on the same ports
// and data.
func (c *Consul) Relaunch() {
	c.t.Helper()
	c.Kill()
	c.Release()
	c.Process = Start(c.t, c.spec)
}

// Stop ends the agent by SIGTERM, as a service manager does.
func (c *Consul) Stop() {
	c.t.Helper()
	c.Signal(syscall.SIGTERM)
	c.Wait(stopLimit)
}

// DataDir is where the agent keeps its state, "" in memory.
func (c *Consul) DataDir() string {
	for _, arg := range c.spec.Args {
		if dir, ok := strings.CutPrefix(arg, "-data-dir="); ok {
			if _, err := os.Stat(dir); err == nil {
				return dir
			}
		}
	}
	return ""
}
