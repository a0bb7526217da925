package evidence

import (
	"context"
	"path"
	"strings"

	"github.com/hashicorp/consul/api"
)

// Tools that are told by what they leave in a lock's key.
const (
	ToolAimlock        = "aimlock"
	ToolConsulLock     = "consul-lock"
	ToolTerraform      = "terraform"
	ToolVault          = "vault"
	ToolConsulTemplate = "consul-template"
	ToolUnknown        = "unknown"
)

// What consul/api and Terraform call the keys of a lock under its prefix.
const (
	lockBase = ".lock"
	infoBase = ".lockinfo"
)

// toolOf tells which program made a lock, from where and how it stands. info
// is whether a key with Terraform's lock info stands beside it.
//
// Everything that uses the lock of consul/api marks its keys with the same flag,
// so that only names and neighbours tell the tools apart.
func toolOf(p *api.KVPair, info bool) string {
	switch p.Flags {
	case api.SemaphoreFlagValue:
		// consul lock -n: a holders list at <prefix>/.lock, and one key for
		// each contender.
		return ToolConsulLock
	case api.LockFlagValue:
	default:
		return ToolUnknown
	}
	dir, base := path.Split(p.Key)
	dir = strings.TrimSuffix(dir, "/")
	switch {
	case base == lockBase && info:
		return ToolTerraform
	case base == lockBase:
		return ToolConsulLock
	case base == "lock" && path.Base(dir) == "core":
		// coreLockPath of vault/core.go under the storage's path, vault/ by default,
		// which may be empty too (physical/consul/consul.go of Vault: NewConsulBackend,
		// LockWith).
		return ToolVault
	case (base == "lock" || base == "data") && path.Base(path.Dir(dir)) == "dedup":
		// data by manager/dedup.go of consul-template v0.41.
		return ToolConsulTemplate
	}
	return ToolUnknown
}

// InfoKey is the key beside a lock in which Terraform says who has it.
func InfoKey(key string) (string, bool) {
	if path.Base(key) != lockBase {
		return "", false
	}
	return strings.TrimSuffix(key, lockBase) + infoBase, true
}

// readInfo looks for Terraform's lock info beside a lock that is called as its
// locks are.
func (r *Reader) readInfo(ctx context.Context, s *Snapshot) error {
	info, ok := InfoKey(s.Key)
	if !ok || s.Pair.Flags == api.SemaphoreFlagValue {
		return nil
	}
	p, err := r.Consul.Get(ctx, info)
	if err != nil {
		return err
	}
	s.beside(p)
	return nil
}

// beside takes what stands beside a lock where Terraform keeps its info. Info
// that names the lock's own session says Terraform without the flag too: it is
// how a script, or another client, takes a lock that keeps Terraform out.
func (s *Snapshot) beside(info *api.KVPair) {
	s.Tool = toolOf(s.Pair, info != nil)
	if s.Tool == ToolTerraform {
		s.takeInfo(info)
		return
	}
	if info == nil || s.Pair.Flags == api.SemaphoreFlagValue {
		return
	}
	if i, err := decodeLockInfo(info.Value, s.SessionID()); err == nil {
		s.Tool, s.Info, s.HolderWhy = ToolTerraform, i, ""
	}
}

// readSemaphore reads one key of a semaphore with all that stands around it.
func (r *Reader) readSemaphore(ctx context.Context, key string) (*Snapshot, error) {
	dir, _ := path.Split(key)
	sweep := r.NewSweep([]string{dir})
	list, err := sweep.Read(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.Key == key {
			return s, nil
		}
	}
	// It went away meanwhile, or is a contender that is left without a session.
	pair, err := r.Consul.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return r.complete(ctx, key, key, pair)
}
