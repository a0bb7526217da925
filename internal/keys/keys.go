// Package keys is the layout of aimlock's data in Consul's KV store. Every key
// that aimlock reads or writes is made here, so that this file is the whole
// list. It imports nothing of the rest.
package keys

import (
	"fmt"
	"hash/fnv"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// DefaultPrefix stands before every key of aimlock unless -prefix or
// AIMLOCK_PREFIX say otherwise.
const DefaultPrefix = "aimlock/"

// Buckets is how many folders actual/<config>/ is spread over, so that a
// watcher that wakes reads 1/Buckets of the fleet and not all of it.
const Buckets = 64

// Prefix is the configurable beginning of all keys. It is empty or ends in a
// slash; make one with New.
type Prefix string

// New returns p with exactly one slash at its end and none at its start. An
// empty p is DefaultPrefix.
func New(p string) (Prefix, error) {
	if p == "" {
		return DefaultPrefix, nil
	}
	p = strings.Trim(p, "/")
	if p == "" {
		return "", fmt.Errorf("prefix is only slashes: give a name such as %q", DefaultPrefix)
	}
	for _, seg := range strings.Split(p, "/") {
		if seg == "" || seg == "." || seg == ".." {
			return "", fmt.Errorf("prefix %q has an empty or a dot segment: give a path such as %q", p, DefaultPrefix)
		}
	}
	return Prefix(p + "/"), nil
}

// Escape makes one key segment of a name: a slash in it becomes %2F.
func Escape(name string) string { return url.PathEscape(name) }

// Unescape undoes Escape. What is not an escaped name is returned as it is:
// people can write any key.
func Unescape(seg string) string {
	if s, err := url.PathUnescape(seg); err == nil {
		return s
	}
	return seg
}

func (p Prefix) join(parts ...string) string { return string(p) + strings.Join(parts, "/") }

// under is what a key has after a folder: it is asked of every key of a sweep, and
// makes no text.
func (p Prefix) under(folder, key string) (rest string, ok bool) {
	if rest, ok = strings.CutPrefix(key, string(p)); !ok {
		return "", false
	}
	return strings.CutPrefix(rest, folder)
}

// Epoch is raised only by `aimlock recover`.
func (p Prefix) Epoch() string { return p.join("epoch") }

// Lock is the key of the lock called name. A name that holds a slash is a
// whole key already, so that locks of other tools can be named; a slash at its
// start is for a key that has no other.
func (p Prefix) Lock(name string) string {
	if strings.Contains(name, "/") {
		return strings.TrimPrefix(name, "/")
	}
	return p.join("locks", Escape(name))
}

// Locks is the folder of all locks that aimlock takes.
func (p Prefix) Locks() string { return p.join("locks") + "/" }

// LockName is the inverse of Lock: the short name of a key under Locks, and
// the whole key elsewhere. own tells which it was.
func (p Prefix) LockName(key string) (name string, own bool) {
	if rest, ok := p.under("locks/", key); ok && rest != "" && !strings.Contains(rest, "/") {
		return Unescape(rest), true
	}
	if !strings.Contains(key, "/") {
		return "/" + key, false
	}
	return key, false
}

// Progress is the holder's progress record, rewritten as work is done.
func (p Prefix) Progress(name string) string { return p.join("progress", Escape(name)) }

// Fence is what the last end of the lock leaves to the next holder.
func (p Prefix) Fence(name string) string { return p.join("fence", Escape(name)) }

// Writes changes whenever the outcome of a holder's write is not known. Every
// fenced write rests on it, so that none which is late can land any more.
func (p Prefix) Writes(name string) string { return p.join("writes", Escape(name)) }

// Request asks the holder to let go.
func (p Prefix) Request(name string) string { return p.join("requests", Escape(name)) }

// Approval lets the named holder's lock be broken.
func (p Prefix) Approval(name string) string { return p.join("approvals", Escape(name)) }

// besideFolders hold the records that stand beside a lock and that its verdict
// or what is done about it may rest on.
var besideFolders = []string{"progress", "fence", "requests", "approvals", "silences", "observed"}

// Beside are the folders of the records beside all locks: small, one or a few
// for each lock.
func (p Prefix) Beside() []string {
	out := make([]string, len(besideFolders))
	for i, f := range besideFolders {
		out[i] = p.join(f) + "/"
	}
	return out
}

// BesideOf is the name of the lock that a key of one of those folders is about.
func (p Prefix) BesideOf(key string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(key, string(p))
	if !ok {
		return "", false
	}
	folder, rest, _ := strings.Cut(rest, "/")
	if rest == "" || !slices.Contains(besideFolders, folder) {
		return "", false
	}
	seg, _, _ := strings.Cut(rest, "/")
	return Unescape(seg), seg != ""
}

// RolloutID is the inverse of Rollout; ok is false for a rollout's parts.
func (p Prefix) RolloutID(key string) (id string, ok bool) {
	rest, ok := p.under("rollouts/", key)
	if !ok || rest == "" || strings.Contains(rest, "/") {
		return "", false
	}
	return Unescape(rest), true
}

// Requests is the folder of all requests.
func (p Prefix) Requests() string { return p.join("requests") + "/" }

// Approvals is the folder of all approvals.
func (p Prefix) Approvals() string { return p.join("approvals") + "/" }

// Breaks is the folder of a lock's breaks.
func (p Prefix) Breaks(name string) string { return p.join("breaks", Escape(name)) + "/" }

// BreaksRoot is the folder of all locks' breaks.
func (p Prefix) BreaksRoot() string { return p.join("breaks") + "/" }

// Break is one attempt to break the hold (epoch, token) of a lock.
func (p Prefix) Break(name string, epoch, token uint64, attempt int) string {
	return p.Breaks(name) + fmt.Sprintf("%d-%d-%d", epoch, token, attempt)
}

// Budget counts a policy's automatic breaks in its window.
func (p Prefix) Budget(policy string) string { return p.join("budgets", Escape(policy)) }

// Observed is what one observer remembers of a lock.
func (p Prefix) Observed(name, observer string) string {
	return p.ObservedAll(name) + Escape(observer)
}

// ObservedAll is the folder of all observers of a lock.
func (p Prefix) ObservedAll(name string) string { return p.join("observed", Escape(name)) + "/" }

// Policies is the folder of what says which policies are in force.
func (p Prefix) Policies() string { return p.join("policies") + "/" }

// ObservedRoot is the folder of all that is observed.
func (p Prefix) ObservedRoot() string { return p.join("observed") + "/" }

// ObservedOf is the name of the lock that a key under observed/ is about.
func (p Prefix) ObservedOf(key string) (name string, ok bool) {
	if _, ok := p.under("observed/", key); !ok {
		return "", false
	}
	return p.BesideOf(key)
}

// PolicyActive holds hash and version of the policies in force.
func (p Prefix) PolicyActive() string { return p.join("policies", "active") }

// PolicySuspended is the switch that stops all automatic breaking.
func (p Prefix) PolicySuspended() string { return p.join("policies", "suspended") }

// PolicyVersion is one application of policies: what was applied, by whom.
// The serial is padded, so that keys sort as the serials do.
func (p Prefix) PolicyVersion(serial uint64) string {
	return p.PolicyVersions() + fmt.Sprintf("%010d", serial)
}

// PolicyVersions is the folder of the policies that were applied.
func (p Prefix) PolicyVersions() string { return p.join("policies", "versions") + "/" }

// Silence stops the breaking of one lock until it ends.
func (p Prefix) Silence(name string) string { return p.Silences() + Escape(name) }

// Silences is the folder of all silences.
func (p Prefix) Silences() string { return p.join("silences") + "/" }

// ConfigsRoot is the folder of all contents: its subfolders name the configs
// that there are, and it changes only when a revision is published or dropped.
func (p Prefix) ConfigsRoot() string { return p.join("configs") + "/" }

// ConfigFolder is the folder of all revisions of one config.
func (p Prefix) ConfigFolder(config string) string { return p.join("configs", Escape(config)) + "/" }

// Config is the folder of the chunks of one revision's content.
func (p Prefix) Config(config, sha256 string) string {
	return p.join("configs", Escape(config), sha256) + "/"
}

// ConfigChunk is chunk n, from 0, of one revision's content.
func (p Prefix) ConfigChunk(config, sha256 string, n int) string {
	return p.Config(config, sha256) + fmt.Sprintf("%06d", n)
}

// Desired is what node shall have of config.
func (p Prefix) Desired(config, node string) string { return p.DesiredAll(config) + Escape(node) }

// DesiredAll is the folder of all nodes' desired entries of config.
func (p Prefix) DesiredAll(config string) string { return p.join("desired", Escape(config)) + "/" }

// DesiredRoot is the folder of all configs' desired entries.
func (p Prefix) DesiredRoot() string { return p.join("desired") + "/" }

// Actual is what node has of config.
func (p Prefix) Actual(config, node string) string {
	return p.ActualBucket(config, Bucket(node)) + Escape(node)
}

// ActualBucket is one bucket of a config's actual entries.
func (p Prefix) ActualBucket(config string, bucket int) string {
	return p.ActualAll(config) + fmt.Sprintf("%02d", bucket) + "/"
}

// ActualAll is the folder of all actual entries of config.
func (p Prefix) ActualAll(config string) string { return p.join("actual", Escape(config)) + "/" }

// ActualRoot is the folder of all configs' actual entries.
func (p Prefix) ActualRoot() string { return p.join("actual") + "/" }

// Bucket is the folder under actual/<config>/ that node's entry stands in. It
// never changes for a name: agents and orchestrators of different versions
// must agree on it.
func Bucket(node string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	return int(h.Sum32() % Buckets)
}

// Rollout is the header of one rollout: spec, state and counts.
func (p Prefix) Rollout(id string) string { return p.join("rollouts", Escape(id)) }

// RolloutPart is chunk n of a part (such as "plan") of a rollout that does not
// fit into one value.
func (p Prefix) RolloutPart(id, part string, n int) string {
	return p.Rollout(id) + "/" + part + "/" + fmt.Sprintf("%06d", n)
}

// RolloutEvents is the folder of a rollout's log, in chunks named by the number of
// their first event.
func (p Prefix) RolloutEvents(id string) string { return p.Rollout(id) + "/events/" }

// RolloutCommand is the last order of an operator to whoever drives the rollout.
func (p Prefix) RolloutCommand(id string) string { return p.Rollout(id) + "/command" }

// Queued is the record of a rollout that waits for its turn. Its session is no
// holder's: the key is no lock.
func (p Prefix) Queued(id string) string { return p.Queue() + Escape(id) }

// Queue is the folder of the rollouts that wait for their turn.
func (p Prefix) Queue() string { return p.join("queue") + "/" }

// IsQueued tells whether a key is a record of the queue.
func (p Prefix) IsQueued(key string) bool {
	_, ok := p.under("queue/", key)
	return ok
}

// Rollouts is the folder of all rollouts.
func (p Prefix) Rollouts() string { return p.join("rollouts") + "/" }

// LastSegment is the unescaped name at the end of a key.
func LastSegment(key string) string {
	return Unescape(key[strings.LastIndexByte(key, '/')+1:])
}

// ParseBreak reads the last segment of a break's key.
func ParseBreak(key string) (epoch, token uint64, attempt int, ok bool) {
	parts := strings.Split(LastSegment(key), "-")
	if len(parts) != 3 {
		return 0, 0, 0, false
	}
	epoch, err1 := strconv.ParseUint(parts[0], 10, 64)
	token, err2 := strconv.ParseUint(parts[1], 10, 64)
	attempt, err3 := strconv.Atoi(parts[2])
	return epoch, token, attempt, err1 == nil && err2 == nil && err3 == nil
}

// CheckName refuses a name of a lock, config or node that cannot stand in a
// key or in a file's path. what names it in the error.
func CheckName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s name is empty", what)
	case len(name) > 200:
		return fmt.Errorf("%s name of %d bytes is too long: 200 bytes at most", what, len(name))
	case name == "." || name == ".." || strings.Contains(name, "/") || strings.Contains(name, "\\"):
		return fmt.Errorf("%s name %q is not allowed: it must be one path segment, without a slash and not . or ..", what, name)
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f {
			return fmt.Errorf("%s name %q is not allowed: it holds a control character", what, name)
		}
	}
	return nil
}
