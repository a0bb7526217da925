package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

// Staged is a file rendered by consul-template: the entry and the content that
// belongs to it, in one file, so that a new order is never paired with old
// content. Its format is one line,
//
//	#aimlock-staged 1 CONFIG NODE DESIRED
//
// and then the content, byte for byte, to the file's end. CONFIG and NODE are
// escaped as in keys; DESIRED is the value of desired/<config>/<node> in
// base64.
type Staged struct {
	Config, Node string
	Desired      records.Desired
	Content      []byte
}

const stagedMagic = "#aimlock-staged 1 "

// maxStaged bounds a staged file: its header and its content.
const maxStaged = maxFile + 2*records.MaxSize

// ParseStaged reads a staged file. Errors say what is wrong with it and never
// what is in it.
func ParseStaged(b []byte) (*Staged, error) {
	if len(b) > maxStaged {
		return nil, fmt.Errorf("%d bytes are more than a staged file can have", len(b))
	}
	line, content, ok := bytes.Cut(b, []byte("\n"))
	if !ok || !bytes.HasPrefix(line, []byte(stagedMagic)) {
		if bytes.HasPrefix(line, []byte("#aimlock-staged ")) {
			return nil, errors.New("it is staged for another version of aimlock, or cut off")
		}
		return nil, fmt.Errorf("its first line does not begin with %q: render it with the template of aimlock's consul-template example", strings.TrimSpace(stagedMagic))
	}
	fields := strings.Fields(string(line[len(stagedMagic):]))
	if len(fields) != 3 {
		return nil, fmt.Errorf("its first line has %d fields after the version, not the 3 that are due: config, node, entry", len(fields))
	}
	s := &Staged{Config: keys.Unescape(fields[0]), Node: keys.Unescape(fields[1]), Content: content}
	if err := keys.CheckName("config", s.Config); err != nil {
		return nil, err
	}
	if err := keys.CheckName("node", s.Node); err != nil {
		return nil, err
	}
	raw, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil {
		return nil, errors.New("its entry is not base64")
	}
	if err := records.Decode("its entry", raw, &s.Desired); err != nil {
		return nil, err
	}
	if s.Desired.Order.IsZero() {
		return nil, errors.New("its entry has no order")
	}
	if err := checkGroup(s.Config, s.Desired.Configs); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Staged) source(context.Context) ([]byte, error) { return s.Content, nil }

// Encode is the inverse of ParseStaged.
func (s *Staged) Encode() []byte {
	head := fmt.Sprintf("%s%s %s %s\n", stagedMagic, keys.Escape(s.Config), keys.Escape(s.Node),
		base64.StdEncoding.EncodeToString(records.Encode(s.Desired)))
	return append([]byte(head), s.Content...)
}
