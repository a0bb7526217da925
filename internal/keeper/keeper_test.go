package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/keeper"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// child is a command of the tests: it does what it is told and notes it.
type child struct {
	w     *world
	ended chan struct{}
	once  sync.Once
	code  int
	// deaf: it does not end by a signal.
	deaf bool
}

func (c *child) end(code int) { c.once.Do(func() { c.code = code; close(c.ended) }) }

func (c *child) Signal(sig os.Signal) error {
	c.w.note("signal " + sig.String())
	if c.w.dies {
		c.end(128 + int(sig.(syscall.Signal)))
	}
	return nil
}

func (c *child) Stop(sig syscall.Signal, timeout time.Duration) error {
	c.w.note("stop by " + sig.String())
	code := 128 + int(sig)
	if c.deaf {
		time.Sleep(timeout) // of the bubble's clock
		code = 137
	}
	c.end(code)
	return nil
}

func (c *child) Ended() <-chan struct{} { return c.ended }
func (c *child) Code() (int, error)     { return c.code, nil }

// world is a node with two configs and one command.
type world struct {
	t  *testing.T
	k  *keeper.Keeper
	mu sync.Mutex
	// files are what stands; bad contents cannot be read as an environment, and
	// deadly ones end the command.
	files   map[string]string
	restore map[string]int
	busy    bool
	dies    bool
	deaf    bool
	child   *child
	notes   []string
	begun   time.Time

	stop func()
	code int
	err  error
	done chan struct{}
}

func newWorld(t *testing.T, edit func(*keeper.Options)) *world {
	w := &world{t: t, files: map[string]string{}, restore: map[string]int{}, done: make(chan struct{}), begun: time.Now()}
	o := keeper.Options{
		Configs: []string{"a", "b"}, Env: []string{"b"}, Settle: time.Second, KillTimeout: 10 * time.Second,
		Restarts: 3, First: time.Second, Longest: time.Minute, Calm: time.Minute,
		Look: func() ([]agent.Left, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return []agent.Left{w.left("a"), w.left("b")}, !w.busy
		},
		ReadEnv: func(left []agent.Left) ([]string, error) {
			if strings.HasPrefix(left[1].SHA256, "bad") {
				return nil, errors.New("b is no environment")
			}
			return []string{"A=" + left[0].SHA256, "B=" + left[1].SHA256}, nil
		},
		Start: func(env []string) (keeper.Process, error) {
			w.note("start " + strings.Join(env, " "))
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.files["a"] == "unstartable" {
				return nil, errors.New("no such program")
			}
			w.child = &child{w: w, ended: make(chan struct{}), deaf: w.deaf}
			if w.files["a"] == "deadly" {
				w.child.end(3)
			}
			return w.child, nil
		},
	}
	if edit != nil {
		edit(&o)
	}
	w.k = keeper.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	w.stop = cancel
	go func() {
		w.code, w.err = w.k.Run(ctx)
		close(w.done)
	}()
	return w
}

func (w *world) note(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, fmt.Sprintf("%s %s", time.Since(w.begun), s))
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.notes)
}

func (w *world) left(config string) agent.Left {
	v, ok := w.files[config]
	return agent.Left{Config: config, Path: "/" + config, Exists: ok, SHA256: v, Restored: w.restore[config]}
}

// put has a file stand, as somebody else delivers it.
func (w *world) put(config, v string) {
	w.mu.Lock()
	w.files[config] = v
	w.mu.Unlock()
	w.k.Poke()
	synctest.Wait()
}

// fence has a file stand and asks the command, as the fence does: what it does
// not take is put back.
func (w *world) fence(config, v string) error {
	w.mu.Lock()
	old, had := w.files[config]
	w.files[config], w.busy = v, true
	l := w.left(config)
	w.mu.Unlock()
	err := w.k.Changed(w.t.Context(), []agent.Left{l, {Config: "of another program"}})
	if err != nil {
		w.mu.Lock()
		if w.files[config] = old; !had {
			delete(w.files, config)
		}
		l = w.left(config)
		w.mu.Unlock()
		if berr := w.k.Changed(w.t.Context(), []agent.Left{l}); berr != nil {
			err = fmt.Errorf("%w; put back: %w", err, berr)
		}
	}
	w.mu.Lock()
	w.busy = false
	w.mu.Unlock()
	w.k.Poke()
	synctest.Wait()
	return err
}

// end lets the command end.
func (w *world) end(code int) {
	w.mu.Lock()
	c := w.child
	w.mu.Unlock()
	c.end(code)
	synctest.Wait()
}

// wants checks what has happened since the last look.
func (w *world) wants(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.notes, want) {
		w.t.Errorf("\n got %q\nwant %q", w.notes, want)
	}
	w.notes = nil
}

// ended waits for the end of Run.
func (w *world) ended(code int, err string) {
	w.t.Helper()
	<-w.done
	if got := fmt.Sprint(w.err); w.code != code || got != err {
		w.t.Errorf("it ended with %d, %s; want %d, %s", w.code, got, code, err)
	}
}

func (w *world) up() {
	w.t.Helper()
	w.put("a", "1")
	w.put("b", "1")
	time.Sleep(5 * time.Second)
	w.wants("0s start A=1 B=1")
}

// in runs a test on the bubble's clock.
func in(t *testing.T, name string, edit func(*keeper.Options), story func(*world)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, edit)
			story(w)
			w.stop()
			<-w.done
		})
	})
}

func signalled(o *keeper.Options) { o.Signal = syscall.SIGHUP }

func TestKeeper(t *testing.T) {
	t.Parallel()
	in(t, "starts when all are there", nil, func(w *world) {
		w.put("a", "1")
		w.wants()
		w.put("b", "1")
		w.wants("0s start A=1 B=1")
		w.put("a", "1")
		w.wants()
	})
	in(t, "gives up waiting", func(o *keeper.Options) { o.Wait = time.Minute }, func(w *world) {
		w.put("a", "1")
		w.ended(1, "the command was not started: nothing was delivered of b within 1m0s")
		if err := w.k.Changed(w.t.Context(), []agent.Left{{Config: "a"}}); err != nil {
			w.t.Errorf("an order after the end: %v", err)
		}
	})
	in(t, "gives up on what cannot be used", func(o *keeper.Options) { o.Wait = time.Minute }, func(w *world) {
		w.put("a", "1")
		w.put("b", "bad")
		w.ended(1, "the command was not started within 1m0s: b is no environment")
	})
	in(t, "does not give up once it has started", func(o *keeper.Options) { o.Wait = time.Minute }, func(w *world) {
		w.up()
		time.Sleep(time.Hour)
		w.wants()
	})
	in(t, "restarts on a change, and never beside the old one", nil, func(w *world) {
		w.deaf = true
		w.up()
		w.put("a", "2")
		time.Sleep(time.Minute)
		w.wants("5s stop by terminated", "15s start A=2 B=1")
	})
	in(t, "looks at nothing that is under way", nil, func(w *world) {
		w.up()
		w.busy = true
		w.put("a", "2")
		w.wants()
	})
	in(t, "tells by a signal, but not of its environment", signalled, func(w *world) {
		w.up()
		w.put("a", "2")
		time.Sleep(time.Minute)
		w.put("b", "2")
		w.wants("5s signal hangup", "1m5s stop by terminated", "1m5s start A=2 B=2")
	})
	in(t, "signals nobody who has just started", signalled, func(w *world) {
		w.put("b", "1")
		w.put("a", "1")
		time.Sleep(1200 * time.Millisecond)
		w.put("b", "2")
		w.put("a", "2")
		time.Sleep(time.Minute)
		w.wants("0s start A=1 B=1", "1.2s stop by terminated", "1.2s start A=1 B=2", "2.2s signal hangup")
	})
	in(t, "an order that the command takes", nil, func(w *world) {
		w.up()
		if err := w.fence("a", "2"); err != nil || time.Since(w.begun) != 6*time.Second {
			w.t.Errorf("%v after %s", err, time.Since(w.begun))
		}
		time.Sleep(time.Minute)
		w.wants("5s stop by terminated", "5s start A=2 B=1")
	})
	in(t, "an order that ends it is taken back", nil, func(w *world) {
		w.up()
		if err := w.fence("a", "deadly"); fmt.Sprint(err) != "the command ended with status 3 within 1s of its start" {
			w.t.Error(err)
		}
		time.Sleep(time.Minute)
		w.wants("5s stop by terminated", "5s start A=deadly B=1", "5s start A=1 B=1")
	})
	in(t, "an order that ends it, where it is not started again by itself", func(o *keeper.Options) { o.Restarts = 0 }, func(w *world) {
		w.up()
		if w.fence("a", "deadly") == nil {
			w.t.Error("it counts as taken")
		}
		w.wants("5s stop by terminated", "5s start A=deadly B=1", "5s start A=1 B=1")
	})
	in(t, "an order with which it cannot start", nil, func(w *world) {
		w.up()
		if err := w.fence("a", "unstartable"); fmt.Sprint(err) != "no such program" {
			w.t.Error(err)
		}
		w.wants("5s stop by terminated", "5s start A=unstartable B=1", "5s start A=1 B=1")
	})
	in(t, "a signal that ends it", signalled, func(w *world) {
		w.up()
		w.dies = true
		if err := w.fence("a", "2"); fmt.Sprint(err) != "the command was ended by signal 1 (hangup) within 1s of signal 1" {
			w.t.Error(err)
		}
		w.wants("5s signal hangup", "5s start A=1 B=1")
	})
	in(t, "an environment that cannot be read changes nothing", nil, func(w *world) {
		w.up()
		if err := w.fence("b", "bad"); fmt.Sprint(err) != "b is no environment" {
			w.t.Error(err)
		}
		w.put("b", "bad, by somebody else")
		time.Sleep(time.Minute)
		w.wants()
	})
	in(t, "the first order ends it", func(o *keeper.Options) { o.Wait = time.Minute }, func(w *world) {
		w.put("b", "1")
		if w.fence("a", "deadly") == nil {
			w.t.Error("it counts as taken")
		}
		w.wants("0s start A=deadly B=1")
		time.Sleep(30 * time.Second)
		w.wants()
		w.put("a", "2")
		time.Sleep(time.Hour)
		w.wants("30s start A=2 B=1")
	})
	in(t, "a file that was put back after somebody changed it", nil, func(w *world) {
		w.up()
		w.restore["a"] = 1
		w.k.Poke()
		synctest.Wait()
		w.wants("5s stop by terminated", "5s start A=1 B=1")
		// By its own agent the fence told it, and it is not told twice.
		time.Sleep(time.Minute)
		w.restore["a"] = 2
		if err := w.fence("a", "1"); err != nil {
			w.t.Error(err)
		}
		time.Sleep(time.Minute)
		w.wants("1m5s stop by terminated", "1m5s start A=1 B=1")
	})
	in(t, "a file that is taken away leaves it running", nil, func(w *world) {
		w.up()
		delete(w.files, "a")
		w.k.Poke()
		if err := w.k.Changed(w.t.Context(), []agent.Left{{Config: "a"}}); err != nil {
			w.t.Error(err)
		}
		time.Sleep(time.Minute)
		w.wants()
	})
	in(t, "a crash loop has a bound", nil, func(w *world) {
		w.up()
		for range 3 {
			w.end(4)
			time.Sleep(20 * time.Second)
		}
		if w.count() != 3 {
			w.t.Errorf("started %d times again", w.count())
		}
		w.end(4)
		w.ended(4, "<nil>")
	})
	in(t, "one that ran for long has not crashed in a row", nil, func(w *world) {
		w.up()
		for range 20 {
			time.Sleep(2 * time.Minute)
			w.end(4)
		}
		if w.count() < 19 {
			w.t.Errorf("started %d times again", w.count())
		}
	})
	in(t, "a change ends the pause after a crash", nil, func(w *world) {
		w.up()
		w.end(4)
		w.put("a", "2")
		w.wants("5s start A=2 B=1")
	})
	in(t, "one that ends well is done", nil, func(w *world) {
		w.up()
		w.end(0)
		w.ended(0, "<nil>")
	})
	in(t, "one that ends well has taken its order", nil, func(w *world) {
		w.put("b", "1")
		answer := make(chan error, 1)
		go func() { answer <- w.k.Changed(w.t.Context(), []agent.Left{{Config: "a", Exists: true, SHA256: "1"}}) }()
		synctest.Wait()
		w.end(0)
		if err := <-answer; err != nil {
			w.t.Error(err)
		}
		w.ended(0, "<nil>")
	})
	in(t, "once", func(o *keeper.Options) { o.Once = true }, func(w *world) {
		w.up()
		if err := w.fence("a", "2"); err != nil {
			w.t.Error(err)
		}
		w.put("b", "2")
		w.end(4)
		w.ended(4, "<nil>")
		w.wants()
	})
	in(t, "signals are passed on, and dropped where nobody runs", nil, func(w *world) {
		w.k.Forward(syscall.SIGUSR1)
		synctest.Wait()
		w.up()
		w.k.Forward(syscall.SIGUSR2)
		synctest.Wait()
		w.wants("5s signal user defined signal 2")
	})
	in(t, "it ends with its keeper", func(o *keeper.Options) {
		o.StopSignal = func(context.Context) syscall.Signal { return syscall.SIGINT }
	}, func(w *world) {
		w.up()
		w.stop()
		w.ended(130, "<nil>")
		w.wants("5s stop by interrupt")
	})
	in(t, "it ends by its own signal", func(o *keeper.Options) { o.KillSignal = syscall.SIGQUIT }, func(w *world) {
		w.up()
		w.stop()
		w.ended(131, "<nil>")
	})
	in(t, "an order under way when the keeper ends has no answer of its own", nil, func(w *world) {
		w.up()
		answer := make(chan error, 1)
		go func() {
			answer <- w.k.Changed(context.Background(), []agent.Left{{Config: "a", Exists: true, SHA256: "2"}})
		}()
		synctest.Wait()
		w.stop()
		if err := <-answer; !errors.Is(err, context.Canceled) {
			w.t.Errorf("%v", err)
		}
	})
}
