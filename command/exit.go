package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/aim-control/aimlock/internal/signals"
)

// Exit codes. They are public interface: see docs/cli.md.
const (
	ExitOK           = 0 // done; with -detailed-exitcode: converged
	ExitFailed       = 1
	ExitUsage        = 2 // usage, or an invalid file
	ExitMore         = 3 // with -detailed-exitcode: fine, more to do
	ExitLockBusy     = 4 // the lock is HELD, WARM, COOLING or UNKNOWN
	ExitLockHot      = 5 // the lock is HOT and the policy does not let it be broken now
	ExitNotConverged = 6 // the rollout is paused, aborted, rolled back or superseded
	ExitLost         = 7 // the lock was lost, or asked for, while working
)

// exitMeaning is one exit code, in words.
type exitMeaning struct {
	code int
	what string
}

func exitMeanings() []exitMeaning {
	return []exitMeaning{
		{ExitOK, "done (with -detailed-exitcode: converged)"},
		{ExitFailed, "failed"},
		{ExitUsage, "usage, or an invalid file"},
		{ExitMore, "with -detailed-exitcode: fine, more to do"},
		{ExitLockBusy, "the lock is HELD, WARM, COOLING or UNKNOWN"},
		{ExitLockHot, "the lock is HOT and the policy does not let it be broken now"},
		{ExitNotConverged, "the rollout is paused, aborted, rolled back or superseded"},
		{ExitLost, "the lock was lost, or asked for, while working"},
	}
}

// exitBySignal explains the codes that no command chooses.
const exitBySignal = "it was interrupted (^C): 128 plus the signal's number"

// rolloutExits are the codes of who drives a rollout.
func rolloutExits() []int {
	return []int{ExitOK, ExitFailed, ExitUsage, ExitMore, ExitLockBusy, ExitLockHot, ExitNotConverged, ExitLost}
}

// ExitError is an error that chooses the exit code. Without one an error ends
// the process with ExitFailed.
type ExitError struct {
	Code int
	// Err is printed as `Error: …`. With neither Err nor Text nothing is
	// printed: the command has said everything already.
	Err error
	// Text, if not empty, is printed as it stands in place of Err. A lock's
	// refusal needs it: its first line is `ERROR: <name>: HOT`, and more follow.
	Text string
}

func (e *ExitError) Error() string {
	switch {
	case e.Text != "":
		return strings.TrimSpace(e.Text)
	case e.Err != nil:
		return e.Err.Error()
	default:
		return fmt.Sprintf("exit code %d", e.Code)
	}
}

func (e *ExitError) Unwrap() error { return e.Err }

// exit ends a command with a code whose reason it has printed itself.
func exit(code int) error {
	if code == ExitOK {
		return nil
	}
	return &ExitError{Code: code}
}

// exitf is an error with an exit code.
func exitf(code int, format string, args ...any) error {
	return &ExitError{Code: code, Err: fmt.Errorf(format, args...)}
}

// usagef is an error of the command line or of a file that it names.
func usagef(format string, args ...any) error { return exitf(ExitUsage, format, args...) }

// refused ends a command because of a lock's state: code is ExitLockBusy,
// ExitLockHot or ExitLost, and text begins with `ERROR: <name>: <STATE>`.
func refused(code int, text string) error { return &ExitError{Code: code, Text: text} }

// report prints err, once and here only, and returns the exit code.
func report(ctx context.Context, w io.Writer, err error) int {
	if err == nil {
		return ExitOK
	}
	if ee, ok := errors.AsType[*ExitError](err); ok {
		switch {
		case ee.Text != "":
			_, _ = io.WriteString(w, foldedFor(w, strings.TrimRight(ee.Text, "\n")+"\n"))
		case ee.Err != nil:
			printError(w, err)
		}
		return ee.Code
	}
	// The signal is the reason whatever the command was doing when it came, but
	// only where the error is that cancellation: a failure of its own is told.
	if sig, ok := errors.AsType[signals.Error](context.Cause(ctx)); ok &&
		(errors.Is(err, context.Canceled) || errors.Is(err, sig)) {
		printError(w, sig)
		return sig.ExitCode()
	}
	printError(w, err)
	return ExitFailed
}

// printError folds what is one line: of several each may be as wide as what it shows, as
// the lines of a policy are.
func printError(w io.Writer, err error) {
	line := fmt.Sprintf("Error: %s\n", strings.TrimRight(err.Error(), "\n"))
	if strings.Count(line, "\n") == 1 {
		line = foldedFor(w, line)
	}
	_, _ = io.WriteString(w, line)
}
