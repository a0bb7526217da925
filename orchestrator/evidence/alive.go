package evidence

import (
	"cmp"
	"fmt"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
)

// agentService is the service of the agents on each host: of package agent,
// which this one does not import.
const agentService = "aimlock-agent"

// Local reports whether the holder's pid means the same process here: same
// host, same boot, same pid and time namespace.
func (r *Reader) Local(h *records.Holder) bool {
	return h.Host == r.Self.Host && h.BootID != "" && h.BootID == r.Self.BootID &&
		h.PIDNS != "" && h.PIDNS == r.Self.PIDNS
}

// HolderAlive looks on this host whether any process of the hold lives: the
// holder and every further one that it recorded. It is Unknown for a holder of
// another host, another pid namespace, or where /proc refuses to be read.
func (r *Reader) HolderAlive(h *records.Holder, p *records.Progress) (hostproc.Tri, string) {
	return r.look(h, p, func(records.Process) bool { return false })
}

// Living is HolderAlive with the processes that were seen alive. There is one at
// least if it is True: each process is looked at once, and the answer is of that
// look.
func (r *Reader) Living(h *records.Holder, p *records.Progress) (state hostproc.Tri, why string, living []records.Process) {
	state, why = r.look(h, p, func(proc records.Process) bool {
		living = append(living, proc)
		return true
	})
	return state, why, living
}

// look looks at the processes of a hold, and gives more each one that lives until it
// wants no more of them.
func (r *Reader) look(h *records.Holder, p *records.Progress, more func(records.Process) bool) (state hostproc.Tri, why string) {
	switch {
	case h.Host != r.Self.Host:
		return hostproc.Unknown, "the holder is on host " + shown(h.Host) + " and this is " + r.Self.Host
	case r.Self.BootID == "":
		return hostproc.Unknown, cmp.Or(hostproc.NeedsLinux(), "the boot id of this host cannot be read")
	case h.BootID != r.Self.BootID:
		return hostproc.Unknown, "the holder's record is of another boot, or of another host with the same name"
	case hostproc.TimeNS(h.PIDNS) != hostproc.TimeNS(r.Self.PIDNS):
		return hostproc.Unknown, "the holder is in another time namespace of this host, where start times are others"
	case !r.Local(h):
		return hostproc.Unknown, "the holder is in another pid namespace of this host"
	}
	state = hostproc.False
	for _, proc := range Processes(h, p) {
		alive, reason := hostproc.Alive(proc.PID, proc.StartTicks)
		switch {
		case alive == hostproc.True:
			state, why = alive, reason
			if !more(proc) {
				return state, why
			}
		case alive == hostproc.Unknown && state != hostproc.True:
			state, why = alive, reason
		}
	}
	return state, why
}

// Processes are all that a hold has recorded: the holder first.
func Processes(h *records.Holder, p *records.Progress) []records.Process {
	list := append([]records.Process{{PID: h.PID, StartTicks: h.StartTicks}}, h.Processes...)
	if p != nil {
		list = append(list, p.Processes...)
	}
	return list
}

// ProvedDead reports whether evidence of this host proves that no process of
// the hold can act any more: every recorded process is gone, and none that
// inherited the hold's nonce is left. Only then may its quiesce be left out.
func (r *Reader) ProvedDead(h *records.Holder, p *records.Progress) (bool, string) {
	alive, why := r.HolderAlive(h, p)
	if alive != hostproc.False {
		return false, why
	}
	gone, why := hostproc.TreeGone(h.Nonce, h.StartTicks, h.CGroup)
	return gone == hostproc.True, why
}

// Dead is ProvedDead for a holder anywhere: of another host by what the agent
// there saw. What it rests on beside this host is the key Snapshot.SeenKey.
func (r *Reader) Dead(s *Snapshot) (bool, string) {
	h := s.Holder
	if h == nil || r.Local(h) {
		if h == nil {
			return false, "there is no holder record"
		}
		return r.ProvedDead(h, s.Progress)
	}
	alive, why := r.seenAlive(s)
	switch {
	case alive != hostproc.False:
		return false, why
	case !s.Seen.Gone:
		return false, "the agent on " + shown(h.Host) + " has not seen that nothing of the hold is left: " + shown(s.Seen.Why)
	}
	return true, "the agent on " + shown(h.Host) + " saw that no process of the hold is left"
}

// watchable is the key at which the agent of the holder's host writes what it
// sees; "" where it has none to be asked for, and then why.
func (r *Reader) watchable(h *records.Holder) (key, why string) {
	switch {
	case h.Released || h.Broken != "":
		return "", "the hold has ended"
	case r.Local(h):
		return "", "the holder is on this host"
	case h.Node == "":
		return "", "the holder is on host " + shown(h.Host) + " and did not record its Consul node, so that no agent there can be asked"
	case h.Check == "":
		return "", "the holder is on host " + shown(h.Host) + " and has no service on a Consul agent, by which an aimlock agent there would find it"
	}
	return r.Keys.Observed(h.Lock, h.Node), ""
}

// takeObserved takes in what observers wrote about the lock of s.
func (r *Reader) takeObserved(s *Snapshot, pairs []*api.KVPair) {
	if s.Holder != nil {
		s.SeenKey, s.SeenWhy = r.watchable(s.Holder)
	}
	var seen []byte
	if s.SeenKey != "" {
		s.Deps[s.SeenKey] = 0
	}
	for _, p := range pairs {
		if p.Key == s.SeenKey {
			s.Deps[p.Key], seen = p.ModifyIndex, p.Value
		} else if s.Held() {
			r.takeMemory(s, p)
		}
	}
	if s.SeenKey != "" {
		s.decodeSeen(s.SeenKey, seen)
	}
}

// decodeSeen takes the record of the holder's host for what it is about: this
// very hold, by the agent of this very boot.
func (s *Snapshot) decodeSeen(key string, b []byte) {
	h := s.Holder
	where := "the agent on " + shown(h.Host)
	if b == nil {
		s.SeenWhy = fmt.Sprintf("the holder is on host %s, and no aimlock agent there has said whether it lives (Consul node %s)", shown(h.Host), shown(h.Node))
		return
	}
	var o records.Observed
	err := records.Decode(key, b, &o)
	switch {
	case err != nil:
		s.SeenWhy = err.Error()
	case o.Kind != records.ObservedHost:
		s.SeenWhy = key + " is not a record of a host's agent"
	case o.Lock != h.Lock, o.Session != h.Session, h.Session == "", o.Nonce != h.Nonce, h.Nonce == "":
		s.SeenWhy = where + " has spoken of another hold, and not of this one yet"
	case o.Host != h.Host, o.BootID != h.BootID, h.BootID == "":
		s.SeenWhy = fmt.Sprintf("what %s says was written on host %s, or on another boot of it", key, shown(o.Host))
	case o.Gone && (o.Alive == nil || *o.Alive):
		s.SeenWhy = key + " contradicts itself"
	default:
		s.Seen = &o
	}
}

// seenAlive is what the agent of the holder's host says. False is final: the
// processes of a hold do not come back. True holds only while that agent is at
// work, by its own check.
func (r *Reader) seenAlive(s *Snapshot) (hostproc.Tri, string) {
	o := s.Seen
	if o == nil {
		return hostproc.Unknown, s.SeenWhy
	}
	who := "the aimlock agent on " + shown(o.Host)
	switch {
	case o.Alive == nil:
		return hostproc.Unknown, who + " cannot tell: " + shown(o.Why)
	case !*o.Alive:
		looked := map[records.Process]bool{}
		for _, p := range o.Processes {
			looked[p] = true
		}
		for _, p := range Processes(s.Holder, s.Progress) {
			if !looked[p] {
				return hostproc.Unknown, fmt.Sprintf("%s has not looked at pid %d of the hold", who, p.PID)
			}
		}
		return hostproc.False, ""
	}
	if why := s.agentDown(o); why != "" {
		return hostproc.Unknown, fmt.Sprintf("%s saw it alive, but %s", who, why)
	}
	return hostproc.True, ""
}

// agentDown says why the agent that wrote o cannot be believed to be at work; ""
// if it can. A node that Serf calls failed keeps the checks that it had.
func (s *Snapshot) agentDown(o *records.Observed) string {
	if len(s.Checks) == 0 {
		return "whether it still runs is not known: " + s.ChecksWhy
	}
	if c := s.serf(); c == nil || c.Status != api.HealthPassing {
		return "its Consul node is not alive"
	}
	for _, c := range s.Checks {
		if c.ServiceName == agentService && c.ServiceID == o.Agent {
			if c.Status == api.HealthPassing {
				return ""
			}
			return "its check is " + shown(c.Status) + " now"
		}
	}
	return "its service is not to be seen: it was stopped for good, or the token lacks service:read"
}

// shown is foreign text inside a reason.
func shown(s string) string { return text.Clip(text.Printable(s), 120) }
