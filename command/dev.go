package command

import (
	"context"
	"flag"
	"fmt"
	"net"

	"github.com/aim-control/aimlock/internal/devconsul"
)

func newDev(m *Meta) *command {
	listen, node := "127.0.0.1:8500", ""
	return &command{
		Meta:     m,
		Synopsis: "Serve a Consul for trying things out",
		Usage:    "[options]",
		Description: `Serves, in this process and in memory only, the part of Consul's HTTP API that
aimlock uses: KV, sessions with TTL, checks and lock-delay, transactions,
blocking queries, the agent, catalog and health. consul-template and the consul
command work against it as well.

It is for trying and testing: it keeps nothing, replicates nothing and asks
nobody for a token. In production use a Consul cluster.

The address is printed on stdout in the form of a shell's export.`,
		Examples: []example{
			{"In one terminal", "aimlock dev"},
			{"In another", "CONSUL_HTTP_ADDR=127.0.0.1:8500 aimlock lock list"},
		},
		Groups: groupDaemon,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&listen, "listen", listen, "`ADDRESS` to serve on. Port 0 takes a free one.")
			fs.StringVar(&node, "node", "", "`NAME` of the only Consul node. Default: this host's name.")
		},
		Run: func(ctx context.Context, _ *input) error {
			host, _, err := net.SplitHostPort(listen)
			if err != nil {
				return usagef("-listen %q is not host:port: %w", listen, err)
			}
			srv, err := devconsul.Start(devconsul.Config{Addr: listen, NodeName: node, Log: m.Log.Named("consul")})
			if err != nil {
				return fmt.Errorf("serve on %s (is a Consul there already? choose another with -listen): %w", listen, err)
			}
			if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
				m.Log.Warn("anybody who reaches this address may read and write everything", "address", srv.Addr())
			}
			m.Printf("export CONSUL_HTTP_ADDR=%s\n", srv.Addr())
			<-ctx.Done()
			return srv.Close()
		},
	}
}
