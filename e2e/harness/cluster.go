package harness

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// Cluster is servers on 127.0.0.1, 127.0.0.2 and so on, with their state on disk.
type Cluster struct {
	Servers []*Consul
	t       testing.TB
}

// StartCluster starts three servers and waits until all can be used.
func StartCluster(t testing.TB, opts ...Option) *Cluster {
	t.Helper()
	return StartClusterOf(t, func(int) []Option { return opts })
}

// StartClusterOf is StartCluster with options of each server's own, which of
// counts from 0.
func StartClusterOf(t testing.TB, of func(i int) []Option) *Cluster {
	t.Helper()
	const n = 3
	c := &Cluster{t: t}
	var join []string
	for i := range n {
		o := options{
			name: fmt.Sprintf("server-%d", i+1), server: true, ip: fmt.Sprintf("127.0.0.%d", i+1), join: join,
			args: []string{fmt.Sprintf("-bootstrap-expect=%d", n)},
			// A killed server shall come back under its name at once.
			hcl: []string{"leave_on_terminate = false", `autopilot { cleanup_dead_servers = false }`},
		}
		for _, opt := range of(i) {
			opt(&o)
		}
		s := launch(t, o)
		c.Servers = append(c.Servers, s)
		join = []string{c.Servers[0].serfAddr()}
	}
	for _, s := range c.Servers {
		s.WaitReady()
	}
	return c
}

// Leader finds the leader that the majority of the servers that answer agree
// on, and waits for it.
func (c *Cluster) Leader() *Consul {
	c.t.Helper()
	var leader *Consul
	Eventually(c.t, startLimit, "the cluster has a leader", func() bool {
		votes := map[string]int{}
		for _, s := range c.Servers {
			select {
			case <-s.Done():
				continue
			default:
			}
			client, err := api.NewClient(&api.Config{Address: s.Addr, HttpClient: shortClient()})
			if err != nil {
				c.t.Fatal(err)
			}
			self, err := client.Agent().Self()
			if err != nil {
				continue
			}
			if stats, ok := self["Stats"]["consul"].(map[string]any); ok && stats["leader"] == "true" {
				votes[s.Name] += len(c.Servers) // it says so itself
				leader = s
			}
			if addr, err := client.Status().Leader(); err == nil && addr != "" {
				votes[addr]++
			}
		}
		if leader == nil {
			return false
		}
		for who, n := range votes {
			if who != leader.Name && n > len(c.Servers)/2 {
				return true
			}
		}
		leader = nil
		return false
	})
	return leader
}

// Followers are the servers beside the leader.
func (c *Cluster) Followers() []*Consul {
	c.t.Helper()
	leader := c.Leader()
	var out []*Consul
	for _, s := range c.Servers {
		if s != leader {
			out = append(out, s)
		}
	}
	return out
}

// NewLeader waits until another server than old leads.
func (c *Cluster) NewLeader(old *Consul, limit time.Duration) *Consul {
	c.t.Helper()
	var now *Consul
	Eventually(c.t, limit, "another server than "+old.Name+" leads", func() bool {
		now = c.Leader()
		return now != old
	})
	return now
}
