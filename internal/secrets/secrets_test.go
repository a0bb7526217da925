package secrets

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// pieces that a careless form would confuse.
var pieces = []string{
	opens, literal, secret, closes, "{{aimlock", "{", "}}", ":", "db", "{{aimlock:secret:db}}", "{{aimlock:literal}}",
	"\x00", "\r\n", "é", "\xff", "plain",
}

func TestFillIsTheInverse(t *testing.T) {
	piece := rapid.SampledFrom(pieces)
	text := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(piece, 0, 6).Draw(t, "pieces"), "") })
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"db", "x_1", "a-b"}
		values := map[string][]byte{}
		for _, n := range names {
			values[n] = []byte(text.Draw(t, "value"))
		}
		var form, want bytes.Buffer
		// Between two secrets text is escaped whole: see TestTextBetweenSecrets.
		var between strings.Builder
		flush := func() {
			form.WriteString(Text(between.String()))
			between.Reset()
		}
		for range rapid.IntRange(0, 8).Draw(t, "parts") {
			if rapid.Bool().Draw(t, "is secret") {
				n := rapid.SampledFrom(names).Draw(t, "name")
				flush()
				form.WriteString(Placeholder(n, rapid.SampledFrom([]string{"", "2", "2026-11.b"}).Draw(t, "version")))
				want.Write(values[n])
				continue
			}
			s := text.Draw(t, "text")
			between.WriteString(s)
			want.WriteString(s)
		}
		flush()
		got, err := Fill(form.Bytes(), values)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("%q became %q, want %q", form.Bytes(), got, want.Bytes())
		}
	})
}

// Text that is escaped in parts and text that is escaped whole are one form,
// unless a part ends within what is escaped.
func TestTextBetweenSecrets(t *testing.T) {
	form := Text("{{aim") + Placeholder("db", "") + Text("lock:") + Text("{") + Placeholder("db", "")
	got, err := Fill([]byte(form), map[string][]byte{"db": []byte("{{aimlock:secret:db}}")})
	if want := "{{aim{{aimlock:secret:db}}lock:{{{aimlock:secret:db}}"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestFillRefuses(t *testing.T) {
	const private = "hunter2-content"
	for _, form := range []string{
		"{{aimlock:", "{{aimlock:}}", "{{aimlock:secret:}}", "{{aimlock:secret:db", "{{aimlock:secret:9}}", "{{aimlock:secret:db:}}",
		"{{aimlock:secret:a b}}", "{{aimlock:secret:" + strings.Repeat("a", 65) + "}}", "{{aimlock:other}}", "{{aimlock:secret:nobody}}",
	} {
		_, err := Fill([]byte(private+form+private), map[string][]byte{"db": []byte("s3cret")})
		if err == nil {
			t.Errorf("%q is taken", form)
			continue
		}
		if strings.Contains(err.Error(), private) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error tells what is in it: %v", err)
		}
	}
}

func TestRedact(t *testing.T) {
	value := "pa\"ss wörd\nsecond line"
	values := map[string][]byte{"db": []byte(value), "n": []byte("pa\"ss wörd\nsecond line and more"), "empty": nil}
	for _, text := range []string{
		value, "x" + value + "y", `{"password":"pa\"ss w` + "ö" + `rd\nsecond line"}`, "pa%22ss+w%C3%B6rd%0Asecond+line",
		base64.StdEncoding.EncodeToString([]byte(value)), "only the second line of it",
	} {
		got := string(Redact([]byte(text), false, values))
		if strings.Contains(got, "second") || strings.Contains(got, "pa\"ss") || strings.Contains(got, base64.StdEncoding.EncodeToString([]byte(value))[:20]) {
			t.Errorf("%q leaves %q", text, got)
		}
		if !strings.Contains(got, Hidden) {
			t.Errorf("%q does not say that something was taken out: %q", text, got)
		}
	}
	if got := string(Redact([]byte("all is well"), false, values)); got != "all is well" {
		t.Errorf("a text without secrets became %q", got)
	}
}

// The end of an output is kept, so a value may be cut.
func TestRedactCut(t *testing.T) {
	values := map[string][]byte{"db": []byte("correct horse battery")}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "cut off")
		if got := string(Redact([]byte("correct horse battery: refused")[n:], true, values)); got != ": refused" {
			t.Fatalf("cut at %d it leaves %q", n, got)
		}
	})
	if got := string(Redact([]byte("battery: refused"), false, values)); got != "battery: refused" {
		t.Errorf("a whole text lost its beginning: %q", got)
	}
}

func TestRedactShort(t *testing.T) {
	got := string(Redact([]byte("the pin is 123"), false, map[string][]byte{"pin": []byte("123")}))
	if strings.Contains(got, "pin is") {
		t.Errorf("what is left tells the value by its gaps: %q", got)
	}
}

func FuzzFill(f *testing.F) {
	for _, p := range pieces {
		f.Add([]byte(p), []byte(p))
	}
	f.Add([]byte(Placeholder("db", "3")+Text(opens)), []byte("v"))
	f.Fuzz(func(t *testing.T, form, value []byte) {
		_, _ = Fill(form, map[string][]byte{"db": value})
		// Whatever the bytes are, as a text they come back.
		got, err := Fill([]byte(Text(string(form))+Placeholder("db", "")+Text(string(form))), map[string][]byte{"db": value})
		if want := slicesConcat(form, value, form); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q: %q, %v", form, got, err)
		}
	})
}

func slicesConcat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
