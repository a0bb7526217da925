package agent

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/durable"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/secrets"
)

// Secrets are put into a content on the node, between its entry and the staged
// copy. The values are in the file, in the copies of the state folder and, for
// the time of one order, in memory: nowhere else. What the node reports is in
// terms of the content as it is in Consul, with placeholders: the SHA-256 of a
// file with a short password in it would let anybody try passwords.

// maxNodeSecrets bounds what an entry can make an agent read.
const maxNodeSecrets = 64

// vault is what the state of a config remembers of contents with secrets. The
// zero value is of a config that never had any.
type vault struct {
	// Begun: the config had secrets once. What is published is Public from then
	// on, and what else is told goes by Hidden.
	Begun bool `json:"begun,omitempty"`
	// Real is the SHA-256 of the file of the order at the mark, with its
	// secrets; empty where it has none. It is on disk before the rename.
	Real string `json:"real,omitempty"`
	// Hidden has, for the SHA-256 of each file with secrets that the node
	// keeps, that of its form in Consul.
	Hidden map[string]string `json:"hidden,omitempty"`
	// Public are SHA-256s that may be told although the config has secrets:
	// files without any, and what stands for files of which nothing is known.
	Public []string `json:"public,omitempty"`
}

// keepPublic bounds vault.Public.
const keepPublic = 2 * keepNames

func (v *vault) publish(sums ...string) {
	for _, s := range sums {
		if s != "" && !slices.Contains(v.Public, s) {
			v.Public = append(v.Public, s)
		}
	}
	if n := len(v.Public) - keepPublic; n > 0 {
		v.Public = slices.Clone(v.Public[n:])
	}
}

// secretive reports whether a file of the config may have secrets in it. The
// first time that it does, what was told before is no secret: it must be asked
// before the first report of an order with secrets is made.
func (s *state) secretive() bool {
	if s.Begun || s.Desired == nil || len(s.Desired.Secrets) == 0 {
		return s.Begun
	}
	s.Begun = true
	for _, sn := range s.Snapshots {
		s.publish(sn.File.SHA256)
	}
	if s.Report != nil {
		s.publish(s.Report.SHA256)
	}
	return true
}

// prints reports whether a command may come across secrets: those of the order
// at the mark, or of a file that may be put back.
func (s *state) prints() bool {
	if len(s.Desired.Secrets) > 0 || s.Real != "" {
		return true
	}
	for sum := range s.blobs() {
		if s.Hidden[sum] != "" {
			return true
		}
	}
	return false
}

// reveal makes what the order wants known where it has secrets: it brings the
// content and puts them in. The other orders it leaves as they are. It must
// come before anything is compared with p.want.
func (w *work) reveal(ctx context.Context, p *plan, content source) error {
	d := w.st.Desired
	if p.result != records.ResultApplied || len(d.Secrets) == 0 {
		if w.st.Real = ""; w.st.secretive() && p.result == records.ResultApplied {
			w.st.publish(d.SHA256)
		}
		return nil
	}
	form, err := w.fetch(ctx, d, content)
	if err != nil {
		return err
	}
	if w.values, err = w.readSecrets(ctx, d.Secrets); err != nil {
		return err
	}
	filled, err := secrets.Fill(form, w.values)
	if err != nil {
		return fmt.Errorf("revision %s: %w", d.Revision, err)
	}
	if len(filled) > maxFile {
		return fmt.Errorf("revision %s has %d bytes with its secrets, which is more than the %d that an agent takes", d.Revision, len(filled), maxFile)
	}
	if w.st.Hidden == nil {
		w.st.Hidden = map[string]string{}
	}
	p.content, p.want.SHA256, p.want.Size = filled, sum256(filled), int64(len(filled))
	w.st.Real, w.st.Hidden[p.want.SHA256] = p.want.SHA256, d.SHA256
	return nil
}

// unveil makes want the file that reveal once made for the order at the mark.
func (w *work) unveil(want *file) {
	if w.st.Real != "" && len(w.st.Desired.Secrets) > 0 {
		want.SHA256 = w.st.Real
	}
}

// readSecrets reads the values of all secrets; all that are missing are named.
func (w *work) readSecrets(ctx context.Context, list []records.Secret) (map[string][]byte, error) {
	if len(list) > maxNodeSecrets {
		return nil, fmt.Errorf("the entry has %d secrets, and %d is the most that an agent reads", len(list), maxNodeSecrets)
	}
	values := make(map[string][]byte, len(list))
	var missing []error
	for _, s := range list {
		v, err := w.secret(ctx, s)
		if unanswered(ctx, err) != nil {
			return nil, err
		}
		if err != nil {
			missing = append(missing, fmt.Errorf("secret %q: %w", s.Name, err))
		}
		values[s.Name] = v
	}
	return values, errors.Join(missing...)
}

// secret reads one value. Its errors name the key or the variable, and never
// the value.
func (f *fence) secret(ctx context.Context, s records.Secret) ([]byte, error) {
	if s.ConsulKey == "" {
		v, ok := os.LookupEnv(s.Env)
		if s.Env == "" || !ok {
			return nil, fmt.Errorf("the agent's environment has no variable %.128q: set it where the agent is started", s.Env)
		}
		return []byte(v), nil
	}
	if f.consul == nil {
		return nil, fmt.Errorf("key %.512q cannot be read: Consul is not asked", s.ConsulKey)
	}
	kv, err := f.consul.Get(ctx, s.ConsulKey)
	switch {
	case consulkv.KindOf(err) == consulkv.Denied:
		return nil, fmt.Errorf("this agent's token may not read the Consul key %.512q: it needs key:read on it", s.ConsulKey)
	case err != nil:
		return nil, err
	case kv == nil:
		return nil, fmt.Errorf("there is no Consul key %.512q, or this agent's token may not read it (key:read)", s.ConsulKey)
	}
	return kv.Value, nil
}

// meet makes the works of a group known to each other: the commands of one may
// print what is in the files of all.
func (g *group) meet() {
	for _, w := range g.ws {
		w.peers = g.ws
	}
}

// withheld stands where an output is not told.
const withheld = "(the output may hold secrets, and is not shown)"

// clean takes the secrets of the order at the mark out of what its commands
// print. Where they cannot be known any more, nothing of it is told.
func (w *work) clean(ctx context.Context) func(text []byte, cut bool) []byte {
	var with []*work
	for _, p := range append([]*work{w}, w.peers...) {
		if p.st.Desired != nil && p.st.secretive() && p.st.prints() {
			with = append(with, p)
		}
	}
	if len(with) == 0 {
		return nil
	}
	return func(text []byte, cut bool) []byte {
		if len(text) == 0 {
			return text
		}
		all := map[string][]byte{}
		for _, p := range with {
			values, err := p.values, error(nil)
			if values == nil {
				// A restore of, or after, a file with secrets has none: the
				// file's may have had other values than there are now.
				values, err = p.readSecrets(ctx, p.st.Desired.Secrets)
			}
			if err != nil || len(values) == 0 {
				return []byte(withheld)
			}
			for name, v := range values {
				all[p.config+"/"+name] = v
			}
		}
		return secrets.Redact(text, cut, all)
	}
}

// conceal makes a report tell what it may of files that may have secrets in
// them. Doing it again changes nothing.
func (w *work) conceal(rep *records.Actual) {
	if !w.st.secretive() || rep == nil {
		return
	}
	full := rep.SHA256
	if rep.SHA256 = w.told(full); rep.SHA256 != full {
		rep.Revision = revisionOf(rep.SHA256)
	} else {
		rep.Revision = w.told(rep.Revision)
	}
	rep.Previous = w.told(rep.Previous)
}

func revisionOf(sum string) string { return sum[:min(12, len(sum))] }

// told is what may be told in place of a SHA-256, or of its beginning: that of
// the form of a file with secrets, itself where it is no secret, and else
// something that says on this node only which file is meant.
func (w *work) told(sum string) string {
	if sum == "" || w.st.Desired != nil && strings.HasPrefix(w.st.Desired.SHA256, sum) {
		return sum
	}
	for whole, form := range w.st.Hidden {
		if strings.HasPrefix(whole, sum) {
			return form[:len(sum)]
		}
		if strings.HasPrefix(form, sum) {
			return sum
		}
	}
	for _, p := range w.st.Public {
		if strings.HasPrefix(p, sum) {
			return sum
		}
	}
	masked := w.mask(sum)
	w.st.publish(masked)
	return masked[:len(sum)]
}

// mask is a keyed digest of what is known as sum: of its revision's length, so
// that a SHA-256 and its beginning come to the same.
func (w *work) mask(sum string) string {
	key, err := nodeKey(w.stateDir)
	if err != nil {
		w.log.Warn("a checksum is not told", "config", w.config, "error", err)
		return strings.Repeat("0", sha256.Size*2)
	}
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(revisionOf(sum)))
	return hex.EncodeToString(h.Sum(nil))
}

// nodeKey is this node's own, made when it is first needed.
func nodeKey(stateDir string) ([]byte, error) {
	path := filepath.Join(stateDir, "mask.key")
	key, err := os.ReadFile(path)
	if err == nil && len(key) == sha256.Size {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key = make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails: crypto/rand
	return key, durable.WriteFile(path, key)
}

// forgetHidden drops what was remembered of files that the node keeps no more.
func (s *state) forgetHidden() {
	keep := s.blobs()
	keep[s.Real] = true
	for _, sn := range s.Snapshots {
		keep[sn.File.SHA256] = true
	}
	for sum := range s.Hidden {
		if !keep[sum] {
			delete(s.Hidden, sum)
		}
	}
}
