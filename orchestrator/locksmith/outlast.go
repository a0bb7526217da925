package locksmith

import (
	"context"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
)

// outlast runs an acquisition, and runs it again where it ended because Consul
// did not answer for as long as an operation is tried: whoever waits for a lock
// waits out Consul's outages too, and their wait alone bounds that. A Consul that
// never answered is an error at once, since the address may be wrong.
//
// What the run before left behind is what a process that was killed then leaves,
// and the next one has a session of its own.
//
// run tells whether Consul has answered it.
func outlast(ctx context.Context, req *Request, start time.Time, run func() (_ *Hold, reached bool, _ error)) (*Hold, error) {
	ever, told := false, false
	for {
		h, reached, err := run()
		ever = ever || reached
		if err == nil || req.Try || !ever || !outage(err) || (req.Wait > 0 && time.Since(start) >= req.Wait) {
			return h, err
		}
		if reached || !told {
			told = true
			req.Notify(Notice{Kind: NoticeOutage, Lock: req.Names[0], Text: err.Error()})
		}
		if serr := sleep(ctx, time.Second+fate.N(ctx, "outlast", time.Second)); serr != nil {
			return nil, serr
		}
	}
}

// outage tells errors of a Consul that cannot be reached, or whose agent cannot
// reach its servers. What it answers itself may be what it answers for ever.
func outage(err error) bool {
	switch consulkv.KindOf(err) {
	case consulkv.Unreachable, consulkv.Broken, consulkv.NoLeader:
		return true
	case consulkv.ServerError:
		// "rpc error getting client: …", "rpc error making call: EOF": an agent's, of
		// its servers.
		return strings.Contains(err.Error(), "rpc error")
	}
	return false
}
