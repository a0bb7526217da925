package evidence

import "github.com/aim-control/aimlock/internal/records"

// LocalProcesses are the processes of the hold that s shows, where they are of
// this host: what Consul does not tell the end of. nil for any other holder.
func (r *Reader) LocalProcesses(s *Snapshot) []records.Process {
	if !s.Held() || s.Holder == nil || !r.Local(s.Holder) {
		return nil
	}
	return Processes(s.Holder, s.Progress)
}
