package consulkv

import (
	"strings"
	"testing"
)

// A value that nobody can read does not turn the verification of certificates off.
func TestVerifyIsNotTurnedOffByMistake(t *testing.T) {
	for value, bad := range map[string]bool{"": false, "true": false, "0": false, "nonsense": true, "ture": true} {
		t.Setenv("CONSUL_HTTP_SSL_VERIFY", value)
		_, err := New(Config{Address: "https://consul.test:8501"})
		if (err != nil) != bad || bad && !strings.Contains(err.Error(), "CONSUL_HTTP_SSL_VERIFY") {
			t.Errorf("%q: %v", value, err)
		}
	}
}
