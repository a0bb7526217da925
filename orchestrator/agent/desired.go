package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

// chunkSize is the most that one chunk of a config may hold.
const chunkSize = 256 << 10

// checkDesired refuses an entry that cannot be carried out.
func checkDesired(d *records.Desired) error {
	if _, err := cleanDestination(d.Destination); err != nil {
		return err
	}
	switch {
	case !isSHA256(d.SHA256):
		return errors.New("the entry's sha256 is not a SHA-256 in lower-case hex")
	case d.Size < 0 || d.Size > maxFile:
		return fmt.Errorf("a file of %d bytes is more than the %d that an agent takes", d.Size, maxFile)
	case d.Chunks < 0 || d.Chunks > maxFile/chunkSize*4:
		return fmt.Errorf("%d chunks are more than a file of %d bytes can have", d.Chunks, d.Size)
	case d.Chunks == 0 && d.Size > 0:
		return fmt.Errorf("the entry has %d bytes in 0 chunks", d.Size)
	}
	return nil
}

// features are those that this agent knows.
var features = []string{records.FeatureGroups, records.FeatureSecrets, records.FeatureTargets, records.FeatureFencedTargets}

// checkFeatures refuses what this agent would carry out in part.
func checkFeatures(d *records.Desired) error {
	for _, f := range d.Requires {
		if !slices.Contains(features, f) {
			return fmt.Errorf("the entry requires %.60q, which this agent does not know: upgrade it", f)
		}
	}
	return nil
}

// fetchChunks reads a config's content, consistently, and no more of it than
// the entry says there is.
func fetchChunks(ctx context.Context, c *consulkv.Client, prefix keys.Prefix, config string, d *records.Desired) ([]byte, error) {
	content := make([]byte, 0, d.Size)
	for n := range d.Chunks {
		key := prefix.ConfigChunk(config, d.SHA256, n)
		kv, err := c.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		if kv == nil {
			return nil, fmt.Errorf("content of revision %s: chunk %d of %d is missing (%s)", d.Revision, n+1, d.Chunks, key)
		}
		if int64(len(content)+len(kv.Value)) > d.Size {
			return nil, fmt.Errorf("content of revision %s has more than the %d bytes that its entry says (%s)", d.Revision, d.Size, key)
		}
		content = append(content, kv.Value...)
	}
	return content, nil
}

// Content reads the content that an entry names, with placeholders in place of
// secrets, and checks it against the entry.
func Content(ctx context.Context, c *consulkv.Client, prefix keys.Prefix, config string, d *records.Desired) ([]byte, error) {
	if err := checkDesired(d); err != nil {
		return nil, err
	}
	b, err := fetchChunks(ctx, c, prefix, config, d)
	if err != nil {
		return nil, err
	}
	if sum := sum256(b); int64(len(b)) != d.Size || sum != d.SHA256 {
		return nil, fmt.Errorf("content of revision %s has %d bytes and the SHA-256 %s, its entry says %d and %s", d.Revision, len(b), sum, d.Size, d.SHA256)
	}
	return b, nil
}

// warnShared tells of another config of this node with a destination of theirs:
// each has a fence of its own, so neither protects the file from the other.
func warnShared(ws ...*work) {
	mine, configs := map[string]*work{}, map[string]bool{}
	for _, w := range ws {
		configs[w.config] = true
		if clean, err := cleanDestination(w.st.Desired.Destination); err == nil && w.st.Desired.Target == nil {
			mine[clean] = w
		}
	}
	for _, st := range states(ws[0].stateDir) {
		if st.err != nil || configs[st.Config] || st.Desired == nil || st.Desired.Target != nil {
			continue
		}
		if clean, err := cleanDestination(st.Desired.Destination); err == nil && mine[clean] != nil {
			ws[0].log.Warn("two configs have one destination: they overwrite each other", "config", mine[clean].config, "other", st.Config, "destination", clean)
		}
	}
}

// stateOf is one config's state as it stands, or why it cannot be read.
type stateOf struct {
	*state
	dir string
	err error
}

// states reads the states of all configs in a state folder, without locks:
// each was renamed into place whole.
func states(stateDir string) []stateOf {
	ents, err := os.ReadDir(filepath.Join(stateDir, "configs"))
	if err != nil {
		return nil
	}
	var all []stateOf
	for _, e := range ents {
		dir := filepath.Join(stateDir, "configs", e.Name())
		st, err := loadState(dir, "")
		if errors.Is(err, errNoState) {
			continue
		}
		all = append(all, stateOf{state: st, dir: dir, err: err})
	}
	return all
}
