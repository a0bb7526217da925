package locksmith

import (
	"context"
	"time"
)

// ahead is a session that is made while the locks are still being read, with its
// check, for an acquisition that will need them if they are free. It holds nothing
// yet, so that it gives nobody anything; its lease counts from its beginning.
type ahead struct {
	nonce  string
	cancel context.CancelFunc
	// made is closed when sess and err are set.
	made chan struct{}
	sess *session
	err  error
}

// goAhead begins to make the session of an acquisition. It returns nil for a
// request that asks once: to be refused should cost little.
func (c *Client) goAhead(ctx context.Context, req *Request) *ahead {
	if req.Try {
		return nil
	}
	a := &ahead{nonce: req.nonce(ctx), made: make(chan struct{})}
	mctx, cancel := context.WithCancel(ctx)
	a.cancel = cancel
	go func() {
		defer close(a.made)
		a.sess, a.err = c.open(mctx, req, a.nonce)
	}()
	return a
}

// take waits for the session and hands it over.
func (a *ahead) take() (*session, error) {
	<-a.made
	a.cancel()
	return a.sess, a.err
}

// dropPatience bounds the wait for a session that nobody needs any more. To give
// it up at once would leave open whether its check stands.
const dropPatience = 2 * time.Second

// drop ends a session that is not needed. It returns what is closed when that is
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
		if a.sess != nil {
			a.sess.close(ctx)
		}
	}()
	return done
}
