//go:build !linux

package hooks

import "syscall"

// groupAttr puts a command into a process group of its own. Nothing here lets
// it die with the agent.
func groupAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
