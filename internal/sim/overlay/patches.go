package main

// patch is one change of a file of the runtime: a piece of text that stands there
// once, and what it is replaced by.
type patch struct{ file, why, old, new string }

// A bubble has a baton: only the goroutine that has it is in a run queue of the
// machine's scheduler, or runs. Others that become ready wait in the bubble until
// whoever has it blocks or ends. A goroutine that the runtime itself suspends, for the
// garbage collector or for its slice of time, keeps it: how often that happens is up
// to the machine.
var patches = []patch{
	{"synctest.go", "the baton", `	total   int // total goroutines
`, `	baton      guintptr // the goroutine that may run; 0: none is ready
	head, tail guintptr // those that are ready and wait for it
	queued     uint32
	draws      uint64
	timed      uint64 // goroutines that timers started

	total   int // total goroutines
`},
	{"synctest.go", "the baton", "var bubbleGen atomic.Uint64 // bubble ID counter\n", `var bubbleGen atomic.Uint64 // bubble ID counter

// draw is the next number that the bubble's time and the draws before it decide.
//
//go:nosplit
func (bubble *synctestBubble) draw() uint64 {
	bubble.draws++
	return fateMix(uint64(bubble.now) + bubble.draws*0x9e3779b97f4a7c15)
}

// fateMix is the finalizer of splitmix64.
//
//go:nosplit
func fateMix(z uint64) uint64 {
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// child names a goroutine that gp starts, the same in every run: by who started it,
// and as which of its own.
//
//go:nosplit
func (bubble *synctestBubble) child(gp *g) uint64 {
	if gp == gp.m.g0 {
		bubble.timed++
		return fateMix(bubble.timed * 0xbf58476d1ce4e5b9)
	}
	gp.fateBorn++
	return fateMix(gp.fate + gp.fateBorn*0x9e3779b97f4a7c15)
}

// await has gp, which is ready, wait for the baton. It reports whether gp must wait;
// if not, gp has it now.
func (bubble *synctestBubble) await(gp *g) bool {
	lock(&bubble.mu)
	if bubble.baton == 0 || bubble.baton.ptr() == gp {
		bubble.baton.set(gp)
		unlock(&bubble.mu)
		return false
	}
	gp.schedlink = 0
	if tail := bubble.tail.ptr(); tail != nil {
		tail.schedlink.set(gp)
	} else {
		bubble.head.set(gp)
	}
	bubble.tail.set(gp)
	bubble.queued++
	unlock(&bubble.mu)
	return true
}

// pass gives the baton on, if gp has it.
func (bubble *synctestBubble) pass(gp *g) {
	lock(&bubble.mu)
	if bubble.baton.ptr() != gp {
		unlock(&bubble.mu)
		return
	}
	// In which order they became ready may rest on the machine: whoever closes the
	// channels of a map does it in the order of their addresses.
	var prev *g
	next := bubble.head.ptr()
	if bubble.queued > 1 {
		lot := bubble.draw()
		before, least := next, fateMix(next.fate^lot)
		for gp := next.schedlink.ptr(); gp != nil; before, gp = gp, gp.schedlink.ptr() {
			if r := fateMix(gp.fate ^ lot); r < least {
				prev, next, least = before, gp, r
			}
		}
	}
	bubble.baton.set(next)
	if next == nil {
		unlock(&bubble.mu)
		return
	}
	if prev == nil {
		bubble.head = next.schedlink
	} else {
		prev.schedlink = next.schedlink
	}
	if bubble.tail.ptr() == next {
		bubble.tail.set(prev)
	}
	bubble.queued--
	next.schedlink = 0
	unlock(&bubble.mu)
	runqput(getg().m.p.ptr(), next, true)
}
`},
	{"synctest.go", "the first goroutine of a bubble", `	bubble.now = synctestBaseTime
`, `	bubble.now = synctestBaseTime
	bubble.baton.set(gp)
	gp.fate, gp.fateBorn = 0, 0
`},
	{"synctest.go", "the first goroutine of a bubble", `		runqput(pp, bubble.main, true)
		wakep()
`, `		if !bubble.await(bubble.main) {
			runqput(pp, bubble.main, true)
		}
		wakep()
`},
	{"runtime2.go", "the names of goroutines", `	bubble  *synctestBubble

`, `	bubble  *synctestBubble

	fate, fateBorn uint64 // its name in the bubble, and how many it started

`},
	{"proc.go", "the names of goroutines", `		newg.bubble = callergp.bubble
`, `		newg.bubble = callergp.bubble
		if newg.bubble != nil {
			newg.fate, newg.fateBorn = newg.bubble.child(callergp), 0
		}
`},
	// Of a context's children more than eight are in the order of their addresses.
	{"../context/context.go", "who is cancelled first", `	children map[canceler]struct{} // set to nil by the first cancel call
`, `	children map[canceler]uint64   // set to nil by the first cancel call
	born     uint64
`},
	{"../context/context.go", "who is cancelled first", `				p.children = make(map[canceler]struct{})
			}
			p.children[child] = struct{}{}
`, `				p.children = make(map[canceler]uint64)
			}
			p.born++
			p.children[child] = p.born
`},
	{"../context/context.go", "who is cancelled first", `	for child := range c.children {
		// NOTE`, `	for range len(c.children) {
		var child canceler
		for o, n := range c.children {
			if child == nil || n < c.children[child] {
				child = o
			}
		}
		delete(c.children, child)
		// NOTE`},
	{"proc.go", "goroutines that become ready", `	runqput(mp.p.ptr(), gp, next)
	wakep()
	releasem(mp)
`, `	if bubble := gp.bubble; bubble == nil || gp.waitreason == waitReasonPreempted || !bubble.await(gp) {
		runqput(mp.p.ptr(), gp, next)
		wakep()
	}
	releasem(mp)
`},
	{"proc.go", "new goroutines", `		runqput(pp, newg, true)

		if mainStarted {
			wakep()
		}
`, `		if newg.bubble != nil && newg.bubble.await(newg) {
			return
		}
		runqput(pp, newg, true)

		if mainStarted {
			wakep()
		}
`},
	{"proc.go", "goroutines that block", `	if bubble != nil {
		bubble.decActive()
	}

	schedule()
`, `	if bubble != nil {
		// First, as who waits in synctest.Wait for the others may be awake at once, and
		// the baton is its own then.
		if gp.waitreason != waitReasonGCAssistWait && gp.waitreason != waitReasonGCWeakToStrongWait {
			bubble.pass(gp)
		}
		bubble.decActive()
	}

	schedule()
`},
	{"proc.go", "goroutines that yield", `	dropg()
	if preempted && sched.gcwaiting.Load() {
`, `	dropg()
	if bubble := gp.bubble; bubble != nil && !preempted && bubble.await(gp) {
		bubble.pass(gp)
	} else if preempted && sched.gcwaiting.Load() {
`},
	{"proc.go", "goroutines that yield", `	dropg()
	runqput(pp, gp, false)
	schedule()
`, `	dropg()
	if bubble := gp.bubble; bubble != nil && bubble.await(gp) {
		bubble.pass(gp)
	} else {
		runqput(pp, gp, false)
	}
	schedule()
`},
	{"proc.go", "goroutines that end", `	gp.bubble = nil
	gp.fipsOnlyBypass = false
`, `	if bubble := gp.bubble; bubble != nil {
		bubble.pass(gp)
	}
	gp.bubble = nil
	gp.fipsOnlyBypass = false
`},
	{"mgcmark.go", "goroutines that help the collector", `			Gosched()
			goto retry
`, `			mcall(gopreempt_m)
			goto retry
`},
	{"coro.go", "coroutines", `	if exit {
		// The M might have a non-zero`, `	if exit {
		if bubble != nil {
			bubble.baton = 0 // it goes to the other one of the pair
		}
		// The M might have a non-zero`},
	{"coro.go", "coroutines", `	// Start running next, without heavy scheduling machinery.
`, `	if bubble != nil {
		bubble.baton.set(gnext)
	}

	// Start running next, without heavy scheduling machinery.
`},
	{"synctest.go", "others in a bubble", `	gp.bubble = bubble.(*synctestBubble)
	defer func() {
`, `	gp.bubble = bubble.(*synctestBubble)
	defer func() {
		systemstack(func() { gp.bubble.pass(gp) })
`},
	{"select.go", "select", "		j := cheaprandn(uint32(norder + 1))\n", `		var j uint32
		if bubble := getg().bubble; bubble != nil {
			j = uint32(bubble.draw() % uint64(norder+1))
		} else {
			j = cheaprandn(uint32(norder + 1))
		}
`},
	// A timer draws its place among those of its moment when somebody waits for it, and
	// the channels of a select are locked in the order of their addresses.
	{"select.go", "timers of one moment", `		if c.timer != nil {
			blockTimerChan(c)
		}
	}
`, `	}
	for _, casei := range pollorder {
		if c := scases[casei].c; c.timer != nil {
			blockTimerChan(c)
		}
	}
`},
	{"time.go", "timers of one moment", "			t.rand = cheaprand()\n", "			t.rand = uint32(getg().bubble.draw())\n"},
	// What is made once in a process, such as a cache, makes its maps in the first
	// bubble that needs it: so no map counts as a draw.
	{"rand.go", "the order of maps", `func maps_rand() uint64 {
`, `func maps_rand() uint64 {
	if bubble := getg().bubble; bubble != nil {
		return uint64(bubble.now) * 0x9e3779b97f4a7c15
	}
`},
	{"alg.go", "the order of maps", "		hashkey[i] = uintptr(bootstrapRand())\n", "		hashkey[i] = uintptr(i) + 0x9e3779b9\n"},
	{"alg.go", "the order of maps", "		key[i] = bootstrapRand()\n", "		key[i] = uint64(i+1) * 0x9e3779b97f4a7c15\n"},
	{"sema.go", "when a mutex is fair", `func internal_sync_nanotime() int64 {
`, `func internal_sync_nanotime() int64 {
	if bubble := getg().bubble; bubble != nil {
		return bubble.now
	}
`},
}
