package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/schema"
	"github.com/aim-control/aimlock/policies"
)

// Bounds of asking evidence plugins.
const (
	// askFor is what somebody who looks at one lock waits for answers.
	askFor = 5 * time.Second
	// anewFor is what somebody waits who is about to break one.
	anewFor = 30 * time.Second
	// An answer counts for staleAfter intervals; from one interval on it is asked again.
	staleAfter = 3
	// maxAnswers are kept of one plugin, and maxAsked are asked for at once: the
	// others have their turn when they are judged again.
	maxAnswers = 20_000
	maxAsked   = 256
)

// answers are those of one evidence plugin, by the key of the lock.
type answers struct {
	mu    sync.Mutex
	of    map[string]*answer
	asked int
}

// answer is what a plugin said of one hold.
type answer struct {
	hold string
	// at is when it was had; zero: never.
	at    time.Time
	facts []plugin.Fact
	err   error
	// asking is set while it is asked for, and closed then.
	asking chan struct{}
}

func holdOf(l *plugin.Lock) string { return fmt.Sprintf("%s@%d-%d", l.Session, l.Epoch, l.Token) }

// Ask asks evidence plugins about a hold and waits for their answers, a few seconds at
// most. What they say is told by Facts. It may be called from several goroutines.
func (h *Host) Ask(ctx context.Context, l *plugin.Lock, want map[string][]string) {
	timer := time.NewTimer(askFor)
	defer timer.Stop()
	var waits []chan struct{}
	for name := range want {
		if p, err := h.Plugin(name); err == nil {
			if c := p.refresh(l, p.spec.Interval); c != nil {
				waits = append(waits, c)
			}
		}
	}
	for _, c := range waits {
		select {
		case <-c:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// AskAnew asks evidence plugins about a hold, whatever they have said before, and waits
// for the answers, half a minute at most. It returns when it began: by that Facts tells
// answers to this question from older ones. It may be called from several goroutines.
func (h *Host) AskAnew(ctx context.Context, l *plugin.Lock, want map[string][]string) (since time.Time) {
	since = time.Now()
	ctx, cancel := context.WithTimeout(ctx, anewFor)
	defer cancel()
	var wg sync.WaitGroup
	for name := range want {
		p, err := h.Plugin(name)
		if err != nil {
			continue
		}
		wg.Go(func() {
			// The first wait may be for the answer to a question of before.
			for range 2 {
				c := p.refreshSince(l, since)
				if c == nil {
					return
				}
				select {
				case <-c:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Wait()
	return since
}

// Facts are what evidence plugins said of a hold: the facts of each under the object
// "plugin.NAME". It does not wait: what is old or was never asked for is asked for
// meanwhile, and what is not known is unknown. An answer to a question from before since
// counts for nothing.
func (h *Host) Facts(l *plugin.Lock, want map[string][]string, since, now time.Time) policies.Facts {
	out := make(policies.Facts, len(want))
	for name, facts := range want {
		p, err := h.Plugin(name)
		if err == nil {
			p.refresh(l, p.spec.Interval)
			out["plugin."+name] = p.factsOf(l, facts, since, now)
			continue
		}
		object := make(map[string]policies.Fact, len(facts))
		for _, f := range facts {
			object[f] = policies.UnknownFact(cty.DynamicPseudoType, "plugin "+name, now, text.Printable(err.Error()))
		}
		out["plugin."+name] = object
	}
	return out
}

// refresh asks in the background for an answer that is older than a while. It returns
// what is closed when the answer is there; nil: there is nothing to wait for.
func (p *Plugin) refresh(l *plugin.Lock, old time.Duration) chan struct{} {
	return p.refreshSince(l, p.now().Add(-old).Add(1))
}

// refreshSince is refresh for an answer to a question from before since.
func (p *Plugin) refreshSince(l *plugin.Lock, since time.Time) chan struct{} {
	a := &p.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.of[l.Key]
	if e == nil || e.hold != holdOf(l) {
		if e != nil && e.asking != nil {
			// That one is about an earlier hold: its answer goes nowhere.
			delete(a.of, l.Key)
		}
		e = &answer{hold: holdOf(l)}
		a.keep(l.Key, e, p.now())
	}
	switch {
	case e.asking != nil:
		return e.asking
	case !e.at.IsZero() && !e.at.Before(since), a.asked >= maxAsked:
		return nil
	}
	done := make(chan struct{})
	e.asking = done
	a.asked++
	lock := *l
	if !p.h.later(func() { p.observe(&lock, e) }) {
		e.asking = nil
		a.asked--
		return nil
	}
	return done
}

// hostname is that of the host that asks; empty where the kernel does not tell.
var hostname = sync.OnceValue(func() string { //nolint:gochecknoglobals // it is read once
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
})

// keep bounds the answers. a.mu is held.
func (a *answers) keep(key string, e *answer, now time.Time) {
	if a.of == nil {
		a.of = map[string]*answer{}
	}
	if len(a.of) >= maxAnswers {
		maps.DeleteFunc(a.of, func(_ string, e *answer) bool { return e.asking == nil && now.Sub(e.at) > time.Minute })
	}
	if len(a.of) < maxAnswers {
		a.of[key] = e
	}
}

func (p *Plugin) observe(l *plugin.Lock, e *answer) {
	ctx, cancel := context.WithCancel(p.h.life)
	defer cancel()
	i := instanceOf(p, plugin.KindEvidence, nil, (*plugin.Client).Evidence)
	begun := p.now()
	facts, err := use(ctx, i, "observe", true, func(ctx context.Context, v plugin.Evidence) ([]plugin.Fact, error) {
		return v.Observe(ctx, &plugin.ObserveRequest{Lock: *l, Host: hostname()})
	})
	p.answers.mu.Lock()
	defer p.answers.mu.Unlock()
	// What was seen, was seen since it was asked for; ages are counted from there.
	e.at, e.facts, e.err = begun, facts, err
	if err != nil {
		e.at = p.now()
	}
	p.answers.asked--
	close(e.asking)
	e.asking = nil
}

// factsOf makes facts of what is known of a hold.
func (p *Plugin) factsOf(l *plugin.Lock, want []string, since, now time.Time) map[string]policies.Fact {
	p.mu.Lock()
	info := p.info
	p.mu.Unlock()
	var defs []plugin.FactDef
	if info != nil {
		if ki := info.Kind(plugin.KindEvidence); ki != nil {
			defs = ki.Facts
		}
	}
	p.answers.mu.Lock()
	var e answer
	if kept := p.answers.of[l.Key]; kept != nil && kept.hold == holdOf(l) {
		e = *kept
	}
	p.answers.mu.Unlock()
	source := "plugin " + p.spec.Name
	why := ""
	switch age := p.now().Sub(e.at); {
	case e.err != nil:
		why = text.Clip(text.Printable(e.err.Error()), maxWhy)
	case e.at.IsZero():
		why = "plugin " + p.spec.Name + " has not answered yet"
	case e.at.Before(since):
		why = "plugin " + p.spec.Name + " has not answered again yet"
	case age > staleAfter*p.spec.Interval+p.spec.Timeout:
		why = fmt.Sprintf("the last answer of plugin %s is %s old", p.spec.Name, age.Round(time.Second))
	}
	out := make(map[string]policies.Fact, len(want))
	for _, name := range want {
		typ := cty.DynamicPseudoType
		i := slices.IndexFunc(defs, func(d plugin.FactDef) bool { return d.Name == name })
		if i >= 0 {
			if t, err := schema.CtyType(defs[i].Type); err == nil {
				typ = t
			}
		}
		switch {
		case why != "":
			out[name] = policies.UnknownFact(typ, source, now, why)
		case i < 0:
			out[name] = policies.UnknownFact(typ, source, now, fmt.Sprintf("plugin %s declares no fact %q; it has %s", p.spec.Name, name, factNames(defs)))
		default:
			out[name] = fact(&defs[i], e.facts, typ, source, now, now.Add(-p.now().Sub(e.at)))
		}
	}
	return out
}

// maxWhy bounds why a fact is unknown.
const maxWhy = 300

func factNames(defs []plugin.FactDef) string {
	var names []string
	for _, d := range defs {
		names = append(names, d.Name)
	}
	return strings.Join(names, ", ")
}

// fact is one of an answer that was had at a moment.
func fact(def *plugin.FactDef, facts []plugin.Fact, typ cty.Type, source string, now, at time.Time) policies.Fact {
	i := slices.IndexFunc(facts, func(f plugin.Fact) bool { return f.Name == def.Name })
	if i < 0 {
		return policies.UnknownFact(typ, source, now, "the plugin left it out")
	}
	f := facts[i]
	if f.Unknown {
		return policies.UnknownFact(typ, source, at, text.Clip(text.Printable(f.Why), maxWhy))
	}
	if f.Age > 0 {
		at = at.Add(-f.Age)
	}
	if f.Value == nil {
		return policies.Known(cty.NullVal(typ), source, at)
	}
	v, err := schema.ToCty(f.Value, def.Type)
	if err != nil {
		return policies.UnknownFact(typ, source, at, text.Clip(text.Printable(err.Error()), maxWhy))
	}
	return policies.Known(printable(v), source, at)
}

// printable cleans the texts of a value: they are shown to people.
func printable(v cty.Value) cty.Value {
	clean, err := cty.Transform(v, func(_ cty.Path, p cty.Value) (cty.Value, error) {
		if p.Type() == cty.String && p.IsKnown() && !p.IsNull() {
			return cty.StringVal(text.Printable(p.AsString())), nil
		}
		return p, nil
	})
	if err != nil {
		return v
	}
	return clean
}

// Declared are the facts that plugins declare, as a policy knows them, by plugin.
// What is wrong with one is told in its place; a plugin that is not there is neither.
func (h *Host) Declared(ctx context.Context, names []string) (map[string]map[string]policies.FactDef, map[string]error) {
	declared, errs := map[string]map[string]policies.FactDef{}, map[string]error{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, name := range names {
		p, err := h.Plugin(name)
		if err != nil {
			errs[name] = err
			continue
		}
		wg.Go(func() {
			facts, err := p.declared(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs[name] = err
				return
			}
			declared[name] = facts
		})
	}
	wg.Wait()
	return declared, errs
}

func (p *Plugin) declared(ctx context.Context) (map[string]policies.FactDef, error) {
	info, err := p.Info(ctx)
	if err != nil {
		return nil, err
	}
	ki := info.Kind(plugin.KindEvidence)
	if ki == nil {
		return nil, p.fail("", fmt.Errorf("it is no evidence, it is %s", kinds(info)))
	}
	out := map[string]policies.FactDef{}
	var all []error
	for _, d := range ki.Facts {
		t, err := schema.CtyType(d.Type)
		all = append(all, err)
		out[d.Name] = policies.FactDef{Type: t, Doc: text.Printable(d.Doc)}
	}
	return out, errors.Join(all...)
}
