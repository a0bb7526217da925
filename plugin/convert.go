package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	pb "github.com/aim-control/aimlock/plugin/proto"
)

// This file turns messages into the types of this package and back. What comes in
// is foreign: nothing here may panic or grow without bound on any message.

func orderToProto(o Order) *pb.Order {
	return &pb.Order{Epoch: o.Epoch, Token: o.Token, Seq: o.Seq}
}

func orderFromProto(o *pb.Order) Order {
	return Order{Epoch: o.GetEpoch(), Token: o.GetToken(), Seq: o.GetSeq()}
}

func problemsToProto(list Problems) []*pb.Problem {
	out := make([]*pb.Problem, len(list))
	for i, p := range list {
		out[i] = &pb.Problem{Path: p.Path, Message: p.Message}
	}
	return out
}

// maxProblems bounds the problems that are shown of one configuration.
const maxProblems = 100

func problemsFromProto(list []*pb.Problem) Problems {
	var out Problems
	for _, p := range list {
		if len(out) == maxProblems {
			out.Add("", "and %d more", len(list)-maxProblems)
			break
		}
		out = append(out, Problem{Path: clip(p.GetPath(), 200), Message: clip(p.GetMessage(), maxMessage)})
	}
	return out
}

func schemaToProto(s *Schema) (*pb.Schema, error) {
	out := &pb.Schema{}
	for i := range s.Attributes {
		a := &s.Attributes[i]
		p := &pb.Attribute{Name: a.Name, Type: string(a.Type), Required: a.Required, Doc: a.Doc, Secret: a.Secret}
		if a.Default != nil {
			shape, err := a.Type.Parse()
			if err != nil {
				return nil, err
			}
			if p.Default, err = shape.Encode(a.Default); err != nil {
				return nil, err
			}
		}
		out.Attributes = append(out.Attributes, p)
	}
	for i := range s.Blocks {
		b := &s.Blocks[i]
		inner, err := schemaToProto(&b.Config)
		if err != nil {
			return nil, err
		}
		out.Blocks = append(out.Blocks, &pb.Block{Name: b.Name, Min: uint32(b.Min), Max: uint32(b.Max), Doc: b.Doc, Config: inner})
	}
	return out, nil
}

// maxSchema bounds the arguments and the blocks of one level.
const maxSchema = 256

func schemaFromProto(p *pb.Schema, depth int) (*Schema, error) {
	switch {
	case depth > maxBlockDepth:
		return nil, fmt.Errorf("schema: blocks are nested more than %d deep", maxBlockDepth)
	case len(p.GetAttributes()) > maxSchema || len(p.GetBlocks()) > maxSchema:
		return nil, fmt.Errorf("schema: more than %d arguments or blocks", maxSchema)
	}
	s := &Schema{}
	for _, a := range p.GetAttributes() {
		out := Attribute{Name: a.GetName(), Type: Type(a.GetType()), Required: a.GetRequired(), Doc: clip(a.GetDoc(), maxMessage), Secret: a.GetSecret()}
		if len(a.GetDefault()) > 0 {
			shape, err := out.Type.Parse()
			if err == nil {
				out.Default, err = shape.Decode(a.GetDefault())
			}
			if err != nil {
				return nil, fmt.Errorf("schema: default of %q: %w", clip(out.Name, 80), err)
			}
		}
		s.Attributes = append(s.Attributes, out)
	}
	for _, b := range p.GetBlocks() {
		if b.GetMin() > math.MaxInt32 || b.GetMax() > math.MaxInt32 {
			return nil, fmt.Errorf("schema: block %q: no such number of blocks", clip(b.GetName(), 80))
		}
		inner, err := schemaFromProto(b.GetConfig(), depth+1)
		if err != nil {
			return nil, err
		}
		s.Blocks = append(s.Blocks, Block{Name: b.GetName(), Min: int(b.GetMin()), Max: int(b.GetMax()), Doc: clip(b.GetDoc(), maxMessage), Config: *inner})
	}
	return s, nil
}

func infoToProto(info *Info) (*pb.InfoResponse, error) {
	out := &pb.InfoResponse{
		Name: info.Name, Version: info.Version, Doc: info.Doc, Sdk: info.SDK,
		Protocol: uint32(info.Protocol),
	}
	for i := range info.Kinds {
		k := &info.Kinds[i]
		schema, err := schemaToProto(&k.Config)
		if err != nil {
			return nil, err
		}
		p := &pb.KindInfo{Kind: string(k.Kind), Config: schema, Capabilities: k.Capabilities}
		for _, f := range k.Facts {
			p.Facts = append(p.Facts, &pb.FactDef{Name: f.Name, Type: string(f.Type), Doc: f.Doc})
		}
		out.Kinds = append(out.Kinds, p)
	}
	return out, nil
}

// infoFromProto reads and checks what a plugin says of itself. Kinds that this
// version does not know are left out.
func infoFromProto(p *pb.InfoResponse) (*Info, error) {
	info := &Info{
		Name: p.GetName(), Version: clip(p.GetVersion(), 100), Doc: clip(p.GetDoc(), maxMessage),
		SDK: clip(p.GetSdk(), 100), Protocol: int(p.GetProtocol()),
	}
	if !pluginName.MatchString(info.Name) {
		return nil, fmt.Errorf("it calls itself %q: a name is lower case letters, digits, - and _", clip(info.Name, 80))
	}
	for _, k := range p.GetKinds() {
		out := KindInfo{Kind: Kind(k.GetKind())}
		switch {
		case info.Kind(out.Kind) != nil:
			return nil, fmt.Errorf("kind %s is declared twice", out.Kind)
		case !known(out.Kind):
			continue
		case len(k.GetFacts()) > maxSchema:
			return nil, fmt.Errorf("kind %s declares more than %d facts", out.Kind, maxSchema)
		}
		schema, err := schemaFromProto(k.GetConfig(), 0)
		if err != nil {
			return nil, fmt.Errorf("kind %s: %w", out.Kind, err)
		}
		out.Config = *schema
		for _, f := range k.GetFacts() {
			out.Facts = append(out.Facts, FactDef{Name: f.GetName(), Type: Type(f.GetType()), Doc: clip(f.GetDoc(), maxMessage)})
		}
		for _, c := range k.GetCapabilities() {
			if len(out.Capabilities) < maxSchema {
				out.Capabilities = append(out.Capabilities, clip(c, 100))
			}
		}
		if err := out.check(); err != nil {
			return nil, fmt.Errorf("kind %s: %w", out.Kind, err)
		}
		info.Kinds = append(info.Kinds, out)
	}
	if len(info.Kinds) == 0 {
		return nil, errors.New("it serves no kind that this version of aimlock knows")
	}
	return info, nil
}

func known(k Kind) bool {
	for _, other := range Kinds() {
		if k == other {
			return true
		}
	}
	return false
}

func lockToProto(l *Lock) *pb.Lock {
	h := &l.Holder
	return &pb.Lock{
		Name: l.Name, Key: l.Key, Session: l.Session, Epoch: l.Epoch, Token: l.Token,
		Holder: &pb.Holder{
			Host: h.Host, Node: h.Node, Pid: int64(h.PID), BootId: h.BootID, PidNs: h.PIDNS, StartTicks: h.StartTicks,
			User: h.User, Tool: h.Tool, Operation: h.Operation, Rollout: h.Rollout, AllocId: h.AllocID, AllocRegion: h.AllocRegion,
		},
	}
}

func lockFromProto(l *pb.Lock) Lock {
	h := l.GetHolder()
	return Lock{
		Name: l.GetName(), Key: l.GetKey(), Session: l.GetSession(), Epoch: l.GetEpoch(), Token: l.GetToken(),
		Holder: Holder{
			Host: h.GetHost(), Node: h.GetNode(), PID: int(h.GetPid()), BootID: h.GetBootId(), PIDNS: h.GetPidNs(), StartTicks: h.GetStartTicks(),
			User: h.GetUser(), Tool: h.GetTool(), Operation: h.GetOperation(), Rollout: h.GetRollout(), AllocID: h.GetAllocId(), AllocRegion: h.GetAllocRegion(),
		},
	}
}

// factsToProto encodes facts that were checked against their declarations.
func factsToProto(facts []Fact) []*pb.Fact {
	out := make([]*pb.Fact, 0, len(facts))
	for _, f := range facts {
		p := &pb.Fact{Name: f.Name, Unknown: f.Unknown, Why: clip(f.Why, maxMessage), AgeMs: f.Age.Milliseconds()}
		if !f.Unknown {
			raw, err := json.Marshal(f.Value)
			if err != nil {
				p.Unknown, p.Why = true, "the value cannot be sent"
			} else {
				p.Value = raw
			}
		}
		out = append(out, p)
	}
	return out
}

// factsFromProto decodes facts; CheckFacts has still to see them.
func factsFromProto(defs []FactDef, list []*pb.Fact) []Fact {
	types := make(map[string]Type, len(defs))
	for _, d := range defs {
		types[d.Name] = d.Type
	}
	var out []Fact
	for _, p := range list {
		t, declared := types[p.GetName()]
		if !declared {
			continue
		}
		f := Fact{Name: p.GetName(), Unknown: p.GetUnknown(), Why: clip(p.GetWhy(), maxMessage), Age: millis(p.GetAgeMs())}
		switch {
		case f.Unknown:
		case len(p.GetValue()) == 0:
			// A plugin that forgets a value has not said that it cannot apply.
			f = Unknown(f.Name, "the plugin sent no value")
		default:
			shape, err := t.Parse()
			if err == nil {
				f.Value, err = shape.Decode(p.GetValue())
			}
			if err != nil {
				f = Unknown(f.Name, "the plugin's answer is not as declared: %v", err)
			}
		}
		out = append(out, f)
	}
	return out
}

func millis(ms int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Millisecond)
	return time.Duration(max(min(ms, most), -most)) * time.Millisecond
}

func placeToProto(p *Place) *pb.Place {
	return &pb.Place{Node: p.Node, Meta: p.Meta, Config: p.Config, Destination: p.Destination}
}

func placeFromProto(p *pb.Place) Place {
	return Place{Node: p.GetNode(), Meta: p.GetMeta(), Config: p.GetConfig(), Destination: p.GetDestination()}
}

// Outcomes of a write, as they cross.
const (
	outApplied = "applied"
	outRefused = "refused"
	outFailed  = "failed"
)

// appliedToProto is an answer: refusals and failures of the write are part of it,
// while errors that say more by their identity stay errors.
func appliedToProto(a *Applied, err error) (*pb.ApplyResponse, error) {
	var stale *StaleError
	switch {
	case errors.As(err, &stale):
		return &pb.ApplyResponse{Outcome: outRefused, Detail: clip(err.Error(), maxMessage), Highest: orderToProto(stale.Highest)}, nil
	case err != nil:
		return nil, err
	}
	return &pb.ApplyResponse{
		Outcome: outApplied, Detail: clip(a.Detail, maxMessage), Highest: orderToProto(a.Highest),
		Unchanged: a.Unchanged, Sha256: a.SHA256, Revision: a.Revision,
	}, nil
}

func appliedFromProto(p *pb.ApplyResponse) (*Applied, error) {
	detail := clip(p.GetDetail(), maxMessage)
	switch p.GetOutcome() {
	case outApplied:
		return &Applied{
			Unchanged: p.GetUnchanged(), Highest: orderFromProto(p.GetHighest()),
			SHA256: clip(p.GetSha256(), 64), Revision: clip(p.GetRevision(), 200), Detail: detail,
		}, nil
	case outRefused:
		if detail == "" {
			detail = "the target refused"
		}
		return nil, &remoteError{is: &StaleError{orderFromProto(p.GetHighest())}, message: detail}
	case outFailed:
		if detail == "" {
			detail = "the target does not say what failed"
		}
		return nil, errors.New(detail)
	}
	return nil, fmt.Errorf("the plugin answered %q, which is no outcome", clip(p.GetOutcome(), 40))
}
