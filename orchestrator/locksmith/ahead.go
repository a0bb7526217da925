package locksmith

import (
	"context"
	"time"
)

// ahead is a check that is made while the locks are still being read, for an
// acquisition that will need one if they are free. What it is bound to comes
// later, so that it gives nobody anything; its lease counts from its beginning.
type ahead struct {
	c      *Client
	nonce  string
	cancel context.CancelFunc
	// made is closed when check and err are set.
	made  chan struct{}
	check *check
	err   error
}

// goAhead begins to make the check of an acquisition. It returns nil where that
// is of no use: a check is there already, or the request asks once, and then it
// should cost little to be refused.
func (c *Client) goAhead(ctx context.Context, req *Request) *ahead {
	if c.reuse() || req.Try {
		return nil
	}
	a := &ahead{c: c, nonce: req.nonce(), made: make(chan struct{})}
	mctx, cancel := context.WithCancel(ctx)
	a.cancel = cancel
	go func() {
		defer close(a.made)
		a.check, a.err = c.newCheck(mctx, req.sessionName(), c.meta(a.nonce, req.Names))
	}()
	return a
}

// take waits for the check and hands it over.
func (a *ahead) take() (*check, error) {
	<-a.made
	a.cancel()
	return a.check, a.err
}

// dropPatience bounds the wait for a registration that nobody needs any more. To
// give it up at once would leave open whether it stands.
const dropPatience = 2 * time.Second

// drop ends a check that is not needed. It returns what is closed when that is
// done.
func (a *ahead) drop(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		timer := time.NewTimer(dropPatience)
		defer timer.Stop()
		select {
		case <-a.made:
		case <-timer.C:
		}
		a.cancel()
		<-a.made
		if a.check == nil {
			return
		}
		dctx, cancel := detached(ctx, 3*time.Second)
		defer cancel()
		_ = a.c.leaveCheck(dctx, a.check, true)
	}()
	return done
}
