package agent

import (
	"fmt"
	"syscall"
)

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }

func hex8(n uint32) string { return fmt.Sprintf("%08x", n) }
