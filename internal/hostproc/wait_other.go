//go:build !linux

package hostproc

import "context"

func waitPidfd(context.Context, Process) bool { return false }
