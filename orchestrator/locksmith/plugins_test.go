package locksmith

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/policies"
)

// pager is an evidence plugin that keeps its answer for a while, as the host of
// plugins does. It says dead so many times, and then that the machine is back.
type pager struct {
	dead int
	slow time.Duration

	at    time.Time
	said  bool
	asked int
}

func (p *pager) answer(at time.Time) {
	p.asked++
	time.Sleep(p.slow)
	p.at, p.said = at, p.asked <= p.dead
}

func (p *pager) Ask(context.Context, *plugin.Lock, map[string][]string) {
	if p.at.IsZero() || time.Since(p.at) > 10*time.Second {
		p.answer(time.Now())
	}
}

func (p *pager) AskAnew(context.Context, *plugin.Lock, map[string][]string) time.Time {
	since := time.Now()
	p.answer(since)
	return since
}

func (p *pager) Facts(_ *plugin.Lock, _ map[string][]string, since, now time.Time) policies.Facts {
	f := policies.Known(cty.BoolVal(p.said), "plugin pager", p.at)
	if p.at.Before(since) {
		f = policies.UnknownFact(cty.Bool, "plugin pager", now, "it has not answered again yet")
	}
	return policies.Facts{"plugin.pager": {"dead": f}}
}

func (p *pager) Break(context.Context, string, json.RawMessage, *plugin.BreakRequest) (string, error) {
	return "", errors.ErrUnsupported
}

// What a plugin said once is one observation, however often a break looks: each of
// those that confirm, the one before a step that destroys and the last one ask again.
func TestOneAnswerOfAPluginIsOneObservation(t *testing.T) {
	t.Parallel()
	for end, all := range map[string]int{"take": 4, "destroy_session": 4} {
		for dead := 1; dead <= all; dead++ {
			run(t, func(t *testing.T, w *world) {
				p := &pager{dead: dead, slow: 6 * time.Second}
				c := w.client(withPolicy(t, strings.NewReplacer("session.exists", "plugin.pager.dead", `approval = "auto"`, `
					approval = "auto"
					confirm {
						observations = 3
						every        = "1s"
					}
					step "`+end+`" {}`).Replace(alwaysHot)), func(c *Config) { c.Plugins = p })
				w.acquire(w.client(asElsewhere), one("a"))
				_, err := c.Break(t.Context(), BreakRequest{Name: "a"})
				if broken := err == nil; broken != (dead == all) {
					t.Errorf("%s: it said dead %d times, was asked %d times: %v", end, dead, p.asked, err)
				}
			})
		}
	}
}
