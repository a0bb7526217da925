package records

import (
	"strconv"
	"time"
)

// HolderService is the name of the service whose TTL check a holder's session
// is bound to. Its meta names the hold, so that whoever follows the services of
// one node learns of the holders there without reading any lock.
const HolderService = "aimlock-holder"

// Meta of HolderService. Consul takes 64 pairs, with values of up to 512 bytes.
const (
	MetaPrefix = "prefix"
	MetaNonce  = "nonce"
	MetaBootID = "boot_id"
	MetaPIDNS  = "pid_ns"
	MetaHost   = "host"
	MetaPID    = "pid"
	MetaTicks  = "start_ticks"
	metaLock   = "lock_"
	// maxMeta is the most bytes that Consul takes for a value.
	maxMeta = 512
	// maxPairs is the most pairs that it takes.
	maxPairs = 64
)

// HolderMeta is the meta of the service of a hold; locks may be more than it has.
// ok is false where a name is longer than Consul takes, or there are too many:
// then nobody can follow the hold by it.
func HolderMeta(prefix string, locks []string, more map[string]string) (meta map[string]string, ok bool) {
	meta = map[string]string{MetaPrefix: prefix}
	for k, v := range more {
		meta[k] = v
	}
	for i, l := range locks {
		meta[metaLock+strconv.Itoa(i)] = l
	}
	if len(meta) > maxPairs {
		return nil, false
	}
	for _, v := range meta {
		if len(v) > maxMeta {
			return nil, false
		}
	}
	return meta, true
}

// LocksOf are the names of the locks in the meta of a HolderService.
func LocksOf(meta map[string]string) []string {
	var out []string
	for i := 0; ; i++ {
		l, ok := meta[metaLock+strconv.Itoa(i)]
		if !ok {
			return out
		}
		out = append(out, l)
	}
}

// Kinds of Observed.
const (
	// ObservedHost: by the agent of the holder's own host, at
	// observed/<lock>/<Consul node>.
	ObservedHost = "host"
	// ObservedMemory: by one who watches the lock, at
	// observed/<lock>/<observer>.
	ObservedMemory = "memory"
	// ObservedCluster: by the leading locksmith of the whole cluster, at
	// observed/aimlock.locksmith/cluster@locksmith. It is about no lock: Session
	// and Token are those of the locksmith's own term.
	ObservedCluster = "cluster"
)

// Observed is what one observer saw of one hold. It says nothing of any other
// hold: a reader compares Lock, Session and Nonce (of ObservedHost Host, BootID
// and PIDNS too) with the holder's own record first.
type Observed struct {
	Version  int    `json:"version"`
	Kind     string `json:"kind"`
	Observer string `json:"observer"`
	Lock     string `json:"lock"`
	Session  string `json:"session"`
	Nonce    string `json:"nonce,omitempty"`
	// Token is the ModifyIndex of the lock's key that was looked at.
	Token uint64 `json:"token"`
	// At is the observer's wall clock: for people. Nothing is decided on it.
	At time.Time `json:"at"`

	Host   string `json:"host,omitempty"`
	BootID string `json:"boot_id,omitempty"`
	PIDNS  string `json:"pid_ns,omitempty"`
	// Agent is the id of the observer's service on its Consul node: true is
	// only as good as that one's check.
	Agent string `json:"agent,omitempty"`
	// Alive: a process of the hold lives; null: it cannot be told, and Why
	// says why. False is final for the hold.
	Alive *bool `json:"alive,omitempty"`
	// Gone: beside that, nothing that was started under the hold is left. It is
	// never set while Alive is not false.
	Gone bool   `json:"gone,omitempty"`
	Why  string `json:"why,omitempty"`
	// Processes are those that Alive is about. A process that is not among them
	// was not looked at.
	Processes []Process `json:"processes,omitempty"`

	// Remembers is what an ObservedMemory saw stand still.
	Remembers []Remembered `json:"remembers,omitempty"`

	// Cluster is what an ObservedCluster saw.
	Cluster *ClusterSeen `json:"cluster,omitempty"`
}

// ClusterSeen is what an observer saw of Consul's cluster when it was written
// down.
type ClusterSeen struct {
	// Leader is the address of Consul's leader; empty: Why says why it is not
	// known.
	Leader string `json:"leader,omitempty"`
	Why    string `json:"why,omitempty"`
	// LeaderAge is for how many seconds it was seen to lead. LeaderChanged: it
	// was seen to begin; else it may have led for longer.
	LeaderAge     float64 `json:"leader_age"`
	LeaderChanged bool    `json:"leader_changed,omitempty"`
	// Lost is how many sessions were lost in the minute before, or in the part
	// of it that was watched while LostWhole is false. LostWhy: it is not known.
	Lost      int    `json:"lost"`
	LostWhole bool   `json:"lost_whole,omitempty"`
	LostWhy   string `json:"lost_why,omitempty"`
}

// Remembered is one thing that stood still for at least Age seconds when it was
// written down. While it still stands at Version, it has stood for no less.
type Remembered struct {
	// What: hold, progress, rollout or check.
	What string `json:"what"`
	// Version names the state that stood still: of a key its ModifyIndex.
	Version string  `json:"version"`
	Age     float64 `json:"age"`
	// Whole: the observer saw it begin, so that Age was the whole of it.
	Whole bool `json:"whole,omitempty"`
}
