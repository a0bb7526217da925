package plugin

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/stats"
)

// orphanGrace is how long a plugin waits for its host to come back once its last
// connection has ended. go-plugin's host keeps two streams open for as long as it
// lives, so that a connection that is only idle does not end.
const orphanGrace = time.Second

// orphan ends a plugin whose host is gone, also one that was killed: it is then that
// the last connection ends.
type orphan struct {
	stop func()

	mu    sync.Mutex
	open  int
	timer *time.Timer
}

var _ stats.Handler = (*orphan)(nil)

// HandleConn counts connections.
func (o *orphan) HandleConn(_ context.Context, s stats.ConnStats) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch s.(type) {
	case *stats.ConnBegin:
		o.open++
		if o.timer != nil {
			o.timer.Stop()
		}
	case *stats.ConnEnd:
		if o.open--; o.open == 0 {
			o.timer = time.AfterFunc(orphanGrace, func() {
				o.mu.Lock()
				alone := o.open == 0
				o.mu.Unlock()
				if alone {
					o.stop()
				}
			})
		}
	}
}

// HandleRPC, TagRPC and TagConn have nothing to do.
func (o *orphan) HandleRPC(context.Context, stats.RPCStats) {}

// TagRPC keeps the context.
func (o *orphan) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// TagConn keeps the context.
func (o *orphan) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
