package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/text"
)

// tested is the Consul that the protocol is tested against.
const tested = "1.14.11"

// clockWarning is how far this machine's clock may be from Consul's agent's before
// it is told. No decision rests on it, but every time in a record does.
const clockWarning = 5 * time.Second

const reachHint = "set CONSUL_HTTP_ADDR (or -http-addr) to an agent that runs, as 127.0.0.1:8500, and CONSUL_CACERT where it has TLS"

func (e *examination) consul(ctx context.Context) bool {
	q := (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	begun := e.Now()
	// A key that everybody may ask for: the answer has a leader's word.
	_, meta, err := e.Consul.API().KV().Get(e.Keys.Epoch(), q)
	took := e.Now().Sub(begun)
	switch kind := consulkv.KindOf(e.Consul.Classify("read "+e.Keys.Epoch(), err)); {
	case err == nil:
		e.ok("consul", "%s answers consistent reads, in %s", e.Consul.Addr(), took.Round(time.Millisecond/10))
	case kind == consulkv.Denied:
		e.denied = e.Consul.Classify("read "+e.Keys.Epoch(), err)
	default:
		return e.fail("consul", reachHint, "%s", e.Consul.Classify("read "+e.Keys.Epoch(), err))
	}
	if meta != nil && !meta.KnownLeader {
		e.fail("leader", "see `consul operator raft list-peers`: more than half of the servers must be there", "Consul has no leader: nothing can be locked or let go")
	}
	e.agent(ctx)
	e.clock(ctx)
	return true
}

// refused tells of a token that may not read the epoch. Of the roles all may but that
// of a node's agent, whose rights are those of one node.
func (e *examination) refused(ctx context.Context) {
	e.part(ctx, e.rights)
	if e.enough {
		e.note("consul", "", "%s answers; nothing more is looked at with this token, whose role needs no more", e.Consul.Addr())
		return
	}
	e.fail("consul", e.orAsk("give the token the role that it is for (`aimlock acl`), or set CONSUL_HTTP_TOKEN"), "%s answers, and refuses this token: %s", e.Consul.Addr(), e.denied)
}

// agent looks at the Consul agent that is asked.
func (e *examination) agent(ctx context.Context) {
	c, err := e.Consul.Self(ctx)
	if err != nil {
		e.note("version", "", "which Consul this is cannot be read: the token lacks agent:read")
		return
	}
	version, _, _ := strings.Cut(c.Version, "+")
	words := fmt.Sprintf("Consul %s, agent %s in datacenter %s", version, c.NodeName, c.Datacenter)
	if version == tested {
		e.ok("version", "%s", words)
	} else {
		e.note("version", "", "%s; aimlock is tested against %s", words, tested)
	}
	if id, err := e.Consul.ReservedFor(ctx, c); err == nil && id != "" {
		e.fail("node", e.reservedHint(c.NodeName), "the Consul agent %s has the node ID %s, and the catalog reserves that name for node %s: it takes no service and no check of this agent", text.Printable(c.NodeName), text.Printable(c.NodeID), text.Printable(id))
	}
}

// reservedHint mends a name that is reserved for a node which is no more. The ID of a
// server is part of its cluster: it cannot be changed afterwards.
func (e *examination) reservedHint(node string) string {
	body, _ := json.Marshal(map[string]string{"Node": text.Printable(node)})
	quoted := "'" + strings.ReplaceAll(string(body), "'", `'\''`) + "'"
	return fmt.Sprintf("if no other machine has that name, take the old node out, and the agent registers anew within minutes: `curl -X PUT -d %s %s/v1/catalog/deregister`", quoted, e.Consul.Addr())
}

// get reads JSON that the library has no type for.
func (e *examination) get(ctx context.Context, path string, into any) error {
	_, err := e.Consul.API().Raw().Query(path, into, (&api.QueryOptions{}).WithContext(ctx))
	return err
}

// clock compares this machine's with that of the Consul agent.
func (e *examination) clock(ctx context.Context) {
	if err := e.get(ctx, "/v1/status/leader", new(string)); err != nil {
		e.note("clock", "", "the clock of Consul's agent cannot be read: %s", e.Consul.Classify("ask for the leader", err))
		return
	}
	off, slack, ok := e.Transport.off()
	switch {
	case !ok:
		e.note("clock", "", "Consul's agent does not tell its time")
	case off.Abs() > clockWarning+slack:
		e.warn("clock", "have both keep time by NTP (`chronyc tracking`)", "this machine's clock is %s off that of Consul's agent: no decision rests on it, but the times in records do", off.Round(time.Second))
	default:
		e.ok("clock", "this machine's and Consul's are less than %s apart; Consul tells whole seconds", (slack + off.Abs()).Round(time.Second/10))
	}
}

// transactions tries what the protocol needs of a Consul.
func (e *examination) transactions(ctx context.Context) bool {
	ops := make([]consulkv.Op, consulkv.MaxTxnOps)
	for i := range ops {
		ops[i] = consulkv.GetOrEmpty(e.Keys.Epoch())
	}
	_, err := e.Consul.Txn(ctx, ops...)
	switch kind := consulkv.KindOf(err); {
	case err == nil:
		return e.ok("transactions", "Consul takes those of %d operations", len(ops))
	case kind == consulkv.Denied:
		return e.fail("transactions", "give the token a role: `aimlock acl`", "%s", err)
	case kind == consulkv.BadRequest:
		return e.fail("transactions", "use Consul "+tested+" or a later one: transactions with get-or-empty of that many operations are what the protocol is made of", "%s", err)
	default:
		return e.fail("transactions", "try again: "+reachHint, "%s", err)
	}
}
