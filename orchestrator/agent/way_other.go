//go:build !linux

package agent

import "golang.org/x/sys/unix"

// openWay opens a folder to pass through.
const openWay = unix.O_RDONLY
