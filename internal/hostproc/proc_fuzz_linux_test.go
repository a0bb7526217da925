package hostproc

import (
	"strings"
	"testing"
)

// FuzzProcFiles: the other files of /proc that are read, which names of mounts and
// cgroups, that anybody may choose, stand in.
func FuzzProcFiles(f *testing.F) {
	f.Add([]byte("0::/user.slice/a\n2:cpu:/b;c\n"), "n")
	f.Add([]byte("25 30 0:23 / /proc rw,nosuid shared:13 - proc proc rw,hidepid=2\n"), "n")
	f.Add([]byte("Name:\tx\nCapEff:\t000001ffffffffff\n"), "n")
	f.Add([]byte("A=b\x00"+NonceVar+"=m,n\x00C=d"), "n")
	f.Fuzz(func(t *testing.T, b []byte, nonce string) {
		if name := cgroupName(b); name == "" || len(name) > len(b)+1 {
			t.Fatalf("%q has the cgroup %q", b, name)
		}
		if hidesPids(string(b)) && !strings.Contains(string(b), "hidepid=") {
			t.Fatalf("%q hides", b)
		}
		if mayTraceAll(string(b)) && !strings.Contains(string(b), "CapEff:") {
			t.Fatalf("%q may trace", b)
		}
		if hasNonce(b, nonce) && !strings.Contains(string(b), NonceVar+"=") {
			t.Fatalf("%q has the nonce %q", b, nonce)
		}
	})
}
