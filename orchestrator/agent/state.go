package agent

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// stateVersion is written into every state file.
const stateVersion = 1

// phase says how far the order at the mark has come. It only moves forward,
// and each step is on disk before what follows it is done:
//
//	accepted  the mark stands; nothing was changed for it
//	staged    Prev, the snapshot and their copies stand; the rename may or may
//	          not have happened: the disk tells
//	failing   the new file is to be taken back, and Report says why
//	done      Report is the answer to the mark
type phase string

const (
	phaseAccepted phase = "accepted"
	phaseStaged   phase = "staged"
	phaseFailing  phase = "failing"
	phaseDone     phase = "done"
)

// file is what stood, or shall stand, at a destination.
type file struct {
	Destination string `json:"destination"`
	Exists      bool   `json:"exists"`
	SHA256      string `json:"sha256,omitempty"`
	Size        int64  `json:"size,omitempty"`
	Mode        uint32 `json:"mode,omitempty"`
	UID         int    `json:"uid,omitempty"`
	GID         int    `json:"gid,omitempty"`
	// Via, of state.Managed: the target that it was handed to. It stands on another
	// machine.
	Via string `json:"via,omitempty"`
	// planted: anybody could have made it, and whose it is says nothing.
	planted bool
}

// same reports whether two files have the same content and mode.
func (f file) same(g file) bool {
	return f.Exists == g.Exists && (!f.Exists || f.SHA256 == g.SHA256 && f.Mode == g.Mode)
}

// revision names a file's content; empty where there is no file.
func (f file) revision() string {
	if !f.Exists {
		return ""
	}
	return f.SHA256[:12]
}

// snapshot is what stood before a rollout first touched the node.
type snapshot struct {
	Rollout string `json:"rollout"`
	File    file   `json:"file"`
	// Gone: the copy of the content was dropped, for newer rollouts'.
	Gone bool `json:"gone,omitempty"`
}

// How many snapshots keep their content, and how many keep their names, so
// that a restore can tell "never touched" from "too long ago".
const (
	keepSnapshots = 4
	keepNames     = 64
)

// state is what a node remembers of one config: the fence's mark and the
// journal of the order at the mark. It is read from disk each time the
// config's lock is taken, and never kept in memory between.
type state struct {
	Version int    `json:"version"`
	Config  string `json:"config"`
	// Mark is the highest order ever accepted. Invariant: it never decreases.
	Mark  orchestrator.Order `json:"mark"`
	Phase phase              `json:"phase"`
	// Desired is the entry at the mark; nil where the mark was recovered.
	Desired *records.Desired `json:"desired,omitempty"`
	// Prev is what stood before the order at the mark was staged: the last
	// good file. Its content has a copy while Phase is staged or failing.
	Prev *file `json:"prev,omitempty"`
	// Snapshots, oldest first.
	Snapshots []snapshot `json:"snapshots,omitempty"`
	// Changes: the order at the mark, one of a group's, changes the file. Set
	// with phase staged.
	Changes bool `json:"changes,omitempty"`
	// Stays is the verdict on a group's order, with phase done: its files stay.
	// Where it is false they were taken back, or never touched.
	Stays bool `json:"stays,omitempty"`
	// Managed is the file as the last order that went well left it; nil where it
	// left none, or that was before this was kept.
	Managed *file `json:"managed,omitempty"`
	// Waiting is the newest entry where it waits for others of its group.
	Waiting *waiting `json:"waiting,omitempty"`
	// Report answers the mark.
	Report *records.Actual `json:"report,omitempty"`
	// Refused is the last order refused, so that each is reported once.
	Refused *orchestrator.Order `json:"refused,omitempty"`
	// Recovered names the rollout that had touched this node when its state
	// was lost: what stood before that one is not known.
	Recovered string `json:"recovered,omitempty"`
	vault
}

// waiting is an entry of a group that is not whole.
type waiting struct {
	orchestrator.Order
	Why string `json:"why"`
}

func (s *state) snapshot(rollout string) *snapshot {
	for i := range s.Snapshots {
		if s.Snapshots[i].Rollout == rollout {
			return &s.Snapshots[i]
		}
	}
	return nil
}

// addSnapshot keeps f as what stood before rollout, and forgets the oldest.
func (s *state) addSnapshot(rollout string, f file) {
	s.Snapshots = append(s.Snapshots, snapshot{Rollout: rollout, File: f})
	if n := len(s.Snapshots) - keepNames; n > 0 {
		s.Snapshots = append([]snapshot(nil), s.Snapshots[n:]...)
	}
	for i := range len(s.Snapshots) - keepSnapshots {
		s.Snapshots[i].Gone = s.Snapshots[i].File.Exists
	}
}

// blobs are the contents that the state refers to.
func (s *state) blobs() map[string]bool {
	keep := map[string]bool{}
	if s.Prev != nil && s.Prev.Exists {
		keep[s.Prev.SHA256] = true
	}
	for _, sn := range s.Snapshots {
		if sn.File.Exists && !sn.Gone {
			keep[sn.File.SHA256] = true
		}
	}
	return keep
}

// CorruptError is a state file that cannot be read. The node accepts nothing
// for the config until its mark is known again.
type CorruptError struct {
	Path string
	Err  error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("state file %s is damaged (%v)", e.Path, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// NewerError is a state file of a later version. It is whole, and its mark may be
// above everything that stands in Consul: nothing is written until an aimlock runs
// that can read it.
type NewerError struct {
	Path    string
	Version int
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("state file %s was written by a newer aimlock (version %d, this one reads up to %d): upgrade this aimlock; nothing is written until then", e.Path, e.Version, stateVersion)
}

// errNoState: nothing is remembered of the config.
var errNoState = errors.New("no state")

const (
	stateFile = "state.json"
	lockFile  = "lock"
	blobDir   = "blobs"
)

// maxState bounds what is read: a state is a few KB.
const maxState = 4 << 20

// loadState reads the state of config ("": whichever it is of) in dir. The
// error is errNoState, a
// *CorruptError, or of the file system.
func loadState(dir, config string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoState
	}
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	defer func() { _ = f.Close() }()
	b, err := readBounded(f, maxState)
	if err != nil {
		return nil, &CorruptError{Path: path, Err: err}
	}
	s, err := parseState(b, config)
	if newer, ok := errors.AsType[*NewerError](err); ok {
		newer.Path = path
		return nil, newer
	}
	if err != nil {
		return nil, &CorruptError{Path: path, Err: err}
	}
	return s, nil
}

// parseState checks everything that later code relies on. A state file ends in
// a line with the CRC of what stands before it: a JSON that was cut or edited
// by a failing disk may still parse.
func parseState(b []byte, config string) (*state, error) {
	body, sum, ok := bytes.Cut(b, []byte("\n#crc32c "))
	if !ok {
		return nil, errors.New("its end is missing")
	}
	want, err := strconv.ParseUint(strings.TrimSpace(string(sum)), 16, 32)
	if err != nil || uint32(want) != checksum(body) {
		return nil, errors.New("its checksum does not match")
	}
	// Of a later version nothing else need be as it is in this one.
	var head struct {
		Version int `json:"version"`
	}
	if json.Unmarshal(body, &head) == nil && head.Version > stateVersion {
		return nil, &NewerError{Version: head.Version}
	}
	s := &state{}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(s); err != nil {
		return nil, fmt.Errorf("not JSON of a state: %w", err)
	}
	if s.Version < 1 {
		return nil, fmt.Errorf("version %d, this aimlock reads version %d", s.Version, stateVersion)
	}
	if config != "" && s.Config != config || s.Config == "" {
		return nil, fmt.Errorf("it is the state of config %q", s.Config)
	}
	switch s.Phase {
	case phaseAccepted:
	case phaseDone:
	case phaseStaged:
		if s.Prev == nil || s.Desired == nil {
			return nil, errors.New("staged, but without what stood before")
		}
	case phaseFailing:
		if s.Prev == nil || s.Desired == nil || s.Report == nil {
			return nil, errors.New("failing, but without what stood before")
		}
	default:
		return nil, fmt.Errorf("phase %q is unknown", s.Phase)
	}
	if s.Desired != nil && s.Desired.Compare(s.Mark) != 0 {
		return nil, errors.New("its entry is not the one at the mark")
	}
	if s.Desired != nil {
		if err := checkGroup(s.Config, s.Desired.Configs); err != nil {
			return nil, err
		}
	}
	files := []*file{s.Prev}
	for i := range s.Snapshots {
		files = append(files, &s.Snapshots[i].File)
	}
	for _, f := range files {
		if f != nil && f.Exists && !isSHA256(f.SHA256) {
			return nil, fmt.Errorf("SHA-256 %q", f.SHA256)
		}
	}
	return s, nil
}

func (s *state) encode() ([]byte, error) {
	s.Version = stateVersion
	body, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(body, "\n#crc32c %08x\n", checksum(body)), nil
}

// isSHA256 reports whether s is a SHA-256 in lower-case hex, and so a safe
// file name too.
func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && strings.ToLower(s) == s
}
