package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// pipeDelay is how long a command's pipes are waited for after it has ended: a
// child of it may hold them for ever.
const pipeDelay = time.Second

// exec runs the hook's command with the event on its stdin. It succeeds with
// exit status 0. When ctx ends, its whole process group is killed.
func (h *hook) exec(ctx context.Context, e *Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return &finalError{err}
	}
	done := make(chan error, 1)
	go func() {
		// The parent-death signal comes when this thread ends, so the thread
		// must not end before the command does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- h.command(ctx, e, append(body, '\n')).Run()
	}()
	err = <-done
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		// It ended well; a child that it left behind holds a pipe.
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	// Neither arguments nor output are told: they may be secret.
	name := filepath.Base(h.cfg.Command[0])
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%s: %w", name, ee)
	}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return &finalError{fmt.Errorf("%s cannot be run: %w", name, err)}
	}
	return fmt.Errorf("%s: %w", name, err)
}

func (h *hook) command(ctx context.Context, e *Event, stdin []byte) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.cfg.Command[0], h.cfg.Command[1:]...)
	cmd.Stdin = bytes.NewReader(stdin)
	// A few plain settings, and never Consul's token.
	for _, name := range []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Env = append(cmd.Env, "AIMLOCK_EVENT="+e.Kind, "AIMLOCK_EVENT_ID="+e.ID, "AIMLOCK_LOCK="+e.Lock, "AIMLOCK_STATE="+e.State)
	cmd.SysProcAttr = groupAttr()
	cmd.WaitDelay = pipeDelay
	// The whole group: what hangs is often a child of the command.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}
