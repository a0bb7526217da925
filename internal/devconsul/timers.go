package devconsul

import (
	"sync"
	"time"
)

// timers is a set of named one-shot timers that end together.
//
// Invariant: after Close returns, no callback runs and none will.
type timers struct {
	mu     sync.Mutex
	m      map[string]*timer
	closed bool
	wg     sync.WaitGroup
}

type timer struct{ t *time.Timer }

func newTimers() *timers { return &timers{m: map[string]*timer{}} }

// Set runs fn in d, in place of what was set for the key. fn must not call Close.
func (ts *timers) Set(key string, d time.Duration, fn func()) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.stopLocked(key)
	if ts.closed {
		return
	}
	e := &timer{}
	ts.m[key] = e
	ts.wg.Add(1)
	e.t = time.AfterFunc(d, func() {
		defer ts.wg.Done()
		ts.mu.Lock()
		current := ts.m[key] == e && !ts.closed
		if current {
			delete(ts.m, key)
		}
		ts.mu.Unlock()
		if current {
			fn()
		}
	})
}

// Pending tells whether a timer is set for the key.
func (ts *timers) Pending(key string) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.m[key] != nil
}

// Stop takes the timer of the key away. Its callback may be running.
func (ts *timers) Stop(key string) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.stopLocked(key)
}

func (ts *timers) stopLocked(key string) {
	if e := ts.m[key]; e != nil {
		delete(ts.m, key)
		if e.t.Stop() {
			ts.wg.Done()
		}
	}
}

// Close stops all timers and waits for callbacks that run.
func (ts *timers) Close() {
	ts.mu.Lock()
	ts.closed = true
	for key := range ts.m {
		ts.stopLocked(key)
	}
	ts.mu.Unlock()
	ts.wg.Wait()
}
