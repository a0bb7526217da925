package guard

import (
	"context"
	"strings"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// rights returns an error that names the rule which is missing if the token may
// not read aimlock's own keys that the policies are about: what Consul hides
// looks as if it were not there, and a guard that sees no lock has nothing to
// say. Keys of other tools may be hidden in part. Other errors are for whoever
// reads the locks next.
func (g *Guard) rights(ctx context.Context) error {
	folders := append(g.keys.Beside(), g.keys.Policies())
	for _, root := range Roots(g.client.Policies(), g.keys) {
		if strings.HasPrefix(root, g.keys.Locks()) {
			folders = append(folders, root)
		}
	}
	for _, f := range folders {
		if _, err := g.consul.Keys(ctx, f, "/"); consulkv.KindOf(err) == consulkv.Denied {
			return err
		}
	}
	return nil
}
