package records

import "time"

// DriftRestore puts a file back that somebody else changed. See Desired.Drift.
const DriftRestore = "restore"

// Drift is what stands on a node in place of what its last order left.
type Drift struct {
	// Since is by the node's clock: for people.
	Since time.Time `json:"since"`
	// What was done to the file, in words.
	What string `json:"what"`
	// SHA256 of what stands; empty where no file does, and for a config with
	// secrets.
	SHA256 string `json:"sha256,omitempty"`
	// Error says why the file was not put back although it should be.
	Error string `json:"error,omitempty"`
}

// Text tells of a file that somebody else changed; "" of none.
func (d *Drift) Text() string {
	if d == nil {
		return ""
	}
	out := "changed by somebody else since " + d.Since.UTC().Format(time.RFC3339) + ": " + d.What
	if d.Error != "" {
		out += "; " + d.Error
	}
	return out
}

// Restored tells of a file that was put back.
type Restored struct {
	Times int `json:"times"`
	// Last is by the node's clock: for people.
	Last time.Time `json:"last"`
	What string    `json:"what"`
}
