package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// stageVar tells a copy of the test's program what it is: a probe, or inside. Set
// by hand to outside, it has the tests run without namespaces.
const stageVar = "LAB_STAGE"

// why is why there is no network, "" inside. Main sets it before the tests run.
var why = "the tests were not started by lab.Main"

// Why tells why New cannot be used here, "" where it can.
func Why() string { return why }

// Main is what TestMain of a package calls: it runs the tests inside namespaces
// of their own where these can be had, else as they are. It returns the exit code.
func Main(m *testing.M) int {
	switch os.Getenv(stageVar) {
	case "probe":
		if err := probe(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	case "inside":
		// What tests start is not inside by this variable.
		if err := os.Unsetenv(stageVar); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		why = ""
		return m.Run()
	}
	if os.Getenv(stageVar) == "outside" {
		why = stageVar + " is set to outside"
		return m.Run()
	}
	var refused []string
	for _, way := range ways() {
		var out strings.Builder
		c := again("probe", way.flags)
		c.Stdout, c.Stderr = &out, &out
		if err := run(c); err != nil {
			refused = append(refused, strings.TrimSpace(fmt.Sprintf("%s: %v %s", way.name, err, out.String())))
			continue
		}
		c = again("inside", way.flags)
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		err := run(c)
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return max(exit.ExitCode(), 1)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	why = strings.Join(refused, "; ")
	return m.Run()
}

type way struct {
	name  string
	flags uintptr
}

func ways() []way {
	user := way{"user and network namespace", syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS}
	if os.Geteuid() != 0 {
		return []way{user}
	}
	return []way{{"network namespace as root", syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS}, user}
}

// again is this program once more, with the same arguments, in new namespaces.
// The kernel kills it when this process ends, however that comes.
func again(stage string, flags uintptr) *exec.Cmd {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), stageVar+"="+stage)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if flags&syscall.CLONE_NEWUSER != 0 {
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return c
}

// run keeps the thread that forks until the child has ended, to which the
// parent-death signal is tied.
func run(c *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return c.Run()
}

// probe does once what tests need.
func probe() error {
	n, err := open()
	if err != nil {
		return err
	}
	defer n.Close()
	_, err = n.add("probe")
	return err
}
