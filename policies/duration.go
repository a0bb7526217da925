package policies

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// maxDuration bounds every duration of a policy: 10 years.
const maxDuration = 10 * 365 * 24 * time.Hour

var errLong = errors.New("a duration of more than ten years is not sensible")

// ParseDuration reads a duration such as "90s", "1h30m" or "2d": Go's syntax
// with d for days at the front. It is never negative.
func ParseDuration(s string) (time.Duration, error) {
	errSyntax := fmt.Errorf(`%q is not a duration: write a number and a unit, such as "90s", "10m", "1h30m" or "2d"`, clip(s, 40))
	var days time.Duration
	rest := s
	if n, after, ok := strings.Cut(s, "d"); ok {
		f, err := strconv.ParseUint(n, 10, 16)
		if errors.Is(err, strconv.ErrRange) {
			return 0, errLong
		}
		if err != nil {
			return 0, errSyntax
		}
		days, rest = time.Duration(f)*24*time.Hour, after
	}
	var d time.Duration
	if rest != "" || days == 0 && s == "" {
		var err error
		if d, err = time.ParseDuration(rest); err != nil {
			return 0, errSyntax
		}
	}
	switch {
	case d < 0:
		return 0, errors.New("a duration cannot be negative")
	case days > maxDuration || d > maxDuration || days+d > maxDuration:
		return 0, errLong
	}
	return days + d, nil
}

// clip shortens s to at most n bytes, at a rune's start.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}
