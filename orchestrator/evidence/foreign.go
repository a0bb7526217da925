package evidence

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
)

// Semaphore is a lock with several slots, as consul/api keeps it and `consul
// lock -n` uses it: a list of the sessions that hold a slot at <prefix>/.lock,
// which no session holds, and one key for each contender at <prefix>/<session>.
// A contender that dies stays in the list until the next one prunes it.
type Semaphore struct {
	// Limit is the number of slots that the list itself names.
	Limit int
	// Slots are the contenders that hold one, Waiting those that hold none,
	// both by their keys.
	Slots, Waiting []*Snapshot
	// Stale says of each entry that nobody stands behind what it is.
	Stale []string
	// Why says why the list cannot be trusted; then nobody is known to hold a
	// slot.
	Why string
}

// Slot is what the key of a contender for a semaphore is.
type Slot struct {
	// Of is the semaphore's key, <prefix>/.lock.
	Of string
	// Holds: it is in the list of holders, and not only waiting.
	Holds bool
}

// maxHolders bounds the list of a semaphore's holders.
const maxHolders = 10_000

// decodeSemaphore reads the value of a semaphore's <prefix>/.lock.
func decodeSemaphore(b []byte) (limit int, holders []string, err error) {
	if len(b) > records.MaxSize {
		return 0, nil, fmt.Errorf("its value of %d bytes is too large for a list of holders", len(b))
	}
	var v struct {
		Limit   int
		Holders map[string]bool
	}
	if len(b) == 0 {
		return 0, nil, errors.New("its value is empty, and no list of holders")
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return 0, nil, errors.New("its value is not the list of holders that consul/api keeps")
	}
	switch {
	case v.Limit < 1:
		return 0, nil, fmt.Errorf("its list of holders names a limit of %d", v.Limit)
	case len(v.Holders) > maxHolders:
		return 0, nil, fmt.Errorf("its list has %d holders: %d are shown at most", len(v.Holders), maxHolders)
	}
	for id := range v.Holders {
		holders = append(holders, id)
	}
	slices.Sort(holders)
	return v.Limit, holders, nil
}

// LockInfo is what Terraform says of itself beside a lock: <path>/.lockinfo.
type LockInfo struct {
	ID        string
	Operation string
	Info      string
	Who       string // user@host
	Version   string
	Created   time.Time
	Path      string
}

// decodeLockInfo reads Terraform's info, if it is that of a session: it writes
// the session into it, and a crash leaves it to the next holder.
func decodeLockInfo(b []byte, session string) (*LockInfo, error) {
	if len(b) > records.MaxSize {
		return nil, fmt.Errorf("the lock info of %d bytes is too large", len(b))
	}
	var v LockInfo
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, errors.New("the lock info beside it is not Terraform's")
	}
	if session == "" || v.ID != session && !strings.Contains(v.Info, session) {
		return nil, errors.New("the lock info beside it is that of an earlier holder")
	}
	return &v, nil
}

// user and host are the two parts of Who.
func (i *LockInfo) user() string {
	user, _, _ := strings.Cut(i.Who, "@")
	return user
}

func (i *LockInfo) host() string {
	_, host, _ := strings.Cut(i.Who, "@")
	return host
}

// Operation is what the holder says that it does, or what its session is
// called: anything may stand in it.
func (s *Snapshot) Operation() string {
	switch {
	case s.Holder != nil:
		return s.Holder.Operation
	case s.Info != nil && s.Info.Operation != "":
		return s.Info.Operation
	case s.Session != nil:
		return s.Session.Name
	}
	return ""
}

// takeInfo decodes Terraform's info beside the lock, where it has one.
func (s *Snapshot) takeInfo(info *api.KVPair) {
	if info == nil {
		return
	}
	i, err := decodeLockInfo(info.Value, s.SessionID())
	if err != nil {
		s.HolderWhy = err.Error()
		return
	}
	s.Info = i
}

// Names of sessions by which their tools are known, wherever they hold a key: by
// LockWith of physical/consul/consul.go of Vault, the commands lock of Consul, and
// manager/dedup.go of consul-template.
const (
	vaultSession          = "Vault Lock"
	consulLockSession     = "Consul lock for "
	consulTemplateSession = "Consul-Template"
)

// nameTool tells the tool by its session where the key did not.
func (s *Snapshot) nameTool() {
	if s.Tool != ToolUnknown || s.Session == nil {
		return
	}
	switch name := s.Session.Name; {
	case name == vaultSession:
		s.Tool = ToolVault
	case strings.HasPrefix(name, consulLockSession):
		s.Tool = ToolConsulLock
	case strings.HasPrefix(name, consulTemplateSession):
		s.Tool = ToolConsulTemplate
	}
}

// IsSemaphore reports whether a key is the list of a semaphore's holders.
func IsSemaphore(p *api.KVPair) bool {
	return p != nil && p.Flags == api.SemaphoreFlagValue && p.Session == "" && path.Base(p.Key) == lockBase
}

// semaphoreDir is the folder of the semaphore that a key belongs to.
func semaphoreDir(p *api.KVPair) (dir string, ok bool) {
	if p == nil || p.Flags != api.SemaphoreFlagValue {
		return "", false
	}
	dir, _ = path.Split(p.Key)
	return dir, dir != ""
}

// contenders are the keys of a semaphore, told apart.
type contenders struct {
	limit          int
	slots, waiting []string // keys
	stale          []string
	why            string
}

// tellApart finds out which contenders hold a slot. all are the keys of the
// semaphore's folder; partly, that there may be more.
func tellApart(dir string, all []*api.KVPair, partly bool) contenders {
	var c contenders
	var list *api.KVPair
	alive := map[string][]string{}
	for _, p := range all {
		switch {
		case p.Key == dir+lockBase && p.Session == "":
			list = p
		case p.Session == "":
			c.stale = append(c.stale, "the contender "+text.Clip(text.Printable(path.Base(p.Key)), 64)+" has no session any more")
		default:
			alive[p.Session] = append(alive[p.Session], p.Key)
		}
	}
	var holders []string
	if list == nil {
		c.why = "it has no list of holders"
	} else {
		var err error
		if c.limit, holders, err = decodeSemaphore(list.Value); err != nil {
			c.why = err.Error()
		}
	}
	if partly && c.why == "" {
		c.why = "the token may not read all contenders: it needs key:read on " + dir
	}
	for _, id := range holders {
		ks, ok := alive[id]
		switch {
		case ok:
			c.slots = append(c.slots, ks...)
			delete(alive, id)
		case !partly:
			c.stale = append(c.stale, "session "+text.Clip(text.Printable(id), 64)+" is in the list of holders, and is gone")
		}
	}
	for _, ks := range alive {
		c.waiting = append(c.waiting, ks...)
	}
	slices.Sort(c.slots)
	slices.Sort(c.waiting)
	slices.Sort(c.stale)
	return c
}
