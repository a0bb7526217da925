package filelock

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseLocks(t *testing.T) {
	const list = `1: FLOCK  ADVISORY  WRITE 5740 fe:00:9977898 0 EOF
1: -> FLOCK  ADVISORY  READ 77 fe:00:9977898 0 EOF
1:  -> FLOCK  ADVISORY  WRITE 78 fe:00:9977898 0 EOF
2: POSIX  ADVISORY  READ 12 00:2f:3 10 99
3: OFDLCK ADVISORY  WRITE -1 103:1a:7 0 0
4: LEASE  BREAKING  READ 9 08:01:5 0 EOF
4: -> LEASE  BREAKER   WRITE 10 08:01:5 0 EOF
5: DELEG  ACTIVE    READ 11 08:01:6 0 EOF
6: POSIX  *NOINODE* WRITE 1 <none>:0 0 EOF
6: -> POSIX  ADVISORY  READ 2 00:2f:3 0 EOF
7: LEASE  ACTIVE    UNLCK 9 08:01:5 0 EOF
8: SOMETHING NEW
`
	locks, bad := parseLocks([]byte(list))
	if bad != 1 {
		t.Errorf("%d lines are bad, want 1", bad)
	}
	file := fileID{0xfe, 0, 9977898}
	want := []kernelLock{
		{
			lockLine{attrs: attrs{Flock, Write, 5740, file, 0, 0, true}},
			[]lockLine{
				{attrs: attrs{Flock, Read, 77, file, 0, 0, true}, depth: 1},
				{attrs: attrs{Flock, Write, 78, file, 0, 0, true}, depth: 2},
			},
		},
		{lockLine{attrs: attrs{Posix, Read, 12, fileID{0, 0x2f, 3}, 10, 99, false}}, nil},
		{lockLine{attrs: attrs{OFD, Write, -1, fileID{0x103, 0x1a, 7}, 0, 0, false}}, nil},
		{
			lockLine{attrs: attrs{Lease, Read, 9, fileID{8, 1, 5}, 0, 0, true}, breaking: true},
			[]lockLine{{attrs: attrs{Lease, Write, 10, fileID{8, 1, 5}, 0, 0, true}, depth: 1, breaking: true}},
		},
		{lockLine{attrs: attrs{Lease, Read, 11, fileID{8, 1, 6}, 0, 0, true}}, nil},
	}
	if !reflect.DeepEqual(locks, want) {
		t.Errorf("got  %+v\nwant %+v", locks, want)
	}
}

func TestParseFDInfo(t *testing.T) {
	got, err := parseFDInfo([]byte("pos:\t0\nflags:\t0100000\nmnt_id:\t27\nino:\t9977898\n" +
		"tfd: 3 events: 19 data: 8 pos:0 ino:1 sdev:2\n" +
		"lock:\t1: FLOCK  ADVISORY  WRITE 5740 fe:00:9977898 0 EOF\nlock:\t2: GARBAGE\n"))
	want := fdInfo{mount: 27, ino: 9977898, bad: 1, locks: []lockLine{{attrs: attrs{Flock, Write, 5740, fileID{0xfe, 0, 9977898}, 0, 0, true}}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	if got, err := parseFDInfo([]byte("pos:\t0\nflags:\t02\n")); err != nil || got.mount != -1 || got.ino != 0 {
		t.Errorf("an old kernel's: %+v, %v", got, err)
	}
	if _, err := parseFDInfo([]byte("mnt_id:\tx\n")); err == nil {
		t.Error("a mount that is no number passes")
	}
}

// FuzzParseLocks: no line is taken for a lock unless it says all of it, and
// none is dropped without being counted.
func FuzzParseLocks(f *testing.F) {
	f.Add([]byte("1: FLOCK  ADVISORY  WRITE 5740 fe:00:9977898 0 EOF\n1: -> FLOCK  ADVISORY  READ 77 fe:00:9977898 0 EOF\n"))
	f.Add([]byte("2: POSIX  *NOINODE* READ -1 <none>:0 10 99\n"))
	f.Add([]byte("3: LEASE  BREAKING  READ 9 08:01:5 0 EOF\n3: -> LEASE  BREAKER  WRITE 9 08:01:5 0 EOF"))
	f.Add([]byte("-> :\n: ->\n\n1:"))
	f.Fuzz(func(t *testing.T, b []byte) {
		locks, bad := parseLocks(b)
		n := bad
		for _, l := range locks {
			if l.kind == "" || l.mode == "" || l.depth != 0 {
				t.Errorf("half a lock: %+v", l)
			}
			n += 1 + len(l.waiters)
			for _, w := range l.waiters {
				if w.kind == "" || w.mode == "" || w.depth < 1 {
					t.Errorf("half a waiter: %+v", w)
				}
			}
		}
		if lines := strings.Count(string(b), "\n") + 1; n > lines {
			t.Errorf("%d of %d lines", n, lines)
		}
	})
}

func FuzzParseFDInfo(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t0100000\nmnt_id:\t27\nino:\t9977898\nlock:\t1: FLOCK  ADVISORY  WRITE 5740 fe:00:9977898 0 EOF\n"))
	f.Add([]byte("lock:\t1: -> FLOCK  ADVISORY  WRITE 5740 fe:00:9977898 0 EOF\nino:\t99999999999999999999\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, _ := parseFDInfo(b)
		for _, l := range info.locks {
			if l.kind == "" || l.mode == "" || l.depth != 0 {
				t.Errorf("half a lock: %+v", l)
			}
		}
	})
}
