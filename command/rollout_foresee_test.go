package command

import (
	"slices"
	"testing"
)

func TestAgentWords(t *testing.T) {
	t.Parallel()
	many := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"}
	for _, tc := range []struct {
		down, absent []string
		nodes        int
		want         []string
	}{
		{nodes: 3},
		{down: many[:1], nodes: 100, want: []string{"the agent of a is down now. It ends as unreachable, and gets its order when it returns"}},
		{absent: many[:1], nodes: 1, want: []string{"no agent of the name a is registered: is that what the agent there has as -node? It ends as unreachable, and gets its order when it returns; that is more than max_unreachable_percent = 2 tolerates"}},
		{absent: many[:2], down: many, nodes: 1000, want: []string{
			"no agents of the names a b are registered: is that what the agents there have as -node?",
			"the agents of a b c d e f g h i j k l and 2 more are down now. They end as unreachable, and get their order when they return",
		}},
	} {
		if got := agentWords(tc.down, tc.absent, tc.nodes, 2); !slices.Equal(got, tc.want) {
			t.Errorf("%q", got)
		}
	}
}
