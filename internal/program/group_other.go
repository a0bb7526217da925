//go:build !linux

package program

import "syscall"

// groupAttr puts a program into a process group of its own. Nothing here lets
// it die with this process.
func groupAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
