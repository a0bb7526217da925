package devconsul

import (
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Fault is something that goes wrong with the requests that it matches. What is
// set happens in the order of the fields.
type Fault struct {
	// Match picks requests; nil picks all.
	Match func(*http.Request) bool
	// Times is how many requests it hits before it is over; 0 is no end.
	Times int
	// Delay holds the request back, for as long as its client waits.
	Delay time.Duration
	// Drop cuts the connection before the request is served: it did not happen.
	Drop bool
	// DropAfter serves the request and cuts the connection instead of answering:
	// it did happen, and its client cannot know.
	DropAfter bool
	// Status, if not 0, is answered with Body instead of serving.
	Status      int
	Body        string
	ContentType string // "text/plain; charset=utf-8" if empty
}

// NoLeader is what a Consul without a leader answers.
func NoLeader() Fault {
	return Fault{Status: http.StatusInternalServerError, Body: "No cluster leader"}
}

// HTML is what stands in Consul's place when a proxy or a portal answers.
func HTML() Fault {
	return Fault{Status: http.StatusOK, ContentType: "text/html", Body: "<!doctype html><html><body>Sign in to continue</body></html>"}
}

// Faults injects faults into a Server, through Config.Intercept. The first added
// that matches a request hits it. The zero value injects none.
type Faults struct {
	mu     sync.Mutex
	active []*Fault
}

// Add puts a fault in force until it is over, or remove is called.
func (f *Faults) Add(fault Fault) (remove func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := &fault
	f.active = append(f.active, p)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.active = slices.DeleteFunc(f.active, func(o *Fault) bool { return o == p })
	}
}

// Clear ends all faults.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = nil
}

func (f *Faults) take(r *http.Request) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, p := range f.active {
		if p.Match != nil && !p.Match(r) {
			continue
		}
		hit := *p
		if p.Times > 0 {
			if p.Times--; p.Times == 0 {
				f.active = slices.Delete(f.active, i, i+1)
			}
		}
		return hit, true
	}
	return Fault{}, false
}

// Intercept is for Config.Intercept.
func (f *Faults) Intercept(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault, ok := f.take(r)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		if fault.Delay > 0 {
			t := time.NewTimer(fault.Delay)
			defer t.Stop()
			select {
			case <-t.C:
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		}
		switch {
		case fault.Drop:
			panic(http.ErrAbortHandler)
		case fault.DropAfter:
			next.ServeHTTP(discard{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		case fault.Status != 0:
			if fault.ContentType == "" {
				fault.ContentType = "text/plain; charset=utf-8"
			}
			w.Header().Set("Content-Type", fault.ContentType)
			w.WriteHeader(fault.Status)
			io.WriteString(w, fault.Body)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// discard is an answer that nobody gets.
type discard struct{ h http.Header }

var _ http.ResponseWriter = discard{}

func (d discard) Header() http.Header       { return d.h }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}
