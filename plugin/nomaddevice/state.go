package nomaddevice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/orchestrator/agent"
)

const (
	// statePoll is how often the state folder is read whatever the kernel says:
	// a few kilobytes for each config.
	statePoll = 30 * time.Second
	// stateAbsent is how often it is looked for while it is not there.
	stateAbsent = 2 * time.Second
	// stateSettle is how long after a change it is read: a state is written in
	// several steps.
	stateSettle = 100 * time.Millisecond
)

// nodeState is what the agent's state folder says.
type nodeState struct {
	// Node is the agent's name of this machine.
	Node    string
	Configs []agent.Status
	// Err says why the folder cannot be read; Configs are then those of before.
	Err string
}

// readState reads a state folder.
func readState(dir string) nodeState {
	node, err := nodeOf(dir)
	if err == nil {
		_, err = os.ReadDir(filepath.Join(dir, "configs"))
	}
	var all []agent.Status
	if err == nil {
		all, err = agent.ReadStatus(dir)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nodeState{Node: node, Err: fmt.Sprintf("no aimlock agent has kept its state in %s yet", dir)}
	case err != nil:
		return nodeState{Node: node, Err: fmt.Sprintf("the agent's state cannot be read: %v", err)}
	}
	return nodeState{Node: node, Configs: all}
}

// nodeOf is the name of the node that a state folder belongs to.
func nodeOf(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "node"))
	return strings.TrimSuffix(string(b), "\n"), err
}

// followState tells what the state folder says, and again when it changes, until
// ctx ends.
func followState(ctx context.Context, dir string, log hclog.Logger, tell func(nodeState)) {
	var events <-chan fsnotify.Event
	var errs <-chan error
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("changes of the agent's state are found by looking every few seconds only", "error", err)
	} else {
		events, errs = w.Events, w.Errors
		defer func() { _ = w.Close() }()
	}
	var last *nodeState
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
			next.Reset(stateSettle)
			continue
		case err := <-errs:
			// Too many changes at once: some are lost.
			log.Debug("watching the agent's state", "error", err)
			next.Reset(stateSettle)
			continue
		case <-next.C:
		}
		if w != nil {
			watchState(w, dir)
		}
		now := readState(dir)
		if last == nil || !reflect.DeepEqual(*last, now) {
			last = &now
			tell(now)
		}
		wait := statePoll
		if now.Err != "" || w == nil {
			wait = stateAbsent
		}
		next.Reset(wait)
	}
}

// watchState asks the kernel for changes of the folder and of those in it. A
// folder that is watched already is no matter, and one that cannot be watched is
// looked at every statePoll.
func watchState(w *fsnotify.Watcher, dir string) {
	configs := filepath.Join(dir, "configs")
	_ = w.Add(configs)
	ents, _ := os.ReadDir(configs)
	for _, e := range ents {
		if e.IsDir() {
			_ = w.Add(filepath.Join(configs, e.Name()))
		}
	}
}
