package orchestrator

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// IndexSet is a set of node indexes, sorted. Its JSON is a string that stays
// small whatever the set: ranges such as "0-4,17", or, where that is shorter,
// a bitmap: so 10,000 nodes take 1.7 kB at most.
type IndexSet []int

// Has reports whether a node is in it; -1 never is.
func (s IndexSet) Has(i int) bool {
	_, there := slices.BinarySearch(s, i)
	return there
}

const bitmapPrefix = "bitmap:"

// MarshalJSON implements json.Marshaler.
func (s IndexSet) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	limit := 0
	if len(s) > 0 {
		limit = base64.StdEncoding.EncodedLen(s[len(s)-1]/8+1) + len(bitmapPrefix)
	}
	for i := 0; i < len(s); {
		j := i
		for j+1 < len(s) && s[j+1] == s[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(s[i]))
		if j > i {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(s[j]))
		}
		if i = j + 1; b.Len() > limit {
			return json.Marshal(s.bitmap())
		}
	}
	return json.Marshal(b.String())
}

func (s IndexSet) bitmap() string {
	m := make([]byte, s[len(s)-1]/8+1)
	for _, i := range s {
		m[i/8] |= 1 << (i % 8)
	}
	return bitmapPrefix + base64.StdEncoding.EncodeToString(m)
}

// maxIndex bounds what a foreign header can make a reader allocate.
const maxIndex = 1 << 24

// UnmarshalJSON implements json.Unmarshaler.
func (s *IndexSet) UnmarshalJSON(b []byte) error {
	var str string
	if err := json.Unmarshal(b, &str); err != nil {
		return fmt.Errorf("set of nodes: %w", err)
	}
	*s = nil
	if rest, ok := strings.CutPrefix(str, bitmapPrefix); ok {
		m, err := base64.StdEncoding.DecodeString(rest)
		if err != nil || len(m) > maxIndex/8 {
			return fmt.Errorf("set of nodes: bad bitmap")
		}
		for i, x := range m {
			for ; x != 0; x &= x - 1 {
				*s = append(*s, i*8+bits.TrailingZeros8(x))
			}
		}
		return nil
	}
	if str == "" {
		return nil
	}
	for _, r := range strings.Split(str, ",") {
		lo, hi, isRange := strings.Cut(r, "-")
		from, err := strconv.Atoi(lo)
		to := from
		if isRange && err == nil {
			to, err = strconv.Atoi(hi)
		}
		if err != nil || from < 0 || to < from || to >= maxIndex || (len(*s) > 0 && from <= (*s)[len(*s)-1]) {
			return fmt.Errorf("set of nodes: bad range %q", r)
		}
		for i := from; i <= to; i++ {
			*s = append(*s, i)
		}
	}
	return nil
}
