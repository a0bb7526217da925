// Systemd-unit is a breaker: it stops the systemd unit that the holder of a lock runs
// in, on the machine that this plugin runs on. It never stops what it was not allowed
// to, and never a process that has the holder's pid and is another one.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/aim-control/aimlock/plugin"
)

func main() { plugin.Serve(description()) }

func description() plugin.Plugin {
	return plugin.Plugin{
		Name: "systemd-unit", Version: "1.0.0", Doc: "Stops the systemd unit that holds a lock.",
		Breaker: func() plugin.Breaker { return &breaker{Systemctl: "systemctl", Proc: "/proc"} },
	}
}

type breaker struct {
	Allow     []string `config:"allow,required" doc:"Units that may be stopped, as patterns such as \"deploy-*.service\"."`
	Systemctl string   `config:"systemctl" doc:"The program."`
	Proc      string   `config:"proc" doc:"Where the host's proc filesystem is mounted."`
}

// Validate checks what the schema cannot.
func (b *breaker) Validate(context.Context) error {
	var problems plugin.Problems
	if len(b.Allow) == 0 {
		problems.Add("allow", "it must hold a pattern: without one nothing may be stopped")
	}
	for i, pattern := range b.Allow {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			problems.Add(fmt.Sprintf("allow[%d]", i), "%q is no pattern", pattern)
		}
	}
	return problems.Err()
}

func result(outcome plugin.Outcome, format string, args ...any) *plugin.BreakResult {
	return &plugin.BreakResult{Outcome: outcome, Detail: fmt.Sprintf(format, args...)}
}

// Break stops the unit, and returns when it has stopped.
func (b *breaker) Break(ctx context.Context, q *plugin.BreakRequest) (*plugin.BreakResult, error) {
	h := &q.Lock.Holder
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	if h.Host != host {
		return result(plugin.NotApplicable, "the holder is on %.60q, and this plugin stops units of %s only", h.Host, host), nil
	}
	boot, err := os.ReadFile(filepath.Join(b.Proc, "sys/kernel/random/boot_id"))
	switch {
	case err != nil:
		return nil, err
	case h.BootID == "" || h.StartTicks == 0:
		return result(plugin.NotApplicable, "the holder's record does not say which process with its pid it is"), nil
	case strings.TrimSpace(string(boot)) != h.BootID:
		return result(plugin.NotApplicable, "%s was started anew since: the holder is gone", host), nil
	}
	unit, err := b.unit(h)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return result(plugin.NotApplicable, "process %d is gone", h.PID), nil
	case err != nil:
		return nil, err
	case unit == "":
		return result(plugin.NotApplicable, "process %d is that of no unit", h.PID), nil
	case !b.allowed(unit):
		return result(plugin.Failed, "unit %q may not be stopped: allow does not name it", unit), nil
	case q.DryRun:
		return result(plugin.Done, "would stop %s, of process %d", unit, h.PID), nil
	}
	cmd := exec.CommandContext(ctx, b.Systemctl, "stop", "--", unit)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		last := strings.TrimSpace(said.String())
		return nil, fmt.Errorf("stop %s: %w: %.200q", unit, err, last[strings.LastIndexByte(last, '\n')+1:])
	}
	return result(plugin.Done, "stopped %s, of process %d", unit, h.PID), nil
}

func (b *breaker) allowed(unit string) bool {
	for _, pattern := range b.Allow {
		if ok, err := path.Match(pattern, unit); ok && err == nil {
			return true
		}
	}
	return false
}

// unit is the service that the holder's process belongs to; empty: none. It is
// os.ErrNotExist if the process with that pid is another one.
func (b *breaker) unit(h *plugin.Holder) (string, error) {
	if h.PID <= 1 {
		return "", fmt.Errorf("pid %d is no holder's", h.PID)
	}
	dir := filepath.Join(b.Proc, strconv.Itoa(h.PID))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return "", err
	}
	// proc(5): the name, in parentheses, may hold anything; starttime is field 22.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[19] != strconv.FormatUint(h.StartTicks, 10) {
		return "", fmt.Errorf("pid %d is another process by now: %w", h.PID, os.ErrNotExist)
	}
	groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(groups)) {
		// cgroups(7): "0::PATH" in version 2, and systemd's own hierarchy in version 1.
		if !strings.HasPrefix(line, "0::") && !strings.Contains(line, ":name=systemd:") {
			continue
		}
		for _, part := range strings.Split(strings.TrimSpace(line), "/") {
			if strings.HasSuffix(part, ".service") {
				return part, nil
			}
		}
	}
	return "", nil
}
