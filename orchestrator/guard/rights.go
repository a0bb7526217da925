package guard

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// rights returns an error that names the rule which is missing if the token may
// not read aimlock's own keys that the policies are about: what Consul hides
// looks as if it were not there, and a guard that sees no lock has nothing to
// say. Keys of other tools may be hidden in part.
func (g *Guard) rights(ctx context.Context) error {
	folders := append(g.keys.Beside(), g.keys.Policies())
	for _, root := range Roots(g.client.Policies(), g.keys) {
		if strings.HasPrefix(root, g.keys.Locks()) {
			folders = append(folders, root)
		}
	}
	for _, f := range folders {
		if _, err := g.consul.Keys(ctx, f, "/"); err != nil {
			return err
		}
	}
	return nil
}

// followRights tells of rights that are missing, once Consul can be asked.
func (g *Guard) followRights(ctx context.Context) {
	for {
		err := g.rights(ctx)
		if consulkv.KindOf(err) == consulkv.Denied {
			g.trouble("rights", err)
		}
		if e, ok := errors.AsType[*consulkv.Error](err); !ok || !e.Temporary() || !pause(ctx, rightsEvery) {
			return
		}
	}
}

// rightsEvery is the pause between tries to ask what the token may read.
const rightsEvery = 10 * time.Second
