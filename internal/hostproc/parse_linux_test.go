package hostproc

import (
	"bytes"
	"os"
	"testing"
)

const tail = " 1 2 3 4 5 4194304 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		name, line string
		want       stat
		ok         bool
	}{
		{"plain", "77 (sh) S" + tail, stat{pid: 77, state: 'S', ppid: 1, pgrp: 2, flags: 4194304, startTicks: 4242}, true},
		{"name that pretends", "77 (a) Z 1 2) S" + tail, stat{pid: 77, state: 'S', ppid: 1, pgrp: 2, flags: 4194304, startTicks: 4242}, true},
		{"newline in the name", "77 (a\nb) R" + tail, stat{pid: 77, state: 'R', ppid: 1, pgrp: 2, flags: 4194304, startTicks: 4242}, true},
		{"empty", "", stat{}, false},
		{"no name", "77 sh S" + tail, stat{}, false},
		{"closed before opened", "77 )( S" + tail, stat{}, false},
		{"short", "77 (sh) S 1 2 3", stat{}, false},
		{"no number", "77 (sh) S x" + tail, stat{}, false},
		{"no pid", "(sh) S" + tail, stat{}, false},
		{"state is no letter", "77 (sh) \xb0" + tail, stat{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseStat([]byte(c.line))
			if (err == nil) != c.ok || got != c.want {
				t.Errorf("parseStat = %+v, %v, want %+v, ok %v", got, err, c.want, c.ok)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	if own, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(own)
	}
	f.Add([]byte("77 (sh) S" + tail))
	f.Add([]byte("77 (a) b) (c) S" + tail))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStat(b)
		if err != nil && s != (stat{}) {
			t.Errorf("%+v beside the error %v", s, err)
		}
		if err == nil && bytes.IndexByte(b, s.state) < 0 {
			t.Errorf("state %q is not in %q", s.state, b)
		}
	})
}

func TestCGroupName(t *testing.T) {
	for in, want := range map[string]string{
		"0::/user.slice/session-1.scope\n": "/user.slice/session-1.scope",
		"0::/\n":                           "/",
		"":                                 "/",
		"2:memory:/a\n1:cpu:/\n0::/\n":     "memory:/a",
		"12:cpu,cpuacct:/a\n1:name=systemd:/a/b:c\n0::/a\n": "cpu,cpuacct:/a;name=systemd:/a/b:c;:/a",
		"1:cpu:/\n0::/\n":  "/",
		"no colons at all": "/",
	} {
		if got := cgroupName([]byte(in)); got != want {
			t.Errorf("cgroupName(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHidesPids(t *testing.T) {
	const (
		root  = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
		plain = "22 21 0:20 / /proc rw,nosuid shared:5 - proc proc rw\n"
		two   = "22 21 0:20 / /proc rw,nosuid shared:5 - proc proc rw,gid=4,hidepid=2\n"
		one   = "22 21 0:20 / /proc rw,nosuid shared:5 - proc proc rw,hidepid=1\n"
		named = "22 21 0:20 / /proc rw,nosuid - proc proc rw,hidepid=invisible\n"
		other = "23 21 0:21 / /chroot/proc rw,nosuid - proc proc rw,hidepid=2\n"
	)
	for in, want := range map[string]bool{
		"": false, root + plain: false, root + two: true, root + named: true,
		// The entries are listed, and then found unreadable one by one.
		root + one:           false,
		root + plain + other: false,
		root + plain + two:   true,
		root + two + plain:   false,
	} {
		if got := hidesPids(in); got != want {
			t.Errorf("hidesPids(%q) = %v, want %v", in, got, want)
		}
	}
	for in, want := range map[string]bool{
		"Name:\tx\nCapEff:\t000001ffffffffff\n": true,
		"CapEff:\t0000000000000000\n":           false,
		"CapEff:\t00000000a80425fb\n":           false,
		"CapEff:\tnonsense\n":                   false,
		"":                                      false,
	} {
		if got := mayTraceAll(in); got != want {
			t.Errorf("mayTraceAll(%q) = %v, want %v", in, got, want)
		}
	}
}

func TestHasNonce(t *testing.T) {
	for env, want := range map[string]bool{
		"A=1\x00AIMLOCK_NONCE=n\x00B=2\x00": true,
		"AIMLOCK_NONCE=m,n,o":               true,
		"AIMLOCK_NONCE=nn\x00":              false,
		"XAIMLOCK_NONCE=n\x00":              false,
		"A=AIMLOCK_NONCE=n\x00":             false,
		"AIMLOCK_NONCE=\x00":                false,
		"":                                  false,
		// The first of two entries is not always the one that counts.
		"AIMLOCK_NONCE=x\x00AIMLOCK_NONCE=n\x00": true,
	} {
		if got := hasNonce([]byte(env), "n"); got != want {
			t.Errorf("hasNonce(%q) = %v, want %v", env, got, want)
		}
	}
}
