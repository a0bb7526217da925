package agent

import (
	"bytes"
	"reflect"
	"slices"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
)

func FuzzState(f *testing.F) {
	st := &state{Config: conf, Mark: order(3, 1), Phase: phaseDone}
	st.addSnapshot("r1", file{Destination: dest, Exists: true, SHA256: sum256([]byte("x"))})
	good, err := st.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("{}\n#crc32c 297bd0d9\n"))
	d := *entry(order(3, 1), "r", "x")
	staged, err := (&state{Config: conf, Mark: d.Order, Phase: phaseStaged, Desired: &d, Prev: &file{}}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(staged)
	configs := []string{conf, "b.conf"}
	ds := entries(order(4, 1), "r", configs, set("v", configs))
	whole, err := (&state{
		Config: conf, Mark: ds[0].Order, Phase: phaseStaged, Desired: ds[0], Prev: &file{}, Changes: true,
		Waiting: &waiting{Order: order(5, 1), Why: "x"},
	}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum keeps a fuzzer out: try what is behind it too.
		for _, in := range [][]byte{b, append(append([]byte{}, b...), []byte("\n#crc32c "+hex8(checksum(b))+"\n")...)} {
			st, err := parseState(in, conf)
			if err != nil {
				continue
			}
			again, err := st.encode()
			if err != nil {
				t.Fatal(err)
			}
			st2, err := parseState(again, conf)
			if err != nil {
				t.Fatalf("does not read its own state: %v", err)
			}
			if st2.Mark != st.Mark || st2.Phase != st.Phase || len(st2.Snapshots) != len(st.Snapshots) {
				t.Fatalf("%+v became %+v", st, st2)
			}
			if together(st.Desired) {
				// What is locked together is what the state's own config is one of.
				if all := (&fence{}).closure([]string{conf}, func(string) *state { return st }); !slices.Contains(all, conf) || len(all) > records.MaxGroup {
					t.Fatalf("%q is settled together", all)
				}
			}
			for sha := range st.blobs() {
				if !isSHA256(sha) {
					t.Fatalf("%q is used as a file name", sha)
				}
			}
		}
	})
}

// No bit of a state file can flip unseen.
func TestStateBitFlips(t *testing.T) {
	d := *entry(order(3, 1), "r", "x")
	good, err := (&state{Config: conf, Mark: d.Order, Phase: phaseDone, Desired: &d, Report: &records.Actual{}}).encode()
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseState(good, conf)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			if got, err := parseState(b, conf); err == nil && !reflect.DeepEqual(got, want) {
				t.Fatalf("bit %d of byte %d of %q", bit, i, good)
			}
		}
	}
	for i := range good {
		if got, err := parseState(good[:i], conf); err == nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("cut at %d", i)
		}
	}
}

func FuzzStaged(f *testing.F) {
	f.Add((&Staged{Config: "a b/c.conf"[:3], Node: "n1", Desired: *entry(order(1, 1), "r", "x"), Content: []byte("x\r\n\x00y")}).Encode())
	f.Add((&Staged{Config: trio[0], Node: "n1", Desired: *entries(order(1, 1), "r", trio, set("v", trio))[0], Content: []byte("x")}).Encode())
	f.Add([]byte("#aimlock-staged 1 c n e30=\n"))
	f.Add([]byte("#aimlock-staged 2 c n e30=\n"))
	f.Add([]byte("plain\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStaged(b)
		if err != nil {
			return
		}
		again, err := ParseStaged(s.Encode())
		if err != nil {
			t.Fatalf("does not read its own: %v", err)
		}
		if again.Config != s.Config || again.Node != s.Node || !bytes.Equal(again.Content, s.Content) || again.Desired.Order != s.Desired.Order {
			t.Fatalf("%+v became %+v", s, again)
		}
		if together(&s.Desired) && (!slices.Contains(s.Desired.Configs, s.Config) || !slices.Equal(again.Desired.Configs, s.Desired.Configs)) {
			t.Fatalf("%q belongs with %q, then with %q", s.Config, s.Desired.Configs, again.Desired.Configs)
		}
	})
}

func FuzzHarmless(f *testing.F) {
	f.Add([]byte("a\x1b[2Jb\r\nc\r\xff\u202e"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range harmless(b) {
			if r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q became %q", b, harmless(b))
			}
		}
	})
}
