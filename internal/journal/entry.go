package journal

import (
	"encoding/json"
	"fmt"
	"time"
)

// Version is written into every entry. A reader takes any version up to its
// own.
const Version = 1

// Kind is what an entry is about. The words are public interface.
type Kind string

// Kinds of entries, and the field of Entry that each one sets.
const (
	KindStart       Kind = "start"       // Start: a process began to write, or a file begins
	KindObservation Kind = "observation" // Observation: what a lock's facts are now
	KindVerdict     Kind = "verdict"     // Observation: the same, and its verdict changed
	KindCluster     Kind = "cluster"     // Cluster: facts that all locks share
	KindWatching    Kind = "watching"    // none: nothing changed until now
	KindBreak       Kind = "break"       // Break
	KindLeader      Kind = "leader"      // Leader
	KindReload      Kind = "reload"      // Reload
	KindError       Kind = "error"       // Error
)

// Entry is one line of a journal.
type Entry struct {
	Version int  `json:"v"`
	Kind    Kind `json:"kind"`
	// At is the writer's wall clock: for people.
	At time.Time `json:"at"`
	// T is the writer's monotonic clock since it opened the journal, in
	// nanoseconds. Between entries of the same Run it tells how much time
	// passed, whatever the wall clock did.
	T time.Duration `json:"t"`
	// Run names one opening of the journal by one process.
	Run string `json:"run"`
	// Lock is the lock that it is about; empty where it is about none.
	Lock string `json:"lock,omitempty"`

	Start       *Start       `json:"start,omitempty"`
	Observation *Observation `json:"observation,omitempty"`
	Cluster     *Cluster     `json:"cluster,omitempty"`
	Break       *Break       `json:"break,omitempty"`
	Leader      *Leader      `json:"leader,omitempty"`
	Reload      *Reload      `json:"reload,omitempty"`
	Error       *Error       `json:"error,omitempty"`

	// File and Line are where a reader found it.
	File string `json:"-"`
	Line int    `json:"-"`
}

// Start is the first entry of each file: who writes it.
type Start struct {
	Host    string `json:"host"`
	PID     int    `json:"pid"`
	By      string `json:"by,omitempty"`
	Program string `json:"program,omitempty"` // the version of aimlock
	BootID  string `json:"boot_id,omitempty"`
	// Boot is CLOCK_BOOTTIME in seconds when the run began (T = 0): it compares
	// runs of the same boot.
	Boot float64 `json:"boot,omitempty"`
	// Lag is within how many seconds of a change the observers judge anew.
	Lag float64 `json:"lag"`
	// Continues is set at the beginning of every file of a run but its first.
	Continues bool `json:"continues,omitempty"`
}

// Observation is what was known of one lock at one moment, and what was made of
// it. It is written only when something changed that time alone does not
// change: until the next one of the same lock and run, all facts stood still
// and ages grew by the time that passed.
type Observation struct {
	// N numbers the observations of this lock in this run, from 1.
	N uint64 `json:"n"`
	// Base is 0 where Facts are all facts. Else they are those that are not as
	// in observation Base, which is N-1.
	Base uint64 `json:"base,omitempty"`
	Key  string `json:"key"`
	Own  bool   `json:"own"`
	// Hold is nil where nobody holds the lock.
	Hold *Hold `json:"hold"`
	// ReadAt is when the facts were read, by the writer's wall clock.
	ReadAt time.Time `json:"read_at"`
	// Facts is object -> attribute -> fact, as policies.EncodeFact writes it.
	// The attribute "*" stands for every other fact of the object's schema. The
	// objects now and cluster are not in it: the one follows from At, the other
	// stands in the entry that ClusterID names.
	Facts map[string]map[string]json.RawMessage `json:"facts,omitempty"`
	// Gone are facts ("object.attribute") of Base that are not any more.
	Gone []string `json:"gone,omitempty"`
	// Numbers are, of known facts and lower bounds that change by themselves
	// such as ages, the values now: the rest of them is as in Base or Facts.
	Numbers   map[string]float64 `json:"numbers,omitempty"`
	ClusterID uint64             `json:"cluster_id,omitempty"`
	Verdict   Verdict            `json:"verdict"`
	// Was is the verdict before, where it changed.
	Was *Verdict `json:"was,omitempty"`
}

// Hold names a hold and who has it.
type Hold struct {
	Session    string     `json:"session"`
	Token      uint64     `json:"token"`
	Tool       string     `json:"tool,omitempty"`
	Host       string     `json:"host,omitempty"`
	PID        int        `json:"pid,omitempty"`
	User       string     `json:"user,omitempty"`
	Operation  string     `json:"operation,omitempty"`
	AcquiredAt *time.Time `json:"acquired_at,omitempty"`
}

// ID is the name of the hold for policies.Policy.Judge.
func (h *Hold) ID() string { return fmt.Sprintf("%s@%d", h.Session, h.Token) }

// Verdict is what was made of the facts.
type Verdict struct {
	State      string `json:"state"`
	Rule       string `json:"rule,omitempty"`
	Policy     string `json:"policy,omitempty"`
	PolicyHash string `json:"policy_hash,omitempty"`
	Reason     string `json:"reason,omitempty"`
	// Held is for how long each rule with a `for` has held, by its key, in
	// nanoseconds.
	Held map[string]time.Duration `json:"held,omitempty"`
}

// Cluster is what was known of the cluster.
type Cluster struct {
	ID     uint64                     `json:"id"`
	ReadAt time.Time                  `json:"read_at"`
	Facts  map[string]json.RawMessage `json:"facts"`
}

// Break is one event of a break.
type Break struct {
	Event string `json:"event"` // begun, step, ended
	// Key is the record of the break in Consul: the same event stands there.
	Key        string `json:"key"`
	Session    string `json:"session"`
	Token      uint64 `json:"token"`
	Policy     string `json:"policy,omitempty"`
	PolicyHash string `json:"policy_hash,omitempty"`
	Rule       string `json:"rule,omitempty"`
	Reason     string `json:"reason,omitempty"`
	By         string `json:"by,omitempty"`
	DryRun     bool   `json:"dry_run,omitempty"`
	// Step and Result are those of a step.
	Step   string `json:"step,omitempty"`
	Result string `json:"result,omitempty"`
	// Outcome is that of a break which ended.
	Outcome string `json:"outcome,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// Events of a break.
const (
	BreakBegun = "begun"
	BreakStep  = "step"
	BreakEnded = "ended"
)

// Leader says that this locksmith became the one who acts, or is it no longer.
type Leader struct {
	Gained bool   `json:"gained"`
	Lock   string `json:"lock,omitempty"` // the lock by which the acting one is chosen
	Token  uint64 `json:"token,omitempty"`
	Why    string `json:"why,omitempty"`
}

// Reload says that policies were read anew.
type Reload struct {
	OK         bool     `json:"ok"`
	PolicyHash string   `json:"policy_hash"` // in force after it
	Was        string   `json:"was,omitempty"`
	Paths      []string `json:"paths,omitempty"`
	Error      string   `json:"error,omitempty"`
}

// Error is something that went wrong.
type Error struct {
	What  string `json:"what"`
	Error string `json:"error"`
	// Lost is how many entries could not be written before this one.
	Lost uint64 `json:"lost,omitempty"`
}
