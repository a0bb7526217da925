package plugin

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/aim-control/aimlock/plugin/proto"
)

// What a plugin sends is foreign. The fuzz tests hold the host's side to this: it
// does not panic, and what it lets through is what the rest of aimlock relies on.

func FuzzInfo(f *testing.F) {
	for _, p := range []Plugin{everything(), {Name: "p", Gate: func() Gate { return &life{} }}} {
		info, err := p.describe()
		if err != nil {
			f.Fatal(err)
		}
		msg, err := infoToProto(info)
		if err != nil {
			f.Fatal(err)
		}
		raw, err := proto.Marshal(msg)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, []byte(`{"answer": "pass"}`))
	}
	f.Fuzz(func(t *testing.T, raw, cfg []byte) {
		var msg pb.InfoResponse
		if proto.Unmarshal(raw, &msg) != nil {
			return
		}
		info, err := infoFromProto(&msg)
		if err != nil {
			return
		}
		for i := range info.Kinds {
			k := &info.Kinds[i]
			if err := k.check(); err != nil {
				t.Fatalf("kind %s was let through: %v", k.Kind, err)
			}
			if _, err := k.Config.Apply(cfg); err == nil {
				newRedactor(k.Config.Secrets(cfg)).text("text")
			}
		}
		// It is said again as it was understood.
		again, err := infoToProto(info)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := infoFromProto(again); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzObserve(f *testing.F) {
	defs := (&testEvidence{}).Facts()
	raw, err := proto.Marshal(&pb.ObserveResponse{Facts: []*pb.Fact{
		{Name: "count", Value: []byte("1"), AgeMs: 5}, {Name: "dark", Value: []byte(`{"a": null}`)}, {Name: "tags", Value: []byte(`["a"]`)}, {Name: "who", Unknown: true},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var msg pb.ObserveResponse
		if proto.Unmarshal(raw, &msg) != nil {
			return
		}
		facts := CheckFacts(defs, nil, factsFromProto(defs, msg.GetFacts()))
		if len(facts) != len(defs) {
			t.Fatalf("%d facts of %d", len(facts), len(defs))
		}
		for i, fact := range facts {
			switch {
			case fact.Name != defs[i].Name || fact.Age < 0:
				t.Fatalf("%+v", fact)
			case fact.Unknown && (fact.Value != nil || fact.Why == ""):
				t.Fatalf("unknown, and yet: %+v", fact)
			case !fact.Unknown:
				shape, err := defs[i].Type.Parse()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := shape.Normalize(fact.Value); err != nil {
					t.Fatalf("%s was let through: %v", defs[i].Type, err)
				}
			}
		}
	})
}

// FuzzAnswers: all other answers of a plugin, and its errors.
func FuzzAnswers(f *testing.F) {
	for _, m := range []proto.Message{
		&pb.AskResponse{Verdict: "pass", Value: "v", Why: "w"}, &pb.BreakResponse{Outcome: "done"},
		&pb.ApplyResponse{Outcome: "refused", Highest: &pb.Order{Token: 1}}, &pb.ErrorDetail{Reason: "stale", Highest: &pb.Order{Epoch: 1}},
		&pb.ErrorDetail{Reason: "invalid_config", Problems: []*pb.Problem{{Path: "a[1].b", Message: "m"}}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, uint32(codes.Aborted))
	}
	f.Fuzz(func(t *testing.T, raw []byte, code uint32) {
		var ask pb.AskResponse
		if proto.Unmarshal(raw, &ask) == nil {
			a := checkAnswer(&Answer{Verdict: Verdict(ask.GetVerdict()), Why: ask.GetWhy(), Retry: ask.GetRetry()})
			if a.Verdict != Pass && a.Verdict != Fail && a.Verdict != Pending && a.Verdict != Undecided {
				t.Fatalf("%+v", a)
			}
		}
		var br pb.BreakResponse
		if proto.Unmarshal(raw, &br) == nil {
			if r, err := checkResult(&BreakResult{Outcome: Outcome(br.GetOutcome())}); err != nil || (r.Outcome == Done) != (br.GetOutcome() == "done") {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		var ap pb.ApplyResponse
		if proto.Unmarshal(raw, &ap) == nil {
			if a, err := appliedFromProto(&ap); (err == nil) != (ap.GetOutcome() == outApplied) || err == nil && a == nil {
				t.Fatalf("%s: %+v, %v", ap.GetOutcome(), a, err)
			}
		}
		var detail pb.ErrorDetail
		if proto.Unmarshal(raw, &detail) != nil {
			return
		}
		st, err := status.New(codes.Code(code), "message").WithDetails(&detail)
		if err != nil {
			return
		}
		if err := fromStatus(st.Err()); err == nil || err.Error() == "" {
			t.Fatalf("status %s is no error: %v", st.Code(), err)
		}
	})
}

func FuzzType(f *testing.F) {
	for _, t := range []Type{String, List(Map(Number)), Object(map[string]Type{"a": Duration, "b": List(Bool)}), "object({})", "list(", "list(list(list(list(list(list(list(list(list(string)))))))))"} {
		f.Add(string(t), []byte(`[1, "a", {"a": null}]`))
	}
	f.Fuzz(func(t *testing.T, text string, raw []byte) {
		shape, err := Type(text).Parse()
		if err != nil {
			return
		}
		if again, err := Type(shape.String()).Parse(); err != nil || again.String() != shape.String() {
			t.Fatalf("%q is %s, which is %v, %v", text, shape, again, err)
		}
		v, err := shape.Decode(raw)
		if err != nil {
			return
		}
		out, err := shape.Encode(v)
		if err != nil {
			t.Fatalf("%s: %v", shape, err)
		}
		if _, err := shape.Decode(out); err != nil {
			t.Fatalf("%s: %q: %v", shape, out, err)
		}
	})
}
