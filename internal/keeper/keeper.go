package keeper

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/orchestrator/agent"
)

// Process is a command that runs.
type Process interface {
	// Signal sends to the command's process group.
	Signal(os.Signal) error
	// Stop asks it to end by sig, and kills what is left after timeout. It returns
	// when nothing is left, or an error if something may be.
	Stop(sig syscall.Signal, timeout time.Duration) error
	// Ended is closed when nothing of it is left; then Code is valid.
	Ended() <-chan struct{}
	// Code is the exit code, 128 + n after signal n. The error says that something
	// of it may be left, or that it could not be watched to its end.
	Code() (int, error)
}

// Options say what is kept and how. No duration is negative.
type Options struct {
	// Configs are all that must be there before the first start.
	Configs []string
	// Env are those of them that stand in the command's environment: a change of
	// one always means a restart.
	Env []string
	// ReadEnv reads these from files that stand. It is called before each start.
	ReadEnv func([]agent.Left) ([]string, error)
	// Look tells what stands of Configs, in their order, and whether nothing is
	// under way that may change it.
	Look func() (left []agent.Left, settled bool)
	// Start starts the command with what ReadEnv returned.
	Start func(env []string) (Process, error)
	// Signal is sent when a config has changed; 0 is a restart.
	Signal syscall.Signal
	// KillSignal ends the command; 0 is SIGTERM, or what StopSignal says.
	KillSignal  syscall.Signal
	KillTimeout time.Duration
	// StopSignal is the signal that ended ctx; nil is SIGTERM.
	StopSignal func(context.Context) syscall.Signal
	// Settle is how long a command must run after a start or a signal for the
	// change to count as taken. No signal is sent sooner after a start: a program
	// that has not set up its handler yet would die of it.
	Settle time.Duration
	// Wait bounds the wait for the first config of each; 0 is without limit.
	Wait time.Duration
	// Restarts is how often in a row a command that crashed is started again;
	// negative is without limit. One that ran for Calm begins a new row.
	Restarts int
	// Final tells of exit codes after which it is not started again; nil: of none.
	Final func(code int) bool
	// First and Longest pause before it is started again.
	First, Longest, Calm time.Duration
	// Once: the command is started once, whatever changes, and not again.
	Once bool
	Log  hclog.Logger
}

// Keeper is made by New. Run is called once; the other methods by anybody.
type Keeper struct {
	Options
	requests chan request
	pokes    chan struct{}
	signals  chan os.Signal
	ended    chan struct{}
}

// request is files that the fence put in place just now.
type request struct {
	left  []agent.Left
	reply chan error
}

// New makes a keeper that has seen nothing yet.
func New(o Options) *Keeper {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Keeper{
		Options: o, requests: make(chan request), pokes: make(chan struct{}, 1), signals: make(chan os.Signal, 8), ended: make(chan struct{}),
	}
}

var _ agent.Tell = (*Keeper)(nil).Changed

// Changed has the command take files that were put in place just now, and
// returns whether it did: an error is a command that ended within Options.Settle,
// that cannot be started, or whose environment cannot be read. Files of other
// configs are no concern of it.
func (k *Keeper) Changed(ctx context.Context, left []agent.Left) error {
	mine := slices.DeleteFunc(slices.Clone(left), func(l agent.Left) bool { return !slices.Contains(k.Configs, l.Config) })
	if len(mine) == 0 {
		return nil
	}
	r := request{left: mine, reply: make(chan error, 1)}
	select {
	case k.requests <- r:
	case <-k.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-r.reply:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Poke has the keeper look at what stands. It does not wait.
func (k *Keeper) Poke() {
	select {
	case k.pokes <- struct{}{}:
	default:
	}
}

// Forward sends a signal to the command, or drops it where none runs: who starts
// reads everything anew. It does not wait.
func (k *Keeper) Forward(sig os.Signal) {
	select {
	case k.signals <- sig:
	default:
	}
}

// MissingError is configs that did not come in time, or could not be used.
type MissingError struct {
	Configs []string
	Waited  time.Duration
	// Err is what the last try came to, if there was one.
	Err error
}

func (e *MissingError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("the command was not started within %s: %v", e.Waited, e.Err)
	}
	return fmt.Sprintf("the command was not started: nothing was delivered of %s within %s", strings.Join(e.Configs, ", "), e.Waited)
}

func (e *MissingError) Unwrap() error { return e.Err }

// exitError is a command that ended when it should not.
type exitError struct {
	code int
	when string
}

func (e *exitError) Error() string {
	if e.code > 128 {
		return fmt.Sprintf("the command was ended by signal %d (%s) %s", e.code-128, syscall.Signal(e.code-128), e.when)
	}
	return fmt.Sprintf("the command ended with status %d %s", e.code, e.when)
}
