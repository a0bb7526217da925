package command

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strconv"

	"github.com/aim-control/aimlock/internal/reports"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// progressOptions are the flags by which a command under a lock tells how far it
// is.
type progressOptions struct {
	fd   int
	file string
}

// Descriptors that every shell can name, beside the standard ones.
const (
	minProgressFD = 3
	maxProgressFD = 9
)

func (o *progressOptions) flags(fs *flag.FlagSet) {
	fs.IntVar(&o.fd, "progress-fd", 0, "Read the command's progress from its descriptor `N`, 3 to 9.\nThe command finds N in AIMLOCK_PROGRESS_FD.")
	fs.StringVar(&o.file, "progress-file", "", "Read the command's progress from the last line of `FILE`.\nThe command finds its path in AIMLOCK_PROGRESS_FILE.")
}

func (o *progressOptions) check(in *input) error {
	if in.Set("progress-fd") && (o.fd < minProgressFD || o.fd > maxProgressFD) {
		return usagef("-progress-fd %d: it must be from %d to %d", o.fd, minProgressFD, maxProgressFD)
	}
	if in.Set("progress-file") && o.file == "" {
		return usagef("-progress-file names no file")
	}
	return nil
}

// childProgress is the way of a command's reports to the lock's progress record.
type childProgress struct {
	relay *reports.Relay
	// env and files are for the command; files are its descriptors from 3 on.
	env   []string
	files []*os.File
	// theirs is the command's end of the pipe.
	theirs *os.File
}

// startProgress is nil where nobody asked for it. The result must be closed.
// From now on the progress has an age: a command that never reports counts as
// one that stands still.
func (m *Meta) startProgress(h *locksmith.Hold, o *progressOptions) (*childProgress, error) {
	if o.fd == 0 && o.file == "" {
		return nil, nil
	}
	p := &childProgress{}
	var ours *os.File
	if o.fd != 0 {
		var err error
		if ours, p.theirs, err = os.Pipe(); err != nil {
			return nil, err
		}
		p.files = make([]*os.File, o.fd-minProgressFD+1)
		p.files[o.fd-minProgressFD] = p.theirs
		p.env = append(p.env, "AIMLOCK_PROGRESS_FD="+strconv.Itoa(o.fd))
	}
	path := o.file
	if path != "" {
		var err error
		if path, err = filepath.Abs(path); err != nil {
			closeAll(ours, p.theirs)
			return nil, err
		}
		p.env = append(p.env, "AIMLOCK_PROGRESS_FILE="+path)
	}
	p.relay = reports.New(func(ctx context.Context, r reports.Report) error {
		err := h.Progress(ctx, r.Done, r.Total, r.Unit, r.Note)
		if err != nil && h.Life().Err() == nil {
			return err
		}
		return nil // that the hold ended is told by itself
	}, func(err error) { m.Notef("Warning: %v\n", err) })
	p.relay.Report(reports.Report{Note: "started"})
	if ours != nil {
		p.relay.Pipe(ours)
	}
	if path != "" {
		p.relay.File(path)
	}
	return p, nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// running gives up the command's end of the pipe, which is the command's alone
// from now on.
func (p *childProgress) running() {
	if p != nil && p.theirs != nil {
		p.theirs.Close()
		p.theirs = nil
	}
}

// close waits until what the command last reported is written, within a bound.
func (p *childProgress) close(ctx context.Context) {
	if p == nil {
		return
	}
	p.running()
	p.relay.Close(ctx)
}
