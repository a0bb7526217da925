package hooks

import "syscall"

// groupAttr puts a command into a process group of its own, and lets it die
// with this program.
func groupAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
