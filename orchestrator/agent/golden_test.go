package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/golden"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// goldenState has every field, with what parseState checks.
func goldenState(t *testing.T) *state {
	t.Helper()
	st, ok := golden.Full(state{}).(*state)
	if !ok {
		t.Fatal("no state")
	}
	sum := sum256([]byte("x"))
	st.Config, st.Phase, st.Real, st.Public, st.Hidden = conf, phaseFailing, sum, []string{sum}, map[string]string{sum: sum}
	st.Prev.SHA256, st.Managed.SHA256, st.Desired.SHA256, st.Report.SHA256 = sum, sum, sum, sum
	st.Desired.Order, st.Desired.Configs, st.Desired.Chunks, st.Desired.Size = st.Mark, []string{conf, "b.conf"}, 1, 1
	for i := range st.Snapshots {
		st.Snapshots[i].File.SHA256 = sum
	}
	return st
}

// State folders of nodes are read by every later version.
func TestGolden(t *testing.T) {
	t.Parallel()
	body := func(b []byte) []byte { js, _, _ := bytes.Cut(b, []byte("\n#crc32c ")); return js }
	golden.Check(t, golden.Record{
		Name: "state", Version: stateVersion, Type: state{}, Sample: goldenState(t),
		Decode: func(b []byte) (any, error) { return parseState(b, conf) },
		Encode: func(v any) ([]byte, error) {
			st, ok := v.(*state)
			if !ok {
				return nil, errors.New("no state")
			}
			return st.encode()
		},
		JSON: body,
		With: func(_, js []byte) []byte {
			return append(bytes.Clone(js), []byte("\n#crc32c "+hex8(checksum(js))+"\n")...)
		},
	})
}

// TestGoldenStaged: so are files that were staged by consul-template.
func TestGoldenStaged(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("testdata", "golden", "v1", "staged"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseStaged(b)
	if err != nil {
		t.Fatal(err)
	}
	want := orchestrator.Order{Epoch: 1, Token: 1234, Seq: 5}
	if s.Config != "app.conf" || s.Node != "n 1" || s.Desired.Order != want || string(s.Content) != "a = 1\n" {
		t.Errorf("%+v", s)
	}
	if got := s.Encode(); !bytes.Equal(got, b) {
		t.Errorf("it is written as\n%s\nand was\n%s", got, b)
	}
	newer := bytes.Replace(b, []byte("#aimlock-staged 1 "), []byte("#aimlock-staged 2 "), 1)
	if _, err := ParseStaged(newer); err == nil || !strings.Contains(err.Error(), "another version of aimlock") {
		t.Errorf("of another version: %v", err)
	}
	d := s.Desired
	d.Version = records.Version + 1
	line := "#aimlock-staged 1 app.conf n%201 " + base64.StdEncoding.EncodeToString(records.Encode(d)) + "\n"
	if _, err := ParseStaged([]byte(line)); err == nil || !strings.Contains(err.Error(), "newer aimlock") {
		t.Errorf("with an entry of a later version: %v", err)
	}
}

// A state that a later version wrote is not damaged, however little of it this one
// understands: its mark may be higher than what the node has reported, so that to
// recover it from Consul would take the fence back.
func TestStateOfALaterVersion(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	js := []byte(`{"version":2,"config":"` + conf + `","mark":{"new":"form"}}`)
	whole := append(bytes.Clone(js), []byte("\n#crc32c "+hex8(checksum(js))+"\n")...)
	path := filepath.Join(dir, stateFile)
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	asked := false
	w := &work{config: conf, dir: dir, fence: &fence{recover: func(context.Context, string) (*records.Actual, error) {
		asked = true
		return &records.Actual{Order: order(1, 1), Result: records.ResultApplied}, nil
	}}}
	_, err := w.load(t.Context())
	if newer, ok := errors.AsType[*NewerError](err); !ok || newer.Version != 2 || asked {
		t.Errorf("%v, Consul asked: %v", err, asked)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, whole) {
		t.Errorf("the state was touched: %q, %v", b, err)
	}
}
