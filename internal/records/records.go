// Package records is the JSON of every value that aimlock writes to Consul's
// KV store: public interface between versions of aimlock, its agents and
// people's scripts. Each record has a version. Times are RFC 3339, durations
// are numbers of seconds.
//
// It imports only the order type of the core; see package keys for where each
// record stands.
package records

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	fastjson "github.com/go-json-experiment/json"
	fastv1 "github.com/go-json-experiment/json/v1"

	"github.com/aim-control/aimlock/orchestrator"
)

// Version is written into every record. A reader takes any version up to its
// own and refuses a newer one by name.
const Version = 1

// begin is what every record of this version begins with.
const begin = `{"version":1,`

// MaxSize is the most bytes that a record may have (a plan's chunks included):
// Consul's own limit for a value is 512 KiB.
const MaxSize = 512 << 10

// Holder is the value of a lock's key while it is held: who holds it. It is
// written in the acquiring transaction and never rewritten while held.
type Holder struct {
	Version int `json:"version"`
	// Lock is the lock's name, so that a record copied elsewhere is recognised.
	Lock string `json:"lock"`
	// Locks are all locks taken in the same transaction, under one session.
	Locks []string `json:"locks,omitempty"`
	// Slots is how many slots the semaphore has of which this lock is one, as its
	// holder was told; 0 where it is none.
	Slots int `json:"slots,omitempty"`
	// Nonce is random for each acquisition: it tells an acquirer whose
	// transaction's answer was lost whether it was its own that committed.
	Nonce   string `json:"nonce"`
	Session string `json:"session,omitempty"`
	// Tool is "aimlock" in records of this program.
	Tool string `json:"tool"`
	// Operation says what the holder does, such as "rollout start" or "lock
	// exec". It never holds arguments: they may be secret.
	Operation string `json:"operation,omitempty"`
	RolloutID string `json:"rollout_id,omitempty"`
	AllocID   string `json:"alloc_id,omitempty"`
	// AllocRegion is the Nomad region of that allocation. AllocJob and
	// AllocNamespace are for people: an allocation is found by its id.
	AllocRegion    string `json:"alloc_region,omitempty"`
	AllocJob       string `json:"alloc_job,omitempty"`
	AllocNamespace string `json:"alloc_namespace,omitempty"`

	Host string `json:"host"`
	// Node is the Consul node on which the session stands.
	Node string `json:"node,omitempty"`
	PID  int    `json:"pid"`
	// StartTicks is field 22 of /proc/PID/stat: it tells a reused pid.
	StartTicks uint64    `json:"start_ticks,omitempty"`
	StartedAt  time.Time `json:"started_at"`
	BootID     string    `json:"boot_id,omitempty"`
	PIDNS      string    `json:"pid_ns,omitempty"`
	CGroup     string    `json:"cgroup,omitempty"`
	User       string    `json:"user,omitempty"`
	// Accessor is the public id of the ACL token that was used; see Who.
	Accessor string `json:"accessor,omitempty"`
	// Processes are further processes that must be gone before the hold is
	// proved dead, such as the supervisor of a child.
	Processes []Process `json:"processes,omitempty"`

	AcquiredAt time.Time `json:"acquired_at"`
	// AcquiredBoot is CLOCK_BOOTTIME at AcquiredAt, in seconds: comparable
	// only on the same host and boot.
	AcquiredBoot float64 `json:"acquired_boot,omitempty"`
	// Quiesce is the pause in seconds that the next holder owes unless this
	// one released cleanly: 0 where every participant is fenced.
	Quiesce float64 `json:"quiesce"`
	// Pause is for how long in seconds, from AcquiredAt, this holder waits out
	// what the last one left before it does any work.
	Pause float64 `json:"pause,omitempty"`
	TTL   float64 `json:"ttl,omitempty"`
	// Check is the id of the service check that the session is bound to;
	// empty where the session's TTL alone serves.
	Check string `json:"check,omitempty"`

	// Released marks a clean end; set in the transaction that unlocks.
	Released   bool       `json:"released,omitempty"`
	ReleasedAt *time.Time `json:"released_at,omitempty"`
	// Broken is the key of the break that ended this hold, if one did.
	Broken string `json:"broken,omitempty"`
	// Token was this hold's. It is set with Released: while the lock is held its
	// key's index tells it, and when the record is written nobody knows it yet.
	Token uint64 `json:"token,omitempty"`
}

// Process names one process of a host for as long as it lives.
type Process struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"`
}

// Progress is the holder's own account of its work, at progress/<name>.
type Progress struct {
	Version int    `json:"version"`
	Lock    string `json:"lock"`
	Session string `json:"session"`
	Token   uint64 `json:"token"`
	Done    int64  `json:"done"`
	Total   int64  `json:"total"`
	Unit    string `json:"unit"`
	Note    string `json:"note,omitempty"`
	// At is the holder's wall clock: for people. Nothing is decided on it.
	At time.Time `json:"at"`
	// Boot is CLOCK_BOOTTIME at At, in seconds, on the boot named by BootID.
	Boot      float64   `json:"boot,omitempty"`
	BootID    string    `json:"boot_id,omitempty"`
	Processes []Process `json:"processes,omitempty"`
}

// Fence is what the last end of a lock leaves to the next holder, at
// fence/<name>. While Owed is above 0, whoever acquires the lock waits Owed
// seconds on its own clock before it lets any work leave, then clears it by a
// fenced write.
type Fence struct {
	Version int `json:"version"`
	// UnsafeSince is when the old hold ended, by the writer's wall clock.
	UnsafeSince time.Time `json:"unsafe_since"`
	Owed        float64   `json:"owed"`
	Why         string    `json:"why"`
	// Session and Token name the hold that may still have work running.
	Session string `json:"session,omitempty"`
	Token   uint64 `json:"token,omitempty"`
}

// Who tells who wrote a record, beside "by", which is made for people. Each
// part is empty where it is not known.
type Who struct {
	// Accessor is the public id of the ACL token that was used; never the
	// token itself.
	Accessor string `json:"accessor,omitempty"`
	Host     string `json:"host,omitempty"`
	// User is the operating system's name of the user.
	User string `json:"user,omitempty"`
}

// Request asks the holder that it names to let go, at requests/<name>.
type Request struct {
	Version int    `json:"version"`
	Session string `json:"session"`
	Token   uint64 `json:"token"`
	// Rule is "" where a person asks, or approves before any rule makes the lock HOT.
	Rule       string `json:"rule"`
	PolicyHash string `json:"policy_hash"`
	By         string `json:"by"`
	Who
	At      time.Time `json:"at"`
	Expires time.Time `json:"expires"`
	Reason  string    `json:"reason,omitempty"`
}

// Approval lets the lock of the holder that it names be broken, at
// approvals/<name>.
type Approval = Request

// Break is the audit record of one break: its intent before the first
// destructive step, then its outcome.
type Break struct {
	Version int `json:"version"`
	// Nonce tells a breaker whose answer was lost whether its intent stands.
	Nonce      string     `json:"nonce"`
	Lock       string     `json:"lock"`
	Key        string     `json:"key"`
	Session    string     `json:"session"`
	Epoch      uint64     `json:"epoch"`
	Token      uint64     `json:"token"`
	Attempt    int        `json:"attempt"`
	Policy     string     `json:"policy"`
	PolicyHash string     `json:"policy_hash"`
	Rule       string     `json:"rule"`
	Reason     string     `json:"reason"`
	Proof      bool       `json:"proof,omitempty"`
	Evidence   []Evidence `json:"evidence"`
	By         string     `json:"by"`
	Who
	StartedAt  time.Time   `json:"started_at"`
	Steps      []BreakStep `json:"steps,omitempty"`
	Outcome    string      `json:"outcome"` // one of the outcomes below
	Detail     string      `json:"detail,omitempty"`
	EndedAt    *time.Time  `json:"ended_at,omitempty"`
	NewSession string      `json:"new_session,omitempty"`
	Quiesce    float64     `json:"quiesce"`
	Holder     *Holder     `json:"holder,omitempty"`
	RawHolder  string      `json:"raw_holder,omitempty"`
}

// Budget counts a policy's automatic breaks, at budgets/<policy>.
type Budget struct {
	Version int          `json:"version"`
	Breaks  []BudgetItem `json:"breaks"`
}

// BudgetItem is one break that counts against a budget.
type BudgetItem struct {
	Lock string    `json:"lock"`
	At   time.Time `json:"at"`
	By   string    `json:"by"`
	Who
	// Token of the hold: however often it is tried to break it, it counts once.
	Token uint64 `json:"token,omitempty"`
}

// PolicyActive names the policies in force, at policies/active.
type PolicyActive struct {
	Version int    `json:"version"`
	Hash    string `json:"hash"`
	// Serial grows with each application; policies/versions/<serial> has more.
	Serial uint64 `json:"serial"`
	By     string `json:"by"`
	Who
	At time.Time `json:"at"`
}

// PolicyVersion is one application of policies, at policies/versions/<serial>.
type PolicyVersion struct {
	PolicyActive
	// Nonce tells who applied whether it stands, where the answer was lost.
	Nonce  string `json:"nonce"`
	Reason string `json:"reason,omitempty"`
	// Policies in the order in which they are tried.
	Policies []PolicyOutline `json:"policies"`
	// Values are those given to variables by -var.
	Values map[string]string `json:"values,omitempty"`
	// Files are the sources. They are left out, and FilesSize says how large
	// they are, where they do not fit into a record.
	Files     []PolicyFile `json:"files,omitempty"`
	FilesSize int          `json:"files_size"`
}

// PolicyOutline tells what a policy says by hashes, so that two versions can be
// compared without their sources.
type PolicyOutline struct {
	Name string `json:"name"`
	Hash string `json:"hash"`
	// Parts are "locks", "warm <name>", "hot <name>" and "break".
	Parts []PolicyPart `json:"parts"`
}

// PolicyPart is one part of a policy.
type PolicyPart struct {
	Name string `json:"name"`
	Hash string `json:"hash"`
}

// PolicyFile is the source of one file of policies.
type PolicyFile struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// PolicySuspended stops all automatic breaking while it stands, at
// policies/suspended.
type PolicySuspended struct {
	Version int    `json:"version"`
	By      string `json:"by"`
	Who
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// Silence stops the breaking of one lock until it expires, at
// silences/<name>. Unlike an approval it is about the lock and not about a
// hold: it outlives holders.
type Silence struct {
	Version int    `json:"version"`
	Lock    string `json:"lock"`
	Reason  string `json:"reason"`
	By      string `json:"by"`
	Who
	At time.Time `json:"at"`
	// Expires is compared with the wall clock of whoever wants to break.
	Expires time.Time `json:"expires"`
}

// DecodeSilence reads the silence of the lock called name. One that cannot be
// read counts as one without an end: it was somebody's word that the lock is not
// to be broken.
func DecodeSilence(key, name string, b []byte) *Silence {
	var s Silence
	if err := Decode(key, b, &s); err != nil {
		return &Silence{Lock: name, Reason: err.Error()}
	}
	return &s
}

// Stands reports whether the silence has not ended by now. Without an Expires it
// has no end.
func (s *Silence) Stands(now time.Time) bool {
	return s != nil && (s.Expires.IsZero() || now.Before(s.Expires))
}

// Outcomes of a break.
const (
	OutcomeIntent   = "intent"
	OutcomeTaken    = "taken"
	OutcomeUnlocked = "unlocked"
	// OutcomeEnded: a step of it ended the hold, such as destroy_session.
	OutcomeEnded = "ended"
	// OutcomeReleased: the holder let go, asked or not.
	OutcomeReleased = "released"
	OutcomeAborted  = "aborted"
)

// OutcomeText is the outcome of a break in plain words; what is none stands as it is.
func OutcomeText(outcome string) string {
	switch outcome {
	case OutcomeIntent:
		return "begun; its end is not on record"
	case OutcomeTaken:
		return "broken, and the lock taken over"
	case OutcomeUnlocked:
		return "broken, and the lock freed"
	case OutcomeEnded:
		return "broken, by a step that ended the hold"
	case OutcomeReleased:
		return "called off: the hold was over before it was broken"
	case OutcomeAborted:
		return "break given up"
	}
	return outcome
}

// BreakStep is one step of a break as it went.
type BreakStep struct {
	Step   string    `json:"step"`
	At     time.Time `json:"at"`
	Result string    `json:"result"`
	Detail string    `json:"detail,omitempty"`
}

// Evidence is one fact as a verdict used it.
type Evidence struct {
	Fact       string          `json:"fact"`
	Value      json.RawMessage `json:"value"`
	Known      bool            `json:"known"`
	Why        string          `json:"why,omitempty"`
	Source     string          `json:"source"`
	ObservedAt time.Time       `json:"observed_at"`
}

// Actions of a desired entry.
const (
	// ActionApply installs the revision named. It is the meaning of "".
	ActionApply = "apply"
	// ActionRestore puts back what the node had before the rollout named.
	ActionRestore = "restore"
	// ActionApplyWith is ActionApply by an agent that knows every feature in
	// Requires. Agents from before there were features know no such action:
	// they answer failed, say that they are to be upgraded, and change nothing,
	// where they would overlook what a field that is new to them asks for.
	ActionApplyWith = "apply_with"
)

// Features that an entry may require of an agent.
const (
	// FeatureGroups: the entries of Desired.Configs are applied all or none.
	FeatureGroups = "groups"
	// FeatureSecrets: Desired.Secrets are put into the content.
	FeatureSecrets = "secrets"
	// FeatureTargets: Desired.Target writes the config, and the node's own file of
	// that name is not touched.
	FeatureTargets = "targets"
	// FeatureFencedTargets: an entry whose Target.Fenced is set is refused by an agent
	// whose plugin is not.
	FeatureFencedTargets = "fenced_targets"
)

// MaxGroup is the most configs that belong together: older servers take 64
// operations in a transaction.
const MaxGroup = 64

// Desired is what a node shall have of a config, at desired/<config>/<node>.
type Desired struct {
	Version int `json:"version"`
	// Revision names the content: the first 12 hex digits of SHA256.
	Revision string `json:"revision"`
	orchestrator.Order
	Rollout string `json:"rollout"`
	// After is the order that stood here when this one was given: zero where none
	// did, nil from a giver of before there was this. A node that has accepted a
	// newer one than that, in the same epoch, has one that Consul lost, and refuses.
	After *orchestrator.Order `json:"after,omitempty"`
	// Chunks is how many values under configs/<config>/<sha256>/ hold it.
	Chunks int   `json:"chunks"`
	Size   int64 `json:"size"`
	// SHA256 of the whole content, in hex.
	SHA256      string `json:"sha256"`
	Destination string `json:"destination"`

	Action string `json:"action,omitempty"`
	// Traceparent is the span that the order is given in, as W3C's Trace Context
	// writes it. It is for traces alone; empty: it is not traced.
	Traceparent string `json:"traceparent,omitempty"`
	// Attempt is how often this node was given this revision by the rollout,
	// from 2 on; 0 is the first time. Agents need not know.
	Attempt int `json:"attempt,omitempty"`
	// Drift is what to do about a file that somebody else changed: DriftRestore,
	// or empty, which leaves it. An agent that does not know it leaves it.
	Drift string `json:"drift,omitempty"`
	// Requires are features that an agent must know to carry the entry out: one
	// that does not know them all answers failed.
	Requires []string `json:"requires,omitempty"`
	// Configs are the configs, this one among them, whose entries for the node
	// belong together: they have one order and were written in one transaction,
	// and the node applies all of them or none. Empty: the entry stands alone.
	Configs []string `json:"configs,omitempty"`
	// Mode is the file's permission in octal, such as "0640"; "" is "0644".
	Mode     string   `json:"mode,omitempty"`
	Owner    string   `json:"owner,omitempty"`
	Group    string   `json:"group,omitempty"`
	Validate *Command `json:"validate,omitempty"`
	Reload   *Command `json:"reload,omitempty"`
	Healthy  *Command `json:"healthy,omitempty"`
	// Secrets are put into the content by the node: it is in the form of
	// package internal/secrets, and SHA256 and Size are of that form.
	Secrets []Secret `json:"secrets,omitempty"`
	// Target writes the config, in place of the agent; nil: the agent does.
	Target *Target `json:"target,omitempty"`
}

// Target is a plugin of the agent that writes a config to a machine without one.
type Target struct {
	// Name is that of a plugin block of the agent's config file.
	Name string `json:"name"`
	// Config is the spec's block; what it leaves out the agent's own block says.
	Config json.RawMessage `json:"config,omitempty"`
	// Meta is the node's metadata when the rollout was planned.
	Meta map[string]string `json:"meta,omitempty"`
	// Fenced: whoever comes after this holder does not wait, because the plugin refuses
	// older orders itself.
	Fenced bool `json:"fenced,omitempty"`
}

// Secret names a value that the node reads by itself: from the Consul key
// ConsulKey, or else from the environment variable Env of its agent.
type Secret struct {
	Name      string `json:"name"`
	Version   string `json:"version,omitempty"`
	ConsulKey string `json:"consul_key,omitempty"`
	Env       string `json:"env,omitempty"`
}

// Command is a program that an agent runs: no shell, argv as it stands.
// "${staged}" and "${destination}" in an argument stand for the paths of the
// staged copy and of the file.
type Command struct {
	Argv []string `json:"argv"`
	// Timeout in seconds; 0 is the agent's default of 30.
	Timeout float64 `json:"timeout,omitempty"`
}

// Results of an actual entry.
const (
	// ResultApplied: the file stands at the revision and is healthy.
	ResultApplied = "applied"
	// ResultFailed: it could not be applied; the last good file stands.
	ResultFailed = "failed"
	// ResultRolledBack: a restore was asked for and is done.
	ResultRolledBack = "rolled_back"
	// ResultRefused: the order was older than one accepted before.
	ResultRefused = "refused"
)

// Actual is what a node has of a config, at actual/<config>/<bucket>/<node>.
type Actual struct {
	Version int    `json:"version"`
	Node    string `json:"node"`
	Config  string `json:"config"`
	// Revision, SHA256: what stands on disk now; empty where no file stands.
	Revision string `json:"revision"`
	SHA256   string `json:"sha256,omitempty"`
	// Order answered. For ResultRefused it is the mark that refused, and
	// Refused the order that was refused.
	orchestrator.Order
	Refused *orchestrator.Order `json:"refused,omitempty"`
	Rollout string              `json:"rollout,omitempty"`
	Result  string              `json:"result"`
	Error   string              `json:"error,omitempty"`
	// Output is the bounded output of the command that failed.
	Output string `json:"output,omitempty"`
	// Previous is the revision that a restore of Rollout would bring back;
	// empty where there was no file.
	Previous string `json:"previous,omitempty"`
	// Drift: what stands is not what the last order left; nil: it is, as far as is
	// known. Restored: it was put back since that order.
	Drift    *Drift    `json:"drift,omitempty"`
	Restored *Restored `json:"restored,omitempty"`
	// Waiting says why the newest entry is not carried out yet, where it is one
	// of several that belong together and not all of them are there. The rest
	// answers the order before it, and Result is empty where there was none.
	Waiting string    `json:"waiting,omitempty"`
	Time    time.Time `json:"time"`
	Agent   string    `json:"agent,omitempty"`
	// Instance is the state folder that the answer comes from: a machine that
	// was set up anew under the same name has another one. Empty: not known.
	Instance string `json:"instance,omitempty"`
}

// ErrNewer is returned by Decode for a record of a later version.
type ErrNewer struct {
	Key     string
	Version int
}

func (e *ErrNewer) Error() string {
	return fmt.Sprintf("%s was written by a newer aimlock (record version %d, this one reads up to %d): upgrade this aimlock", e.Key, e.Version, Version)
}

// Decode reads the record at key into v. It refuses what is too large, is not
// JSON, or is of a later version; the error names the key and never the value.
func Decode(key string, b []byte, v any) error {
	if len(b) > MaxSize {
		return fmt.Errorf("%s: %d bytes is too large for a record (at most %d)", key, len(b), MaxSize)
	}
	// A newer record may not decode, so that its version is read first; what
	// this version wrote begins with it.
	if !bytes.HasPrefix(b, []byte(begin)) {
		var head struct {
			Version int `json:"version"`
		}
		if err := json.Unmarshal(b, &head); err != nil {
			return fmt.Errorf("%s: not a record of aimlock: %d bytes that are not a JSON object", key, len(b))
		}
		if head.Version > Version {
			return &ErrNewer{Key: key, Version: head.Version}
		}
	}
	// With these options it reads what encoding/json reads, in a fourth of the
	// time. That one says what is wrong, and has the last word.
	if fastjson.Unmarshal(b, v, asEncodingJSON) == nil {
		return nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: not a record of aimlock: %w", key, err)
	}
	return nil
}

var asEncodingJSON = fastv1.DefaultOptionsV1() //nolint:gochecknoglobals // made once, and only read

// Encode is Decode's inverse. Records hold nothing that cannot be encoded, so
// a failure is a defect of the caller and panics.
func Encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("records: %T cannot be encoded: %v", v, err))
	}
	return b
}
