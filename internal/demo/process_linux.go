package demo

import "syscall"

// childAttr makes the children die with the demo, however it ends, and keeps
// a Ctrl-C for the demo alone, which then ends them.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
