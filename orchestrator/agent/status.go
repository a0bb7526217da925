package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Status is what a node remembers of one config.
type Status struct {
	Config string `json:"config"`
	// Order is the mark: nothing older is accepted.
	Order orchestrator.Order `json:"order"`
	// State is the result answered to the order, or "unfinished", "waiting" or
	// "damaged".
	State       string `json:"state"`
	Revision    string `json:"revision"`
	SHA256      string `json:"sha256"`
	Destination string `json:"destination"`
	Rollout     string `json:"rollout"`
	// Target is the plugin that writes it to another machine; left out where none does.
	Target string `json:"target,omitempty"`
	// Configs are those that it is applied with, all or none, itself among
	// them; left out where it stands alone.
	Configs []string            `json:"configs,omitempty"`
	Error   string              `json:"error"`
	Output  string              `json:"output"`
	Refused *orchestrator.Order `json:"refused"`
	Time    *time.Time          `json:"time"`
	// Drift and Restored are left out where there was none.
	Drift    *records.Drift    `json:"drift,omitempty"`
	Restored *records.Restored `json:"restored,omitempty"`
}

// States beside the results of a report.
const (
	StateUnfinished = "unfinished"
	// StateWaiting: a newer entry is there, but not all that belong with it.
	StateWaiting = "waiting"
	StateDamaged = "damaged"
)

// ReadStatus reads a state folder, which is empty until the first order. It needs no Consul, takes no locks and
// changes nothing.
func ReadStatus(stateDir string) ([]Status, error) {
	all := []Status{}
	if _, err := os.Stat(filepath.Join(stateDir, "node")); err != nil {
		switch list, rerr := os.ReadDir(stateDir); {
		case errors.Is(rerr, fs.ErrNotExist):
			return nil, fmt.Errorf("%s does not exist: no order has arrived on this node yet, or it is not the state folder of an agent", stateDir)
		case rerr == nil && len(list) == 0 && errors.Is(err, fs.ErrNotExist):
			return all, nil
		}
		return nil, fmt.Errorf("%s is not the state folder of an agent: %w", stateDir, err)
	}
	for _, st := range states(stateDir) {
		if st.err != nil {
			all = append(all, Status{Config: filepath.Base(st.dir), State: StateDamaged, Error: st.err.Error()})
			continue
		}
		s := Status{Config: st.Config, Order: st.Mark, State: StateUnfinished, Refused: st.Refused}
		if d := st.Desired; d != nil {
			s.Destination, s.Rollout, s.Configs = d.Destination, d.Rollout, d.Configs
			if d.Target != nil {
				s.Target = d.Target.Name
			}
		}
		if r := st.Report; r != nil {
			// The last answer, even while the next is on its way.
			s.Revision, s.SHA256, s.Time = r.Revision, r.SHA256, &r.Time
			s.Drift, s.Restored = r.Drift, r.Restored
			if st.Phase == phaseDone {
				s.State, s.Error, s.Output = r.Result, r.Error, r.Output
			}
		}
		if wt := st.Waiting; wt != nil {
			s.State, s.Error, s.Output = StateWaiting, fmt.Sprintf("order %s waits: %s", wt.Order, wt.Why), ""
		}
		if o := st.Refused; o != nil && !o.Less(st.Mark) && s.Error == "" {
			// Its answer in Consul has the whole story.
			s.Error = fmt.Sprintf("refused %s: `aimlock recover` (Consul went back)", o)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Config, b.Config) })
	return all, nil
}
