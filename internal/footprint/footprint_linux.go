package footprint

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// trim unmaps the clean pages of the program's own file: of those mappings that
// nobody can write to, so that nothing is lost with a page (madvise(2): after
// MADV_DONTNEED the contents come from the mapped file again).
func trim() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	var all []error
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if from, to, ok := parse(lines.Text(), exe); ok {
			if _, _, no := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); no != 0 {
				all = append(all, fmt.Errorf("madvise: %w", no))
			}
		}
	}
	return errors.Join(append(all, lines.Err())...)
}

// parse reads a line of /proc/self/maps (proc_pid_maps(5)): ok for a private mapping
// of the file exe that is read or run, and never written.
func parse(line, exe string) (from, to uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || fields[1] != "r-xp" && fields[1] != "r--p" || !strings.HasSuffix(line, " "+exe) {
		return 0, 0, false
	}
	a, b, _ := strings.Cut(fields[0], "-")
	first, err := strconv.ParseUint(a, 16, strconv.IntSize)
	last, err2 := strconv.ParseUint(b, 16, strconv.IntSize)
	return uintptr(first), uintptr(last), err == nil && err2 == nil && first < last
}
