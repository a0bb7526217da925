//go:build !linux

package gates

import "syscall"

// groupAttr puts a program into a process group of its own. Nothing here lets
// it die with the orchestrator.
func groupAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
